"""The whole story on a real API server: what the README tells the reader to type, in its order.

etcd, kube-apiserver and kube-controller-manager run here; there is no kubelet, so where a pod of
whook's would start, the test starts the same command line on the pod's address. The API server
finds it as it does in any cluster: webhook configuration, Service, EndpointSlice, TLS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests import controlplane, pki
from tests.server import wait_for
from tests.test_schema import OBJECTS, SCHEMAS, changes
from whook import parse_review
from workbench import rules, schema, webhooks

TOP = Path(__file__).resolve().parent.parent
MANIFESTS = TOP / "manifests"
ADDRESSES = ("192.0.2.10", "192.0.2.11")  # the first is the one in manifests/debug/
WITHIN = 30.0
CONFIGURATIONS = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
SSHD = Path("/usr/sbin/sshd")
LABEL = "app.kubernetes.io/name"

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    namespaces: [playground, shop]
"""
# What the two policies in manifests/40-configmap.yaml do.
TEAM_LABEL, TEAM = "example.com/team", "shop"
LABELLED = f'"{TEAM_LABEL}":"{TEAM}"'
REFUSED = (
    'Error from server (Forbidden): error when creating "STDIN": admission webhook'
    ' "validate.whook.local" denied the request: container "main": image "shop:latest" has a'
    " mutable tag; pin a version or a digest"
)
# How an API server counts the calls that failed, and were ignored.
FAILED_OPEN = 'apiserver_admission_webhook_fail_open_count{name="mutate.whook.local",type="admit"}'

# How an API server is given a client certificate for the webhooks that it calls.
ADMISSION = """\
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: MutatingAdmissionWebhook
    configuration: &webhooks
      apiVersion: apiserver.config.k8s.io/v1
      kind: WebhookAdmissionConfiguration
      kubeConfigFile: {folder}/webhooks.kubeconfig
  - name: ValidatingAdmissionWebhook
    configuration: *webhooks
"""
WEBHOOK_USERS = """\
apiVersion: v1
kind: Config
users:
  - name: whook.whook.svc
    user: {{client-certificate: {cert}, client-key: {key}}}
"""

cluster: controlplane.ControlPlane
folder: Path


def setUpModule() -> None:
    global cluster, folder
    if reason := controlplane.missing():
        raise unittest.SkipTest(reason)
    folder = Path(unittest.enterModuleContext(tempfile.TemporaryDirectory()))
    unittest.enterModuleContext(controlplane.network_namespace(ADDRESSES[0]))
    subprocess.run(["ip", "address", "add", f"{ADDRESSES[1]}/32", "dev", "lo"], check=True)
    plane = controlplane.ControlPlane(
        apiserver=(*audit_flags(), *admission_flags()),
        manager=("--horizontal-pod-autoscaler-sync-period=1s",),
    )
    cluster = unittest.enterModuleContext(plane)


def audit_flags() -> list[str]:
    (folder / "audit.yaml").write_text(AUDIT_POLICY)
    return [
        f"--audit-policy-file={folder}/audit.yaml",
        f"--audit-log-path={folder}/audit.log",
        "--audit-log-mode=blocking",
    ]


def admission_flags() -> list[str]:
    """The API server shows a client certificate to whook.whook.svc, for whoever asks."""
    authority = pki.Authority("the API server's clients")
    (folder / "client-ca.pem").write_bytes(authority.pem)
    pair = authority.issue((), client=True, common_name="kube-apiserver")
    cert, key = pair.write(folder, "webhooks.crt", "webhooks.key")
    (folder / "webhooks.kubeconfig").write_text(WEBHOOK_USERS.format(cert=cert, key=key))
    (folder / "admission.yaml").write_text(ADMISSION.format(folder=folder))
    return [f"--admission-control-config-file={folder}/admission.yaml"]


# ---------------------------------------------------------------- what a person at the desk does


def kubectl(line: str, **options: Any) -> str:
    """A command as the README has it, typed at the top of the repository."""
    return run(*line.split(), **options)


def run(*arguments: str, stdin: str = "", check: bool = True) -> str:
    """What kubectl printed; without `check`, it may fail, and its error output comes too."""
    done = cluster.kubectl(*arguments, stdin=stdin, check=check)
    return done.stdout if check else done.stdout + done.stderr


def get(what: str) -> Any:
    return json.loads(kubectl(f"get {what} -o json"))


def create(item: dict[str, Any], *options: str, check: bool = True) -> str:
    return run("create", "-f", "-", *options, stdin=json.dumps(item), check=check)


def refusal(item: dict[str, Any], *options: str) -> str:
    """The error with which the API server refuses to create this."""
    output = create(item, *options, check=False)
    if "Error" not in output:
        raise AssertionError(f"was not refused: {output}")
    return output.strip()


def certs(*arguments: str, kubeconfig: Path | None = None, folder: Path | None = None) -> str:
    """Run certs.py and return what it printed; AssertionError with its log if it fails."""
    command = [sys.executable, str(TOP / "certs.py"), *arguments]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig or cluster.kubeconfig)}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise AssertionError(f"certs.py {' '.join(arguments)}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def whook(log: Path, *arguments: str) -> Iterator[None]:
    """Run the server until the end of the block; AssertionError with its log if it never serves."""
    command = [sys.executable, str(TOP / "whook.py"), *arguments]
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stderr=stream)
    try:
        wait_for(is_ready, f"whook to be ready, see {log}", WITHIN)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C
        process.wait(WITHIN)


def is_ready() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def block(page: str, name: str) -> str:
    """The commands of a page of docs/ that stand under the mark `name`."""
    text = (TOP / "docs" / page).read_text()
    return text.split(f"<!-- {name} -->\n```sh\n")[1].split("```")[0]


def shell(commands: str) -> str:
    """What these commands print, typed at the top of the repository as an administrator."""
    programs = [str(Path(sys.executable).parent), str(controlplane.binaries()), os.environ["PATH"]]
    environment = {**os.environ, "PATH": ":".join(programs), "KUBECONFIG": str(cluster.kubeconfig)}
    command = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(
        command, env=environment, cwd=TOP, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise AssertionError(f"{commands}\n{done.stdout}{done.stderr}")
    return done.stdout


def manifest(path: str) -> dict[str, Any]:
    item: dict[str, Any] = yaml.safe_load((MANIFESTS / path).read_text())
    return item


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, image: str = "busybox:1.36.1") -> dict[str, Any]:
    container = {"name": "main", "image": image}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    }


@contextlib.contextmanager
def tunnel(folder: Path) -> Iterator[None]:
    """The README's ssh command, from this machine to an sshd on the first address."""
    port = controlplane.free_ports(1)[0]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", folder / name], check=True)
    settings = {
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "GatewayPorts": "clientspecified",
        "StrictModes": "no",
        "PidFile": "none",
    }
    options = [f"-o{key}={value}" for key, value in settings.items()]
    Path("/run/sshd").mkdir(exist_ok=True)
    anyone = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]
    login = ["-p", str(port), "-i", str(folder / "user"), *anyone, f"root@{ADDRESSES[0]}"]
    remote = f"{ADDRESSES[0]}:8443:localhost:8443"
    server = subprocess.Popen([SSHD, "-D", "-f", "/dev/null", *options])
    try:
        wait_for(lambda: listens(ADDRESSES[0], port), "sshd to listen", WITHIN)
        client = subprocess.Popen(["ssh", "-N", "-R", remote, *login])
        try:
            yield
        finally:
            client.terminate()
            client.wait()
    finally:
        server.terminate()
        server.wait()


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 5):
        return True
    return False


# ---------------------------------------------------------------- deploy, renew, debug, remove


NODE: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}


@contextlib.contextmanager
def kubelet(mounts: Path, namespace: str = "whook") -> Iterator[list[dict[str, Any]]]:
    """Stand in for scheduler and kubelet: bind two of the Deployment's pods to a node, run their
    command line on their addresses, report them ready, and keep the folders below `mounts` as the
    Secret and the ConfigMap are."""
    pods = wait_for(lambda: server_pods(namespace), "two pods of the Deployment", WITHIN)
    run("apply", "-f", "-", stdin=json.dumps(NODE))
    bring_files(pods[0], mounts)
    with whook(mounts / "whook.log", *arguments_of(pods[0], mounts)):
        with repeating(lambda: bring_files(pods[0], mounts)):
            for pod, address in zip(pods, ADDRESSES, strict=True):
                report_ready(pod, address)
            try:
                yield pods
            finally:  # a pod on a node goes only when its kubelet says so
                kubectl(f"delete pods -n {namespace} -l {LABEL}=whook --force --grace-period=0")


def server_pods(namespace: str) -> list[dict[str, Any]]:
    """Two pods of the Deployment, or none."""
    items = get(f"pods -n {namespace} -l {LABEL}=whook")["items"]
    pods = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    return pods[:2] if len(pods) >= len(ADDRESSES) else []


def arguments_of(pod: dict[str, Any], mounts: Path) -> list[str]:
    """The pod's command line, where its volumes are folders below `mounts`."""
    (container,) = pod["spec"]["containers"]
    return [argument.replace("=/", f"={mounts}/") for argument in container["args"]]


def bring_files(pod: dict[str, Any], mounts: Path) -> None:
    namespace = pod["metadata"]["namespace"]
    secret = get(f"secret whook-certs -n {namespace}")["data"]
    files = {f"certs/{name}": base64.b64decode(text) for name, text in secret.items()}
    policies = get(f"configmap {policies_of(pod)} -n {namespace}")["data"]
    files |= {f"policies/{name}": text.encode() for name, text in policies.items()}
    for name, content in files.items():
        path = mounts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)


