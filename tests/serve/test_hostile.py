"""`drllm serve` under clients that err, attack, or go away. Every test ends with a server that still answers."""

import json
import os
import random
import signal
import socket
import tempfile
import threading
import time

from server import Server, events

CAPITAL = {"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}


def text_of(server, **body):
    return server.complete(**{**CAPITAL, **body})["choices"][0]["text"]


def is_error(reply, status, **fields):
    assert reply[0] == status, reply
    error = reply[1]["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], reply
    for key, value in fields.items():
        assert error[key] == value, reply


def raw(server, data, timeout=60):
    """Send bytes, read to the end."""
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        while True:
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                return received
            if not piece:
                return received
            received += piece


def paths_and_methods(setup, server):
    is_error(server.request("GET", "/"), 404)
    is_error(server.request("GET", "/v1/completions"), 405)
    status, _, headers = server.request("DELETE", "/health")
    assert status == 405 and headers["allow"] == "GET, HEAD"
    is_error(server.request("POST", "/v1/models", {}), 405)
    is_error(server.request("POST", "/v1/completionsx", CAPITAL), 404)
    is_error(server.request("GET", "/../../etc/passwd"), 404)
    is_error(server.request("GET", "/" + "a" * 4000), 404)
    status, _, headers = server.request("HEAD", "/health")
    assert status == 200 and headers["content-type"] == "application/json"


def browsers_of_other_sites_get_nothing(setup, server):
    # What a form or fetch() of a page may send without asking, and a name that was made to point here.
    is_error(server.request("POST", "/v1/completions", CAPITAL, {"Content-Type": "text/plain"}), 415)
    is_error(server.request("POST", "/v1/completions", CAPITAL, {"Content-Type": "application/jsonp"}), 415)
    is_error(server.request("GET", "/health", headers={"Host": "attacker.example"}), 403)
    is_error(server.request("GET", "/health", headers={"Host": "127.0.0.1.attacker.example"}), 403)
    is_error(server.request("GET", "/health", headers={"Host": "localhost.attacker.example"}), 403)
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{server.port}", "[::1]:80"):
        assert server.request("GET", "/health", headers={"Host": host})[0] == 200, host
    assert server.request("OPTIONS", "/v1/completions")[0] == 405
    typed = {"Content-Type": "application/json; charset=utf-8"}
    assert server.request("POST", "/v1/completions", CAPITAL, typed)[0] == 200


def bad_json(setup, server):
    for body in (b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}x", b'{"prompt": "a"} {}', b'{"prompt": "a\\u0000b"}',
                 b'{"prompt": "a\0b"}', b'{"prompt": "\\uZZZZ"}', b"{" * 60000, b"[" * 60000, b'{"a":' * 12000,
                 b"\xff\xfe\x00", b'{"prompt": NaN}', b'{"prompt": "unfinished', b"{'prompt': 'a'}"):
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            status, reply, _ = server.request("POST", path, body)
            assert status == 400 and reply["error"]["message"], (body[:40], path, reply)


def wrong_fields(setup, server):
    names = ("prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop", "echo",
             "logprobs", "stream", "n", "depth", "program", "save_layers", "router_p", "model")
    values = (-1e308, 1e308, -2, 0.5, "x", "", [], {}, [[]], [{}], [[[1]]], True, [None], {"a": {"b": []}}, [1e9], [-1],
              "\U0001f600", "9" * 400)
    n_ok = n_bad = 0
    for name in names:
        for value in values:
            status, reply, _ = server.request("POST", "/v1/completions", {**CAPITAL, "max_tokens": 1, name: value})
            assert status in (200, 400), (name, value, status, reply)
            if status == 400:
                assert reply["error"]["message"] and reply["error"]["type"] == "invalid_request_error", reply
            n_ok, n_bad = n_ok + (status == 200), n_bad + (status == 400)
    assert n_ok > 10 and n_bad > 150, (n_ok, n_bad)
    for messages in (7, {}, [7], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}],
                     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                     [{"role": "user", "content": [7]}], [[]], [None]):
        is_error(server.request("POST", "/v1/chat/completions", {"messages": messages}), 400)
    is_error(server.request("POST", "/detokenize", {"tokens": [-1]}), 400, param="tokens")
    is_error(server.request("POST", "/detokenize", {"tokens": [1.5]}), 400, param="tokens")
    is_error(server.request("POST", "/tokenize", {"prompt": ["x"]}), 400, param="prompt")
    is_error(server.request("POST", "/v1/completions", {"prompt": ["x"] * 65}), 400, param="prompt")


