#!/usr/bin/env python3
"""Make tests/data/kjv.inc: a few lines that were not trained on, and what the portable backend writes.

usage: golden.py DRLLM MODEL.gguf WORK/valid.txt >tests/data/kjv.inc
"""
import json
import subprocess
import sys

N_LINES = 5  # more than the 128 tokens that the tests score
PROMPTS = {"greedy": "And God said", "sampled": "And it came to pass"}
N_TOKENS = 32


def quote(text):
    return json.dumps(text, ensure_ascii=True)


def print_ids(name, ids):
    rows = [", ".join(map(str, ids[i : i + 16])) for i in range(0, len(ids), 16)]
    print(f"static const int32_t {name}[] = {{\n    " + ",\n    ".join(rows) + ",\n};")


def main():
    drllm, model, valid = sys.argv[1:]
    with open(valid, encoding="utf-8") as file:
        lines = file.read().splitlines()[:N_LINES]
    run = [drllm, "run", "-m", model, "--raw", "--json", "-q", "-t", "1", "--cpu-mask", "none", "--ignore-eos", "-n", str(N_TOKENS)]
    print("/* Made by examples/firmware/tiny/golden.py: Genesis 20 in the King James Version, which is in the public domain and")
    print(" * was not trained on; and what the portable backend writes, temperature 0 and 0.8. */")
    print("static const char kjv_text[] =\n    " + "\n    ".join(quote(line + "\n") for line in lines) + ";")
    print(f"static const char kjv_first_line[] = {quote(lines[0])};")
    ids = subprocess.run([drllm, "tokenize", "-m", model, "--bos", "-p", lines[0]], check=True, capture_output=True, text=True).stdout
    print_ids("kjv_first_line_ids", [int(word) for word in ids.split()])
    print(f"enum {{ KJV_N_GREEDY = {N_TOKENS}, KJV_N_SAMPLED = {N_TOKENS} }};")
    for name, prompt in PROMPTS.items():
        temperature = ["--temp", "0" if name == "greedy" else "0.8"]
        result = json.loads(subprocess.run(run + ["-p", prompt] + temperature, check=True, capture_output=True, text=True).stdout)
        print(f"/* {json.dumps(result['text'])[1:-1]} */".replace("\\\"", "\""))
        print(f"static const char kjv_{name}_prompt[] = {quote(prompt)};")
        print_ids(f"kjv_{name}_ids", result["tokens"])


if __name__ == "__main__":
    main()