@contextlib.contextmanager
def repeating(action: Callable[[], object]) -> Iterator[None]:
    """Over and over, with a third of a second between, until the end of the block."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(0.3):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def policies_of(pod: dict[str, Any]) -> str:
    """The name of the ConfigMap with its policies."""
    (name,) = (v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v)
    return str(name)


def report_ready(pod: dict[str, Any], address: str) -> None:
    """What a scheduler, and then a kubelet, tell the API server of a pod."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"kind": "Node", "name": NODE["metadata"]["name"]},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
    run("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    patch = json.dumps({"status": status})
    run("patch", "pod", name, "-n", namespace, "--subresource=status", "-p", patch)


class StoryTest(unittest.TestCase):
    """One cluster, from nothing to nothing, step by step as in the README."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(contextlib.chdir(TOP))  # where a reader types the commands

    def test_story(self) -> None:
        self.deploy()
        with kubelet(self.folder):
            self.see_a_mutated_pod()
            self.apply_again()
            self.be_refused()
            self.renew_within_the_cluster()
        self.debug_on_the_laptop()
        self.return_to_normal()
        self.remove_in_an_emergency()
        self.leave_nothing_behind()

    def deploy(self) -> None:
        kubectl("apply -f manifests/")
        certs(folder=self.folder)
        self.assertEqual(get("secret whook-certs -n whook")["type"], "kubernetes.io/tls")
        names = {"ca.pem", "server-cert.pem", "server-key.pem"}
        self.assertEqual({f.name for f in (self.folder / "webhook-certs").iterdir()}, names)
        kubectl("label namespace default whook=enabled")

    def see_a_mutated_pod(self) -> None:
        kubectl("rollout status deployment/whook -n whook --timeout=30s")
        wait_for(self.is_mutated, "the API server to call the pods", WITHIN)
        kubectl("apply -f manifests/examples/busybox.yaml")
        found = wait_for(lambda: get("pods -l app=busybox")["items"], "a pod of busybox", WITHIN)
        self.assertEqual(self.label_of(found[0]), TEAM)

    def apply_again(self) -> None:
        before = self.bundles()
        self.assertEqual(len(before), 2)
        kubectl("apply -f manifests/")
        self.assertEqual(self.bundles(), before)
        self.assertTrue(all(before))
        self.assertTrue(self.is_mutated())

    def be_refused(self) -> None:
        item = pod("latest")
        item["spec"]["containers"][0]["image"] = "shop:latest"
        self.assertEqual(refusal(item), REFUSED)

    def renew_within_the_cluster(self) -> None:
        """With the CronJob's arguments and its account's rights, and no review lost meanwhile."""
        kubectl("apply -f manifests/renewal/")
        kubectl("create job --from=cronjob/whook-certs now -n whook-renewal")
        found = f"pods -n whook-renewal -l {LABEL}=whook-certs"
        pods = wait_for(lambda: get(found)["items"], "a pod of the renewal's job", WITHIN)
        (container,) = pods[0]["spec"]["containers"]
        before = get("secret whook-certs -n whook")["data"]
        account, mutated = self.renewal_account(), list[bool]()
        with repeating(lambda: mutated.append(self.is_mutated())):
            certs(*container["args"], "--renew", kubeconfig=account)
        self.assertGreater(len(mutated), 2)
        self.assertTrue(all(mutated))
        after = get("secret whook-certs -n whook")["data"]
        self.assertNotEqual(after["tls.crt"], before["tls.crt"])
        self.assertEqual(self.bundles(), [after["ca.crt"]] * 2)
        self.assertEqual(self.rights_beyond_renewal(), [])

    @staticmethod
    def renewal_account() -> Path:
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        token = kubectl("create token whook-certs -n whook-renewal").strip()
        config["users"] = [{"name": "test", "user": {"token": token}}]
        path = cluster.folder / "renewal.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    @staticmethod
    def rights_beyond_renewal() -> list[str]:
        """Of what neither account may do, that which the API server would let it do."""
        questions = {
            "whook-renewal:whook-certs": (
                "list secrets -n whook",
                "get secrets/other -n whook",
                "get secrets/whook-certs -n default",
                "delete secrets/whook-certs -n whook",
                "create pods -n whook",
                "create pods -n whook-renewal",
                "get configmaps -n whook",
                "patch mutatingwebhookconfigurations/other",
                "delete mutatingwebhookconfigurations/whook",
                "approve signers/kubernetes.io/kube-apiserver-client",
            ),
            "whook:whook": (
                "get secrets/whook-certs -n whook",
                "list pods -n whook",
                "get namespaces",
            ),
        }
        return [
            f"{account}: {question}"
            for account, asked in questions.items()
            for question in asked
            if "yes"
            in kubectl(f"auth can-i {question} --as=system:serviceaccount:{account}", check=False)
        ]

    def debug_on_the_laptop(self) -> None:
        kubectl("delete -f manifests/50-deployment.yaml -f manifests/60-service.yaml")
        wait_for(lambda: not self.is_mutated(), "a pod that nobody mutated", WITHIN)
        kubectl("apply -f manifests/debug/")
        certs(folder=self.folder)  # so that webhook-certs/ holds what the CronJob's run made
        arguments = (
            f"--tls-cert={self.folder}/webhook-certs/server-cert.pem",
            f"--tls-key={self.folder}/webhook-certs/server-key.pem",
            "--policy=policies/",
        )
        with whook(self.folder / "laptop.log", *arguments):
            wait_for(self.is_mutated, "the API server to call the laptop", WITHIN)
        self.assertFalse(self.is_mutated(), "with no whook, failurePolicy Ignore lets pods through")
        self.assertIn(FAILED_OPEN, kubectl("get --raw /metrics"), "what WhookFailsOpen looks at")

    def return_to_normal(self) -> None:
        kubectl("delete -f manifests/debug/")
        kubectl("apply -f manifests/")
        with kubelet(self.folder):
            wait_for(self.is_mutated, "the API server to call the pods again", WITHIN)
            slices = get("endpointslices -n whook")["items"]
            managers = {
                s["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] for s in slices
            }
            self.assertEqual(managers, {"endpointslice-controller.k8s.io"})

    def remove_in_an_emergency(self) -> None:
        kubectl(f"delete {CONFIGURATIONS} -l {LABEL}=whook")
        self.assertEqual(kubectl(f"get {CONFIGURATIONS} -o name"), "")

    def leave_nothing_behind(self) -> None:
        kubectl("delete -f manifests/renewal/ --ignore-not-found")
        kubectl("delete -f manifests/ --ignore-not-found")
        everywhere = f"namespaces,clusterroles,clusterrolebindings,{CONFIGURATIONS}"
        self.assertEqual(kubectl(f"get {everywhere} -l {LABEL} -o name"), "")
        self.assertEqual(kubectl("get certificatesigningrequests -o name"), "")
        kubectl("delete -f manifests/examples/busybox.yaml")
        kubectl("label namespace default whook-")

    @staticmethod
    def bundles() -> list[str]:
        return [
            webhook["clientConfig"].get("caBundle", "")
            for item in get(f"{CONFIGURATIONS}")["items"]
            for webhook in item["webhooks"]
        ]

    @staticmethod
    def label_of(item: dict[str, Any]) -> str | None:
        label: str | None = item["metadata"].get("labels", {}).get(TEAM_LABEL)
        return label

    def is_mutated(self) -> bool:
        output = create(pod("probe"), "--dry-run=server", "-o", "json")
        return self.label_of(json.loads(output)) is not None


# ---------------------------------------------------------------- kustomize


class KustomizeTest(unittest.TestCase):
    """docs/kustomize.md: the overlays as the API server takes them, and what they promise."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        shutil.copytree(MANIFESTS / "kustomize", self.folder / "kustomize")
        self.overlays = self.folder / "kustomize/overlays"

    def apply(self, overlay: str, *, check: bool = True) -> str:
        return run("apply", "-k", str(self.overlays / overlay), check=check)

    def delete(self, overlay: str, *options: str) -> None:
        run("delete", "-k", str(self.overlays / overlay), "--ignore-not-found", *options)

    def follow(self, name: str) -> str:
        commands = block("kustomize.md", f"kustomize:{name}")
        commands = commands.replace("manifests/kustomize", str(self.overlays.parent))
        return shell(commands.replace("certs.py", "certs.py --cert-dir '' --timeout 20"))

    def test_every_overlay_is_taken(self) -> None:
        for overlay in ("../base", "registry", "own-entry"):
            with self.subTest(overlay):
                self.assertIn("deployment.apps/whook ", self.apply(overlay))
        self.assertIn("name: policies-", self.follow("build"))
        self.delete("../base")

    def test_cert_manager(self) -> None:
        for kind in ("Issuer", "Certificate"):
            item = custom_resource("cert-manager.io", kind)
            create(item)
            self.addCleanup(kubectl, f"delete crd {item['metadata']['name']}")
            kubectl(f"wait --for=condition=Established crd/{item['metadata']['name']}")
        self.follow("cert-manager")
        self.addCleanup(self.delete, "cert-manager")
        self.play_cert_manager()
        kubectl("label namespace default whook=enabled")
        self.addCleanup(kubectl, "label namespace default whook-")
        with kubelet(self.folder):
            wait_for(lambda: self.team() == TEAM, "the API server to call whook", WITHIN)
        self.fail_as_on_the_page()

    def fail_as_on_the_page(self) -> None:
        """certs.py, for what is there."""
        with self.assertRaises(AssertionError) as caught:
            certs("--cert-dir", "")
        message = str(caught.exception).splitlines()[0].partition(": ")[2]
        self.assertIn(f"`{message}`", (TOP / "docs/kustomize.md").read_text())

    def test_what_is_missing(self) -> None:
        self.fail_as_on_the_page()
        page = (TOP / "docs/kustomize.md").read_text()
        message = run("apply", "-f", str(MANIFESTS / "50-deployment.yaml"), check=False)
        shown = 'namespaces "whook" not found'
        self.assertIn(shown, message)
        self.assertIn(f"`{shown}`", page)
        (self.overlays / "yours/policies/team-label.json").unlink()
        message = self.apply("yours", check=False)
        for shown in ("loading KV pairs: file sources: ", ": no such file or directory"):
            self.assertIn(shown, message)
            self.assertIn(shown, page)

    @staticmethod
    def play_cert_manager() -> None:
        """Write the Secret that the Certificate asks for, and its CA into the configurations."""
        spec = get("certificate whook-certs -n whook")["spec"]
        authority = pki.Authority("whook CA")
        pair = authority.issue(spec["dnsNames"])
        files = {"tls.crt": pair.cert_pem, "tls.key": pair.key_pem, "ca.crt": authority.pem}
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data}
        create(secret | {"metadata": {"name": spec["secretName"]}}, "-n", "whook")
        path = "/webhooks/0/clientConfig/caBundle"
        patch = json.dumps([{"op": "add", "path": path, "value": data["ca.crt"]}])
        for kind in CONFIGURATIONS.split(","):
            run("patch", f"{kind}/whook", "--type=json", "-p", patch, "--field-manager=cainjector")

    def test_yours_and_a_broken_set(self) -> None:
        """From nothing to a pod with the label, in a namespace of its own; then a broken set, which
        reaches no pod that serves, and the way back."""
        self.addCleanup(self.delete, "yours", "--wait=false")
        self.addCleanup(kubectl, "label namespace default policies.example.com/asked-")
        self.follow("apply")
        with kubelet(self.folder, "policies") as pods:
            wait_for(lambda: self.team() == "payments", "the API server to call whook", WITHIN)
            self.stand_a_broken_set(policies_of(pods[0]))
            self.assertEqual(self.team(), "payments")
            self.renew()

    def renew(self) -> None:
        """With the arguments and the account of the page's copy of the CronJob."""
        copy = self.folder / "renewal"
        commands = block("kustomize.md", "kustomize:renewal")
        shell(commands.replace("renewal-policies", str(copy)))
        self.addCleanup(run, "delete", "-f", str(copy), "--ignore-not-found")
        policy = yaml.safe_load((copy / "30-networkpolicy.yaml").read_text())
        (to,) = policy["spec"]["egress"][1]["to"]
        self.assertEqual(*to["namespaceSelector"]["matchLabels"].values(), "policies")
        cronjob = get("cronjob whook-certs -n whook-renewal")
        (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        before = StoryTest.bundles()
        certs(*container["args"], "--renew", kubeconfig=StoryTest.renewal_account())
        self.assertTrue(all(StoryTest.bundles()))
        self.assertNotEqual(StoryTest.bundles(), before)

    def team(self) -> str | None:
        output = create(pod("probe"), "--dry-run=server", "-o", "json", check=False)
        if not output.startswith("{"):
            return None  # Fail, as whook is not there yet
        labels = json.loads(output)["metadata"].get("labels", {})
        team: str | None = labels.get(TEAM_LABEL)
        return team

    def stand_a_broken_set(self, good: str) -> None:
        (self.overlays / "yours/policies/team-label.py").write_text("def mutate(obj, request:\n")
        self.apply("yours")
        (pod,) = wait_for(lambda: self.pods_without(good), "a pod with the broken set", WITHIN)
        mounts = self.folder / "new"
        bring_files(pod, mounts)
        command = [sys.executable, str(TOP / "whook.py"), *arguments_of(pod, mounts)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn(
            "team-label.py does not load: line 1: SyntaxError: '(' was never", done.stderr
        )
        kept = [item["metadata"]["name"] for item in self.pods_with(good)]
        self.assertEqual(len(kept), 3)
        kubectl(f"delete pod {kept[2]} -n policies --force --grace-period=0")
        wait_for(
            lambda: len({item["metadata"]["name"] for item in self.pods_with(good)} - {*kept}) == 1,
            "a pod in its place, with the good set",
            WITHIN,
        )
        patch = ("patch", "configmap", good, "-n", "policies", "-p", '{"data": {"a.py": ""}}')
        self.assertIn("field is immutable when `immutable` is set", run(*patch, check=False))
        kubectl("rollout undo deployment/whook -n policies")
        deployment = get("deployment whook -n policies")
        self.assertEqual(policies_of(deployment["spec"]["template"]), good)

    def pods(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = get(f"pods -n policies -l {LABEL}=whook")["items"]
        return [item for item in items if "deletionTimestamp" not in item["metadata"]]

    def pods_with(self, configmap: str) -> list[dict[str, Any]]:
        return [item for item in self.pods() if policies_of(item) == configmap]

    def pods_without(self, configmap: str) -> list[dict[str, Any]]:
        return [item for item in self.pods() if policies_of(item) != configmap]


def custom_resource(group: str, kind: str) -> dict[str, Any]:
    """A definition that takes any object of this kind."""
    plural = f"{kind.lower()}s"
    item: dict[str, Any] = json.loads(json.dumps(WIDGETS))
    item["metadata"]["name"] = f"{plural}.{group}"
    names = {"plural": plural, "singular": kind.lower(), "kind": kind}
    item["spec"] |= {"group": group, "names": names}
    return item


# ---------------------------------------------------------------- GitOps


class GitOpsTest(unittest.TestCase):
    """docs/gitops.md: what Argo CD and Flux do to an API server, by their names: server-side apply
    that forces, and a diff by a dry run of it."""

    def setUp(self) -> None:
        self.page = (TOP / "docs/gitops.md").read_text()
        self.enterContext(contextlib.chdir(TOP))

    @classmethod
    def tearDownClass(cls) -> None:
        run("delete", "-f", str(MANIFESTS), "--ignore-not-found")

    def test_the_field_is_left_alone(self) -> None:
        commands = self.block("try", "sh").strip().splitlines()
        self.assertEqual(len(commands), 3)
        for name in ("argocd-controller", "kustomize-controller"):
            with self.subTest(name):
                outputs = [self.type(line.replace("argocd-controller", name)) for line in commands]
                self.assertIn("secret whook/whook-certs: certificate for", outputs[1])
                self.assertEqual(outputs[2], "")
                bundles = StoryTest.bundles()
                self.assertTrue(all(bundles) and bundles)
                self.type(commands[0].replace("argocd-controller", name))
                self.assertEqual(StoryTest.bundles(), bundles)

    def test_what_replaces_whole_objects_takes_it_away(self) -> None:
        apply, mend, _ = self.block("try", "sh").strip().splitlines()
        for line in (apply, mend):
            self.type(line)
        kubectl("replace -k manifests/kustomize/base")
        self.assertEqual(StoryTest.bundles(), ["", ""])
        self.type(mend)
        self.assertTrue(all(StoryTest.bundles()))

    def test_replicas_are_the_autoscalers(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()), "overlays/yours")
        shutil.copytree(MANIFESTS / "kustomize/base", folder.parent.parent / "base")
        folder.mkdir(parents=True)
        patches = self.block("replicas", "yaml")
        (folder / "kustomization.yaml").write_text(f"resources: [../../base]\n{patches}")
        options = ("--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-k")
        run("apply", *options, str(folder))
        wait_for(lambda: self.replicas() == 2, "the autoscaler", WITHIN)
        kubectl("scale deployment whook -n whook --replicas=4")  # as it would
        self.assertEqual(run("diff", *options, str(folder)), "")
        run("apply", *options, str(folder))
        self.assertEqual(self.replicas(), 4)
        run("apply", *options, str(MANIFESTS / "kustomize/base"))
        self.assertEqual(self.replicas(), 2, "what the patch is there for")

    @staticmethod
    def replicas() -> int:
        return int(get("deployment whook -n whook")["spec"]["replicas"])

    def block(self, name: str, language: str) -> str:
        return self.page.split(f"<!-- gitops:{name} -->\n```{language}\n")[1].split("```")[0]

    @staticmethod
    def type(line: str) -> str:
        """A command of the page. certs.py keeps its files out of here, and waits for no pod."""
        program, _, rest = line.partition(" ")
        if program == "kubectl":
            return kubectl(rest)
        return certs("--cert-dir", "", "--timeout", "20")


# ---------------------------------------------------------------- policies, step by step


DEADLINE = '{"spec": {"progressDeadlineSeconds": 3}}'  # the shipped five minutes are long


class PoliciesTest(unittest.TestCase):
    """docs/deploy-policies.md in its order, with the kubelet's part played."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.page = (TOP / "docs/deploy-policies.md").read_text()
        self.addCleanup(kubectl, "delete namespace shop --ignore-not-found --wait=false")
        self.addCleanup(run, "delete", "-f", str(MANIFESTS), "--ignore-not-found")

    def follow(self, name: str) -> str:
        commands = block("deploy-policies.md", f"policies:{name}")
        commands = commands.replace("certs.py", "certs.py --cert-dir '' --timeout 20")
        return shell(commands.replace("webhooks.yaml", f"{self.folder}/webhooks.yaml"))

    def transcript(self, words: str) -> tuple[str, str]:
        """The arguments and the output of the command that the page shows with these words."""
        found = re.findall(r"(?m)^\$ kubectl (.*)\n((?:(?!\$ |```).*\n)*)", self.page)
        ((command, output),) = [pair for pair in found if words in "".join(pair)]
        return command, output

    def test_story(self) -> None:
        run("apply", "-f", str(MANIFESTS))
        self.roll_out_the_policies()
        self.make_the_entries()
        with kubelet(self.folder):
            self.warn()
            self.deny()
            self.fail_closed()
            self.see_what_is_wrong()
        self.hold_while_whook_is_down()
        self.take_it_back()

    def roll_out_the_policies(self) -> None:
        """While there is no pod, as nothing here ends the old ones."""
        kubectl("scale deployment/whook -n whook --replicas=0")
        wait_for(lambda: not get(f"pods -n whook -l {LABEL}=whook")["items"], "no pods", WITHIN)
        self.follow("set")
        kubectl("scale deployment/whook -n whook --replicas=2")
        self.assertEqual(self.set_in_use(), "whook-policies-v2")
        item = get("configmap whook-policies-v2 -n whook")
        self.assertIs(item["immutable"], True)
        self.assertEqual({*item["data"]}, {f.name for f in (TOP / "policies").glob("*.py")})

    @staticmethod
    def set_in_use() -> str:
        return policies_of(get("deployment whook -n whook")["spec"]["template"])

    def make_the_entries(self) -> None:
        """Those that review.py makes are in the file of the page as they are."""
        self.follow("rules")
        made = (self.folder / "webhooks.yaml").read_text()
        expected = [w for item in yaml.safe_load_all(made) for w in item["webhooks"]]
        text = (MANIFESTS / "examples/rollout.yaml").read_text()
        found = [w for item in yaml.safe_load_all(text) for w in item["webhooks"]]
        self.assertEqual([webhook for webhook in found if webhook in expected], expected)
        self.assertEqual(len(expected), 2)
        self.follow("entries")
        self.assertEqual([bool(bundle) for bundle in StoryTest.bundles()], [True] * 5)

    def await_transcript(self, words: str) -> None:
        """Wait until the command prints what the page shows."""
        command, output = self.transcript(words)
        wait_for(lambda: self.again(command) == output, f"what the page shows: {output}", WITHIN)

    @staticmethod
    def again(command: str) -> str:
        kubectl("delete pods --all -n shop --force --grace-period=0")
        done = cluster.kubectl(*command.split(), check=False)
        return done.stderr + done.stdout

    def warn(self) -> None:
        self.follow("warn")
        self.await_transcript("Warning: ")
        shown = re.findall(r"(?m)^# (whook_reviews_total.*) \d+$", self.page)
        found = self.follow("metric").rpartition(" ")
        self.assertEqual([found[0]], shown)
        self.assertGreater(int(found[2]), 0)
        log = (self.folder / "whook.log").read_text()
        self.assertRegex(log, "object=shop/web .* allowed=would_deny")
        audited = (folder / "audit.log").read_text()
        self.assertIn('"warn.pinned-images.whook.local/would-deny":"pinned-images: ', audited)

    def deny(self) -> None:
        self.follow("enable")
        self.await_transcript("Forbidden")

    def fail_closed(self) -> None:
        *counts, labeled = self.follow("strict").splitlines()
        counts = [line for line in counts if re.search("pinned-images|team-label", line)]
        self.assertEqual((counts, labeled), ([], "namespace/shop labeled"))  # others: other tests'
        name, command = '"strict.pinned-images.whook.local" denied', self.transcript("Forbidden")[0]
        wait_for(lambda: name in self.again(command), "the strict entry", WITHIN)

    def see_what_is_wrong(self) -> None:
        """The page's table, from the top; then a broken set, and the way back."""
        name = self.set_in_use()
        for words in (
            ("create", "configmap", "policies", "-n", "nowhere"),
            ("create", "configmap", "policies", "-n", "whook", "--as=dev"),
            ("create", "configmap", name, "-n", "whook"),
            ("patch", "configmap", name, "-n", "whook", "-p", '{"data": {"a.py": ""}}'),
        ):
            with self.subTest(words[-1]):
                self.assert_on_page(run(*words, check=False).strip())
        self.ask_for_a_policy_that_is_not_there()
        self.deploy_a_broken_set()
        self.roll_back()

    def assert_on_page(self, message: str) -> None:
        mark = ("`` ", " ``") if "`" in message else ("`", "`")
        self.assertIn(message.join(mark), self.page)

    def ask_for_a_policy_that_is_not_there(self) -> None:
        path = "/webhooks/2/clientConfig/service/path"
        patch = [{"op": "replace", "path": path, "value": "/validate/nothing"}]
        run("patch", "validatingwebhookconfiguration/whook", "--type=json", "-p", json.dumps(patch))
        message = (
            'failed calling webhook "strict.pinned-images.whook.local": failed to call webhook:'
            ' there is no policy "nothing" that defines validate'
        )
        command = self.transcript("Forbidden")[0]
        wait_for(lambda: message in self.again(command), "the message", WITHIN)
        self.assert_on_page(message)

    def deploy_a_broken_set(self) -> None:
        """The rollout stalls, as its pod does not start."""
        folder = self.folder / "broken"
        folder.mkdir()
        (folder / "broken.py").write_text("def mutate(obj, request:\n")
        commands = block("deploy-policies.md", "policies:set").replace("version=v2", "version=v3")
        shell(commands.replace("policies/", f"{folder}/"))
        self.assertEqual(self.set_in_use(), "whook-policies-v3")
        run("patch", "deployment", "whook", "-n", "whook", "-p", DEADLINE)
        shown = kubectl("rollout status deployment/whook -n whook", check=False)
        self.assertEqual(self.transcript("progress deadline")[1], shown)
        arguments = [f"--policy={folder}", *arguments_of(server_pods("whook")[0], self.folder)[:2]]
        command = [sys.executable, str(TOP / "whook.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        (error,) = re.findall("(?m)^whook: error: .*$", done.stderr)
        self.assertIn(f"\n{error.replace(str(folder), '/policies')}\n", self.page)

    def roll_back(self) -> None:
        """The two pods that are ready have the good set, so this is done at once."""
        shown = self.follow("undo").splitlines()
        self.assertEqual(shown[0], "deployment.apps/whook rolled back")
        self.assertEqual(shown[-1], 'deployment "whook" successfully rolled out')
        self.assertEqual(self.set_in_use(), "whook-policies-v2")
        command, table = self.transcript("get replicasets")
        found = run(*shlex.split(command)).splitlines()
        self.assertEqual(sorted(found), sorted(table.splitlines()))

    def hold_while_whook_is_down(self) -> None:
        self.await_transcript("no endpoints available")

    def take_it_back(self) -> None:
        self.follow("back")
        self.assertEqual(kubectl(f"get {CONFIGURATIONS} -o name"), "")


# ---------------------------------------------------------------- static mode

STATIC = "whook.static.k8s.io"
CONTROLLER = "apiserver_manifest_admission_config_controller_"
DENIED = (
    'admission webhook "validate.static.whook.local" denied the request: container "main": image'
    ' "shop:latest" has a mutable tag; pin a version or a digest'
)
# What the API server logs of a second file in the folder: what is changed in it, and the message.
FAULTS = (
    (
        "url: .*",
        "service: {name: whook, namespace: whook}",
        'webhook "mutate.static.whook.local" in "other.static.k8s.io" (file'
        ' "/etc/kubernetes/whook/mutating/other.yaml"): clientConfig.service is not supported for'
        " static manifests; use clientConfig.url instead",
    ),
    (
        "other.static",
        "whook.static",
        'duplicate name "whook.static.k8s.io" found in file'
        ' "/etc/kubernetes/whook/mutating/whook.yaml" (previously seen in'
        ' "/etc/kubernetes/whook/mutating/other.yaml")',
    ),
    (
        "other.static.k8s.io",
        "other",
        '"other" in file "/etc/kubernetes/whook/mutating/other.yaml" must have a name ending with'
        ' ".static.k8s.io"',
    ),
    (
        "kind: Mutating",
        "kind: Validating",
        'strict decoding error: unknown field "webhooks[0].reinvocationPolicy"',
    ),
    ("caBundle: .*", "caBundle: ${CA_BUNDLE}", "illegal base64 data at input byte 0"),
)


class Impatient(controlplane.ControlPlane):
    """Asks for two pods each time that it looks if the API server is up, so that the first request
    for one comes as early as any can. `answers` holds what each got, in order."""

    answers: list[str]

    def __enter__(self) -> Impatient:
        self.answers = []
        super().__enter__()
        return self

    def healthy(self, port: int, path: str) -> bool:
        self.answers += [self.ask(), self.ask("shop:latest")]
        return super().healthy(port, path)

    def ask(self, image: str = "busybox:1.36.1") -> str:
        """What the API server says to a dry run that creates a pod."""
        path = "/api/v1/namespaces/default/pods?dryRun=All"
        item = json.dumps(pod("probe", image))
        done = self.kubectl("create", "--raw", path, "-f", "-", stdin=item, check=False)
        return done.stdout + done.stderr


class StaticTest(unittest.TestCase):
    """docs/static.md, in its order, on an API server of its own. Instead of a kubelet the test runs
    the static pod's command line; the files are where the page puts them, below another root."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(contextlib.chdir(TOP))
        self.node = self.folder / "etc/kubernetes/whook"
        self.page = (TOP / "docs/static.md").read_text()
        flags = re.findall(r"(?m)^ *- (--[a-z-]+=\S+)", self.page)
        self.assertEqual(len(flags), 2)
        # ServiceAccount waits for a controller; without it, the first request needs nothing else.
        flags.append("--disable-admission-plugins=ServiceAccount")
        self.plane = Impatient(tuple(self.here(flag) for flag in flags))

    def test_story(self) -> None:
        (self.node.parent / "manifests").mkdir(parents=True)
        for name in ("certificates", "policies", "configurations", "pair", "pod"):
            self.follow(name)
        with self.whook():
            self.enterContext(self.plane)
            self.hold_from_the_first_request()
            self.be_no_object()
            self.take_up_a_changed_file()
            self.keep_the_last_good_file()
        self.follow("change")
        with self.whook():
            wait_for(lambda: LABELLED in self.plane.ask(), "a pod", WITHIN)
            self.follow("protect")
            self.guard_a_configuration()
            self.renew_under_load()
            self.guard_a_configuration()
        self.hold_while_whook_is_down()
        self.refuse_a_certificate_for_another_name()
        self.not_start_with_a_fault()
        self.take_whook_out()
        self.be_of_no_use_in_a_normal_configuration()

    # -- what the page says

    def here(self, text: str) -> str:
        return text.replace("/etc/kubernetes", f"{self.folder}/etc/kubernetes")

    def follow(self, name: str) -> None:
        """Type a block of the page, in a folder that stands for the node's root."""
        commands = self.here(block("static.md", f"static:{name}"))
        shell(commands.replace("static-certs", f"{self.folder}/static-certs"))
        if name == "configurations":
            self.write("admission.yaml", self.here((self.node / "admission.yaml").read_text()))

    def write(self, path: str, text: str) -> None:
        """Whole or not at all, as the page does."""
        file = self.node / path
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").replace(file)

    def whook(self) -> contextlib.AbstractContextManager[None]:
        """The process of the static pod, as its file is now."""
        text = self.here((self.node.parent / "manifests/whook.yaml").read_text())
        spec = yaml.safe_load(text)["spec"]
        (container,) = spec["containers"]
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
        arguments = "\n".join(container["args"])
        for mount in container["volumeMounts"]:
            arguments = arguments.replace(f"={mount['mountPath']}", f"={paths[mount['name']]}")
        return whook(self.folder / "whook.log", *arguments.splitlines())

    def assert_on_page(self, message: str) -> None:
        self.assertIn(f"`{message}`", self.page)

    # -- what the API server does

    def hold_from_the_first_request(self) -> None:
        wait_for(lambda: LABELLED in self.plane.ask(), "a pod", WITHIN)
        answers = self.plane.answers
        refused = [answer for answer in answers[1::2] if DENIED in answer]
        self.assertTrue(refused)
        for answer in {*answers} - {*refused}:
            self.assertTrue(LABELLED in answer or "kind" not in answer, answer)
        self.assertFalse([answer for answer in answers[1::2] if LABELLED in answer])

    def be_no_object(self) -> None:
        self.assertEqual(self.plane.kubectl("get", CONFIGURATIONS, "-o", "name").stdout, "")
        resource = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        missing = f'Error from server (NotFound): {resource} "{STATIC}" not found'
        done = self.plane.kubectl("delete", "mutatingwebhookconfiguration", STATIC, check=False)
        self.assertEqual(done.stderr.strip(), missing)
        reserved = (
            f'metadata.name: Invalid value: "{STATIC}": names ending with ".static.k8s.io" are'
            " reserved for static manifest-based configurations and cannot be managed via the API"
        )
        done = self.plane.kubectl("create", "-f", f"{self.node}/mutating/whook.yaml", check=False)
        self.assertIn(reserved, done.stderr)
        for message in (missing, reserved):
            self.assert_on_page(message)

    def take_up_a_changed_file(self) -> None:
        before = (self.node / "validating/whook.yaml").read_text()
        self.write("validating/whook.yaml", before.replace("[kube-system]", "[default]"))
        wait_for(lambda: LABELLED in self.plane.ask("shop:latest"), "the changed file", 90)
        self.write("validating/whook.yaml", before)
        wait_for(lambda: DENIED in self.plane.ask("shop:latest"), "the file as before", 90)

    def keep_the_last_good_file(self) -> None:
        for pattern, text, message in FAULTS:
            with self.subTest(text):
                self.write_other(pattern, text)
                self.await_logged(message)
                self.assertIn(LABELLED, self.plane.ask())
                self.assert_on_page(message)
        self.assertIn(f"`{CONTROLLER}automatic_reloads_total`", self.page)
        self.assertGreater(self.reload_failures(), 0)
        (self.node / "mutating/other.yaml").unlink()

    def write_other(self, pattern: str, text: str) -> None:
        """A second configuration, which is the first but for its name and one text."""
        good = (self.node / "mutating/whook.yaml").read_text()
        other = good.replace(STATIC, "other.static.k8s.io")
        self.write("mutating/other.yaml", re.sub(pattern, text, other))

    def await_logged(self, message: str) -> None:
        log = self.plane.folder / "kube-apiserver.log"
        wait_for(lambda: self.logged(message) in log.read_text(), "the message", 90)

    def logged(self, message: str) -> str:
        return self.here(message).replace('"', '\\"')

    def reload_failures(self) -> int:
        metrics = self.plane.kubectl("get", "--raw", "/metrics").stdout
        failures = re.findall(f'{CONTROLLER}automatic_reloads_total.*"failure"}} (.*)', metrics)
        return sum(map(int, failures))

    def are_taken_up(self) -> bool:
        """Whether the API server names the files as they are: it hashes those of each folder."""
        metrics = self.plane.kubectl("get", "--raw", "/metrics").stdout
        taken = set(
            re.findall(f'{CONTROLLER}last_config_info.*hash="sha256:([0-9a-f]+)",', metrics)
        )
        for kind in ("mutating", "validating"):
            files = sorted((self.node / kind).glob("*.yaml"))
            content = b"".join(file.read_bytes() + b"\0" for file in files)
            if hashlib.sha256(content).hexdigest() not in taken:
                return False
        return True

    def guard_a_configuration(self) -> None:
        """Of which an ordinary webhook is never asked."""
        file = str(MANIFESTS / "85-validatingwebhookconfiguration.yaml")
        self.plane.kubectl("create", "-f", file)
        self.plane.kubectl("label", "-f", file, "example.com/protected=true")
        message = (
            'admission webhook "protect.static.whook.local" denied the request: metadata.labels:'
            ' ValidatingWebhookConfiguration "whook" is protected; if it must go, take the label'
            " example.com/protected off first"
        )
        wait_for(lambda: message in self.delete(file, "--dry-run=server"), "the refusal", 90)
        self.assert_on_page(message)
        self.plane.kubectl("label", "-f", file, "example.com/protected-")
        self.assertIn("deleted", self.delete(file))

    def delete(self, file: str, *options: str) -> str:
        done = self.plane.kubectl("delete", "-f", file, *options, check=False)
        return done.stdout + done.stderr

    def renew_under_load(self) -> None:
        """A rerun of the page's blocks, with the API server asking on: no call fails, by Fail. One
        more name in the certificate stands in for two thirds of its life."""
        served = ssl.get_server_certificate(("127.0.0.1", 8443))
        answers = list[str]()
        with repeating(lambda: answers.append(self.plane.ask())):
            certs("local", "--cert-dir", f"{self.folder}/static-certs", "--host", "node.example")
            self.follow("configurations")
            self.follow("protect")
            wait_for(self.are_taken_up, "the new CA", 90)
            self.follow("pair")
            wait_for(
                lambda: ssl.get_server_certificate(("127.0.0.1", 8443)) != served,
                "the new certificate",
                WITHIN,
            )
            count = len(answers)
            wait_for(lambda: len(answers) > count + 1, "two more answers", WITHIN)
        self.assertEqual([answer for answer in answers if LABELLED not in answer], [])

    def hold_while_whook_is_down(self) -> None:
        message = (
            'failed calling webhook "mutate.static.whook.local": failed to call webhook: Post'
            ' "https://127.0.0.1:8443/mutate?timeout=5s": dial tcp 127.0.0.1:8443: connect:'
            " connection refused"
        )
        for image in ("busybox:1.36.1", "shop:latest"):
            self.assertIn(message, self.plane.ask(image))
        self.assert_on_page(message)

    def refuse_a_certificate_for_another_name(self) -> None:
        authority = pki.Authority("another")
        authority.issue(["whook.whook.svc"]).write(self.node / "certs")
        bundle = base64.b64encode(authority.pem).decode()
        before = (self.node / "mutating/whook.yaml").read_text()
        self.write("mutating/whook.yaml", re.sub("caBundle: .*", f"caBundle: {bundle}", before))
        message = (
            "tls: failed to verify certificate: x509: cannot validate certificate for 127.0.0.1"
            " because it doesn't contain any IP SANs"
        )
        with self.whook():
            wait_for(lambda: message in self.plane.ask(), "the refusal", 90)
        self.assert_on_page(message)

    def not_start_with_a_fault(self) -> None:
        pattern, text, message = FAULTS[0]
        self.write_other(pattern, text)
        (command,) = (
            process.args
            for process in self.plane.processes
            if any(str(word).endswith("/kube-apiserver") for word in process.args)
        )
        port = controlplane.free_ports(1)[0]
        command = [*command, f"--secure-port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn(self.logged(message), done.stderr)
        (self.node / "mutating/other.yaml").unlink()

    def take_whook_out(self) -> None:
        self.follow("remove")
        wait_for(lambda: '"kind":"Pod"' in self.plane.ask("shop:latest"), "a pod", 90)

    def be_of_no_use_in_a_normal_configuration(self) -> None:
        """It is taken, and then each API server looks for whook on its own machine."""
        item = manifest("80-mutatingwebhookconfiguration.yaml")
        (webhook,) = item["webhooks"]
        webhook["clientConfig"] = {"url": "https://127.0.0.1:8443/mutate"}
        webhook |= {"failurePolicy": "Fail", "namespaceSelector": {}}
        self.plane.kubectl("create", "-f", "-", stdin=json.dumps(item))
        message = (
            'failed calling webhook "mutate.whook.local": failed to call webhook: Post'
            ' "https://127.0.0.1:8443/mutate?timeout=5s": dial tcp 127.0.0.1:8443: connect:'
            " connection refused"
        )
        wait_for(lambda: message in self.plane.ask(), "the refusal", WITHIN)
        self.assert_on_page(message)


# ---------------------------------------------------------------- every kind of answer

POLICIES = {
    "active": """
        def mutate(obj, request):
            request.deny("this configuration is active")
        validate = mutate
        """,
    "deny": """
        def validate(obj, request):
            request.deny('container "main": image "busybox:1.36.1" is not ours; take it from shop')
        """,
    "warn": """
        def validate(obj, request):
            request.warn("the first")
            request.warn("the second,\\nin two lines")
        """,
    "audit": """
        def validate(obj, request):
            request.audit("image", obj["spec"]["containers"][0]["image"])
        """,
    "dry": """
        def mutate(obj, request):
            obj["metadata"].setdefault("labels", {})["dry-run"] = str(request.dry_run)
        """,
    "frozen": """
        def validate(obj, request):
            if request.old_object["data"] != obj["data"]:
                request.deny("data: is frozen; make a new ConfigMap")
        """,
    "keep": """
        def mutate(obj, request):
            raise RuntimeError("not called on DELETE")
        def validate(obj, request):
            if request.old_object["data"].get("keep"):
                request.deny(f"{request.name}: has data.keep; take that off first")
        """,
    "size": """
        def mutate(obj, request):
            obj["spec"]["size"] = len(obj["spec"]["name"])
        """,
    "broken": """
        def mutate(obj, request):
            obj["spec"]["nothing"]["here"] = 1
        """,
    "count": """
        def mutate(obj, request):
            names = [container["name"] for container in obj["spec"]["containers"]]
            obj["metadata"].setdefault("labels", {})["containers"] = ".".join(names)
        """,
    "sidecar": """
        def mutate(obj, request):
            containers = obj["spec"]["containers"]
            if len(containers) == 1:
                containers.append({"name": "sidecar", "image": "busybox:1.36.1"})
        """,
}
WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
WIDGET = {
    "apiVersion": "example.com/v1",
    "kind": "Widget",
    "metadata": {"name": "gear"},
    "spec": {"name": "gear"},
}


class AnswersTest(unittest.TestCase):
    """Each policy above behind a webhook configuration of its own, in debug mode throughout.

    The configurations are the shipped ones, with only what a case is about changed.
    """

    folder: Path
    server: contextlib.ExitStack

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        (cls.folder / "policies").mkdir()
        for name, text in POLICIES.items():
            (cls.folder / f"policies/{name}.py").write_text(textwrap.dedent(text))
        certs("local", folder=cls.folder)
        kubectl("apply -f manifests/10-namespace.yaml -f manifests/debug/")
        kubectl("create namespace playground")
        kubectl("label namespace playground whook=enabled")
        kubectl("config set-context --current --namespace=playground")
        create(WIDGETS)
        wait_for(lambda: "default" in kubectl("get serviceaccounts -o name"), "an account", WITHIN)
        cls.server = cls.enterClassContext(contextlib.ExitStack())
        cls.start()

    @classmethod
    def tearDownClass(cls) -> None:
        kubectl("config set-context --current --namespace=default")
        kubectl("delete namespace playground whook")

    @classmethod
    def start(cls, *arguments: str) -> None:
        files = {"tls-cert": "local-certs/server-cert.pem", "policy": "policies"}
        files["tls-key"] = "local-certs/server-key.pem"
        flags = [f"--{flag}={cls.folder}/{path}" for flag, path in files.items()]
        log = cls.folder / "whook.log"
        cls.server.enter_context(whook(log, *flags, *arguments))

    @classmethod
    def stop(cls) -> None:
        cls.server.close()

    def restart(self, *arguments: str) -> None:
        self.stop()
        self.start(*arguments)

    def configure(
        self, policy: str, kind: str = "mutate", resource: str = "pods", **fields: Any
    ) -> None:
        """Send reviews of that resource to /kind/policy from here to the end of the test."""
        file = {"mutate": "80-mutating", "validate": "85-validating"}[kind]
        item = manifest(f"{file}webhookconfiguration.yaml")
        item["metadata"]["name"] = f"{policy}.example.com"
        (webhook,) = item["webhooks"]
        webhook["rules"][0] |= {
            "apiGroups": ["", "example.com"],
            "resources": [resource],
            "operations": fields.pop("operations", ["CREATE"]),
        }
        webhook |= {"name": f"{policy}.whook.local", **fields}
        ca = (self.folder / "local-certs/ca.pem").read_bytes()
        webhook["clientConfig"]["caBundle"] = base64.b64encode(ca).decode()
        mark = uuid.uuid4().hex
        item["webhooks"].append(self.sentinel(webhook, kind, mark))
        webhook["clientConfig"]["service"]["path"] = f"/{kind}/{policy}"
        run("apply", "-f", "-", stdin=json.dumps(item))
        self.addCleanup(kubectl, f"delete {item['kind']} {policy}.example.com --ignore-not-found")
        self.await_configuration(mark)

    @staticmethod
    def sentinel(webhook: dict[str, Any], kind: str, mark: str) -> dict[str, Any]:
        """A second webhook that refuses ConfigMaps with a label: once it does, the API server has
        taken notice of the configuration that both are in."""
        other: dict[str, Any] = json.loads(json.dumps(webhook))
        other["name"] = f"sentinel.{other['name']}"
        other["rules"][0] |= {"resources": ["configmaps"], "operations": ["CREATE"]}
        other["objectSelector"] = {"matchLabels": {"sentinel": mark}}
        other["clientConfig"]["service"]["path"] = f"/{kind}/active"
        return other

    def await_configuration(self, mark: str) -> None:
        item = configmap("sentinel")
        item["metadata"]["labels"] = {"sentinel": mark}
        wait_for(
            lambda: "is active" in create(item, "--dry-run=server", check=False),
            "the configuration to take effect",
            WITHIN,
        )

    def test_deny(self) -> None:
        self.configure("deny", "validate")
        self.assertEqual(
            refusal(pod("denied")),
            'Error from server (Forbidden): error when creating "STDIN": admission webhook'
            ' "deny.whook.local" denied the request: container "main": image "busybox:1.36.1" is'
            " not ours; take it from shop",
        )

    def test_warnings(self) -> None:
        self.configure("warn", "validate")
        output = create(pod("warned"), check=False)
        self.assertIn("Warning: the first\nWarning: the second, in two lines\n", output)
        self.assertIn("pod/warned created", output)

    def test_audit_annotations(self) -> None:
        self.configure("audit", "validate")
        create(pod("audited"))
        log = (folder / "audit.log").read_text()
        events = [json.loads(line) for line in log.splitlines()]
        (event,) = [e for e in events if e["objectRef"].get("name") == "audited"]
        self.assertEqual(event["annotations"]["audit.whook.local/image"], "busybox:1.36.1")

    def test_dry_run(self) -> None:
        self.configure("dry")
        for options, expected in ((["--dry-run=server"], "True"), ([], "False")):
            output = create(pod("dry"), "-o", "json", *options)
            self.assertEqual(json.loads(output)["metadata"]["labels"], {"dry-run": expected})

    def test_update(self) -> None:
        self.configure("frozen", "validate", "configmaps", operations=["UPDATE"])
        create(configmap("settings", colour="red"))
        self.assertIn("labeled", kubectl("label configmap settings size=small"))
        patch = ("configmap", "settings", "-p", '{"data": {"colour": "blue"}}')
        self.assertEqual(
            run("patch", *patch, check=False).strip(),
            'Error from server (Forbidden): admission webhook "frozen.whook.local" denied the'
            " request: data: is frozen; make a new ConfigMap",
        )

    def test_delete(self) -> None:
        """Both kinds of webhook are called; the mutating one must not send a patch."""
        for kind in ("mutate", "validate"):
            self.configure("keep", kind, "configmaps", operations=["DELETE"], failurePolicy="Fail")
        create(configmap("kept", keep="yes"))
        create(configmap("free", colour="red"))
        self.assertEqual(
            kubectl("delete configmap kept", check=False).strip(),
            'Error from server (Forbidden): admission webhook "keep.whook.local" denied the'
            " request: kept: has data.keep; take that off first",
        )
        self.assertIn("deleted", kubectl("delete configmap free"))

    def test_custom_resource(self) -> None:
        self.configure("size", "mutate", "widgets")
        created = json.loads(create(WIDGET, "-o", "json"))
        self.assertEqual(created["spec"], {"name": "gear", "size": 4})

    def test_fault_of_a_policy(self) -> None:
        self.configure("broken", failurePolicy="Ignore")
        self.assertIn("created", create(pod("ignored")))
        self.configure("broken", failurePolicy="Fail")
        self.assertEqual(
            refusal(pod("failed")),
            'Error from server (InternalError): error when creating "STDIN": Internal error'
            ' occurred: failed calling webhook "broken.whook.local": failed to call webhook:'
            " policy \"broken\" failed: line 3: KeyError: 'nothing'",
        )

    def test_whook_down(self) -> None:
        self.addCleanup(self.start)
        self.configure("count", failurePolicy="Ignore")
        self.stop()
        self.assertIn("created", create(pod("let-through")))
        self.restart()
        self.configure("count", failurePolicy="Fail")
        self.stop()
        self.assertIn(
            'failed calling webhook "count.whook.local": failed to call webhook: Post'
            ' "https://whook.whook.svc:443/mutate/count?timeout=5s": dial tcp 192.0.2.10:8443:'
            " connect: connection refused",
            refusal(pod("held-up")),
        )
        kubectl("delete mutatingwebhookconfiguration count.example.com")
        wait_for(
            lambda: "created" in create(pod("freed"), check=False), "a pod without whook", WITHIN
        )

    def test_reinvocation(self) -> None:
        """The first policy sees the container that a later webhook adds, if it is asked again."""
        for policy, expected in (("IfNeeded", "main.sidecar"), ("Never", "main")):
            self.configure("count", reinvocationPolicy=policy)
            self.configure("sidecar")
            created = json.loads(create(pod(policy.lower()), "-o", "json"))
            self.assertEqual(created["metadata"]["labels"], {"containers": expected})

    def test_versions_of_the_review(self) -> None:
        """v1, and the v1beta1 that an old configuration may still ask for."""
        for version in ("v1", "v1beta1"):
            self.configure("count", admissionReviewVersions=[version])
            created = json.loads(create(pod(f"by-{version}"), "-o", "json"))
            self.assertEqual(created["metadata"]["labels"], {"containers": "main"})

    def test_configurations_are_served_as_v1_only(self) -> None:
        served = kubectl("get --raw /apis/admissionregistration.k8s.io/v1beta1", check=False)
        self.assertNotIn("webhookconfigurations", served)

    def test_client_certificate(self) -> None:
        """With --client-ca, the API server is served, and nobody without its certificate."""
        self.addCleanup(self.restart)
        self.configure("count", failurePolicy="Fail")
        self.restart(f"--client-ca={folder}/client-ca.pem")
        created = json.loads(create(pod("known"), "-o", "json"))
        self.assertEqual(created["metadata"]["labels"], {"containers": "main"})
        stranger = self.folder / "stranger.pem"
        stranger.write_bytes(pki.Authority("somebody else").pem)
        self.restart(f"--client-ca={stranger}")
        self.assertIn("failed calling webhook", refusal(pod("unknown")))

    def test_ssh_tunnel(self) -> None:
        """whook listens on the laptop's loopback only; the node's end of the tunnel is what the
        EndpointSlice names. Without GatewayPorts, sshd would put that end on loopback too."""
        if not SSHD.exists():
            self.skipTest(f"no {SSHD}: install openssh-server")
        self.addCleanup(self.restart)
        self.configure("count", failurePolicy="Fail")
        self.restart("--host=127.0.0.1")
        self.assertIn("connection refused", refusal(pod("untunnelled")))
        with tunnel(self.folder):
            wait_for(
                lambda: "created" in create(pod("tunnelled"), check=False),
                "a call through the tunnel",
                WITHIN,
            )


# ---------------------------------------------------------------- the workbench's schema


class Schema(unittest.TestCase):
    """workbench/schema.py finds something just where an API server refuses to create the object,
    with the API server's own schemas of the day and with those in tests/schemas/."""

    PATHS = {  # noqa: RUF012
        "v1": "/api/v1",
        "apps/v1": "/apis/apps/v1",
        "schema.example.com/v1": "/apis/schema.example.com/v1",
    }

    @classmethod
    def setUpClass(cls) -> None:
        run("apply", "-f", str(SCHEMAS / "widget.yaml"))
        crd = "customresourcedefinition/widgets.schema.example.com"
        cls.addClassCleanup(kubectl, f"delete {crd}")
        kubectl(f"wait --for=condition=Established {crd}")
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for path in cls.PATHS.values():
            file = cls.folder / f"{path.strip('/').replace('/', '-')}.json"
            wait_for(lambda: cls.published(path), f"the schema of {path}", WITHIN)  # noqa: B023
            file.write_text(cls.published(path))

    @staticmethod
    def published(path: str) -> str:
        done = cluster.kubectl("get", "--raw", f"/openapi/v3{path}", check=False)
        return done.stdout if '"x-kubernetes-group-version-kind"' in done.stdout else ""

    def refuses(self, item: dict[str, Any]) -> str:
        """What the API server has against creating it; "" if nothing."""
        path, kind = self.PATHS[item["apiVersion"]], item["kind"].lower()
        options = "dryRun=All&fieldValidation=Strict"
        resource = f"{path}/namespaces/default/{kind}s?{options}"
        done = cluster.kubectl(
            "create", "--raw", resource, "-f", "-", stdin=json.dumps(item), check=False
        )
        return done.stderr if done.returncode else ""

    def test_the_objects_that_are_changed(self) -> None:
        for kind, item in OBJECTS.items():
            self.assertEqual(self.refuses(item), "", kind)

    def test_what_the_api_server_refuses(self) -> None:
        schemas = schema.load([str(self.folder)])
        for change in changes():
            with self.subTest(change.kind, code=change.code):
                before, after = change.made()
                error = self.refuses(after)
                self.assertEqual(bool(error), change.refused, error)
                self.assertEqual(schemas.judge(before, after), change.found)


# ---------------------------------------------------------------- who is asked about what

ANYTHING = {
    "apiGroups": ["*"],
    "apiVersions": ["*"],
    "resources": ["*/*"],
    "operations": ["*"],
    "scope": "*",
}


def only(**fields: Any) -> dict[str, Any]:
    """A webhook with one rule: for anything but what is said here."""
    return {"rules": [ANYTHING | fields]}


def selecting(what: str, key: str, operator: str, *values: str) -> dict[str, Any]:
    expression = {"key": key, "operator": operator} | ({"values": values} if values else {})
    return only() | {f"{what}Selector": {"matchExpressions": [expression]}}


WITHDRAWN = "delete validatingwebhookconfiguration/asked namespace/asked crd/widgets.example.com"
EXACT = {"matchPolicy": "Exact"}
SECOND = only(apiGroups=["autoscaling"], apiVersions=["v2"])
EVENTS = only(apiGroups=["events.k8s.io"], resources=["events"])
FIRST = only(apiGroups=["example.com"], apiVersions=["v1"])
ASKING: dict[str, dict[str, Any]] = {
    "anything": only(),
    "nothing": only(resources=["pod"]),
    "create": only(operations=["CREATE"]),
    "update-delete": only(operations=["UPDATE", "DELETE"]),
    "connect": only(operations=["CONNECT"]),
    "core": only(apiGroups=[""]),
    "apps": only(apiGroups=["apps"]),
    "v1": only(apiVersions=["v1"]) | EXACT,
    "pods": only(resources=["pods"]),
    "pods-and-more": only(resources=["pods/*"]),
    "resources": only(resources=["*"]),
    "scales": only(resources=["*/scale"]),
    "some": only(resources=["pods/resize", "pods/exec", "namespaces", "deployments/scale"]),
    "namespaced": only(scope="Namespaced"),
    "cluster": only(scope="Cluster"),
    "autoscaling-v2": SECOND,
    "autoscaling-v2-exact": SECOND | EXACT,
    "new-events": EVENTS,
    "new-events-exact": EVENTS | EXACT,
    "widgets-v1": FIRST,
    "widgets-v1-exact": FIRST | EXACT,
    "opted-in": only() | {"namespaceSelector": {"matchLabels": {"whook": "enabled"}}},
    "not-opted-in": selecting("namespace", "whook", "NotIn", "enabled", "debug"),
    "with-label": selecting("namespace", "whook", "Exists"),
    "without-label": selecting("namespace", "whook", "DoesNotExist"),
    "by-name": selecting("namespace", "kubernetes.io/metadata.name", "In", "asked", "fresh"),
    "red": only() | {"objectSelector": {"matchLabels": {"colour": "red"}}},
    "not-red": selecting("object", "colour", "NotIn", "red"),
    "colourless": selecting("object", "colour", "DoesNotExist"),
    "two-rules": {
        "rules": [
            ANYTHING | {"resources": ["pods"], "operations": ["DELETE"]},
            ANYTHING | {"apiGroups": ["apps"], "scope": "Namespaced"},
        ]
    },
}


class Recorder(http.server.BaseHTTPRequestHandler):
    """Allows everything, and keeps the paths at which the administrator's reviews came."""

    asked: set[str]

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if review["request"]["userInfo"]["username"] == "admin":
            self.asked.add(self.path.partition("?")[0].strip("/"))
        response = {"uid": review["request"]["uid"], "allowed": True}
        answer = {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class AskedTest(unittest.TestCase):
    """Does the real API server ask exactly whom workbench.webhooks says that it asks?"""

    asked: set[str]
    webhooks: list[webhooks.Webhook]

    @classmethod
    def setUpClass(cls) -> None:
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.asked = set()
        widgets = json.loads(json.dumps(WIDGETS))
        (version,) = widgets["spec"]["versions"]
        widgets["spec"]["versions"].append(version | {"name": "v1beta1", "storage": False})
        run("apply", "-f", "-", stdin=json.dumps(widgets))
        kubectl("create namespace asked")
        kubectl("label namespace asked whook=enabled")
        account = "get serviceaccount default -n asked --ignore-not-found -oname"
        wait_for(lambda: kubectl(account), "an account", WITHIN)
        for item in (pod("red"), DEPLOYMENT):
            item = item | {"metadata": {"name": "red", "labels": {"colour": "red"}}}
            run("create", "-n", "asked", "-f", "-", stdin=json.dumps(item))
        cls.configure(folder, cls.serve(folder))

    @classmethod
    def serve(cls, folder: Path) -> int:
        """Start the recorder; its port."""
        cls.authority = pki.Authority()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*cls.authority.issue(["127.0.0.1"]).write(folder))
        handler = type("Handler", (Recorder,), {"asked": cls.asked})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cls.addClassCleanup(lambda: (server.shutdown(), thread.join(), server.server_close()))
        return server.server_port

    @classmethod
    def configure(cls, folder: Path, port: int) -> None:
        bundle = base64.b64encode(cls.authority.pem).decode()
        item = manifest("85-validatingwebhookconfiguration.yaml")
        item["metadata"]["name"] = "asked"
        item["webhooks"] = [
            {
                "name": f"{name}.example.com",
                "clientConfig": {"url": f"https://127.0.0.1:{port}/{name}", "caBundle": bundle},
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "admissionReviewVersions": ["v1"],
                **fields,
            }
            for name, fields in ASKING.items()
        ]
        path = folder / "asked.json"
        path.write_text(json.dumps(item))
        cls.webhooks, _ = webhooks.read_cluster([str(path)])
        run("apply", "-f", str(path))
        cls.addClassCleanup(
            kubectl,
            WITHDRAWN,
        )
        wait_for(lambda: cls.asks("create", "/api/v1/namespaces", NAMESPACE), "a call", WITHIN)

    @classmethod
    def asks(cls, verb: str, path: str, item: Any = None) -> set[str]:
        """Who is asked about this request, which the server has answered when this returns."""
        cls.asked.clear()
        body = ["-f", "-"] if item else []
        path += "?command=true" if path.endswith("/exec") else "?dryRun=All"
        run(verb, "--raw", path, *body, stdin=json.dumps(item), check=False)
        return set(cls.asked)

    def test_every_pair(self) -> None:
        for verb, path, item, old in self.rows():
            with self.subTest(verb=verb, path=path):
                expected = self.expected(verb, path, item, old)
                self.assertEqual(self.asks(verb, path, item), expected)
                quiet = path.endswith("configurations")  # asked about by nobody
                self.assertEqual("anything" in expected, not quiet)

    def rows(self) -> Iterator[tuple[str, str, Any, Any]]:
        """kubectl's word, the path, what is sent, and what is there already."""
        pods, apps = "/api/v1/namespaces/asked/pods", "/apis/apps/v1/namespaces/asked/deployments"
        red, deployment = (get(f"{kind} red -n asked") for kind in ("pod", "deployment"))
        scale = json.loads(kubectl(f"get --raw {apps}/red/scale"))
        namespace = get("namespace asked")
        yield "replace", f"{pods}/red", unlabelled(red), red
        for sub in ("ephemeralcontainers", "resize", "status"):
            yield "replace", f"{pods}/red/{sub}", red, red
        yield "get", f"{pods}/red/exec", None, None
        yield "delete", f"{pods}/red", None, red
        yield "replace", f"{apps}/red", unlabelled(deployment), deployment
        yield "replace", f"{apps}/red/scale", scale, scale
        yield "replace", "/api/v1/namespaces/asked", namespace, namespace
        yield "delete", "/api/v1/namespaces/asked", None, namespace
        yield new("v1", "pods", pod("x"))
        labelled = {"metadata": {"name": "x", "labels": {"colour": "red"}}}
        yield new("v1", "pods", pod("x") | labelled, "default")
        own = {"metadata": {"name": "red"}}
        yield new("policy/v1", "pods/red/eviction", {"kind": "Eviction", **own}, path="/api/v1")
        yield new("v1", "pods/red/binding", {"kind": "Binding", "target": {"name": "one"}, **own})
        yield new("apps/v1", "deployments", DEPLOYMENT)
        group = "authentication.k8s.io/v1"
        request = {"kind": "TokenRequest", "metadata": {}, "spec": {}}
        yield new(group, "serviceaccounts/default/token", request, path="/api/v1")
        yield new(group, "tokenreviews", {"kind": "TokenReview", "spec": {"token": "x"}}, "")
        yield new("v1", "namespaces", NAMESPACE, "")
        yield new("v1", "nodes", {"kind": "Node"}, "")
        yield new("rbac.authorization.k8s.io/v1", "clusterroles", {"kind": "ClusterRole"}, "")
        for version in ("autoscaling/v1", "autoscaling/v2"):
            yield new(version, "horizontalpodautoscalers", SCALER)
        yield new("v1", "events", {"kind": "Event", "involvedObject": {"namespace": "asked"}})
        yield new("events.k8s.io/v1", "events", EVENT)
        for version in ("example.com/v1", "example.com/v1beta1"):
            yield new(version, "widgets", WIDGET | {"apiVersion": version})
        kind = "ValidatingWebhookConfiguration"
        yield new("admissionregistration.k8s.io/v1", f"{kind.lower()}s", {"kind": kind}, "")

    def expected(self, verb: str, path: str, item: Any, old: Any) -> set[str]:
        """Who is asked by what workbench.webhooks says, with the same request as a review."""
        word, prefix, *rest = path.strip("/").split("/")
        group = prefix if word == "apis" else ""
        version = rest.pop(0) if group else prefix
        namespace = ""
        if rest[0] == "namespaces":
            namespace = rest[1] if len(rest) > 1 else item["metadata"]["name"]
            rest = rest[2:] if len(rest) > 2 else rest
        resource, name, sub = [*rest, "", ""][:3]
        operations = {"create": "CREATE", "replace": "UPDATE", "delete": "DELETE", "get": "CONNECT"}
        options = {"apiVersion": "v1", "kind": "PodExecOptions", "command": ["true"]}
        request = {
            "uid": "1",
            "kind": {"group": group, "version": version, "kind": (item or old or options)["kind"]},
            "resource": {"group": group, "version": version, "resource": resource},
            "subResource": sub,
            "name": name,
            "namespace": namespace,
            "operation": operations[verb],
            "object": item or (None if old else options),
            "oldObject": old,
        }
        document = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        document["request"] = request
        parsed = parse_review(json.dumps(document).encode())
        namespaces = {"asked": {"whook": "enabled"}, "default": {}}
        return {
            webhook.name.partition(".")[0]
            for webhook in self.webhooks
            if not webhooks.stops(webhook, parsed, namespaces)[0]
        }

    def test_entries_from_rule_lines(self) -> None:
        """What `review.py rules` prints of all policies is taken as it is, apart and together."""
        wanted = rules.load([str(TOP / "policies"), str(TOP / "policies/library")])
        expected = [
            f"{kind.lower()}.admissionregistration.k8s.io/printed created (server dry run)"
            for kind in webhooks.KINDS.values()
        ]
        for together in (False, True):
            with self.subTest(together=together):
                text = rules.write(wanted, together, "printed", "whook/whook")
                output = run("create", "--dry-run=server", "-f", "-", stdin=text, check=False)
                self.assertEqual(output.splitlines(), expected)

    def test_what_is_built_in(self) -> None:
        """webhooks.BUILT_IN against what this API server serves."""
        groups = [{"versions": [{"groupVersion": "v1"}]}]
        groups += json.loads(kubectl("get --raw /apis"))["groups"]
        served: dict[str, dict[str, bool]] = {}
        for version in (v["groupVersion"] for group in groups for v in group["versions"]):
            path = f"{'apis' if '/' in version else 'api'}/{version}"
            group, _, number = version.rpartition("/")
            for each in json.loads(kubectl(f"get --raw /{path}"))["resources"]:
                served.setdefault(group, {})[each["name"]] = each["namespaced"]
                self.assert_operations(each["name"], {*each["verbs"]} - {"get"})
            if group in webhooks.BUILT_IN:
                self.assertIn(number, webhooks.versions(group))
        served.pop("example.com", None)
        self.assertEqual(webhooks.built_in(), served)

    def assert_operations(self, name: str, verbs: set[str]) -> None:
        """webhooks.SUB_RESOURCES against the verbs; what takes connections has several."""
        if "/" in name:
            operation = webhooks.SUB_RESOURCES[name.partition("/")[2]]
            words = {"CREATE": {"create"}, "UPDATE": {"update", "patch"}, "": set()}
            if operation != "CONNECT":
                self.assertLessEqual(verbs, words[operation], name)
            else:
                self.assertIn("create", verbs, name)


NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": "fresh",
        "labels": {"whook": "debug", "kubernetes.io/metadata.name": "fresh"},
    },
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "plain"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]},
    },
}


SCALER = {
    "kind": "HorizontalPodAutoscaler",
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "red"},
        "maxReplicas": 2,
    },
}
EVENT = {
    "kind": "Event",
    "type": "Normal",
    "reason": "tested",
    "action": "test",
    "regarding": {"namespace": "asked"},
    "reportingController": "example.com/test",
    "reportingInstance": "one",
    "eventTime": "2026-11-24T00:00:00.000000Z",
}


def new(
    version: str, resource: str, fields: dict[str, Any], inside: str = "asked", path: str = ""
) -> tuple[str, str, Any, None]:
    """A row that creates this, in a namespace or none; `path` is where its API is, if elsewhere."""
    path = path or ("/apis/" if "/" in version else "/api/") + version
    path += f"/namespaces/{inside}" if inside else ""
    item = {"apiVersion": version, "metadata": {"name": "x"}, **fields}
    return "create", f"{path}/{resource}", item, None


def unlabelled(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"metadata": item["metadata"] | {"labels": {}}}


if __name__ == "__main__":
    unittest.main()