def odd_texts(setup, server):
    for prompt in ("\u0001\u0002", "\U0001f600" * 50, "a" * 3000, " " * 500, "\u202e",
                   "<|im_end|>" * 20, "%s%n%x", "\\", "é" * 200):
        reply = server.complete(prompt=prompt, max_tokens=2, temperature=0, echo=True, logprobs=1)
        assert reply["choices"][0]["text"].startswith(prompt[:100]), prompt[:20]
    # Bytes that are no UTF-8 come in, text comes out.
    status, reply, _ = server.request("POST", "/v1/completions", b'{"prompt": "a\xff\xc3(", "max_tokens": 1, "echo": true}')
    assert status == 200 and "\ufffd" in reply["choices"][0]["text"]


def large_bodies(setup, server):
    # --max-body 65536
    is_error(server.request("POST", "/v1/completions", {"prompt": "a" * 70000}), 413)
    assert server.request("POST", "/v1/completions", {"prompt": "a" * 60000, "max_tokens": 1})[0] == 400  # the context
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n")
    # A length that is a lie, a body without end.
    assert b" 413 " in raw(server, (head + "Content-Length: 99999999999\r\n\r\n").encode()).split(b"\r\n")[0]
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    chunked = (head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n").encode()
    assert b" 413 " in raw(server, chunked + 4 * chunk + b"0\r\n\r\n").split(b"\r\n")[0]
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(chunked)
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
    assert sent < 1000, "a body without end was taken"


def broken_http(setup, server):
    for data in (b"\r\n\r\n", b"\0" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100000,
                 b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
                 b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20000 + b"\r\n"):
        with socket.create_connection((server.host, server.port), timeout=10) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass
        assert server.health()["status"] == "ok", data[:40]
    # HTTP/1.0, and two requests at once on one connection.
    assert b"200 OK" in raw(server, b"GET /health HTTP/1.0\r\n\r\n")
    twice = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
                        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert twice.count(b'"status":"ok"') == 2


def mutated_requests(setup, server):
    source = random.Random(20)
    good = json.dumps({"prompt": [1, 2, 3], "max_tokens": 1, "stop": ["a"], "logprobs": 2, "depth": "full",
                       "stream": False, "temperature": 0.5}).encode()
    seen = {}
    for _ in range(300):
        body = bytearray(good)
        for _ in range(source.randint(1, 6)):
            at = source.randrange(len(body))
            kind = source.randrange(3)
            if kind == 0:
                body[at] = source.randrange(256)
            elif kind == 1:
                del body[at : at + source.randint(1, 8)]
            else:
                body[at:at] = body[source.randrange(len(body)) :][: source.randint(1, 20)]
            if not body:
                body = bytearray(b"{")
        status = server.request("POST", "/v1/completions", bytes(body))[0]
        seen[status] = seen.get(status, 0) + 1
        assert status in (200, 400), (status, bytes(body))
    assert seen.get(400, 0) > 100, seen


def slow_clients_are_dropped(setup, server):
    # --timeout 2: one that sends nothing, one that sends a byte now and then.
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: 1000\r\n\r\n").encode()
    start = time.monotonic()
    with socket.create_connection((server.host, server.port), timeout=15) as idle, \
            socket.create_connection((server.host, server.port), timeout=15) as drip:
        idle.sendall(head)
        drip.sendall(head)
        for _ in range(60):
            try:
                drip.sendall(b" ")
                drip.settimeout(0.2)
                if drip.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("a dripping client was kept for 12 s")
        idle.settimeout(10)
        assert idle.recv(100) == b""
    assert time.monotonic() - start < 12


def many_connections(setup, server):
    # More than the server takes at once, none of which says anything; they time out and the server is there.
    held = []
    for _ in range(80):
        connection = socket.socket()
        connection.settimeout(5)
        connection.connect((server.host, server.port))
        held.append(connection)
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert text_of(server)
            return
        except ConnectionError:  # it has not seen all of them go, and is full
            assert time.monotonic() < deadline
            time.sleep(0.05)


def clients_that_leave(setup, server):
    """Their requests are cancelled, wherever they are, and the next one gets what it would have got."""
    before = text_of(server)
    story = {"prompt": "A long story about the sea and all its fish:", "max_tokens": 1500, "temperature": 1, "seed": 3,
             "ignore_eos": True}
    for stream in (False, True):
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps({**story, "stream": stream}),
                           {"Content-Type": "application/json"})
        if stream:
            response = connection.getresponse()
            assert next(events(response))
            response.close()
        else:
            server.wait_for(running=1)
        connection.close()
        connection = None
        assert server.wait_idle() < 15
        assert text_of(server) == before
    # In the middle of a long prompt, which generates nothing.
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps({"prompt": [100 + i % 97 for i in range(2000)],
                                                              "max_tokens": 0, "echo": True, "logprobs": 1}),
                       {"Content-Type": "application/json"})
    server.wait_for(running=1)
    connection.close()
    assert server.wait_idle() < 15
    assert text_of(server) == before
    # While it waits.
    one, two = server.connect(), server.connect()
    for connection in (one, two):
        connection.request("POST", "/v1/completions", json.dumps(story), {"Content-Type": "application/json"})
        server.wait_for(running=1)
    server.wait_for(waiting=1)
    two.close()
    server.wait_for(waiting=0)
    assert server.health()["running"] == 1
    one.close()
    server.wait_idle()
    assert text_of(server) == before


