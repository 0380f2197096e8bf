"""The servers under test: how each is started, what it costs, and what one would have to audit."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ROOT, PEERS = HERE.parent, HERE / "peers"
EARLIER = "eabe89d"  # the commit whose whook runs beside this one
START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0


@dataclass(frozen=True)
class Place:
    """What every server is given: its pair of files, the port, and how many processes."""

    cert: str
    key: str
    port: int
    workers: int


@dataclass(frozen=True)
class Peer:
    """A server: the command that starts it, its own source, and the distributions it needs."""

    name: str
    command: Callable[[Place], list[str]]
    source: Path
    needs: tuple[str, ...] = ()
    binary: Path | None = None


def interpreter() -> str:
    """The Python without the bench's libraries: what needs none of them is started by it."""
    return os.path.realpath(sys.executable)


REPLICAS = """
import ctypes, os, signal, sys, whook
whook.Server.allow_reuse_port = True
for _ in range(int(sys.argv.pop(1)) - 1):
    if not os.fork():
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the first
        break
os._exit(whook.main(sys.argv[1:]))
"""


def whook(*options: str, policies: str | None = None, replicas: int = 1, tree: Path = ROOT) -> Peer:
    """Return the peer that is the whook of a source tree, by default this one.

    It is one process, or several behind one address, as replicas are behind a Service. Its policy
    is the tree's team-label.py unless `policies` names another file or folder.
    """
    if policies is None:
        policies = str(tree / "policies" / "team-label.py")

    def command(place: Place) -> list[str]:
        policy = ["--policy", policies] if policies else []
        program = [str(tree / "whook.py")] if replicas == 1 else ["-c", REPLICAS, str(replicas)]
        return [interpreter(), *program, "--tls-cert", place.cert,
                "--tls-key", place.key, "--host", "127.0.0.1", "--port", str(place.port),
                "--health-port", "0", *policy, *options]  # fmt: skip

    name = "whook" if tree == ROOT else f"whook at {tree.name}"
    if replicas > 1:
        name += f", {replicas} replicas"
    return Peer(name, command, tree / "whook.py")


def earlier_tree(folder: Path) -> Path:
    """Write whook.py, objects.py and the policies of commit EARLIER below a folder; return their
    path.

    Raises RuntimeError if the repository does not have that commit.
    """
    command = ["git", "archive", EARLIER, "whook.py", "objects.py", "policies"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise RuntimeError(
            f"git can't read commit {EARLIER}: {archive.stderr.decode().strip()}; if the clone is "
            "shallow, run `git fetch --unshallow`"
        )
    tree = folder / EARLIER
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tree, filter="data")
    return tree


def script(name: str, file: str, *needs: str, forks: bool = True) -> Peer:
    """A peer that is a Python program of its own; `forks` says whether it takes --workers."""

    def command(place: Place) -> list[str]:
        python = sys.executable if needs else interpreter()
        own = [python, str(PEERS / file), place.cert, place.key, str(place.port)]
        return own + [str(place.workers)] * forks

    return Peer(name, command, PEERS / file, needs)


def flask() -> Peer:
    def command(place: Place) -> list[str]:
        return [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", "8",
                "--workers", str(place.workers), "--keep-alive", "100", "--chdir", str(PEERS),
                "--certfile", place.cert, "--keyfile", place.key, "--no-control-socket",
                "--bind", f"127.0.0.1:{place.port}", "flask_peer:app"]  # fmt: skip

    return Peer("Flask, gunicorn", command, PEERS / "flask_peer.py", ("flask", "gunicorn"))


def fastapi() -> Peer:
    def command(place: Place) -> list[str]:
        return [sys.executable, "-m", "uvicorn", "--workers", str(place.workers),
                "--app-dir", str(PEERS), "--ssl-certfile", place.cert, "--ssl-keyfile", place.key,
                "--host", "127.0.0.1", "--port", str(place.port), "fastapi_peer:app"]  # fmt: skip

    needs = ("fastapi", "uvicorn[standard]")
    return Peer("FastAPI, uvicorn", command, PEERS / "fastapi_peer.py", needs)


def gin(name: str, binary: Path) -> Peer:
    def command(place: Place) -> list[str]:
        return [str(binary), place.cert, place.key, str(place.port)]

    return Peer(name, command, PEERS / "gin" / "main.go", (), binary)


def python_peers() -> list[Peer]:
    return [
        script("the floor", "floor_peer.py"),
        script("aiohttp", "aiohttp_peer.py", "aiohttp"),
        fastapi(),
        flask(),
        script("kopf", "kopf_peer.py", "kopf", forks=False),
        script("stock http.server", "stock_peer.py", forks=False),
    ]


# ---------------------------------------------------------------------------- gin


def go_path(kubernetes: Path, build: Path) -> str:
    """Where Go finds gin (Debian's package) and Kubernetes' types (the source tree's vendor/)."""
    build.mkdir(parents=True, exist_ok=True)
    source = build / "src"
    source.unlink(missing_ok=True)
    source.symlink_to((kubernetes / "vendor").resolve())
    return f"/usr/share/gocode:{build}"


