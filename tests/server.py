"""Run whook as a real process, and talk to it over real TLS."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import pki

ROOT = Path(__file__).resolve().parent.parent
REVIEWS = {path.stem: path.read_bytes() for path in (ROOT / "tests/reviews").glob("*.json")}
POD = REVIEWS["create-pod"]
JSON = {"Content-Type": "application/json"}


def wait_for(condition, what: str, seconds: float = 20):
    """Return the first true value of `condition`. Raises AssertionError if none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s, but there was no sign of: {what}")


class Whook:
    """A running `python whook.py` with its own certificates and its own folder of policies.

    `patches` are statements that run before main(), to shorten a timeout that a test can't wait
    for: `whook.WATCHDOG = 1`. `environment` holds additional environment variables.
    """

    def __init__(self, *arguments, policies=None, patches="", pair=None, grace=0, environment=None):
        self.folder = Path(tempfile.mkdtemp(prefix="whook-test-"))
        self.authority = pki.Authority()
        self.cert, self.key = (pair or self.authority.issue()).write(self.folder)
        self.log, self.collected = [], threading.Event()
        options = [f"--tls-cert={self.cert}", f"--tls-key={self.key}", "--host=127.0.0.1"]
        options += ["--port=0", "--health-port=0"]
        options += [f"--grace-period={grace}", *arguments]
        if policies is not None:
            self.policies = self.folder / "policies"
            self.policies.mkdir()
            for name, source in policies.items():
                self.write_policy(name, source)
            options.append(f"--policy={self.policies}")
        program = [str(ROOT / "whook.py")]
        if patches:
            code = f"import os, sys, whook\n{patches}\nos._exit(whook.main(sys.argv[1:]))"
            program = ["-c", code]
        self.process = subprocess.Popen(
            [sys.executable, *program, *options],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.collector = threading.Thread(target=self._collect, daemon=True)
        self.collector.start()

    def _collect(self):
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))
        self.collected.set()

    def __enter__(self):
        try:
            line = self.wait_for_log("ready", "admission")
            self.port = int(re.search(r"admission[=\": ]+[\d.]+:(\d+)", line)[1])
            self.health_port = int(re.search(r"health[=\": ]+[\d.]+:(\d+)", line)[1])
            wait_for(lambda: self.get("/readyz")[0] == 200, "readyz")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.collector.join(5)  # it ends when no process has this standard error any more

    def write_policy(self, name: str, source: str) -> None:
        """Replace the file in one step, as an editor or a mounted ConfigMap does."""
        new = self.folder / f"{name}.new"
        new.write_text(source)
        new.replace(self.policies / f"{name}.py")

    def write_pair(self, pair: pki.Pair) -> None:
        """Replace the certificate and the key."""
        pair.write(self.folder)

    def logged(self, *words: str) -> list[str]:
        """Return the log lines so far that have all of the words."""
        return [line for line in list(self.log) if all(word in line for word in words)]

    def wait_for_log(self, *words: str, seconds: float = 20) -> str:
        """Wait for a log line that has all of the words, and return the last one."""

        def found():
            ended = self.collected.is_set()  # look first: then all lines are collected
            lines = self.logged(*words)
            if ended and not lines:
                raise AssertionError(f"whook ended and did not log {words}: {self.log}")
            return lines

        return wait_for(found, f"a log line with {words}", seconds)[-1]

    # -- clients

    def trust(self, client: pki.Pair | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this server, with a certificate of its own."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if client:
            cert, key = client.write(self.folder, "client.pem", "client-key.pem")
            context.load_cert_chain(cert, key)
        return context

    def connect(self, timeout: float = 20, client=None) -> ssl.SSLSocket:
        """Return a connected TLS socket."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout)
        return self.trust(client).wrap_socket(raw, server_hostname="localhost")

    @contextlib.contextmanager
    def client(self, timeout: float = 20):
        """Give a keep-alive connection."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=timeout, context=self.trust()
        )
        try:
            yield connection
        finally:
            connection.close()

    def post(self, body=POD, path="/mutate?timeout=5s", connection=None, **headers):
        """Return the status and the decoded JSON of a response, on `connection` or a new one."""
        headers = {"Content-Type": "application/json", **headers}
        if connection is None:
            with self.client() as connection:
                return self.post(body, path, connection, **headers)
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content)

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """Send bytes on a new connection, and return all bytes of the response."""
        with self.connect(timeout) as client:
            client.sendall(data)
            return read_all(client)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body from the health port; the status is 0 if nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def metric(self, name: str, *labels: str) -> float:
        """Return the sum of the metric's series that have all of the labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name)]
        return sum(float(x.split()[-1]) for x in lines if all(label in x for label in labels))


class Stream:
    """A stream of reviews, on keep-alive and on new connections, until the block ends.

    `servers` may change meanwhile, as a Service's endpoints do: a client keeps its connection until
    a response closes it. `failures` are the calls that would have failed for the API server.
    """

    def __init__(self, *servers: Whook, keep_alive=2, fresh=1, body=POD):
        self.servers, self.body = list(servers), body
        self.answered, self.failures, self.stop = 0, [], threading.Event()
        kinds = [True] * keep_alive + [False] * fresh
        self.threads = [threading.Thread(target=self._run, args=(keep,)) for keep in kinds]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        wait_for(lambda: self.answered > 20, "the stream to flow")
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def wait_for_more(self, count: int = 50) -> None:
        """Wait for so many more responses, or a failure."""
        wanted = self.answered + count
        wait_for(lambda: self.answered >= wanted or self.failures, "more answers", 30)

    def _run(self, keep: bool) -> None:
        while not self.stop.is_set():
            with self.servers[-1].client() as client:
                self._use(client, keep)

    def _use(self, client, keep: bool) -> None:
        while not self.stop.is_set():
            try:
                client.request("POST", "/mutate?timeout=10s", self.body, JSON)
                response = client.getresponse()
                answer = json.loads(response.read())
                if response.status != 200 or not answer["response"]["allowed"]:
                    self.failures.append((response.status, answer))
                self.answered += 1
                if not keep or response.getheader("Connection") == "close":
                    return
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return


def read_all(client: socket.socket) -> bytes:
    """Return all bytes until the server closes, with or without a TLS close_notify."""
    received = b""
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def request_bytes(body=POD, path="/mutate?timeout=5s", **headers) -> bytes:
    """Return a request as the API server writes it; a header that is None is left out."""
    fields = {
        "Host": "whook.whook.svc:443",
        "User-Agent": "kube-apiserver-admission",
        "Content-Length": len(body),
        "Accept": "application/json, */*",
        "Content-Type": "application/json",
        "Accept-Encoding": "gzip",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


def patch_of(answer: dict) -> list:
    """Return the JSON Patch in an AdmissionReview with a response."""
    return json.loads(base64.b64decode(answer["response"]["patch"]))
