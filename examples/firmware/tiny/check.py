#!/usr/bin/env python3
"""Check that drllm reads the exported model as it was trained: the same tokens for all of the text, and the same
perplexity in floats as PyTorch's.

usage: check.py DRLLM WORK/model.pt MODEL-F32.gguf WORK
"""
import json
import math
import os
import subprocess
import sys

import torch

import prepare
import train

N_CHUNKS = 8


def run(*arguments):
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


@torch.no_grad()
def perplexity(model, tokens):
    """By the definition of `drllm perplexity`."""
    n = model.shape["n_context"]
    chunks = torch.tensor(tokens[: N_CHUNKS * n]).view(N_CHUNKS, n)
    chunks[:, 0] = prepare.BEGIN
    logits = model(chunks)[:, n // 2 : n - 1]
    return math.exp(train.cross_entropy(logits, chunks[:, n // 2 + 1 :]).item())


def main():
    drllm, model_path, gguf_path, work = sys.argv[1:]
    with open(os.path.join(work, "vocabulary.json"), encoding="utf-8") as file:
        texts = json.load(file)["texts"]
    vocabulary = prepare.Vocabulary(texts[prepare.FIRST_BYTE + 256 :], [])
    for name in "train", "valid":
        path = os.path.join(work, f"{name}.txt")
        with open(path, encoding="utf-8") as file:
            ours = vocabulary.encode(file.read())
        theirs = [int(word) for word in run(drllm, "tokenize", "-m", gguf_path, "-f", path).split()]
        if ours != theirs:
            sys.exit(f"check.py: {name}.txt is tokenised otherwise by {drllm}")
    saved = torch.load(model_path, map_location="cpu", weights_only=True)
    model = train.Llama(saved["shape"], len(texts))
    model.load_state_dict(saved["model"])
    expected = perplexity(model, [prepare.BEGIN] + ours)
    command = [drllm, "perplexity", "-m", gguf_path, "-f", path, "-c", str(saved["shape"]["n_context"])]
    found = json.loads(run(*command, "--chunks", str(N_CHUNKS), "--compute", "f32", "--json"))["perplexity"]
    if abs(math.log(found / expected)) > 1e-4:
        sys.exit(f"check.py: perplexity {found} in floats; PyTorch says {expected}")
    print(f"check.py: the same tokens; perplexity of {N_CHUNKS} chunks {found:.4f}, PyTorch {expected:.4f}")


if __name__ == "__main__":
    main()