def build_gin(go: str, kubernetes: Path, build: Path) -> tuple[Path, str]:
    """The gin peer built by this Go, and the Go's version; CalledProcessError if it fails."""
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": go_path(kubernetes, build)}
    version = subprocess.check_output([go, "version"], env=environment, text=True).split()[2][2:]
    binary = build / f"gin-{version}"
    if not binary.exists():
        command = [go, "build", "-o", str(binary), str(PEERS / "gin" / "main.go")]
        subprocess.run(command, env=environment, check=True)
    return binary, version


def audit_gin(go: str, kubernetes: Path, build: Path) -> tuple[int, int]:
    """How many modules outside Go's library are compiled in, and their lines."""
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": go_path(kubernetes, build)}
    form = '{{if not .Standard}}{{.ImportPath}}\t{{.Dir}}\t{{join .GoFiles ","}}{{end}}'
    command = [go, "list", "-deps", "-f", form, str(PEERS / "gin" / "main.go")]
    listed = subprocess.check_output(command, env=environment, text=True)
    modules, lines = set(), 0
    for line in filter(None, listed.splitlines()):
        package, folder, files = line.split("\t")
        lines += sum(count_lines(Path(folder, file)) for file in files.split(","))
        if package != "command-line-arguments":
            modules.add(module_of(package))
    return len(modules), lines


def module_of(package: str) -> str:
    """The module that a Go package belongs to, as its host's customs say."""
    parts = package.split("/")
    short = parts[0].startswith("gopkg.") or parts[0].endswith("k8s.io")
    short = short or parts[0] == "google.golang.org"
    return "/".join(parts[: 2 if short else 3])


# ---------------------------------------------------------------------------- what to audit


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def distributions(needs: tuple[str, ...]) -> set[str]:
    """The names of all distributions that these requirements pull in, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(need) for need in needs]
    while waiting:
        need = waiting.pop()
        name = re.sub("[-_.]+", "-", need.name).lower()
        known, extras = name in found, need.extras or {""}
        if known and not need.extras:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            child = Requirement(text)
            marker = child.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return found


def audit(peer: Peer) -> tuple[int, int]:
    """How many distributions a Python peer needs, and the lines of Python in them and in itself.

    Compiled extensions are not counted, nor is the standard library, nor tests that are shipped.
    """
    lines = count_lines(peer.source)
    if peer.source.parent == PEERS and peer.name != "the floor":
        lines += 0 if peer.name == "kopf" else count_lines(PEERS / "label.py")
    names = distributions(peer.needs)
    for name in names:
        for file in importlib.metadata.files(name) or ():
            if file.suffix == ".py" and "tests" not in file.parts:
                lines += count_lines(Path(file.locate()))
    return len(names), lines


def python_build() -> dict[str, object]:
    """Which Python, whether its own build flags name a profile-guided build (a distribution may
    leave that out of them), and what one `json.loads` of the 5.7 KB review takes in it."""
    flags = (
        f"{sysconfig.get_config_var('CONFIG_ARGS')} {sysconfig.get_config_var('PY_CORE_CFLAGS')}"
    )
    body = (ROOT / "tests" / "reviews" / "create-pod.json").read_bytes()
    loads = min(timeit.repeat(lambda: json.loads(body), number=1000, repeat=9)) * 1000
    return {
        "version": sys.version.split()[0],
        "pgo_stated": "--enable-optimizations" in flags or "-fprofile-use" in flags,
        "loads_us": loads,
    }


def digest(files: Iterable[Path]) -> str:
    """A short hash of these files' contents."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


# ---------------------------------------------------------------------------- a running server


class Running:
    """A started server: its processes' cost so far, their memory, and its end."""

    def __init__(self, peer: Peer, place: Place, log: Path) -> None:
        self.peer, self.place = peer, place
        with log.open("wb") as output:
            self.started = time.monotonic()
            self.process = psutil.Popen(
                peer.command(place),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of processor time, user and system, of all its processes, the dead included."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory(self) -> list[float]:
        """The proportional share of each process in MiB, the first process's first."""
        return [process.memory_full_info().pss / 2**20 for process in self.tree()]

    def stop(self) -> None:
        tree = self.tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT if process is self.process else signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, STOP_TIMEOUT)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, STOP_TIMEOUT)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    peer: Peer, cert: Path, key: Path, workers: int, log: Path, ready: Callable[[int], bool]
) -> Iterator[tuple[Running, float]]:
    """The server once it has answered a first review, and how long that took from its start."""
    server = Running(peer, Place(str(cert), str(key), free_port(), workers), log)
    try:
        while not ready(server.place.port):
            if server.process.poll() is not None:
                raise RuntimeError(f"{peer.name} ended: {log.read_text()[-2000:]}")
            if time.monotonic() - server.started > START_TIMEOUT:
                raise RuntimeError(f"{peer.name} was not ready in {START_TIMEOUT:.0f} s")
            time.sleep(0.002)
        yield server, time.monotonic() - server.started
    finally:
        server.stop()


def machine() -> dict[str, object]:
    """What the figures hold for."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": python_build(),
    }
