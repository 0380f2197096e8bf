"""Run whook beside its peers, in turns, and write the table and the plots.

    python -m venv .bench && .bench/bin/pip install --require-hashes -r bench/requirements.txt
    apt-get install wrk golang-go golang-github-gin-gonic-gin-dev
    apt-get source kubernetes                       # for the types that the gin peer decodes with
    .bench/bin/python -m bench --kubernetes kubernetes-*/

The servers run under the Python that runs this. One of them is whook at an earlier commit, which
the clone must have in its history. Results go to bench/results.json, the plots to bench/growth.svg,
and both into docs/performance.md where its markers stand. About fifteen minutes; a run that was
stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import load, plots, report, servers, versions
from tests import pki

BUILD = servers.HERE / ".build"
SIZES = (1_000, 5_700, 20_000, 70_000, 300_000, 1_000_000, 3_000_000)
POLICIES = (0, 1, 3, 10, 30, 100)
CONNECTIONS = (1, 2, 8, 32, 128, 500)
PAUSE = 4  # ms before each request, where servers are compared at the same load: below 2,000/s
PLAIN_POLICY = """
def mutate(obj, request):
    for container in obj["spec"]["containers"]:
        if not container["image"]:
            request.warn("no image")
"""
CHANGING_POLICY = """
def mutate(obj, request):
    obj["metadata"].setdefault("annotations", {})[__name__] = "seen"
