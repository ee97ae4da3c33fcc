#!/usr/bin/env python3
"""Make tests/data/smollm2.inc from the reference of llama.cpp.

usage: tests/make_golden.py REF >tests/data/smollm2.inc     REF: the folder with reference.json
"""
import array
import json
import math
import os
import sys

N_LAYERS, D_MODEL, N_TOP = 30, 576, 10
ROUTES = "f32.kvf32", "route-skip10_20.f32", "route-rep15.f32"  # in the order of enum real_route


def floats(path):
    values = array.array("f")
    with open(path, "rb") as file:
        values.frombytes(file.read())
    if sys.byteorder == "big":
        values.byteswap()
    return values


def rows(items, per_row):
    for first in range(0, len(items), per_row):
        yield "     " + ", ".join(items[first : first + per_row])


def main():
    ref = sys.argv[1]
    with open(os.path.join(ref, "reference.json"), encoding="utf-8") as file:
        prompts = json.load(file)["f32.kvf32"]["items"]
    print("/* Made by tests/make_golden.py: prompt, ids, lengths of the residual, the largest logits of each route. */")
    for number, item in enumerate(prompts):
        hidden = floats(os.path.join(ref, f"f32.kvf32.p{number}.layers.f32"))
        norms = [math.sqrt(sum(x * x for x in hidden[l * D_MODEL : (l + 1) * D_MODEL])) for l in range(N_LAYERS + 1)]
        ids = item["prompt_ids"]
        print(f"    {{{json.dumps(item['prompt'], ensure_ascii=True)},")
        print(f"     {len(ids)},")
        print("     {")
        print(",\n".join(rows([str(i) for i in ids], 16)))
        print("     },")
        print("     {")
        print(",\n".join(rows([f"{x:.6g}f" if "." in f"{x:.6g}" else f"{x:.6g}.0f" for x in norms], 10)))
        print("     },")
        for route in ROUTES:
            logits = floats(os.path.join(ref, f"{route}.p{number}.logits.f32"))
            top = sorted(range(len(logits)), key=lambda i: -logits[i])[:N_TOP]
            print("     {{" if route == ROUTES[0] else "      {")
            print(",\n".join(rows([f"{{{i}, {logits[i]:.4f}f}}" for i in top], 5)))
            print("      }," if route != ROUTES[-1] else "      }}},")


if __name__ == "__main__":
    main()
