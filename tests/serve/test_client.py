"""`drllm serve` as OpenAI's own client sees it, beside what the program says on the command line."""

import json
import math
import subprocess
import threading

import openai

CAPITAL = "The capital of France is"
QUESTION = "What is the boiling point of water?"


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def drllm(setup, *arguments):
    done = subprocess.run([setup.program, *arguments], capture_output=True, check=True)
    return json.loads(done.stdout)


def run_raw(setup, prompt, n, *arguments):
    return drllm(setup, "run", "-m", setup.model, "-q", "--raw", "--json", "--temp", "0", "-t", "1", "-n", str(n),
                 "-p", prompt, *arguments)


def refused(kind, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError("it was not refused")


def models_are_listed(setup, server):
    client = client_of(server)
    ids = [model.id for model in client.models.list()]
    assert len(ids) == 1
    assert client.models.retrieve(ids[0]).owned_by == "drllm"
    assert refused(openai.NotFoundError, client.models.retrieve, "another").code == "model_not_found"


def completion_is_that_of_run(setup, server):
    expected = run_raw(setup, CAPITAL, 24)
    reply = client_of(server).completions.create(model="any", prompt=CAPITAL, max_tokens=24, temperature=0,
                                                 extra_body={"depth": "full"})
    assert reply.choices[0].text == expected["text"], reply
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.prompt_tokens == expected["n_prompt"] and reply.usage.completion_tokens == 24
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 24


def token_ids_are_a_prompt(setup, server):
    client = client_of(server)
    status, made, _ = server.request("POST", "/tokenize", {"prompt": CAPITAL})
    assert status == 200 and len(made["tokens"]) == made["count"] > 3
    texts = [client.completions.create(model="any", prompt=prompt, max_tokens=8, temperature=0).choices[0].text
             for prompt in (CAPITAL, made["tokens"], [made["tokens"]])]
    assert texts[0] == texts[1] == texts[2] != ""
    status, back, _ = server.request("POST", "/detokenize", {"tokens": made["tokens"]})
    assert status == 200 and back["prompt"] == CAPITAL


def several_prompts_are_answered_in_order(setup, server):
    client = client_of(server)
    prompts = [CAPITAL, "One, two, three,", "Water boils at"]
    alone = [client.completions.create(model="any", prompt=prompt, max_tokens=6, temperature=0).choices[0].text
             for prompt in prompts]
    together = client.completions.create(model="any", prompt=prompts, max_tokens=6, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == alone and len(set(alone)) == 3


def seed_repeats_and_differs(setup, server):
    def ask(seed):
        return client_of(server).completions.create(model="any", prompt="Once upon a time", max_tokens=16,
                                                    temperature=1, top_p=0.9, seed=seed).choices[0].text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in (7, 8, -9)}) == 3


def stop_strings_end_the_text(setup, server):
    client = client_of(server)
    whole = client.completions.create(model="any", prompt=CAPITAL, max_tokens=16, temperature=0).choices[0].text
    stop = whole[5:8]
    cut = client.completions.create(model="any", prompt=CAPITAL, max_tokens=16, temperature=0, stop=["@@", stop])
    assert cut.choices[0].text == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    alone = client.completions.create(model="any", prompt=CAPITAL, max_tokens=16, temperature=0, stop=stop)
    assert alone.choices[0].text == cut.choices[0].text


