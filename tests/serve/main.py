"""The tests of `drllm serve`. usage: main.py PROGRAM MODEL ROUTERS; DRLLM_TEST_SHARED adds ARC's questions."""

import os
import sys
from types import SimpleNamespace

import test_client
import test_hostile
import test_lm_eval
from server import Cases, Server


def stops_after_all_that(server):
    status, seconds = server.stop()
    assert status == 0 and seconds < 15, (status, seconds)


def main():
    program, model, routers = sys.argv[1:]
    setup = SimpleNamespace(program=os.path.abspath(program), model=model, routers=routers,
                            shared=os.environ.get("DRLLM_TEST_SHARED"),
                            root=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
    cases = Cases()
    with Server(setup.program, model, "-t", "1", "-q", "--queue", "1") as server:
        for test in test_client.TESTS + test_lm_eval.TESTS:
            cases.run(test, setup, server)
    with Server(setup.program, model, "-t", "1", "-q", "-r", routers) as server:
        for test in test_client.ROUTED_TESTS:
            cases.run(test, setup, server)
    with Server(setup.program, model, "-t", "1", "-q", "--max-body", "65536", "--timeout", "2") as server:
        for test in test_hostile.TESTS:
            cases.run(test, setup, server)
        cases.run(stops_after_all_that, server)
    for test in test_hostile.PROCESS_TESTS:
        cases.run(test, setup)
    return cases.finish()


if __name__ == "__main__":
    sys.exit(main())
