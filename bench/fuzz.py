"""Coverage-guided fuzzing of what reads bytes from the network: heads, reviews, and the loop.

    pip install atheris prometheus_client
    python -m bench.fuzz                  # a minute
    python -m bench.fuzz --seconds 600

The fuzzer starts from the real reviews. An input is a head, a review, or the bytes that a client
sends in pieces to a whole whook without TLS. A finding is any exception except an HTTPError with a
status of 4xx, a log line that is split or too long, metrics that Prometheus can't parse, or a wrong
count of buffered bytes. atheris prints a finding, keeps the input, and exits with a status other
than 0.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import types
from pathlib import Path

import atheris
from prometheus_client.parser import text_string_to_metric_families

with atheris.instrument_imports(include=["whook"]):
    import whook
    from review import apply

ROOT = Path(__file__).resolve().parent.parent
LABEL = """
def mutate(obj, request):
    obj["new"] = [obj.get("metadata"), obj.get("spec")]

def validate(obj, request):
    request.warn(str(obj)[:5000])
"""


def head(data: bytes) -> None:
    """Read a head and the length of its body, as a connection does."""
    try:
        found = whook.read_head(data)
        length = whook.body_length(found, whook.MAX_BODY)
        assert 0 <= length <= whook.MAX_BODY
        whook.route(found)
    except whook.HTTPError as error:
        assert 400 <= error.status < 500, error


def review(data: bytes, policies: tuple[whook.Policy, ...]) -> None:
    """Evaluate a body with policies that use all of it. The patch must do what the policy did."""
    try:
        request = whook.parse_review(data)
        before = request.object
        response = whook.evaluate(request, policies)
        whook.render_review(request, response)
        if before is not None:
            after = apply(before, response.patch)
            assert after["new"] == [before.get("metadata"), before.get("spec")]
        whook.render_review(request, whook.evaluate(request, policies, "validate"))
    except whook.PolicyError as error:
        assert "deep" in error.message or "recursion" in error.message, error
    except whook.HTTPError as error:
        assert error.status == 400, error


class Whole(whook.Process):
    """A whook without files and TLS, whose loop runs turn by turn, and which logs into a pipe."""

    LINE = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]{12}Z (INFO|WARN|ERROR) [a-z]+( [a-z_]+=[ -~]*)*")

    def __init__(self, policies: tuple[whook.Policy, ...]) -> None:
        super().__init__()
        self.policies = types.SimpleNamespace(value=whook.PolicySet(policies))  # type: ignore
        self.admission = whook.Server("127.0.0.1", 0, "--port", self.review, self.loop)
        self.admission.on_refusal = functools.partial(self.metrics.add, "whook_refusals_total")
        self.admission.listen(True)
        self.reader, writer = os.pipe()
        write = os.write
        os.write = lambda fd, data: write(writer if fd == 2 else fd, data)  # libFuzzer has 2
        for end in (self.reader, writer):
            os.set_blocking(end, False)

    def turn(self, client: socket.socket, data: bytes) -> None:
        """Send all data, or as much as whook reads, and read its answers."""
        sent = quiet = 0
        loop = self.loop
        while quiet < 2:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sent += client.send(data[sent : sent + 65536]) if sent < len(data) else 0
            loop.next_tick = 0.0  # do not wait for sockets until the next tick
            loop.run(iter([False, True]).__next__)
            answered = b""
            with contextlib.suppress(BlockingIOError, ConnectionError):
                answered = client.recv(65536)
            done = sent == len(data) or not self.admission.connection_count()
            busy = loop.small or loop.large or loop.responses or answered
            quiet = quiet + 1 if done and not busy else 0

    def feed(self, data: bytes, size: int) -> None:
        with socket.create_connection(self.admission.server_address) as client:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            for start in range(0, len(data), size):
                self.turn(client, data[start : start + size])
        self.check()

    def logged(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def check(self) -> None:
        """Check the states of connections, the count of their bytes, the log and the metrics."""
        states = self.admission.states
        assert states.keys() == whook.TIMEOUTS.keys()
        connections = [each for state in states.values() for each in state]
        for each in connections:
            assert each in states[each.state], each.state
        size = sum(len(x.received) + len(x.response) + len(x.unsent) for x in connections)
        assert self.admission.buffered == size, (self.admission.buffered, size)
        for line in self.logged().splitlines():
            assert self.LINE.fullmatch(line) and len(line) < whook.PIPE_BUF, line
        self.admission.last_logged = 0.0
        list(text_string_to_metric_families(self.metrics.render().decode()))
        for each in connections:
            each.close()
        assert self.admission.buffered == 0, self.admission.buffered


def large(data: bytes) -> bytes:
    """Return a review of up to 8 MB that repeats `data` many times."""
    review = json.loads((ROOT / "tests/reviews/create-pod.json").read_bytes())
    piece = data[:4096].decode("latin-1")
    count = min(2000, 8_000_000 // (6 * len(piece) + 20))
    review["request"]["object"]["data"] = {f"{number}{piece}": piece for number in range(count)}
    review["request"]["kind"]["kind"] = review["request"]["object"]["metadata"]["name"] = piece
    return json.dumps(review).encode()


def posted(body: bytes) -> bytes:
    lines = b"POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    policies = whook.load_policies({"/fuzz.py": LABEL.encode()}).policies
    whook.time_limit.enabled = False  # instrumented code is slow, and libFuzzer uses SIGALRM
    whole = Whole(policies)

    def one(data: bytes) -> None:
        kind, rest = data[:1], data[1:]
        if kind == b"{":
            review(data, policies)
            whole.feed(posted(data), 4000)
        elif kind == b"L":
            whole.feed(posted(large(rest)), 1 << 20)
        elif kind == b"C" and rest:
            whole.feed(rest[1:], rest[0] + 1)
        else:
            head(data)

    with tempfile.TemporaryDirectory() as folder:
        for file in (ROOT / "tests/reviews").glob("*.json"):
            shutil.copy(file, folder)
        request = b"POST /mutate?timeout=5s HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
        Path(folder, "head").write_bytes(request)
        Path(folder, "client").write_bytes(b"C\x80" + 2 * (request + b"12345"))
        Path(folder, "large").write_bytes(b"Lname")
        arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=16384", folder]
        atheris.Setup(arguments, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
