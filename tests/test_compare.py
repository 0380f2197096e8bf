"""docs/compare.md: its lines are those of the files, and the MutatingAdmissionPolicies that it
counts do on a real API server what whook's policies of the same name do."""

from __future__ import annotations

import copy
import json
import re
import unittest
from pathlib import Path

import yaml

import review
import whook
from tests import controlplane
from tests.server import wait_for
from tests.test_pages import in_code, tables

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/compare.md").read_text()
ROWS = {in_code(row[0])[0]: row for row in tables(TEXT)[1] if in_code(row[0])}
MADE_BY_THE_SERVER = ("uid", "creationTimestamp", "managedFields", "namespace")


def policy(name: str) -> Path:
    return next((ROOT / "policies").rglob(f"{name}.py"))


def counted(file: Path) -> str:
    """Lines, and in brackets those that are neither blank, comment nor docstring."""
    text = file.read_text()
    code = re.sub(r'^""".*?"""\n', "", text, flags=re.M | re.S)
    lines = [line for line in code.splitlines() if line.strip() and line.strip()[0] != "#"]
    return f"{len(text.splitlines())} ({len(lines)})"


class Lines(unittest.TestCase):
    def test_the_table_counts_what_is_there(self):
        for name, (_, whooks, native) in ROWS.items():
            with self.subTest(name):
                self.assertIn(counted(policy(name)), whooks)
                self.assertIn(counted(ROOT / f"docs/compare/{name}.yaml"), native)

    def test_every_file_is_in_the_table(self):
        files = {file.stem for file in (ROOT / "docs/compare").glob("*.yaml")}
        self.assertEqual({*ROWS}, files)

    def test_the_webhook_entry(self):
        entries = (ROOT / "policies/README.md").read_text().split("     - name: ")[1:]
        entry = next(text for text in entries if text.startswith("pod-hardening.whook.local"))
        lines = entry.partition("```")[0].strip().splitlines()
        self.assertIn(f"rules and failurePolicy | {len(lines)} | none |", TEXT)

    def test_the_number_of_objects(self):
        self.assertEqual(re.findall(r"the same (\d+) objects", TEXT), [str(len(objects()))])


def pod(name: str, spec: dict | None = None, **metadata) -> dict:
    """Without a token, which the API server mounts before its policies run, and after whook's."""
    spec = {"containers": [{"name": "web", "image": "x:1"}]} | (spec or {})
    spec["automountServiceAccountToken"] = False
    meta = {"name": name, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def objects() -> list[tuple[str, dict]]:
    """What is created: the policy that it is for, and the object."""
    root, asked = {"runAsUser": 0}, {"example.com/inject-log-agent": "true"}
    two = [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}]
    logs = {"name": "app-logs", "emptyDir": {}}
    mount = {"name": "app-logs", "mountPath": "/var/log/app"}
    contexts = [{"privileged": False}, {"capabilities": {"add": ["SYS_ADMIN"]}}, root]
    contexts += [{"capabilities": {"drop": ["NET_RAW"]}}, {"allowPrivilegeEscalation": True}, {}]
    amounts = [{"requests": {"cpu": "1"}}, {"limits": {"memory": "1Gi"}}, {"limits": {"cpu": "1"}}]

    def containers(key, values):
        return [{"name": f"c{n}", "image": "x:1", key: value} for n, value in enumerate(values)]

    settings = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}}
    return [
        ("team-label", pod("bare")),
        ("team-label", pod("labelled", labels={"a": "b"})),
        ("team-label", pod("taken", labels={"example.com/team": "other"})),
        ("default-resources", pod("bare")),
        ("default-resources", pod("some", {"containers": containers("resources", amounts)})),
        ("default-resources", pod("init", {"initContainers": two})),
        ("default-resources", pod("whole", {"resources": {"requests": {"cpu": "1"}}})),
        ("pod-hardening", pod("bare")),
        ("pod-hardening", pod("all", {"containers": containers("securityContext", contexts)})),
        ("pod-hardening", pod("init", {"initContainers": containers("securityContext", contexts)})),
        ("pod-hardening", pod("root", {"securityContext": root})),
        ("pod-hardening", pod("own", {"securityContext": {"runAsNonRoot": False}})),
        ("pod-hardening", pod("windows", {"os": {"name": "windows"}})),
        ("sidecar", pod("not-asked")),
        ("sidecar", pod("asked", annotations=asked)),
        ("sidecar", pod("two", {"containers": two}, annotations=asked)),
        ("sidecar", pod("init", {"initContainers": two}, annotations=asked)),
        ("sidecar", pod("mounted", {"volumes": [logs], "containers": [
            {"name": "a", "image": "x:1", "volumeMounts": [mount]}]}, annotations=asked)),
        ("sidecar", pod("there", {"containers": [
            {"name": "log-agent", "image": "x:1"}]}, annotations=asked)),
        ("created-by", settings | {"metadata": {"name": "bare"}}),
        ("created-by", settings | {"metadata": {
            "name": "forged", "annotations": {"example.com/created-by": "somebody"}}}),
    ]  # fmt: skip


