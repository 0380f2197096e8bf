"""Coverage-guided fuzzing of what reads bytes from the network: requests' heads and reviews.

    python -m bench.fuzz                  # a minute
    python -m bench.fuzz --seconds 600

Starts from the real reviews. Any exception but a Refusal of 4xx, and EOFError for a head that ends
too early, is a finding: atheris prints it, keeps the input, and exits with another status than 0.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

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
    except EOFError:
        pass


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    policies = whook.load_policies({"/fuzz.py": LABEL.encode()}).policies

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            review(data, policies)
        else:
            head(data)

    with tempfile.TemporaryDirectory() as folder:
        for file in (ROOT / "testing/reviews").glob("*.json"):
            shutil.copy(file, folder)
        request = b"POST /mutate?timeout=5s HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
        Path(folder, "head").write_bytes(request)
        arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=16384", folder]
        atheris.Setup(arguments, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