def memory_stays(setup, server):
    def burst():
        for i in range(40):
            server.request("POST", "/v1/completions", {"prompt": "x" * (40 * (i % 10) + 1), "max_tokens": 1,
                                                       "logprobs": 5, "echo": True})
            server.request("POST", "/v1/completions", b"{" * 60000)

    burst()
    before = server.memory()
    burst()
    burst()
    assert server.memory() - before < 16 << 20, (before, server.memory())


TESTS = (paths_and_methods, browsers_of_other_sites_get_nothing, bad_json, wrong_fields, odd_texts, large_bodies,
         broken_http, mutated_requests, slow_clients_are_dropped, many_connections, clients_that_leave, memory_stays)


# ---- Start and stop ----


def stops_in_the_middle(setup):
    """SIGTERM and SIGINT: a stream ends with an error, one that waits gets 503, the status is 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with Server(setup.program, setup.model, "-t", "1") as server:
            got = {}
            begun = threading.Event()

            def read(response):
                for event in events(response):
                    begun.set()
                    yield event

            def ask(name, stream):
                connection = server.connect()
                connection.request("POST", "/v1/completions",
                                   json.dumps({"prompt": "A story:", "max_tokens": 1900, "stream": stream,
                                               "ignore_eos": True}),
                                   {"Content-Type": "application/json"})
                response = connection.getresponse()
                got[name] = (response.status, [*read(response)] if stream else json.loads(response.read()))

            threads = [threading.Thread(target=ask, args=arguments) for arguments in (("stream", True), ("wait", False))]
            threads[0].start()
            assert begun.wait(60)
            threads[1].start()
            server.wait_for(waiting=1)
            status, seconds = server.stop(number)
            for thread in threads:
                thread.join()
            assert status == 0 and seconds < 15, (status, seconds, server.text())
            assert got["stream"][0] == 200 and "error" in json.loads(got["stream"][1][-1]), got["stream"]
            assert got["wait"][0] == 503 and got["wait"][1]["error"]["code"] == "stopping", got["wait"]


def tells_the_service_manager(setup):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            notify.settimeout(30)
            with Server(setup.program, setup.model, "-t", "1", environment={"NOTIFY_SOCKET": path}) as server:
                assert notify.recv(100) == b"READY=1"
                assert server.health()
                assert server.stop()[0] == 0
                assert notify.recv(100) == b"STOPPING=1"


def refuses_to_start(setup):
    import subprocess

    def fails(code, text, *arguments):
        done = subprocess.run([setup.program, "serve", *arguments], capture_output=True, timeout=60)
        assert done.returncode == code and text in done.stderr.decode(), (arguments, done)

    with Server(setup.program, setup.model, "-t", "1") as server:
        fails(1, "Address already in use", "-m", setup.model, "--port", str(server.port))
    fails(2, "-m FILE is missing")
    fails(2, "--host", "-m", setup.model, "--host", "example.org")
    fails(2, "--port", "-m", setup.model, "--port", "70000")
    fails(1, "cannot open model", "-m", "/nonexistent.gguf")


def logs_no_content(setup):
    with Server(setup.program, setup.model, "-t", "1") as server:
        server.complete(prompt="a secret word", max_tokens=1)
        server.request("GET", "/%1b%0a[31m")
        assert server.stop()[0] == 0
        text = server.text()
        assert "secret" not in text and "POST /v1/completions 200" in text and "\x1b" not in text and "\n[31m" not in text, text


PROCESS_TESTS = (stops_in_the_middle, tells_the_service_manager, refuses_to_start, logs_no_content)
