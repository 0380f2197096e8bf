"""A real node for tests: containerd, kubelet, kube-proxy and a scheduler beside a control plane.

    with network_namespace(), ControlPlane(apiserver=node.APISERVER) as plane, Node(plane) as one:
        one.load("localhost/whook:1.0.0", archive)

kubelet, kube-proxy and kube-scheduler are looked for in $KUBEBUILDER_ASSETS and on the PATH, the
rest as Debian's packages have it. The images come from the Dockerfile, by buildah, on its own base
or on $WHOOK_BASE. `missing()` says why no node can run here, None if it can.

All of it runs in a network, a mount and a PID namespace of its own, with empty folders over
/var/lib, /run and /var/log: when its first process ends, so do all, and nothing is left mounted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import controlplane
from tests.controlplane import ADDRESS, ControlPlane
from tests.server import ROOT, wait_for

KUBERNETES = ("kubelet", "kube-proxy", "kube-scheduler")
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "buildah", "iptables")
PLUGINS = ("bridge", "host-local", "loopback")
CGROUPS = Path("/sys/fs/cgroup")
CGROUP = f"whook-test-{os.getpid()}"
PODS = "10.244.0.0/16"
SOCKET = "/run/containerd/containerd.sock"
NAME = "one"
WITHIN = 180.0

# What a control plane needs more than for tests without a node. It calls ClusterIPs, as most do.
APISERVER = (
    "--bind-address=0.0.0.0",  # of its own network namespace
    "--endpoint-reconciler-type=lease",
    "--enable-aggregator-routing=false",
    "--authorization-mode=Node",  # beside RBAC
    "--kubelet-preferred-address-types=InternalIP",
)
# The first process of the node: orphans become its children, and it waits for none of them.
INIT = """\
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(flush=True)
while True:
    signal.pause()
"""

CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true  # where the tests themselves are in a container
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
"""
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": f"unix://{SOCKET}",
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": f"/{CGROUP}",
    "failCgroupV1": False,
    "failSwapOn": False,
    "resolvConf": "",
    "address": ADDRESS,
    "healthzPort": 0,
    # Nobody else is in this network: so `kubectl logs` works without certificates for it.
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "evictionHard": {"memory.available": "50Mi"},
}
PROXY = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "iptables",
    "clusterCIDR": PODS,
    "hostnameOverride": NAME,
    "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
}


def find(name: str) -> str | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    return shutil.which(name, path=os.pathsep.join([assets, os.environ["PATH"], "/usr/sbin"]))


def plugins() -> Path | None:
    """The folder of the network plugins."""
    folders = map(Path, (os.environ.get("CNI_PATH", "/opt/cni/bin"), "/usr/lib/cni"))
    return next((f for f in folders if all((f / name).is_file() for name in PLUGINS)), None)


@functools.cache
def missing() -> str | None:
    """Why no node can run here, and what to do about it."""
    if reason := controlplane.missing():
        return reason
    if absent := [name for name in (*KUBERNETES, *PROGRAMS) if not find(name)]:
        return f"no node: {', '.join(absent)} not in KUBEBUILDER_ASSETS or PATH"
    if not plugins():
        return f"no node: {', '.join(PLUGINS)} not in CNI_PATH, /opt/cni/bin or /usr/lib/cni"
    return None