"""


class Bench:
    """One run: its settings, its folder, and the results so far, which are kept on disk."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rounds = 1 if options.quick else options.rounds
        self.seconds = 1 if options.quick else options.seconds
        BUILD.mkdir(exist_ok=True)
        self.authority = BUILD / "ca.pem"
        authority = pki.Authority()
        self.authority.write_bytes(authority.pem)
        self.cert, self.key = authority.issue().write(BUILD)
        self.reviews = load.write_reviews(BUILD)
        self.pinned, self.large = versions.write_reviews(BUILD)
        self.partial = BUILD / "partial.json"
        self.results = self.earlier() or {
            "settings": self.settings(),
            "machine": servers.machine(),
            "tools": {},
            "audit": {},
            "rounds": [],
            "growth": {},
        }

    def settings(self) -> dict[str, Any]:
        files = [*servers.HERE.glob("*.py"), *servers.PEERS.rglob("*.py")]
        source = servers.digest([servers.ROOT / "whook.py", *files])
        only = sorted(self.options.only or ())
        return {"rounds": self.rounds, "seconds": self.seconds, "source": source, "only": only}

    def earlier(self) -> dict[str, Any] | None:
        """What a stopped run with the same settings, of the same sources, has left."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self.partial.read_text())
            if found["settings"] == self.settings() and not self.options.fresh:
                return found
        return None

    def keep(self) -> None:
        self.partial.write_text(json.dumps(self.results))

    def peers(self) -> list[servers.Peer]:
        found = [make() for make in self.versions.values()]
        found += [servers.whook(replicas=2), *self.gins(), *servers.python_peers()]
        return [peer for peer in found if not self.options.only or peer.name in self.options.only]

    @functools.cached_property
    def versions(self) -> dict[str, Callable[..., servers.Peer]]:
        """Functions as servers.whook(), for this whook and the earlier one, by the peer's name."""
        found: dict[str, Callable[..., servers.Peer]] = {"whook": servers.whook}
        earlier = f"whook at {servers.EARLIER}"
        if not self.options.only or earlier in self.options.only:
            found[earlier] = functools.partial(servers.whook, tree=servers.earlier_tree(BUILD))
        return found

    def gins(self) -> list[servers.Peer]:
        """The gin peer by each Go at hand: Debian's, and the newest, which is much faster."""
        if not self.options.kubernetes:
            say("gin is left out: --kubernetes names the source tree with its types")
            return []
        found = []
        for go in filter(None, (shutil.which("go", path="/usr/bin"), newest_go())):
            place = BUILD / "gopath"
            binary, version = servers.build_gin(go, self.options.kubernetes, place)
            name = f"gin, Go {version}"
            self.results["audit"][name] = servers.audit_gin(go, self.options.kubernetes, place)
            found.append(servers.gin(name, binary))
        return found[::-1]

    @contextlib.contextmanager
    def up(self, peer: servers.Peer, workers: int = 0) -> Iterator[tuple[servers.Running, float]]:
        ready = functools.partial(load.is_ready, authority=self.authority, review=self.pinned)
        workers = workers or len(os.sched_getaffinity(0))
        log = BUILD / "server.log"
        with servers.running(peer, self.cert, self.key, workers, log, ready) as started:
            yield started

    # -- the table

    def compare(self) -> None:
        peers = self.peers()
        for peer in peers:
            self.results["audit"].setdefault(peer.name, servers.audit(peer))
        for number in range(self.rounds):
            if number == len(self.results["rounds"]):
                self.results["rounds"].append({})
            done = self.results["rounds"][number]
            for peer in peers if number % 2 == 0 else peers[::-1]:
                if peer.name not in done:
                    done[peer.name] = self.one_turn(peer)
                    self.keep()
                    say(f"round {number + 1}: {peer.name:18} {brief(done[peer.name])}")

    def one_turn(self, peer: servers.Peer) -> dict[str, Any]:
        with self.up(peer) as (server, start):
            load.measure(server, *self.reviews["5 KB"], 1)  # warm
            turn: dict[str, Any] = {"start_ms": start * 1000}
            count = 20 if self.options.quick else 150
            turn["fresh_us"] = load.fresh_connections(server, self.authority, count)
            turn["reviews"] = {
                name: self.patiently(server, path, body)
                for name, (path, body) in self.reviews.items()
            }
            turn["memory"] = server.memory()
            if peer.binary or peer.name in self.versions:
                path, body = self.reviews["5 KB"]
                turn["paced"] = load.measure(server, path, body, self.seconds, pause=PAUSE)
        if make := self.versions.get(peer.name):
            turn |= self.version_turn(make)
        return turn

    def version_turn(self, make: Callable[..., servers.Peer]) -> dict[str, Any]:
        """Measure one version of whook in ways that the other servers are not measured."""
        folder = versions.write_policies(BUILD / "thirty")
        with self.up(make(policies=str(folder))) as (server, _):
            versions.check_policies(server, self.authority)
            thirty = {
                name: load.measure(server, *self.reviews[name], self.seconds)
                for name in ("5 KB", "70 KB")
            }
        with self.up(make()) as (server, _):
            idle = versions.idle_connections(server, self.authority)
        health = servers.free_port()
        policy = make().source.parent / "policies" / "pinned-images.py"
        with self.up(make("--policy", str(policy), "--health-port", str(health))) as (server, _):
            load_of = versions.Beside(server, health, self.authority, self.pinned, self.large)
            beside = load_of.run(5 if self.options.quick else versions.SECONDS)
        return {"thirty": thirty, "idle_mib": idle, "beside": beside}

    def patiently(self, server: servers.Running, path: str, body: Path) -> dict[str, float]:
        """A measurement; a longer one where a slow server answers nothing in so short a time."""
        try:
            return load.measure(server, path, body, self.seconds)
        except ValueError:
            return load.measure(server, path, body, 5 * self.seconds)

    # -- growth

    def grow(self) -> None:
        compared = [peer for peer in self.peers() if peer.name == "whook" or peer.binary][:2]
        for peer in compared:
            self.grow_size(peer)
            self.grow_connections(peer)
        self.grow_policies()
        self.grow_replicas()

    def point(self, what: str, series: str, x: int, measure: Any) -> None:
        """One measured point of a plot, unless a stopped run has left it."""
        points = self.results["growth"].setdefault(what, {}).setdefault(series, {})
        if str(x) not in points:
            points[str(x)] = measure()
            self.keep()
            say(f"growth: {what} {x}, {series}: {brief_point(points[str(x)])}")

    def grow_size(self, peer: servers.Peer) -> None:
        with self.up(peer) as (server, _):
            for size in SIZES:
                body = BUILD / "sized.json"
                body.write_bytes(load.pod_review(size))
                if size < 5_000:
                    body = load.REVIEWS / "create-namespace.json"
                run = functools.partial(load.measure, server, "/mutate", body, self.seconds)
                self.point("size", peer.name, body.stat().st_size, run)

    def grow_connections(self, peer: servers.Peer) -> None:
        path, body = self.reviews["5 KB"]
        with self.up(peer) as (server, _):
            for count in CONNECTIONS:
                seconds = self.seconds + count // 100  # for their handshakes
                run = functools.partial(load.measure, server, path, body, seconds, count)
                self.point("connections", peer.name, count, run)

    def grow_policies(self) -> None:
        for series, source in (("looking", PLAIN_POLICY), ("changing", CHANGING_POLICY)):
            for count in POLICIES:
                folder = BUILD / "policies"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                shutil.copy(servers.ROOT / "policies" / "team-label.py", folder)
                for number in range(count):
                    (folder / f"policy-{number:03}.py").write_text(source)
                run = functools.partial(self.with_policies, str(folder))
                self.point("policies", series, count, run)

    def with_policies(self, folder: str) -> dict[str, float]:
        with self.up(servers.whook(policies=folder)) as (server, _):
            return load.measure(server, *self.reviews["5 KB"], self.seconds)

    def grow_replicas(self) -> None:
        for replicas in (1, 2, 3, 4):
            with self.up(servers.whook(replicas=replicas)) as (server, _):
                run = functools.partial(load.measure, server, *self.reviews["5 KB"], self.seconds)
                self.point("replicas", "whook", replicas, run)

    def finish(self) -> None:
        self.results["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
        output = self.options.output
        output.write_text(json.dumps(report.rounded(self.results), indent=1) + "\n")
        if self.results["growth"]:
            plots.draw(self.results["growth"], output.with_name("growth.svg"))
        results = json.loads(output.read_text())
        print(report.render(results))
        if output == servers.HERE / "results.json":
            report.update(servers.ROOT / "docs/performance.md", results)
        self.partial.unlink(missing_ok=True)


def newest_go() -> str | None:
    """The Go that pip has put beside this Python."""
    return shutil.which("go", path=str(Path(sys.executable).parent))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def brief(turn: dict[str, Any]) -> str:
    costs = ", ".join(f"{name} {r['cpu_us']:.0f}" for name, r in turn["reviews"].items())
    return f"CPU µs: {costs}; {turn['reviews']['5 KB']['rate']:.0f}/s"


def brief_point(point: dict[str, float]) -> str:
    return f"{point['cpu_us']:.0f} µs, {point['rate']:.0f}/s"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--kubernetes", type=Path, metavar="FOLDER", help="Kubernetes' source, for the gin peer")
    add("--rounds", type=int, default=5)
    add("--seconds", type=int, default=2, help="of load for each figure")
    add("--quick", action="store_true", help="one round of a second each: is it all in order?")
    add("--only", nargs="+", metavar="PEER", help="some of the servers, by name")
    add("--no-growth", action="store_true")
    add("--fresh", action="store_true", help="forget what a stopped run has left")
    add("--output", type=Path, default=servers.HERE / "results.json")
    bench = Bench(parser.parse_args())
    try:
        bench.compare()
        if not bench.options.no_growth:
            bench.grow()
    except (subprocess.CalledProcessError, RuntimeError, ValueError) as error:
        say(f"bench: error: {error}")
        return 1
    bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
