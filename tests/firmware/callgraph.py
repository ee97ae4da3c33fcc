#!/usr/bin/env python3
"""Show that the firmware library does not recurse, from what gcc's -fcallgraph-info=su wrote down, and how much stack its
deepest chain of direct calls takes.

usage: callgraph.py FOLDER MOST_BYTES     (the folder with the .ci files)
Calls through pointers (kernels, the caller's hooks) are not followed; the library has no others. Exit status 1 on a cycle,
on stack whose size is not fixed, or on more of it than MOST_BYTES.
"""
import pathlib
import re
import sys

NODE = re.compile(r'node: \{ title: "([^"]+)" label: "([^"]+)"')
EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
frames, calls = {}, {}
unbounded = []
for path in pathlib.Path(sys.argv[1]).rglob("*.ci"):
    # Peaks are no part of the library, examples and tests neither.
    if not {"runtime", "quant", "platform"} & set(path.relative_to(sys.argv[1]).parts):
        continue
    text = path.read_text(encoding="utf-8")
    for title, label in NODE.findall(text):
        size = re.search(r"(\d+) bytes \((\w+)", label)
        if size:
            frames[title] = int(size.group(1))
            if size.group(2) != "static":
                unbounded.append(title)
    for source, target in EDGE.findall(text):
        calls.setdefault(source, set()).add(target)

depth, chain, active = {}, {}, []


def visit(name):
    """Stack that a call takes; fails on a cycle. A small walk of its own, since Python's recursion is limited, too."""
    stack = [(name, iter(sorted(calls.get(name, ()))))]
    active.append(name)
    while stack:
        current, rest = stack[-1]
        for target in rest:
            if target in active:
                print("recursion:", " -> ".join(active[active.index(target):] + [target]))
                sys.exit(1)
            if target not in depth and target in frames:
                active.append(target)
                stack.append((target, iter(sorted(calls.get(target, ())))))
                break
        else:
            stack.pop()
            active.pop()
            below = max((depth.get(t, 0) for t in calls.get(current, ())), default=0)
            chain[current] = next((t for t in calls.get(current, ()) if depth.get(t, 0) == below and below), None)
            depth[current] = frames[current] + below


for function in sorted(frames):
    if function not in depth:
        visit(function)
deepest = max(depth, key=depth.get)
path = [deepest]
while chain[path[-1]]:
    path.append(chain[path[-1]])
print(f"{len(frames)} functions, no recursion; deepest direct chain {depth[deepest]} bytes of stack: "
      + " > ".join(p.rsplit(":", 1)[-1] for p in path))
if unbounded or depth[deepest] > int(sys.argv[2]):
    print("stack without a bound:", unbounded)
    sys.exit(1)
