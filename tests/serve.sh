#!/usr/bin/env bash
# The tests of `drllm serve` with real clients; `make test-serve` calls this.
#
# usage: tests/serve.sh PROGRAM     the last line is "N passed, N failed"
#
# OpenAI's Python client and lm-eval go into the cache, once. Everything stays on 127.0.0.1.
# Environment: DRLLM_TEST_MODEL, DRLLM_TEST_SHARED (default: the model in the cache; ../shared if it is there).
set -euo pipefail
cd "$(dirname "$0")/.."

program=$1
python=$(tools/setup/python.sh)/bin/python
model=${DRLLM_TEST_MODEL:-$(tools/setup/model.sh)}
if [ -z "${DRLLM_TEST_SHARED-}" ] && [ -d ../shared ]; then
    DRLLM_TEST_SHARED=$(cd ../shared && pwd)
fi
export DRLLM_TEST_SHARED=${DRLLM_TEST_SHARED-} PYTHONDONTWRITEBYTECODE=1 no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
exec "$python" tests/serve/main.py "$program" "$model" examples/routers/smollm2-135m-instruct-q4_1.gguf
