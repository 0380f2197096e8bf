"""A long run of whook under change: certificates and policies rotate all along, to broken ones too.

    python -m bench.soak                  # a million reviews, at most half an hour
    python -m bench.soak --reviews 4000   # for CI

Each answer is checked: its status, uid, verdict and patch. It fails (exit 1) if a single review
does, if a rotation was not taken up, or if resident memory grew. Writes bench/soak.json.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import http.client
import json
import multiprocessing
import ssl
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import median
from typing import Any

from bench import load, servers
from tests import pki

CLIENTS = 4  # processes, each with one connection
FRESH_EVERY = 500  # reviews on a connection before it is a new one
TAKE_UP = 15.0  # seconds that a rotation may take to be seen
GROWTH = 1.05, 1.0  # memory may grow by this factor, and by so many MiB on top
TEAMS = ("shop", "bank")
GOOD_POLICY = (servers.ROOT / "policies" / "team-label.py").read_text()
BROKEN_POLICY = "def mutate(obj, request:\n"


class Failed(Exception):
    """The soak found a fault."""


# ---------------------------------------------------------------------------- the clients


def client(port: int, authority: str, wanted: int, until: float, done: Any, fault: Any) -> None:
    """Post reviews until `wanted` are done in all, or time is up; the first fault ends it."""
    body = (load.REVIEWS / "create-pod.json").read_bytes()
    uid = json.loads(body)["request"]["uid"]
    patches = {patch_for(team) for team in TEAMS}
    try:
        while done.value < wanted and time.monotonic() < until and not fault.value:
            connection = load.connect(port, Path(authority))
            for _ in range(FRESH_EVERY):
                one_review(connection, body, uid, patches)
            connection.close()
            with done.get_lock():
                done.value += FRESH_EVERY
    except (OSError, ValueError, http.client.HTTPException) as error:
        fault.value = f"{type(error).__name__}: {error}".encode()[:500]


def patch_for(team: str) -> str:
    step = {"op": "add", "path": "/metadata/labels/example.com~1team", "value": team}
    return base64.b64encode(load.dump([step])).decode()


def one_review(
    connection: http.client.HTTPSConnection, body: bytes, uid: str, patches: set[str]
) -> None:
    connection.request("POST", "/mutate?timeout=5s", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {content[:200]!r}")
    response = json.loads(content)["response"]
    if response["uid"] != uid or response["allowed"] is not True:
        raise ValueError(f"the wrong verdict: {response}")
    if response.get("patch") not in patches:
        raise ValueError(f"the wrong patch: {response}")


# ---------------------------------------------------------------------------- the rotations


@dataclass
class Rotation:
    """Changes the server's files, one change after the other, and sees each taken up."""

    folder: Path
    authority: pki.Authority
    port: int = 0
    health: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)

    def policy(self, text: str) -> None:
        """Swap the policy in one step, as a ConfigMap's mount does."""
        replace(self.folder / "policies" / "team-label.py", text.encode())

    def good_policy(self, number: int) -> None:
        self.policy(GOOD_POLICY.replace('"shop"', f'"{TEAMS[(number + 1) % 2]}"'))
        self.seen("policy", "whook_reload_timestamp_seconds", "policies")

    def broken_policy(self, number: int) -> None:
        self.policy(BROKEN_POLICY)
        self.seen("broken policy", "whook_reload_errors_total", "policies")

    def good_pair(self, number: int) -> None:
        """A new pair, the certificate before its key: for a moment they do not belong together."""
        pair = self.authority.issue()
        replace(self.folder / "server-cert.pem", pair.cert_pem)
        replace(self.folder / "server-key.pem", pair.key_pem)
        wait_for(lambda: self.leaf() == pair.certificate.serial_number, "the new certificate")
        self.count("certificate")

    def broken_pair(self, number: int) -> None:
        replace(self.folder / "server-key.pem", self.authority.issue().key_pem)
        self.seen("broken certificate", "whook_reload_errors_total", "tls")

    def seen(self, name: str, metric: str, what: str) -> None:
        """Wait until the metric says so."""
        key = f'{metric}{{what="{what}"}}'
        before = self.before.get(key, 0.0)
        wait_for(lambda: self.metrics().get(key, 0.0) > before, f"{name}: {key} over {before}")
        self.count(name)

    def count(self, name: str) -> None:
        self.taken[name] = self.taken.get(name, 0) + 1

    def turn(self, number: int) -> None:
        steps = (self.good_policy, self.broken_pair, self.good_pair, self.broken_policy)
        self.before = self.metrics()
        steps[number % len(steps)](number // len(steps))

    def leaf(self) -> int:
        from cryptography import x509

        pem = ssl.get_server_certificate(("127.0.0.1", self.port), timeout=5)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/metrics", timeout=5) as page:
            lines = [line for line in page.read().decode().splitlines() if line[:1] != "#"]
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.replace(path)


def wait_for(condition: Any, what: str) -> None:
    until = time.monotonic() + TAKE_UP
    while not condition():
        if time.monotonic() > until:
            raise Failed(f"waited {TAKE_UP:.0f} s in vain for {what}")
        time.sleep(0.1)


# ---------------------------------------------------------------------------- the run


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rotation = Rotation(folder, pki.Authority())
    authority = folder / "ca.pem"
    authority.write_bytes(rotation.authority.pem)
    cert, key = rotation.authority.issue().write(folder)
    (folder / "policies").mkdir()
    rotation.policy(GOOD_POLICY)
    rotation.health = servers.free_port()
    peer = servers.whook("--health-port", str(rotation.health), policies=str(folder / "policies"))
    ready = functools.partial(load.is_ready, authority=authority)
    place = (cert, key, 1, folder / "server.log", ready)
    with servers.running(peer, *place) as (server, _):
        rotation.port = server.place.port
        return attend(options, rotation, server, authority)


def attend(
    options: argparse.Namespace, rotation: Rotation, server: servers.Running, authority: Path
) -> dict[str, Any]:
    """Rotate and take note of the memory, for as long as the clients are at work."""
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    fault: Any = context.Array("c", 512)
    started = time.monotonic()
    until = started + options.minutes * 60
    arguments = (rotation.port, str(authority), options.reviews, until, done, fault)
    clients = [context.Process(target=client, args=arguments) for _ in range(CLIENTS)]
    for process in clients:
        process.start()
    memory: list[list[float]] = []
    number = 0
    try:
        while any(process.is_alive() for process in clients):
            rotation.turn(number)
            number += 1
            memory.append(server.memory())
            say(f"{done.value} reviews, {number} rotations, MiB {sum(memory[-1]):.1f}")
    finally:
        for process in clients:
            process.join(10)
            process.kill()
    if fault.value:
        raise Failed(f"a review failed: {fault.value.decode(errors='replace')}")
    if done.value < options.reviews:
        raise Failed(f"{done.value} of {options.reviews} reviews in {options.minutes} minutes")
    dropped = rotation.metrics().get("whook_log_lines_dropped_total{}", 0)
    return {
        "reviews": done.value,
        "failed": 0,
        "seconds": round(time.monotonic() - started),
        "rotations": rotation.taken,
        "log_lines_dropped": int(dropped),
        "memory_mib": [round(value, 1) for value in flat(memory)],
    }


def flat(memory: list[list[float]]) -> tuple[float, float]:
    """The memory of all processes, early and late in the run; Failed if it grew.

    Early is the second quarter of it, for the first fills the caches; late is the last."""
    totals = [sum(sample) for sample in memory]
    quarter = len(totals) // 4
    if not quarter:
        return totals[0], totals[-1]
    early, late = median(totals[quarter : 2 * quarter]), median(totals[-quarter:])
    factor, more = GROWTH
    if late > early * factor + more:
        raise Failed(f"memory grew from {early:.1f} to {late:.1f} MiB over the run")
    return early, late


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--reviews", type=int, default=1_000_000)
    add("--minutes", type=float, default=30, help="that it may take at most")
    add("--output", type=Path, help="where to write what was measured (default: bench/soak.json)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = soak(options, Path(folder))
        except (Failed, RuntimeError) as error:
            say(f"soak: error: {error}")
            with contextlib.suppress(OSError):
                say(Path(folder, "server.log").read_text()[-1500:])
            return 1
    print(json.dumps(result, indent=1))
    if options.output or options.reviews >= 1_000_000:
        output = options.output or servers.HERE / "soak.json"
        output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
