"""lm-eval's local-completions on `drllm serve`, beside `drllm score` on the same questions."""

import json
import os
import subprocess
import tempfile

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


def evaluate(server, name, questions, batch_size):
    """lm-eval's accuracy, and its (log-probability, is greedy) for every choice of every question."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import lm_eval
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = os.path.join(folder, "cache")
        file = os.path.join(folder, "questions.jsonl")
        with open(file, "w") as target:
            target.writelines(json.dumps(question) + "\n" for question in questions)
        with open(os.path.join(folder, "task.yaml"), "w") as target:
            target.write(TASK.format(name=name, file=file))
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={"base_url": server.url + "/v1/completions", "model": "drllm", "num_concurrent": 1},
            tasks=[name], task_manager=TaskManager(include_path=folder, include_defaults=False),
            batch_size=batch_size, log_samples=True, bootstrap_iters=0)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return results["results"][name]["acc,none"], [sample["filtered_resps"] for sample in samples]


def score(setup, questions):
    """The same by the program: accuracy by log-probability, log-probabilities."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run([setup.program, "score", "-m", setup.model, "-t", "1", "--normalize", "none", "-d", "-"],
                          input=lines.encode(), capture_output=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    right = sum(result["best"] == question["answer"] for result, question in zip(results, questions))
    return right / len(questions), [[choice["log_prob"] for choice in result["choices"]] for result in results]


def compare(setup, server, name, questions, batch_size):
    accuracy, responses = evaluate(server, name, questions, batch_size)
    expected_accuracy, expected = score(setup, questions)
    assert len(responses) == len(expected) == len(questions)
    worst = 0.0
    for response, log_probs in zip(responses, expected):
        assert len(response) == len(log_probs)
        worst = max([worst, *(abs(float(got) - wanted) for (got, _), wanted in zip(response, log_probs))])
    print(f"        {name}: {len(questions)} questions, accuracy {accuracy:.3f} by lm-eval, {expected_accuracy:.3f} by "
          f"drllm score; log-probabilities differ by {worst:.2g} at most")
    assert worst < 1e-4, worst
    assert abs(accuracy - expected_accuracy) < 1e-9


def read(path, n):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()][:n]


def our_questions(setup, server):
    questions = read(os.path.join(setup.root, "examples/data/demo.valid.jsonl"), 12)
    compare(setup, server, "drllm_demo", questions, 1)


def arc_questions(setup, server):
    path = os.path.join(setup.shared or "", "data/arc_easy.valid.jsonl")
    if not setup.shared or not os.path.exists(path):
        return "no ARC questions here (DRLLM_TEST_SHARED/data/arc_easy.valid.jsonl)"
    compare(setup, server, "drllm_arc_easy", read(path, 10), 4)
    return None


def generates_until(setup, server):
    """A task that generates, through the same client."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    model = get_model("local-completions")(base_url=server.url + "/v1/completions", model="drllm")
    request = Instance("generate_until", {}, ("One, two, three, four,", {"until": [", eight"], "max_gen_toks": 16}), 0)
    text = model.generate_until([request])[0]
    assert text.startswith(" five, six, seven") and "eight" not in text, text


TESTS = (our_questions, arc_questions, generates_until)
