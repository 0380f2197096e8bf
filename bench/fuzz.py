"""Coverage-guided fuzzing of what reads bytes from the network: heads, reviews, and the loop.

    pip install atheris prometheus_client
    python -m bench.fuzz                  # a minute
    python -m bench.fuzz --seconds 600

Starts from the real reviews. An input is a head, a review, or what a client sends to a whole whook
(without TLS), in pieces. Any exception but a Refusal of 4xx is a finding, and so is a torn or long
log line, a page of metrics that Prometheus can't parse, or a count of held bytes that is wrong:
atheris prints it, keeps the input, and exits with another status than 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
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
    """What a connection brings: a head, and the length of the body to come."""
    try:
        found = whook.read_head(data)
        length = whook.body_length(found, whook.MAX_BODY)
        assert 0 <= length <= whook.MAX_BODY
        whook.route(found)
    except whook.Refusal as refusal:
        assert 400 <= refusal.status < 500, refusal


def review(data: bytes, policies: tuple[whook.Policy, ...]) -> None:
    """A body, through policies that touch all of it; the patch must do what the policy did."""
    try:
        request = whook.parse_review(data)
        before = request.object
        response = whook.evaluate(request, policies)
        whook.render_review(request, response)
        if before is not None:
            after = apply(before, response.patch)
            assert after["new"] == [before.get("metadata"), before.get("spec")]
        whook.render_review(request, whook.evaluate(request, policies, "validate"))
    except whook.PolicyFault as fault:
        assert "deep" in fault.message or "recursion" in fault.message, fault
    except whook.Refusal as refusal:
        assert refusal.status == 400, refusal


class Whole(whook.Process):
    """A whook without files and TLS, whose loop is turned by hand, and which logs into a pipe."""

    LINE = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]{12}Z (INFO|WARN|ERROR) [a-z]+( [a-z_]+=[ -~]*)*")

    def __init__(self, policies: tuple[whook.Policy, ...]) -> None:
        super().__init__()
        self.policies = self.tls = None  # type: ignore[assignment]
        self.set = whook.PolicySet(policies)
        self.admission = whook.Server(whook.listen("127.0.0.1", 0, ""), self.review, self.loop)
        self.admission.counted = lambda what: self.metrics.add("whook_refusals_total", what)
        self.admission.listen(True)
        self.reader, writer = os.pipe()
        write = os.write
        os.write = lambda fd, data: write(writer if fd == 2 else fd, data)  # libFuzzer has 2
        os.set_blocking(self.reader, False)
        whook.log.together = True

    def review(self, head, body, connection):
        verb, name, timeout = whook.route(head)
        request = whook.parse_review(body, connection.since + timeout)
        policies = self.set.find(verb, name)
        return self.conclude(request, policies, verb, f"/{verb}", connection.since)

    def turn(self, client: socket.socket, data: bytes) -> None:
        """Send it all, or as much as is read, and take what is answered."""
        sent = quiet = 0
        while quiet < 2:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sent += client.send(data[sent : sent + 65536]) if sent < len(data) else 0
            self.loop.run(iter([False, True]).__next__)
            answered = b""
            with contextlib.suppress(BlockingIOError, ConnectionError):
                answered = client.recv(65536)
            done = sent == len(data) or not self.admission.connections
            quiet = quiet + 1 if done and self.loop.quiet and not answered else 0

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
        """That nothing is torn, too long, or counted wrongly."""
        for connection in self.admission.connections:
            assert connection.phase in whook.PATIENCE, connection.phase
        held = sum(len(connection.received) for connection in self.admission.connections)
        assert self.loop.held == held, (self.loop.held, held)
        for line in self.logged().splitlines():
            assert self.LINE.fullmatch(line) and len(line) < 16_384, line
        self.metrics.last_logged = 0.0
        self.admission.last_logged = 0.0
        list(text_string_to_metric_families(self.metrics.render().decode()))
        for connection in [*self.admission.connections]:
            connection.close()


def large(data: bytes) -> bytes:
    """A review of up to 8 MB: what was found in `data`, many times over."""
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