def streams_say_the_same(setup, server):
    client = client_of(server)
    asked = {"model": "any", "prompt": CAPITAL, "max_tokens": 20, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len(pieces) > 10
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert text == whole.choices[0].text
    probabilities = [p for piece in pieces if piece.choices and piece.choices[0].logprobs
                     for p in piece.choices[0].logprobs.token_logprobs]
    assert probabilities == whole.choices[0].logprobs.token_logprobs
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == whole.choices[0].finish_reason
    assert pieces[-1].usage.completion_tokens == 20 and not pieces[-1].choices
    assert len({piece.id for piece in pieces}) == 1


def log_probs_are_probabilities(setup, server):
    reply = client_of(server).completions.create(model="any", prompt=CAPITAL, max_tokens=6, temperature=0, logprobs=5,
                                                 echo=True)
    choice = reply.choices[0]
    n_prompt = reply.usage.prompt_tokens
    assert choice.text.startswith(CAPITAL)
    log = choice.logprobs
    assert len(log.tokens) == len(log.token_logprobs) == len(log.top_logprobs) == len(log.text_offset) == n_prompt + 6
    assert "".join(log.tokens) == choice.text
    assert log.token_logprobs[0] is None and log.top_logprobs[0] is None
    for offset, token in zip(log.text_offset, log.tokens):
        assert choice.text[offset:].startswith(token)
    for i in range(1, len(log.tokens)):
        top = log.top_logprobs[i]
        assert 5 <= len(top) <= 6 and top[log.tokens[i]] == log.token_logprobs[i] <= 0
        assert sum(math.exp(p) for p in top.values()) <= 1.000001
        if i >= n_prompt:  # the likeliest was taken
            assert max(top.values()) == log.token_logprobs[i]
    # The same numbers whether a token is read or written.
    again = client_of(server).completions.create(model="any", prompt=choice.text, max_tokens=0, temperature=0,
                                                 logprobs=5, echo=True).choices[0]
    assert again.text == choice.text
    for one, other in zip(log.token_logprobs[1:], again.logprobs.token_logprobs[1:]):
        assert abs(one - other) < 1e-4, (one, other)


def log_probs_are_those_of_score(setup, server):
    choice = " Paris, which is"
    scored = drllm(setup, "score", "-m", setup.model, "-t", "1", "--json", "-p", CAPITAL, "--choice", choice)
    wanted = scored["choices"][0]
    reply = client_of(server).completions.create(model="any", prompt=CAPITAL + choice, max_tokens=0, logprobs=0,
                                                 echo=True)
    log = reply.choices[0].logprobs
    got = sum(log.token_logprobs[-len(wanted["tokens"]):])
    assert abs(got - wanted["log_prob"]) < 1e-4, (got, wanted["log_prob"])
    assert log.top_logprobs[-1] is None


def chat_is_that_of_run(setup, server):
    expected = drllm(setup, "run", "-m", setup.model, "-q", "--json", "--temp", "0", "-t", "1", "-n", "40", "-p",
                     QUESTION, "--system", "Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    client = client_of(server)
    reply = client.chat.completions.create(model="any", messages=messages, max_tokens=40, temperature=0)
    assert reply.choices[0].message.content == expected["text"]
    assert reply.choices[0].message.role == "assistant"
    pieces = list(client.chat.completions.create(model="any", messages=messages, max_completion_tokens=40,
                                                 temperature=0, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected["text"]
    assert pieces[-1].choices[0].finish_reason == reply.choices[0].finish_reason
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
             messages[1]]
    assert client.chat.completions.create(model="any", messages=parts, max_tokens=40,
                                          temperature=0).choices[0].message.content == expected["text"]


def chat_log_probs(setup, server):
    reply = client_of(server).chat.completions.create(
        model="any", messages=[{"role": "user", "content": QUESTION}], max_tokens=5, temperature=0, logprobs=True,
        top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert len(content) == 5
    assert "".join(token.token for token in content) == reply.choices[0].message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)


def answers_end_by_themselves(setup, server):
    reply = client_of(server).chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Say hello."}], temperature=0, logprobs=True)
    choice = reply.choices[0]
    assert choice.finish_reason == "stop"
    # The end token counts, has a probability and no text.
    assert len(choice.logprobs.content) == reply.usage.completion_tokens
    assert "<|" in choice.logprobs.content[-1].token and "<|" not in choice.message.content


def depth_is_the_requests(setup, server):
    client = client_of(server)
    review = "Review: a warm and clever film that never loses its way\nSentiment:"

    def ask(**depth):
        reply = client.completions.create(model="any", prompt=review, max_tokens=4, temperature=0, extra_body=depth)
        own = reply.choices[0].model_extra["drllm"]
        return own["program"], own["layers_saved"], reply.choices[0].text

    arguments = ("-r", setup.routers)
    for depth, options in (({}, arguments), ({"depth": "routed"}, arguments),
                           ({"save_layers": 2}, (*arguments, "--save-layers", "2")),
                           ({"router_p": -0.6}, (*arguments, "--router-p", "-0.6")),
                           ({"depth": "full"}, ()), ({"program": "0-9,11-29"}, ("--program", "0-9,11-29")),
                           ({"depth": "static:0-14,15x2,16-28"}, ("--program", "0-14,15x2,16-28"))):
        expected = run_raw(setup, review, 4, *options)
        got = ask(**depth)
        assert got == (expected["routing"]["program"], expected["routing"]["layers_saved"], expected["text"]), depth
    assert ask()[1] > 0 and ask(depth="full")[1] == 0
    for wrong in ({"depth": "deep"}, {"program": "0-99"}, {"program": "0-9", "depth": "full"},
                  {"save_layers": 3, "depth": "full"}, {"save_layers": -1}, {"router_p": 2}, {"program": 7},
                  {"save_layers": 3, "router_p": 0}):
        error = refused(openai.BadRequestError, ask, **wrong)
        assert error.type == "invalid_request_error" and error.param in wrong, wrong


def beginning_of_the_context_is_kept(setup, server):
    client = client_of(server)
    start = "The following is a list of the planets of the solar system with a short text about each. "
    def ask(prompt):
        reply = client.completions.create(model="any", prompt=prompt, max_tokens=8, temperature=0,
                                          extra_body={"depth": "full"})
        return reply.choices[0].text, reply.usage.prompt_tokens_details.cached_tokens, reply.usage.prompt_tokens

    ask("Something else.")
    text, cached, _ = ask(start + "Mercury is")
    assert cached == 0
    _, cached, n = ask(start + "Venus is")
    assert n // 2 < cached < n
    again, cached, n = ask(start + "Mercury is")
    assert again == text and cached > n // 2


def full_queue_refuses(setup, server):
    # One runs, one waits (--queue 1).
    client = client_of(server)
    running = client.completions.create(model="any", prompt="A long story:", max_tokens=1500, temperature=1, seed=1,
                                        stream=True, extra_body={"ignore_eos": True})
    next(iter(running))
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(
        client.completions.create(model="any", prompt=CAPITAL, max_tokens=2, temperature=0)))
    thread.start()
    server.wait_for(waiting=1)
    error = refused(openai.RateLimitError, client.completions.create, model="any", prompt=CAPITAL, max_tokens=2)
    assert error.code == "queue_full" and error.response.headers["retry-after"] == "1"
    assert not waiting, "the one in front was done too early for this test"
    running.close()  # the client goes away in the middle
    thread.join()
    assert len(waiting) == 1 and waiting[0].choices[0].text
    server.wait_idle()


def errors_are_openais(setup, server):
    client = client_of(server)
    error = refused(openai.BadRequestError, client.completions.create, model="any", prompt="word " * 5000)
    assert error.code == "context_length_exceeded" and error.param == "prompt"
    for wrong in ({"n": 2}, {"best_of": 3}, {"presence_penalty": 1.0}, {"logit_bias": {"5": 1}}, {"suffix": "x"},
                  {"temperature": -1}, {"top_p": 0}, {"logprobs": 21}, {"max_tokens": -1}, {"stop": [""]}):
        error = refused(openai.BadRequestError, client.completions.create,
                        **{"model": "any", "prompt": CAPITAL, "max_tokens": 1, **wrong})
        assert error.type == "invalid_request_error", wrong
    for wrong in ({"tools": [{"type": "function", "function": {"name": "f"}}]},
                  {"response_format": {"type": "json_object"}}, {"top_logprobs": 2},
                  {"messages": [{"role": "tool", "content": "x"}]}, {"messages": []}):
        refused(openai.BadRequestError, client.chat.completions.create,
                **{"model": "any", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **wrong})


TESTS = (models_are_listed, completion_is_that_of_run, token_ids_are_a_prompt, several_prompts_are_answered_in_order,
         seed_repeats_and_differs, stop_strings_end_the_text, streams_say_the_same, log_probs_are_probabilities,
         log_probs_are_those_of_score, chat_is_that_of_run, chat_log_probs, answers_end_by_themselves,
         beginning_of_the_context_is_kept, full_queue_refuses, errors_are_openais)
ROUTED_TESTS = (depth_is_the_requests,)
