"""A running `drllm serve`, and plain requests to it."""

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time


class Server:
    """Listens on a free port of 127.0.0.1. emulator: words in front of the program."""

    def __init__(self, program, model, *arguments, emulator=(), environment=None, patience=300):
        self.log = tempfile.TemporaryFile()
        command = [*emulator, program, "serve", "-m", model, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=self.log, env={**os.environ, **(environment or {})})
        deadline = time.monotonic() + patience
        found = None
        while not found:
            found = re.search(r"on http://(127\.0\.0\.1):(\d+)", self.text())
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("the server did not start: " + self.text())
            time.sleep(0.02)
        self.host, self.port = found[1], int(found[2])
        self.url = f"http://{self.host}:{self.port}"

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()
        self.log.close()

    def stop(self, number=signal.SIGTERM, patience=60):
        """Returns the exit status and the seconds that it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        try:
            return self.process.wait(patience), time.monotonic() - start
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not stop") from None

    def connect(self, timeout=600):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=600):
        """Status, body as JSON (or bytes), headers."""
        connection = self.connect(timeout)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        try:
            return response.status, json.loads(data), response.headers
        except ValueError:
            return response.status, data, response.headers

    def complete(self, **body):
        """The reply to a completion that must succeed."""
        status, reply, _ = self.request("POST", "/v1/completions", body)
        assert status == 200, (status, reply)
        return reply

    def health(self):
        status, reply, _ = self.request("GET", "/health")
        assert status == 200 and reply["status"] == "ok", reply
        return reply

    def wait_for(self, patience=60, **counts):
        """Until /health says running=, waiting= and so on as given."""
        deadline = time.monotonic() + patience
        while True:
            health = self.health()
            if all(health[key] == value for key, value in counts.items()):
                return
            assert time.monotonic() < deadline, (counts, health)
            time.sleep(0.01)

    def wait_idle(self, patience=60):
        """Seconds until nothing runs and nothing waits."""
        start = time.monotonic()
        while True:
            health = self.health()
            if health["running"] == 0 and health["waiting"] == 0:
                return time.monotonic() - start
            assert time.monotonic() - start < patience, health
            time.sleep(0.02)

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def events(lines):
    """The data of server-sent events."""
    for line in lines:
        line = line.strip()
        if line.startswith(b"data: "):
            yield line[6:].decode()


class Cases:
    """Test functions, counted."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def run(self, function, *arguments):
        start = time.monotonic()
        try:
            reason = function(*arguments)
        except Exception as wrong:  # noqa: BLE001: whatever it is, the test failed
            import traceback

            traceback.print_exc()
            self.failed += 1
            print(f"FAILED  {function.__name__}: {wrong}", flush=True)
            return
        if reason:
            self.skipped += 1
            print(f"skipped {function.__name__}: {reason}", flush=True)
        else:
            self.passed += 1
            print(f"ok      {function.__name__} ({time.monotonic() - start:.1f} s)", flush=True)

    def finish(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        print(f"{self.passed} passed, {self.failed} failed{skipped}", flush=True)
        return 0 if self.failed == 0 and self.passed else 1
