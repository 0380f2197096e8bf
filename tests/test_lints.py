"""Tests of workbench/lints.py: what each finds, and what it lets be."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import review
import whook
from workbench import lints

ROOT = Path(__file__).resolve().parent.parent
POLICIES = [str(ROOT / "policies"), str(ROOT / "policies/library")]


def pod(**container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"containers": [{"name": "web", "image": "shop:1", **container}]},
    }


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.addCleanup(sys.settrace, sys.gettrace())  # coverage

    def policies(self, **sources: str) -> tuple[whook.Policy, ...]:
        for name, source in sources.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))
        paths = [str(self.folder / f"{name}.py") for name in sources]
        return whook.load_policies(whook.read_sources(paths)).policies

    def find(self, obj: Any, **sources: str) -> list[str]:
        """What is found of policies on the creation of an object, or on a review."""
        reviewed = obj if obj.get("request") else review.as_review(obj)
        policies = self.policies(**sources)
        before = json.dumps(reviewed)
        found = lints.find(reviewed, policies, review.run(reviewed, policies))
        self.assertEqual(json.dumps(reviewed), before)
        return found

    def one(self, obj: Any, **sources: str) -> str:
        """Its only finding; "" if there is none."""
        found = self.find(obj, **sources)
        self.assertLess(len(found), 2, found)
        return "".join(found)


# ---------------------------------------------------------------------------- what it reads


class Reads(Case):
    def test_what_a_policy_calls(self) -> None:
        clock = "what was allowed in the test is refused some day, with nothing changed"
        twice = "the API server asks twice (reinvocationPolicy: IfNeeded), and gets two answers"
        network = "where that is down or slow, so is every creation in the cluster"
        for imports, call, expected in (
            ("import time", "time.time()", f"the clock on line 3 (time.time): {clock}"),
            ("import time as t", "t.time()", f"the clock on line 3 (time.time): {clock}"),
            ("from time import time", "time()", f"the clock on line 3 (time.time): {clock}"),
            ("import datetime", "datetime.datetime.now()",
             f"the clock on line 3 (datetime.datetime.now): {clock}"),
            ("from datetime import datetime as d, UTC", "d.now(UTC)",
             f"the clock on line 3 (datetime.datetime.now): {clock}"),
            ("import random", "random.choice('ab')",
             f"random numbers on line 3 (random.choice): {twice}"),
            ("from uuid import uuid4", "str(uuid4())",
             f"random numbers on line 3 (uuid.uuid4): {twice}"),
            ("", "hash('a')", f"random numbers on line 3 (hash): {twice}"),
            ("import urllib.request", "urllib.request.urlopen('http://x')",
             f"the network on line 3 (urllib.request.urlopen): {network}"),
            ("from urllib.request import urlopen", "urlopen('http://x')",
             f"the network on line 3 (urllib.request.urlopen): {network}"),
            ("import socket", "socket.create_connection(1)",
             f"the network on line 3 (socket.create_connection): {network}"),
        ):  # fmt: skip
            with self.subTest(call, imports=imports):
                source = f"{imports}\ndef validate(o, r):\n if r.kind.kind == 'x': {call}\n"
                self.assertEqual(self.one(pod(), a=source), f'policy "a" reads {expected}')

    def test_files(self) -> None:
        for call in ("open('x')", "Path('x').read_text()", "os.listdir('x')", "run('x')"):
            source = f"""\
                import os
                from pathlib import Path
                from subprocess import run
                def validate(o, r):
                    if r.kind.kind == "x":
                        {call}
                """
            with self.subTest(call):
                self.assertRegex(
                    self.one(pod(), a=source),
                    r'^policy "a" reads files on line 6 \(.*\): one replica has another file than '
                    "the next, and the policies' hash does not show it; NAME.json beside the "
                    "policy is read by whook itself$",
                )

    def test_what_may_be(self) -> None:
        source = """\
            import datetime, time, uuid, os.path, random
            from datetime import timedelta
            STARTED = time.time()
            TABLE = random.Random(5).random()
            class Clock:
                def now(self): return 5
                def choice(self, what): return what
            clock = Clock()
            def validate(o, r):
                datetime.datetime.fromisoformat("2026-11-22T13:50:58+00:00")
                timedelta(days=1), os.path.join("a", "b"), uuid.UUID(int=5)
                clock.now(), clock.choice("x"), r.open if False else None
            """
        self.assertEqual(self.one(pod(), a=source), "")

    def test_two_results_of_one_review(self) -> None:
        source = """\
            SEEN = []
            def {}
                SEEN.append(1)
                {}
            """
        end = (
            "runs once more on the same review: what it keeps between reviews, or reads elsewhere,"
            " is not the same in each replica"
        )
        for head, body, verb in (
            ("mutate(o, r):", 'o["metadata"]["labels"] = {"n": str(len(SEEN))}', "mutate"),
            ("validate(o, r):", 'len(SEEN) % 2 and r.deny("odd")', "validate"),
        ):
            with self.subTest(verb):
                found = self.find(pod(), a=source.format(head, body))
                self.assertIn(f'policy "a" gives another result when {verb} {end}', found)


# ---------------------------------------------------------------------------- what it takes


class Takes(Case):
    SLEEPS = "import time\ndef validate(o, r): time.sleep(0.02)"

    def test_slow(self) -> None:
        self.assertRegex(
            self.one(pod(), a=self.SLEEPS),
            r'^policy "a" takes [0-9]+ ms to validate this object: whook does one review at a time,'
            r" so a rollout gets [0-9]+ pods a second, and then time-outs$",
        )

    def test_a_busy_machine(self) -> None:
        """It counts only if it is slow each time."""
        reviewed = review.as_review(pod())
        policies = self.policies(a="def mutate(o, r): pass")
        for times, expected in (([0.05, 0.04, 0.009], 0), ([0.05, 0.04, 0.03, 0.012], 1)):
            outcome = review.run(reviewed, policies)
            outcome.responses["mutate"].spent["a"] = 0.06
            with mock.patch.object(lints, "_spent", side_effect=times):
                found = list(lints._slow(reviewed, policies[0], outcome))
            with self.subTest(times):
                self.assertEqual(len(found), expected)
                self.assertTrue(all(each.startswith("takes 12 ms to mutate ") for each in found))

    SQUARE = """\
        def mutate(o, r):
            for one in o["spec"]["containers"]:
                for other in o["spec"]["containers"]:
                    one.get("name") == other.get("name")
        """

    def lines(self, source: str, obj: Any = None, seconds: float = 1.0) -> str:
        with mock.patch.object(lints, "_spent", return_value=seconds):
            return self.one(obj or pod(), a=source)

    def test_growth(self) -> None:
        self.assertRegex(  # 3.14 counts one more
            self.lines(self.SQUARE),
            '^policy "a" runs 2020[12] lines of Python to mutate 100 containers, and 22[12] for 10:'
            " a large object takes more than 1 s, and then nobody can change it$",
        )
        template = {"metadata": {}, "spec": pod()["spec"]}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}
        deployment["spec"] = {"template": template}
        source = self.SQUARE.replace('["spec"]', '["spec"]["template"]["spec"]')
        self.assertIn("runs 2020", self.lines(source, deployment))

    def test_what_grows_as_the_object_does(self) -> None:
        each = 'import copy\ndef mutate(o, r):\n for c in o["spec"]["containers"]: copy.deepcopy(c)'
        self.assertEqual(self.lines(each), "")
        self.assertEqual(self.lines(self.SQUARE, seconds=0.0001), "")  # it does not matter
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}
        self.assertEqual(self.lines("def mutate(o, r): pass", service), "")
        strange = pod() | {"spec": {"containers": ["x"]}}
        self.assertEqual(self.lines("def mutate(o, r): pass", strange), "")

    def test_without_end(self) -> None:
        """A policy that would take for ever with many containers is stopped."""
        source = """\
            def mutate(o, r):
                while len(o["spec"]["containers"]) > 50:
                    pass
            """
        with mock.patch.object(lints, "MOST_LINES", 10_000):
            self.assertIn("runs 10001 lines of Python", self.lines(source))

    def test_a_tracer_of_somebody_else_stays(self) -> None:
        def trace(frame: Any, event: str, argument: Any) -> None:
            return None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            self.lines(self.SQUARE)
            self.assertIs(sys.gettrace(), trace)
        finally:
            sys.settrace(before)


# ---------------------------------------------------------------------------- validate

LATEST = """\
    def validate(o, r):
        for c in (o or {}).get("spec", {}).get("containers", []):
            if c["image"].endswith(":latest"):
                r.deny(f'container "{c["name"]}" has no version')
    """
LIMIT = """\
    def validate(o, r):
        for c in o["spec"]["containers"]:
            if c.get("resources", {}).get("limits", {}).get("cpu") == "64":
                r.deny("too much")
    """
NEEDS_LIMIT = """\
    def validate(o, r):
        if r.operation == "UPDATE":
            return
        for c in o["spec"]["containers"]:
            if not c.get("resources"):
                r.deny("no limit")
    """


class Validate(Case):
    def test_edits(self) -> None:
        expected = (
            'policy "a" edits the object in validate, where every edit is thrown away: that is a '
            "default which never arrives; mutate is for edits"
        )
        for body in (
            'o["metadata"]["labels"] = {}',
            'o["metadata"]["labels"] = object()',
            'o["spec"]["containers"][0].setdefault("env", [])',
        ):
            with self.subTest(body):
                self.assertEqual(self.one(pod(), a=f"def validate(o, r): {body}"), expected)
        edit_then_deny = 'def validate(o, r):\n del o["metadata"]["name"]\n r.deny("x")'
        self.assertIn(expected, self.find(pod(), a=edit_then_deny))
        self.assertEqual(self.one(pod(), a='def validate(o, r): o["metadata"].get("x", {})'), "")
        self.assertEqual(self.one(pod(), a='def mutate(o, r): o["metadata"]["labels"] = {}'), "")

    def test_finalizers(self) -> None:
        obj = pod(image="shop:latest")
        obj["metadata"]["finalizers"] = ["example.com/a", "example.com/b"]
        found = self.find(obj, a=LATEST)
        self.assertEqual(
            found[0],
            'policy "a" keeps the object from going: it refuses the UPDATE that takes its last '
            'finalizer off (container "web" has no version), so it hangs in Terminating, and its '
            "namespace with it; judge only what an UPDATE changes",
        )

    def keeps(self, obj: Any, source: str) -> str:
        found = self.find(obj, a=source)
        return "".join(each for each in found if "keeps the object" in each)

    def test_who_lets_go(self) -> None:
        obj = pod(image="shop:latest")
        unchanged = "    if r.old_object and o['spec'] == r.old_object['spec']: return\n"
        going = "    if r.operation == 'UPDATE' and 'deletionTimestamp' in o['metadata']: return\n"
        create = "    if r.operation != 'CREATE': return\n"
        head, rest = textwrap.dedent(LATEST).split("\n", 1)
        for exception in (unchanged, going, create):
            with self.subTest(exception):
                self.assertEqual(self.keeps(obj, f"{head}\n{exception}{rest}"), "")

    def test_setting_the_deletion_timestamp(self) -> None:
        source = """\
            def validate(o, r):
                if r.operation == "UPDATE" and o["metadata"] != r.old_object["metadata"]:
                    if not r.old_object["metadata"].get("deletionTimestamp"):
                        r.deny("metadata is frozen")
            """
        self.assertIn("the UPDATE that sets its deletionTimestamp", self.keeps(pod(), source))
        fails = 'def validate(o, r):\n if r.operation == "UPDATE": o["metadata"]["finalizers"]'
        self.assertIn("it fails on the UPDATE that takes", self.keeps(pod(), fails))

    def test_one_that_is_not_asked_on_update(self) -> None:
        rule = '"""No latest.\n\nRule: {} of pods.\n"""\n'
        obj, source = pod(image="shop:latest"), textwrap.dedent(LATEST)
        self.assertEqual(self.keeps(obj, rule.format("CREATE") + source), "")
        self.assertNotEqual(self.keeps(obj, rule.format("CREATE, UPDATE") + source), "")
        other = rule.format("CREATE").replace("pods", "services")
        self.assertEqual(self.find(obj, a=other + source), [])

    def test_a_sub_resource(self) -> None:
        """What is asked about it says nothing of the object's end."""
        name = "tests/reviews/update-pod-ephemeralcontainers.json"
        reviewed = json.loads((ROOT / name).read_text())
        self.assertEqual(self.keeps(reviewed, "def validate(o, r): r.deny('no')"), "")

    def slips(self, obj: Any, source: str) -> list[str]:
        found = self.find(obj, a=source)
        return [each for each in found if "slips past" in each]

    def test_debug(self) -> None:
        self.assertEqual(
            self.slips(pod(image="shop:latest"), LATEST),
            [
                'policy "a" refuses a container in a new pod (container "web" has no version), and '
                "kubectl debug slips past it: it brings the same container into a running pod; it "
                "has to be asked, and to look, at spec.ephemeralContainers in an UPDATE of "
                "pods/ephemeralcontainers"
            ],
        )

    def test_what_does_not_slip_past(self) -> None:
        both = LATEST.replace(
            '.get("containers", [])',
            '.get("containers", []) + o["spec"].get("ephemeralContainers", [])',
        )
        host = 'def validate(o, r): o["spec"].get("hostNetwork") and r.deny("x")'
        probe = LATEST.replace('c["image"].endswith(":latest")', '"readinessProbe" not in c')
        port = LATEST.replace('c["image"].endswith(":latest")', 'c.get("ports")')
        hosted = pod()
        hosted["spec"]["hostNetwork"] = True
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {}}
        for obj, source in (
            (pod(image="shop:latest"), both),
            (pod(), LATEST),
            (hosted, host),
            (pod(), probe),  # no ephemeral container can have one
            (pod(ports=[{"containerPort": 80}]), port),
            (pod(), NEEDS_LIMIT),
            (service, "def validate(o, r): r.deny('no')"),
        ):
            with self.subTest(source):
                self.assertEqual(self.slips(obj, source), [])

    def test_a_rule_without_the_sub_resource(self) -> None:
        both = textwrap.dedent(LATEST).replace(
            '.get("containers", [])',
            '.get("containers", []) + o["spec"].get("ephemeralContainers", [])',
        )
        rule = '"""No latest.\n\nRule: CREATE of pods{}.\n"""\n'
        obj = pod(image="shop:latest")
        self.assertEqual(len(self.slips(obj, rule.format("") + both)), 1)
        more = rule.format("; UPDATE of pods/ephemeralcontainers")
        self.assertEqual(self.slips(obj, more + both), [])

    def test_resize(self) -> None:
        obj = pod(resources={"limits": {"cpu": "64"}})
        self.assertEqual(self.slips(obj, LIMIT), [])
        create = LIMIT.replace("for c in", "for c in () if r.operation == 'UPDATE' else")
        self.assertEqual(
            self.slips(obj, create),
            [
                'policy "a" refuses these resources in a new pod (too much), and a resize slips '
                "past it: `kubectl edit --subresource=resize` sets what no pod may have; it has to "
                "be asked, and to look, at an UPDATE of pods/resize"
            ],
        )


