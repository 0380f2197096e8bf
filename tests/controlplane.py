"""A real control plane for tests: etcd, kube-apiserver and kube-controller-manager on loopback.

    with network_namespace(), ControlPlane() as plane:
        plane.kubectl("get", "namespaces")

The binaries are envtest's: looked for in $KUBEBUILDER_ASSETS, in envtest's default folder and where
setup-envtest keeps them. `missing()` says why no test can run here, None if it can.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import pki

NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
ADDRESS = "192.0.2.10"  # documentation's own network: an endpoint's address may not be loopback
START_LIMIT = 120.0  # seconds; a quiet machine needs five
CLONE_NEWNET = 0x40000000


def binaries() -> Path | None:
    """The folder with all of NEEDED in it."""
    store = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    folders = [Path("/usr/local/kubebuilder/bin")]
    folders += sorted((store / "kubebuilder-envtest/k8s").glob("*"), reverse=True)
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        folders = [Path(assets)]
    return next((f for f in folders if all((f / name).is_file() for name in NEEDED)), None)


def missing() -> str | None:
    """Why no control plane can run here, and what to do about it."""
    if not binaries():
        return f"no control plane: set KUBEBUILDER_ASSETS to a folder with {', '.join(NEEDED)}"
    if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("ip"):
        return "no control plane: its network namespace needs root and iproute2 on Linux"
    return None


@contextlib.contextmanager
def network_namespace(address: str = ADDRESS) -> Iterator[str]:
    """Move this thread, and what it starts from here on, into a network of its own that has only a
    loopback device; `address` on it is one that the API server takes as an endpoint."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
            yield address
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


class ControlPlane:
    """Started on entry, stopped and removed on exit; must be entered inside `network_namespace`.

    `apiserver` and `manager` are extra flags. The API server calls webhooks at the endpoints
    directly, as there is no kube-proxy. `kubeconfig` is an administrator's; `authority` is the CA
    of everything, the CSR signer's too."""

    def __init__(self, apiserver: tuple[str, ...] = (), manager: tuple[str, ...] = ()):
        self.extra = {"kube-apiserver": apiserver, "kube-controller-manager": manager}
        self.processes: list[subprocess.Popen] = []
        self.authority = pki.Authority("kubernetes")

    def __enter__(self) -> ControlPlane:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plane-")))
            stack.callback(self.stop)
            self.start()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def start(self) -> None:
        ports = dict(zip(("etcd", "peer", "api", "manager"), free_ports(4), strict=True))
        self.host, self.port = f"https://127.0.0.1:{ports['api']}", ports["api"]
        (self.folder / "ca.crt").write_bytes(self.authority.pem)
        (self.folder / "ca.key").write_bytes(pki.key_pem(self.authority.key))
        self.issue("apiserver", ["127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1"])
        self.issue("manager", ["127.0.0.1", "localhost"])
        (self.folder / "account.key").write_bytes(pki.key_pem(pki.new_key("rsa")))
        self.kubeconfig = self.user("admin", "system:masters")
        manager = self.user("system:kube-controller-manager")
        self.run("etcd", etcd_flags(self.folder, ports))
        self.run("kube-apiserver", apiserver_flags(self.folder, ports))
        self.wait("the API server", lambda: self.healthy(ports["api"], "/readyz"))
        self.run("kube-controller-manager", manager_flags(self.folder, ports, manager))
        self.wait("the controller manager", lambda: self.healthy(ports["manager"], "/healthz"))
        account = ("get", "serviceaccount", "default", "--ignore-not-found", "-oname")
        self.wait("a ServiceAccount", lambda: self.kubectl(*account).stdout)

    def stop(self) -> None:
        """Nothing here is worth a graceful end, for which the API server takes ten seconds."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    def run(self, name: str, flags: dict[str, str]) -> None:
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        # Where there is setpriv, the process ends with the tests even if they are killed.
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.folder / f"{name}.log", "wb") as log:
            command = [*prefix, str(binaries() / name), *words, *self.extra.get(name, ())]
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)

    def wait(self, what: str, ready) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not ready():
            dead = [process.args for process in self.processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = [path.read_text()[-3000:] for path in self.folder.glob("*.log")]
                raise RuntimeError(f"{what} did not start\n" + "\n".join(logs))
            time.sleep(0.1)

    def healthy(self, port: int, path: str) -> bool:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", path)
            return connection.getresponse().status == 200
        return False

    def issue(self, file: str, names=(), **options) -> pki.Pair:
        pair = self.authority.issue(names, **options)
        pair.write(self.folder, f"{file}.crt", f"{file}.key")
        return pair

    def user(self, name: str, group: str | None = None, host: str | None = None) -> Path:
        """A kubeconfig, with a client certificate for this user."""
        file = name.replace(":", "-")
        self.issue(file, client=True, common_name=name, organization=group)
        cluster = {"server": host or self.host, "certificate-authority": "ca.crt"}
        user = {"client-certificate": f"{file}.crt", "client-key": f"{file}.key"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path = self.folder / f"{file}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def kubectl(
        self, *words: str, stdin: str = "", check: bool = True, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or as the user of another kubeconfig."""
        command = [str(binaries() / "kubectl"), "--kubeconfig", str(kubeconfig or self.kubeconfig)]
        # Its discovery cache goes with the folder, and nothing of the caller's gets in.
        environment = {"HOME": str(self.folder), "PATH": os.environ.get("PATH", "")}
        process = subprocess.run(
            [*command, *words], input=stdin, text=True, capture_output=True, env=environment
        )
        if check and process.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {process.stderr}")
        return process


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def etcd_flags(folder: Path, ports: dict[str, int]) -> dict[str, str]:
    client, peer = (f"http://127.0.0.1:{ports[name]}" for name in ("etcd", "peer"))
    return {
        "name": "test",
        "data-dir": f"{folder}/etcd",
        "unsafe-no-fsync": "true",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"test={peer}",
    }


def apiserver_flags(folder: Path, ports: dict[str, int]) -> dict[str, str]:
    return {
        "etcd-servers": f"http://127.0.0.1:{ports['etcd']}",
        "bind-address": "127.0.0.1",
        "advertise-address": ADDRESS,  # else it looks for a default route
        "secure-port": str(ports["api"]),
        "endpoint-reconciler-type": "none",
        "tls-cert-file": f"{folder}/apiserver.crt",
        "tls-private-key-file": f"{folder}/apiserver.key",
        "client-ca-file": f"{folder}/ca.crt",
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.96.0.0/16",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-signing-key-file": f"{folder}/account.key",
        "service-account-key-file": f"{folder}/account.key",
        "enable-aggregator-routing": "true",
    }


def manager_flags(folder: Path, ports: dict[str, int], kubeconfig: Path) -> dict[str, str]:
    return {
        "kubeconfig": str(kubeconfig),
        "authentication-kubeconfig": str(kubeconfig),
        "authorization-kubeconfig": str(kubeconfig),
        "bind-address": "127.0.0.1",
        "secure-port": str(ports["manager"]),
        "tls-cert-file": f"{folder}/manager.crt",
        "tls-private-key-file": f"{folder}/manager.key",
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "kube-api-qps": "300",
        "kube-api-burst": "600",
        "cluster-signing-cert-file": f"{folder}/ca.crt",
        "cluster-signing-key-file": f"{folder}/ca.key",
        "root-ca-file": f"{folder}/ca.crt",
        "service-account-private-key-file": f"{folder}/account.key",
    }
