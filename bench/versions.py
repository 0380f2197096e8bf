"""Measure a whook in ways that only its versions are compared in.

Thirty policies; the memory of idle connections; large reviews beside honest ones. Every server is
a process that is started with command-line options only, so an earlier version runs as well.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import load
from bench.servers import Running

IDLE = 1000  # connections
SECONDS = 20  # of large reviews beside honest ones
LARGE = 2_900_000  # bytes of a review; an API server takes objects of up to 3 MiB
LARGE_CLIENTS, HONEST_CLIENTS = 8, 4
HONEST_RATE = 100  # reviews a second, of all honest clients together
PROBE_EVERY = 0.1  # seconds
IMAGE = "registry.example.com/shop/web@sha256:" + 64 * "0"

# Thirty policies are five of each of these: two change the object, the others read it.
POLICIES = (
    """
def mutate(obj, request):
    obj["metadata"].setdefault("annotations", {})["example.com/policy-NUMBER"] = "seen"
""",
    """
def mutate(obj, request):
    labels = obj["metadata"].get("labels") or {}
    if labels.get("example.com/tier", "web") not in ("web", "batch", "data"):
        request.deny("policy-NUMBER: the label example.com/tier has an unknown value")
""",
    """
def mutate(obj, request):
    for container in obj["spec"]["containers"]:
        if container["image"].startswith("policy-NUMBER.example.com/"):
            request.deny("policy-NUMBER: the image is from a registry that is not allowed")
""",
    """
def mutate(obj, request):
    obj["metadata"].setdefault("labels", {}).setdefault("example.com/policy-NUMBER", "seen")
""",
    """
def mutate(obj, request):
    for container in obj["spec"]["containers"]:
        if (container.get("securityContext") or {}).get("privileged"):
            request.deny("policy-NUMBER: a container is privileged")
""",
    """
def mutate(obj, request):
    if len(obj["metadata"]["name"]) > 63 or "example.com/skip" in obj["metadata"]:
        request.deny("policy-NUMBER: the name has more than 63 characters")
""",
)
CHANGING = [number for number in range(30) if number % 6 in (0, 3)]


# ---------------------------------------------------------------------------- thirty policies


def write_policies(folder: Path) -> Path:
    """Write the thirty policies to the folder, which is emptied first, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(30):
        source = POLICIES[number % 6].replace("NUMBER", f"{number:02}")
        (folder / f"policy-{number:02}.py").write_text(source)
    return folder


def check_policies(server: Running, authority: Path) -> None:
    """Raise ValueError unless the patch has the change of each policy that makes one."""
    body = (load.REVIEWS / "create-pod.json").read_bytes()
    with contextlib.closing(load.connect(server.place.port, authority)) as connection:
        response = json.loads(load.exchange(connection, "/mutate", body, close=True))["response"]
    patch = str(load.patch_of(response))
    missing = [number for number in CHANGING if f"policy-{number:02}" not in patch]
    if missing:
        raise ValueError(f"{server.peer.name}: policies {missing} have no part in {response}")


# ---------------------------------------------------------------------------- idle connections