# ---------------------------------------------------------------------------- locked out


class LockedOut(Case):
    """With the shipped manifests nobody asks whook about these namespaces; here somebody does."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "manifests").mkdir()
        self.manifest("50-deployment")
        patch = mock.patch.object(lints, "MANIFESTS", self.folder / "manifests")
        self.enterContext(patch)

    def manifest(self, name: str, old: str = "", new: str = "") -> None:
        text = (ROOT / f"manifests/{name}.yaml").read_text()
        self.assertIn(old, text)
        (self.folder / f"manifests/{name}.yaml").write_text(text.replace(old, new) if old else text)

    def test_whook_itself(self) -> None:
        source = """\
            def validate(o, r):
                if r.kind.kind == "Deployment" and r.name == "whook":
                    r.deny("no team")
            """
        self.assertEqual(self.one(pod(), a=source), "")  # which is for pods, as it seems
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}
        self.assertEqual(
            self.one(deployment, a=source),
            'policy "a" locks itself out: it refuses whook\'s own Deployment (no team), which then '
            "can't start again, nor can what needs it; exclude whook in the namespaceSelector of "
            "manifests/8*.yaml",
        )

    def test_the_cluster_itself(self) -> None:
        for body, what in (
            ('"registry.k8s.io" in c["image"] and r.deny("no")', "refuses coredns"),
            ('c["securityContext"].get("privileged") and r.deny("no")', "refuses kube-proxy"),
            ('o["spec"].get("hostNetwork") and r.deny("no")', "refuses kube-proxy"),
            ('len(c["resources"]) < 2 and r.deny("no")', "fails on kube-proxy"),
        ):
            source = f'def validate(o, r):\n for c in o["spec"]["containers"]: {body}'
            with self.subTest(body):
                found = self.one(pod(securityContext={}, resources={"a": {}, "b": {}}), a=source)
                self.assertIn(f'policy "a" locks itself out: it {what} in kube-system (', found)

    def test_what_others_do_first_counts(self) -> None:
        adds = 'def mutate(o, r): o["metadata"].setdefault("labels", {})["team"] = "shop"'
        needs = 'def validate(o, r): "team" in o["metadata"].get("labels", {}) or r.deny("no")'
        found = self.find(pod(), b=needs)
        self.assertEqual(["locks itself out" in each for each in found].count(True), 2)
        self.assertEqual(self.find(pod(), a=adds, b=needs), [])

    def test_an_exception_in_the_policy(self) -> None:
        spaces = '("shop", "whook", "kube-system")'
        source = f'def validate(o, r): r.namespace in {spaces} or r.deny("no")'
        self.assertEqual(self.one(pod(), a=source), "")

    SHOP_ONLY = 'def validate(o, r): r.namespace == "shop" or r.deny("no")'

    def test_an_exception_in_the_manifests(self) -> None:
        opt_in = "      matchLabels:\n        whook: enabled\n"
        self.manifest("85-validatingwebhookconfiguration", opt_in)
        self.assertEqual(self.find(pod(), a=self.SHOP_ONLY), [])
        spaces = "values: [kube-system, whook, whook-renewal]"
        self.manifest("80-mutatingwebhookconfiguration", spaces, "values: [whook]")
        self.assertEqual(self.find(pod(), b=self.SHOP_ONLY), [])  # for those with a label only
        self.manifest("85-validatingwebhookconfiguration", opt_in)
        path = self.folder / "manifests/85-validatingwebhookconfiguration.yaml"
        path.write_text(path.read_text().replace(spaces, "values: [kube-system]"))
        self.assertIn("whook's own pods", self.one(pod(), c=self.SHOP_ONLY))

    def test_without_manifests(self) -> None:
        with mock.patch.object(lints, "MANIFESTS", "/nowhere"):
            self.assertIn("it refuses coredns", self.one(pod(), a=self.SHOP_ONLY))

    def test_the_shipped_policies(self) -> None:
        """Two refuse what whook's own manifest has. They may: the shipped manifests see to it that
        nobody asks."""
        policies = whook.load_policies(whook.read_sources(POLICIES), 10).policies
        found = {
            each for kind in ("pods", "deployments") for each in lints._locks_out(policies, kind)
        }
        self.assertEqual(
            sorted(each.partition(" (")[0].replace(" locks itself out: it", "") for each in found),
            [
                'policy "allowed-registries" refuses whook\'s own pods',
                'policy "required-labels" refuses whook\'s own Deployment',
            ],
        )


# ---------------------------------------------------------------------------- order


class Order(Case):
    ADDS = 'def mutate(o, r): o["spec"]["containers"].append({"name": "log", "image": "log:1"})'
    ALL = 'def mutate(o, r):\n for c in o["spec"]["containers"]: c["env"] = [{"name": "A"}]'

    def test_a_pair(self) -> None:
        label = 'def mutate(o, r): o["metadata"]["labels"] = {"a": "b"}'
        self.assertEqual(
            [x for x in self.find(pod(), a=self.ALL, b=self.ADDS, c=label) if "order" in x],
            [
                'policies "a" and "b" make another object in the other order: in two webhooks, the'
                " configurations' names decide, and who renames one changes pods; keep both in one"
                " webhook, or make each see what the other does (IfNeeded)"
            ],
        )

    def test_one_that_only_acts_on_what_the_other_does(self) -> None:
        label = 'def mutate(o, r): o["metadata"]["labels"] = {"a": "b"}'
        reads = 'def mutate(o, r): o["metadata"].get("labels") and o["spec"].update(x="y")'
        self.assertIn('"a" and "b"', self.one(pod(), a=label, b=reads))

    def test_whose_order_does_not_matter(self) -> None:
        add = 'def mutate(o, r): o["spec"].setdefault("volumes", []).append({{"name": "{}"}})'
        label = 'def mutate(o, r): o["metadata"].setdefault("labels", {{}})["{0}"] = "{0}"'
        sources = {"a": add.format("a"), "b": add.format("b")}
        sources |= {"c": label.format("c"), "d": label.format("d"), "e": "def validate(o, r): pass"}
        self.assertEqual(self.one(pod(), **sources), "")

    def test_many_pairs(self) -> None:
        sources = {
            f"p{n}": f'def mutate(o, r): o["metadata"]["labels"] = {{"n": "{n}"}}' for n in range(5)
        }
        self.assertEqual(len(self.find(pod(), **sources)), lints.MOST_PAIRS)


# ---------------------------------------------------------------------------- all of them


class All(Case):
    def test_nothing_to_look_at(self) -> None:
        """DELETE has no object, CONNECT another, and a policy that fails says so by itself."""
        for name in ("delete-secret", "connect-pod-exec", "create-pod-binding"):
            reviewed = json.loads((ROOT / f"tests/reviews/{name}.json").read_text())
            with self.subTest(name):
                self.assertEqual(self.one(reviewed, a="def validate(o, r): pass"), "")
        self.assertEqual(self.find(pod(), a="def validate(o, r): 1/0"), [])
        self.assertEqual(self.find(pod()), [])

    def test_ctrl_c(self) -> None:
        """It ends the lints, and is no failure of the policy that was at work."""
        source = """\
            def validate(o, r):
                if r.operation == "UPDATE":
                    raise KeyboardInterrupt
            """
        with self.assertRaises(KeyboardInterrupt):
            self.find(pod(), a=source)

    def test_objects_that_are_odd(self) -> None:
        odd: list[dict[str, Any]] = [{}, {"metadata": None}, {"spec": []}]
        odd += [{"spec": {"containers": None}}, {"spec": {"containers": [{}]}}]
        for fields in odd:
            obj = copy.deepcopy({"apiVersion": "v1", "kind": "Pod"} | fields)
            with self.subTest(fields):
                self.assertEqual(self.find(obj, a="def validate(o, r): 1"), [])
                deny = "def validate(o, r): r.deny('no')"
                for each in self.find(obj, a=deny):
                    self.assertIn("keeps the object", each)

    def test_the_shipped_policies(self) -> None:
        """On each real review, one by one and together."""
        policies = whook.load_policies(whook.read_sources(POLICIES), 10).policies
        for path in (ROOT / "tests/reviews").glob("*.json"):
            reviewed = json.loads(path.read_text())
            with mock.patch.object(lints, "_spent", return_value=0), self.subTest(path.stem):
                for some in (policies, *((policy,) for policy in policies)):
                    outcome = review.run(reviewed, some)
                    self.assertEqual(lints.find(reviewed, some, outcome), [])


class CommandLine(Case):
    EDITS = 'def validate(o, r): o["metadata"]["labels"] = {}'
    LINT = (
        'lint: policy "a" edits the object in validate, where every edit is thrown away: that is a '
        "default which never arrives; mutate is for edits\n"
    )

    def review(self, *arguments: str, **sources: str) -> tuple[int, str, str]:
        self.policies(**sources)
        for name in "xy":
            obj = pod() | {"metadata": {"name": name}}
            (self.folder / f"{name}.json").write_text(json.dumps(obj))
        files = [str(self.folder / f"{name}.json") for name in "xy"]
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = review.main(["--policy", str(self.folder), *arguments, *files])
        return status, out.getvalue(), error.getvalue()

    def test_a_warning_shown_once(self) -> None:
        status, out, error = self.review(a=self.EDITS)
        self.assertEqual((status, error), (0, self.LINT))
        self.assertNotIn("lint", out)

    def test_strict(self) -> None:
        status, _, error = self.review("--strict", a=self.EDITS)
        self.assertEqual((status, error), (1, self.LINT))
        self.assertEqual(self.review("--strict", a="def validate(o, r): pass")[0], 0)

    def test_growth_of_the_first_of_a_kind(self) -> None:
        with (
            mock.patch.object(review, "GROWN", 1),
            mock.patch.object(lints, "_crowds", return_value=[]) as crowds,
        ):
            self.review(a=self.EDITS)
        self.assertEqual(crowds.call_count, 1)

    def test_which_outputs_have_them(self) -> None:
        for output, shown in (("json", True), ("junit", False), ("patch", False)):
            status, out, error = self.review("-o", output, a=self.EDITS)
            with self.subTest(output):
                self.assertEqual((status, error), (0, ""))
                self.assertEqual("edits the object" in out, shown)
        for output in ("summary", "junit", "patch"):
            with self.subTest(output, strict=True):
                status, out, error = self.review("--strict", "-o", output, a=self.EDITS)
                self.assertEqual(status, 1)
                self.assertIn("edits the object", out + error)


if __name__ == "__main__":
    unittest.main()