class Images:
    """What buildah makes of the Dockerfile; SkipTest's reason is in `reason` where the base can't
    be had."""

    def __init__(self, folder: Path):
        self.folder = folder
        (argument,) = re.findall(r"(?m)^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text())
        self.base = os.environ.get("WHOOK_BASE", argument)
        (folder / "pause").write_text(f'FROM {self.base}\nENTRYPOINT ["sleep", "infinity"]\n')

    def buildah(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [find("buildah"), f"--root={self.folder}/root", f"--runroot={self.folder}/run"]
        command += ["--storage-driver=overlay", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    def reason(self) -> str | None:
        """Why there is no base to build on."""
        done = self.buildah(
            "build",
            "--isolation=chroot",
            "-q",
            "-t=localhost/pause:1",
            f"--file={self.folder}/pause",
            str(self.folder),
        )
        lines = done.stderr.strip().splitlines()
        return f"no base image: set WHOOK_BASE to one: {lines[-1]}" if done.returncode else None

    def build(self, target: str, tag: str) -> Path:
        """An archive of this target of the Dockerfile. AssertionError with what buildah said."""
        done = self.buildah(
            "build",
            "--isolation=chroot",
            "-q",
            f"--build-arg=BASE={self.base}",
            f"--target={target}",
            f"--tag={tag}",
            str(ROOT),
        )
        if done.returncode:
            raise AssertionError(done.stderr)
        return self.archive(tag)

    def archive(self, tag: str) -> Path:
        path = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', tag)}.tar"
        done = self.buildah("push", "-q", tag, f"oci-archive:{path}:{tag}")
        if done.returncode:
            raise AssertionError(done.stderr)
        return path


class Node:
    """Started on entry, ended on exit; to be entered where its control plane was."""

    def __init__(self, plane: ControlPlane):
        self.plane = plane

    def __enter__(self) -> Node:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="node-")))
            stack.enter_context(cgroups())
            stack.callback(self.stop)
            self.init, self.first = self.first_process()
            self.start()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def first_process(self) -> tuple[subprocess.Popen, int]:
        """Started by the one, which ends after it; its number as this machine has it."""
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*prefix, "unshare", "--mount", "--pid", "--mount-proc", "--kill-child"]
        process = subprocess.Popen(
            [*command, sys.executable, "-c", INIT], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return process, int(children)

    def stop(self) -> None:
        os.kill(self.first, signal.SIGKILL)  # and so all others
        self.init.wait()  # until all of them are gone
        self.init.stdout.close()

    def run(self, *words: object) -> subprocess.Popen:
        """A program of the node. Its log is in the node's folder."""
        with open(self.folder / f"{words[0]}.log", "ab") as log:
            return subprocess.Popen(
                self.command(*words), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def command(self, *words: object) -> list[str]:
        entered = ["nsenter", f"--target={self.first}", "--mount", "--pid"]
        return [*entered, find(str(words[0])) or str(words[0]), *map(str, words[1:])]

    def do(self, *words: object) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=WITHIN)
        if done.returncode:
            raise AssertionError(f"{' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def start(self) -> None:
        for path in ("/var/lib", "/var/log", "/run"):
            self.do("mount", "-t", "tmpfs", "none", path)
        # Where the kernel would look up ClusterIPs before kube-proxy's rules have their say.
        subprocess.run(
            ["ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", ADDRESS], check=True
        )
        self.write("containerd.toml", CONTAINERD.format(plugins=plugins(), folder=self.folder))
        self.write("cni/10-pods.conflist", json.dumps(NETWORK))
        kubelet = self.write("kubelet.json", json.dumps(KUBELET))
        user = self.plane.user(f"system:node:{NAME}", "system:nodes")
        proxy = {"clientConnection": {"kubeconfig": str(self.plane.user("system:kube-proxy"))}}
        proxy = self.write("proxy.json", json.dumps(PROXY | proxy))
        scheduler = self.plane.user("system:kube-scheduler")
        self.run("containerd", f"--config={self.folder}/containerd.toml")
        wait_for(self.containerd_answers, f"containerd, see {self.folder}/containerd.log", WITHIN)
        self.run(
            "kubelet",
            f"--config={kubelet}",
            f"--kubeconfig={user}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
        )
        self.run("kube-proxy", f"--config={proxy}")
        self.run(
            "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0"
        )
        wait_for(self.is_ready, f"the node to be ready, see {self.folder}/kubelet.log", WITHIN)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def containerd_answers(self) -> bool:
        command = self.command("ctr", f"--address={SOCKET}", "version")
        return not subprocess.run(command, capture_output=True).returncode

    def is_ready(self) -> bool:
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        return self.plane.kubectl("get", "node", NAME, "-o", path, check=False).stdout == "True"

    def load(self, archive: Path) -> None:
        """Bring an image to the node, as `kind load` does."""
        self.do("ctr", f"--address={SOCKET}", "--namespace=k8s.io", "images", "import", archive)


@contextlib.contextmanager
def cgroups() -> Iterator[None]:
    """A place of its own in each hierarchy for the node's pods, and nothing left there."""
    roots = [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else list(CGROUPS.glob("*/"))
    folders = [root / CGROUP for root in roots if (root / "cgroup.procs").exists()]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        for folder in folders:
            for below in sorted(folder.rglob("*/"), reverse=True):
                below.rmdir()
            folder.rmdir()