def idle_connections(server: Running, authority: Path) -> float:
    """Return the MiB that idle connections, which have each sent one review, add to the server's.

    Raises ValueError if the server has closed one of them.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    body = (load.REVIEWS / "create-pod.json").read_bytes()
    before = sum(server.memory())
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            connection = load.connect(server.place.port, authority)
            stack.callback(connection.close)
            load.post(connection, "/mutate", body)
        after = sum(server.memory())
        states = [each.status for process in server.tree() for each in process.net_connections()]
    kept = states.count(psutil.CONN_ESTABLISHED)
    if kept < IDLE:
        raise ValueError(f"{server.peer.name} kept {kept} of {IDLE} idle connections")
    return after - before


# ---------------------------------------------------------------------------- large reviews


def write_reviews(folder: Path) -> tuple[Path, Path]:
    """Write a small and a large review of pods whose images are all pinned; return their paths."""
    small, large = folder / "pinned.json", folder / "pinned-large.json"
    small.write_bytes(pinned_review(0))
    large.write_bytes(pinned_review(LARGE))
    return small, large


def pinned_review(size: int) -> bytes:
    """Return the real review of a pod with pinned images and, up to `size` bytes, with more
    containers that have a hundred environment variables each."""
    review = json.loads((load.REVIEWS / "create-pod.json").read_bytes())
    containers = review["request"]["object"]["spec"]["containers"]
    for container in containers:
        container["image"] = IMAGE
    env = [{"name": f"VARIABLE_{number:03}", "value": str(number)} for number in range(100)]
    more = {"name": "app-0000", "image": IMAGE, "env": env}
    for number in range((size - len(load.dump(review))) // (len(load.dump(more)) + 1)):
        containers.append(copy.deepcopy(more) | {"name": f"app-{number:04}"})
    return load.dump(review)


@dataclass
class Beside:
    """Eight clients that post large reviews in a loop, beside honest clients and a prober."""

    server: Running
    health: int
    authority: Path
    small: Path
    large: Path

    def run(self, seconds: int) -> dict[str, float]:
        """Return the honest clients' and the prober's latencies in ms, and what failed.

        Half the clients of each kind post to /mutate, the other half to /validate.
        """
        half = LARGE_CLIENTS // 2
        hostile = [
            load.start_wrk(self.server, path, self.large, seconds + 1, half)
            for path in ("/mutate", "/validate")
        ]
        try:
            time.sleep(0.5)  # so that the large reviews are under way
            figures = self.honest(time.monotonic() + seconds)
            results = [load.wrk_result(wrk) for wrk in hostile]
        finally:
            for wrk in hostile:
                wrk.kill()
                wrk.wait()
        answered = sum(result["reviews"] - result["failed"] for result in results)
        figures["large_rate"] = answered / results[0]["seconds"]
        figures["large_failed"] = sum(result["failed"] for result in results)
        return figures

    def honest(self, until: float) -> dict[str, float]:
        """Run the honest clients and the prober until that time of the monotonic clock."""
        started = time.monotonic()
        with ThreadPoolExecutor(HONEST_CLIENTS + 1) as pool:
            prober = pool.submit(repeat, self.probe, PROBE_EVERY, until)
            clients = [
                pool.submit(self.client, ("/mutate", "/validate")[number % 2], until)
                for number in range(HONEST_CLIENTS)
            ]
        taken = sorted(ms for client in clients for ms in client.result()[0])
        probed, probes_failed = prober.result()
        if not taken or not probed:
            raise ValueError(f"{self.server.peer.name} answered no honest review, or no probe")
        return {
            "p50_ms": taken[len(taken) // 2],
            "p99_ms": taken[len(taken) * 99 // 100],
            "worst_ms": taken[-1],
            "rate": len(taken) / (time.monotonic() - started),
            "failed": sum(client.result()[1] for client in clients),
            "readyz_worst_ms": max(probed),
            "readyz_failed": probes_failed,
        }

    def client(self, path: str, until: float) -> tuple[list[float], int]:
        """Post small reviews on one connection, at this client's share of HONEST_RATE."""
        connection = load.connect(self.server.place.port, self.authority)
        body = self.small.read_bytes()

        def post() -> None:
            try:
                load.post(connection, path, body)
            except Exception:
                connection.close()  # the next review opens it again
                raise

        with contextlib.closing(connection):
            return repeat(post, HONEST_CLIENTS / HONEST_RATE, until)

    def probe(self) -> None:
        """Ask /readyz on a connection of its own, as a kubelet does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
        if status != 200:
            raise ValueError(f"/readyz answered {status}")


def repeat(call: Callable[[], None], period: float, until: float) -> tuple[list[float], int]:
    """Call at a fixed period; return the milliseconds of each call, and how many calls failed.

    The times at which a call is still running are skipped, not made up for.
    """
    taken: list[float] = []
    failed, due = 0, time.monotonic()
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        started = time.monotonic()
        try:
            call()
        except (OSError, ValueError, http.client.HTTPException):
            failed += 1
        else:
            taken.append((time.monotonic() - started) * 1000)
        due += period * max(1, math.ceil((time.monotonic() - due) / period))
    return taken, failed
