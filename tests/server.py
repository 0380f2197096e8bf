"""whook as a real process, and clients that talk to it over real TLS."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
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
    """The condition's first true value; AssertionError if there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


class Whook:
    """A running `python whook.py`, with its certificates and a folder for policies of its own.

    `patches` are statements that run before main(), to shorten time-outs that a test can't wait
    for: `whook.STUCK_AFTER = 1`.
    """

    def __init__(self, *arguments, policies=None, patches="", pair=None, grace=0):
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
        code = f"import os, sys, whook\n{patches}\nos._exit(whook.main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options],
            cwd=ROOT,
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
        self.collector.join(5)  # it ends with the process, or with the last that has its stderr

    def write_policy(self, name: str, source: str) -> None:
        """In one step, as an editor or a mounted ConfigMap does."""
        new = self.folder / f"{name}.new"
        new.write_text(source)
        new.replace(self.policies / f"{name}.py")

    def write_pair(self, pair: pki.Pair) -> None:
        pair.write(self.folder)

    def logged(self, *words: str) -> list[str]:
        return [line for line in list(self.log) if all(word in line for word in words)]

    def wait_for_log(self, *words: str, seconds: float = 20) -> str:
        def found():
            if self.collected.is_set() and not self.logged(*words):
                raise AssertionError(f"ended without logging {words}: {self.log}")
            return self.logged(*words)

        return wait_for(found, f"a log line with {words}", seconds)[-1]

    # -- clients

    def trust(self, client: pki.Pair | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if client:
            cert, key = client.write(self.folder, "client.pem", "client-key.pem")
            context.load_cert_chain(cert, key)
        return context

    def connect(self, timeout: float = 20, client=None) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout)
        return self.trust(client).wrap_socket(raw, server_hostname="localhost")

    @contextlib.contextmanager
    def client(self, timeout: float = 20):
        """A keep-alive connection."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=timeout, context=self.trust()
        )
        try:
            yield connection
        finally:
            connection.close()

    def post(self, body=POD, path="/mutate?timeout=5s", connection=None, **headers):
        """The status and the decoded JSON of one answer; on `connection`, or a fresh one."""
        headers = {"Content-Type": "application/json", **headers}
        if connection is None:
            with self.client() as connection:
                return self.post(body, path, connection, **headers)
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content)

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """All that comes back for these bytes on a connection of their own."""
        with self.connect(timeout) as client:
            client.sendall(data)
            return read_all(client)

    def get(self, path: str) -> tuple[int, str]:
        """What the health port says; status 0 where nothing answers."""
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
        """The sum of a metric's series that have these labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name)]
        return sum(float(x.split()[-1]) for x in lines if all(label in x for label in labels))


class Stream:
    """Reviews without a pause, on keep-alive and on fresh connections, until the block ends.

    `servers` may change meanwhile, as a Service's endpoints do: who has a connection keeps it until
    it is closed by an answer. `failures` is what the API server would have seen fail.
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
    """Everything until the other side closes; it may do so without a TLS goodbye."""
    received = b""
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def request_bytes(body=POD, path="/mutate?timeout=5s", **headers) -> bytes:
    """A request as the API server writes it."""
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
    """The JSON Patch in an AdmissionReview's response."""
    return json.loads(base64.b64decode(answer["response"]["patch"]))