@unittest.skipIf(controlplane.missing(), str(controlplane.missing()))
class RealServer(unittest.TestCase):
    """Two namespaces a policy: the API server's own policy is bound to one. To the other goes what
    whook's policy makes of the object. What is stored must be the same."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.enterClassContext(controlplane.network_namespace())
        cls.plane = cls.enterClassContext(controlplane.ControlPlane())
        names = [name for policy in ROWS for name in (policy, f"{policy}-whook")]
        kind = {"apiVersion": "v1", "kind": "Namespace"}
        cls.create([kind | {"metadata": {"name": name}} for name in names])
        accounts = ("get", "serviceaccounts", "-A", "-oname")
        wanted = len(names) + 4  # default, and three of the server's own
        wait_for(lambda: len(cls.plane.kubectl(*accounts).stdout.split()) >= wanted, "accounts")
        for name in ROWS:
            cls.bind(name)

    @classmethod
    def create(cls, items: list[dict], *words: str, check=True):
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        return cls.plane.kubectl("create", "-f-", *words, stdin=document, check=check)

    @classmethod
    def bind(cls, name: str) -> None:
        """Install a file, for the namespace of its name only; wait until it is at work."""
        manifests = [*yaml.safe_load_all((ROOT / f"docs/compare/{name}.yaml").read_text())]
        for manifest in manifests:
            if manifest["kind"].endswith("Binding"):
                label = {"kubernetes.io/metadata.name": name}
                manifest["spec"]["matchResources"] = {"namespaceSelector": {"matchLabels": label}}
        cls.create(manifests)
        probe = [next(obj for obj in of(name) if whooks(name, obj) != obj)]
        untouched = cls.stored(f"{name}-whook", probe)
        wait_for(lambda: cls.stored(name, probe) not in (None, untouched), name)

    @classmethod
    def stored(cls, namespace: str, items: list[dict]) -> list[dict] | None:
        """As the API server would store them; None where it refuses any."""
        done = cls.create(items, "-ojson", "--dry-run=server", f"-n{namespace}", check=False)
        if done.returncode:
            cls.refusal = done.stderr
            return None
        made = json.loads("[" + re.sub(r"^}\n{", "},{", done.stdout, flags=re.M) + "]")
        for each in made:
            for key in MADE_BY_THE_SERVER:
                each["metadata"].pop(key, None)
        return made

    def test_they_do_the_same(self):
        for name in ROWS:
            native = self.stored(name, of(name))
            self.assertIsNotNone(native, getattr(self, "refusal", ""))
            ours = self.stored(f"{name}-whook", [whooks(name, obj) for obj in of(name)])
            for one, other in zip(native, ours, strict=True):
                with self.subTest(policy=name, object=one["metadata"]["name"]):
                    self.assertEqual(one, other)

    def test_an_apply_configuration_may_not_set_an_atomic_list(self):
        """As the page says: it is accepted, and refuses the first pod that comes by."""
        self.create([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "atomic"}}])
        text = (ROOT / "docs/compare/team-label.yaml").read_text().replace("team-label", "atomic")
        policy, binding = yaml.safe_load_all(text)
        expression = 'Object{spec: Object.spec{containers: [Object.spec.containers{name: "web", '
        expression += 'args: ["-v"]}]}}'
        policy["spec"]["mutations"][0]["applyConfiguration"]["expression"] = expression
        policy["spec"]["failurePolicy"] = "Fail"
        label = {"kubernetes.io/metadata.name": "atomic"}
        binding["spec"]["matchResources"] = {"namespaceSelector": {"matchLabels": label}}
        self.create([policy, binding])
        wait_for(lambda: self.stored("atomic", [pod("bare")]) is None, "a refusal")
        self.assertIn("may not mutate atomic arrays, maps or structs", self.refusal)


def of(name: str) -> list[dict]:
    return [obj for policy, obj in objects() if policy == name]


def whooks(name: str, obj: dict) -> dict:
    """The object as whook's policy leaves it."""
    loaded = whook.load_policies(whook.read_sources([str(policy(name))])).policies
    document = review.as_review(copy.deepcopy(obj))
    document["request"]["userInfo"] = {"username": "admin", "groups": ["system:masters"]}
    request = whook.parse_review(json.dumps(document).encode())
    return review.apply(obj, whook.evaluate(request, loaded).patch)


if __name__ == "__main__":
    unittest.main()
