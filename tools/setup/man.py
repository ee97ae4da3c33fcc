#!/usr/bin/env python3
"""Write the man page drllm.1 from what the program says of itself.

usage: man.py PROGRAM >tools/man/drllm.1

The result is committed, since a program for another machine cannot be asked; `make test-deb` checks that it is this
program's.
"""

import re
import subprocess
import sys

HEAD = r""".\" Made by tools/setup/man.py; do not edit.
.TH DRLLM 1 "" "drllm" "User Commands"
.ad l
.SH NAME
drllm \- run Llama models in int4 and int8, with routed layers
.SH SYNOPSIS
.B drllm
.I COMMAND
.RI [ OPTION "]..."
.SH DESCRIPTION
.B drllm
runs Llama models in int4 and int8 on ordinary processors: single-board computers, phones, PCs.
It reads the GGUF files that llama.cpp reads.
Small routers can decide for each prompt which transformer blocks are skipped or repeated; what is skipped costs neither time nor
memory.
.SH COMMANDS
"""

TAIL = r""".SH EXIT STATUS
0 done, 1 failed, 2 wrong use, 130 interrupted.
.SH ENVIRONMENT
.TP
.B NO_COLOR
If set and not empty, no colours on terminals.
.TP
.B TMPDIR
Where
.B drllm bench \-\-synthetic
writes its models, instead of /tmp.
.TP
.B NOTIFY_SOCKET
Where
.B drllm serve
says that it is ready; see
.BR sd_notify (3).
.SH FILES
.TP
.I /usr/share/drllm/routers
Routers for SmolLM2\-135M\-Instruct.
.TP
.I /etc/default/drllm
Model and options of the systemd service
.IR drllm.service .
.SH EXAMPLES
.EX
drllm run \-m model.gguf \-p "Name three primary colours."
drllm run \-m model.gguf \-r routers.gguf \-\-trace \-p "..."
drllm serve \-m model.gguf \-\-port 8080
.EE
"""


def ask(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def escape(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def command_section(name, text):
    usage, rest = text.split("\n\n", 1)
    synopsis = usage.removeprefix("usage: ")
    summary, rest = rest.split("\n\n", 1)
    options, *notes = rest.strip("\n").split("\n\n")
    notes = [note for note in notes if not note.startswith("exit status:")]
    out = [f".SS drllm {name}", ".B " + escape(synopsis), ".PP", escape(summary)]
    entry = None
    for line in options.splitlines():
        found = re.match(r"  (-., |    )(--\S+)(.*)$", line)
        if found:
            value, _, about = found[3].partition("  ")
            entry = f".TP\n\\fB{escape((found[1] + found[2]).strip())}\\fR"
            if value.strip():
                entry += f" \\fI{escape(value.strip())}\\fR"
            out.append(entry)
            if about.strip():
                out.append(escape(about.strip()))
        elif line.strip():
            out.append(escape(line.strip()))
    for note in notes:
        out += [".PP", escape(note)]
    return "\n".join(out) + "\n"


def main():
    program = sys.argv[1]
    commands = re.findall(r"^  ([a-z]+) +\S", ask(program, "help"), flags=re.M)
    sys.stdout.write(HEAD)
    for name in commands:
        sys.stdout.write(command_section(name, ask(program, name, "--help")))
    sys.stdout.write(TAIL)


if __name__ == "__main__":
    main()
