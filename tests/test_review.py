"""Tests of review.py and what it reads with: the same policies, offline."""

import contextlib
import io
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import unittest
from pathlib import Path
from typing import ClassVar
from unittest import mock
from xml.etree import ElementTree

import review
import whook
from tests.server import POD, REVIEWS, ROOT
from workbench import documents, reports

LABEL = 'def mutate(o, r): o["metadata"].setdefault("labels", {})["team"] = "shop"'
GROWS = 'def mutate(o, r): o["metadata"].setdefault("finalizers", []).append("x/y")'
DENIES = 'def validate(o, r):\n r.warn("old"); r.deny("container \\"web\\": not today")'
KUBECTL = shutil.which("kubectl", path=os.environ.get("KUBEBUILDER_ASSETS", ""))
NOTHING = "def validate(o, r): pass"


def policies(**sources):
    return whook.load_policies({f"/p/{k}.py": v.encode() for k, v in sources.items()}).policies


def run(body=POD, **sources) -> review.Outcome:
    return review.run(json.loads(body), policies(**sources))


def pod(name="web", **fields):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **fields}}


def parse(text: str) -> list:
    return [(d.value, d.line) for d in documents.parse(text, "x")]


class Documents(unittest.TestCase):
    def refused(self, text: str) -> str:
        with self.assertRaises(whook.ConfigError) as caught:
            parse(text)
        self.assertTrue(caught.exception.hint)
        return caught.exception.message

    def test_several_documents_and_their_lines(self):
        for text, expected in [
            ("a: 1\n---\n---\n# nothing\n---\nb: 2\n...\n", [({"a": 1}, 1), ({"b": 2}, 6)]),
            ('{"a": 1}{"b": 2}\n\n{"c":\n3}', [({"a": 1}, 1), ({"b": 2}, 1), ({"c": 3}, 3)]),
            ('{"a": 1}\n---\n{"b": 2}\n', [({"a": 1}, 1), ({"b": 2}, 3)]),
            ("# {\n{a: 1}\n", [({"a": 1}, 2)]),
            ("", []),
            ("# nothing\n---\n", []),
        ]:
            with self.subTest(text):
                self.assertEqual(parse(text), expected)

    def test_lists(self):
        item, typed = pod("a"), pod("b")
        nested = {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "b"}}]}
        for text, expected in [
            (json.dumps({"kind": "List", "apiVersion": "v1", "items": [item]}), [(item, 1)]),
            (json.dumps({"items": [item], "kind": "List"}), [(item, 1)]),
            (json.dumps(nested), [(typed, 1)]),
            (json.dumps(dict(reversed(nested.items())), indent=1), [(typed, 3)]),
            (json.dumps({"kind": "List", "items": [item, nested]}), [(item, 1), (typed, 1)]),
            ("kind: PodList\napiVersion: v1\nitems:\n- metadata:\n    name: b\n", [(typed, 4)]),
            ('{"kind": "PodList", "items": [{"metadata": {"name": "b"}}], "apiVersion": "v1"}',
             [(typed, 1)]),
            ("items:\n- metadata: {name: b}\napiVersion: v1\nkind: PodList\n", [(typed, 2)]),
            ('{"kind": "List", "apiVersion": "v1", "items": []}', []),
            ("kind: AccessList\nspec: {}\n", [({"kind": "AccessList", "spec": {}}, 1)]),
        ]:  # fmt: skip
            with self.subTest(text):
                self.assertEqual(parse(text), expected)

    SCALARS: ClassVar = [
        ("5", 5), ("-7", -7), ("+4", 4), ("0644", 420), ("0o17", 15), ("0x1F", 31), ("-0", 0),
        ("0b11", 3), ("1_000", 1000), ("1.5", 1.5), ("1.0", 1), ("1e3", 1000), ("08", 8),
        (".5", 0.5), ("yes", True), ("Off", False), ("n", False), ("~", None), ("", None),
        ("NULL", None), ("12:30", "12:30"), ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"),
        ("[~]", [None]), ("'5'", "5"), ("!!str 5", "5"), ("!!int '5'", 5), ("nope", "nope"),
        ("9223372036854775807", 2**63 - 1), ("10000000000000000000", 10**19), ("_1", "_1"),
        ("-9223372036854775808", -(2**63)), ("-9223372036854775809", -9223372036854776000),
        ("9223372036854775808", 9223372036854776000), ("1e20", 10**20), ("1e21", 1e21),
        ("18446744073709551615", 18446744073709552000), ("100000000000000000001", 10**20),
        ("1000000000000000000000", 1e21), ("0xFFFFFFFFFFFFFFFF", 18446744073709552000),
        ("1e-7", 1e-7), ("1e999", "1e999"), ("0x", "0x"), ("!x y", "y"), ("|\n  a\n  b", "a\nb"),
    ]  # fmt: skip

    def test_yaml_is_read_as_kubectl_reads_it(self):
        for text, value in self.SCALARS:
            with self.subTest(text):
                found = parse(f"a: {text}")[0][0]["a"]
                self.assertEqual((type(found), found), (type(value), value))
        self.assertEqual(parse("8080: a\ntrue: b\n1.5: c\n")[0][0].keys(), {"8080", "true", "1.5"})

    def test_json_and_yaml_have_the_same_numbers(self):
        number = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e-?\d+)?").fullmatch
        numbers = [(text, value) for text, value in self.SCALARS if number(text)]
        self.assertGreater(len(numbers), 15)
        for text, value in numbers:
            if type(value) is str:  # too large
                continue
            with self.subTest(text):
                found = parse(f'{{"a": {text}}}')[0][0]["a"]
                self.assertEqual((type(found), found), (type(value), value))

    def test_a_number_that_is_too_large_is_a_text_in_yaml_and_refused_in_json(self):
        for text in ("1e999", "9" * 400, "9" * 5000):
            with self.subTest(len(text)):
                self.assertEqual(parse(f"a: {text}")[0][0], {"a": text})
                with self.assertRaises(whook.ConfigError) as caught:
                    parse(f'{{"a": {text}}}')
                self.assertIn("it holds a number that JSON has not", caught.exception.message)

    @unittest.skipUnless(KUBECTL, "KUBEBUILDER_ASSETS names no folder with kubectl")
    def test_kubectl_reads_it_so(self):
        lines = [f"f{i}: {text}" for i, (text, _) in enumerate(self.SCALARS)]
        lines += ["y: 1", "8080: 2", "1.5: 3", "k: 2", "<<: {k: 1, l: 1}", "l: 2"]
        text = "\n".join([json.dumps(pod() | {"kind": "K"})[1:-1].replace(', "', '\n"'), *lines])
        command = [KUBECTL, "label", "--local", "--dry-run=client", "-o=json", "-f=-", "x=y"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        expected = json.loads(done.stdout)
        del expected["metadata"]["labels"]
        self.assertEqual(parse(text)[0][0], expected)

    def test_aliases_and_merges(self):
        text = "x: &a {k: 1, m: 2}\nw: *a\nz: {<<: [*a, {k: 0, o: 3}], m: 5}\n<<: *a\n"
        value = parse(text)[0][0]
        self.assertEqual(value["w"], {"k": 1, "m": 2})
        self.assertEqual(value["z"], {"k": 1, "m": 5, "o": 3})
        self.assertEqual((value["k"], value["m"]), (1, 2))
        self.assertEqual(parse("k: 2\n<<: {k: 1}\n")[0][0], {"k": 1})  # as kubectl has it
        self.assertIsNot(value["x"], value["w"])

    def test_an_alias_bomb_is_bounded(self):
        names = "abcdefghijklmnop"
        lines = [f"{n}: &{n} [{', '.join([f'*{m}'] * 10)}]" for m, n in itertools.pairwise(names)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        message = self.refused("\n".join([f"a: &a {'x' * 100}", *lines]))
        self.assertRegex(
            message, "^x, line 6: the aliases up to here unfold into more than 7340032"
        )
        self.assertLess(tracemalloc.get_traced_memory()[1], 64 * 2**20)

    def test_what_is_no_yaml(self):
        tab = "found a tab, or another character that nothing can start with"
        tab = f"x, line 2: not YAML: {tab}"
        for text, message in [
            ("a: &a {b: *a}", "x, line 1: the alias *a stands inside of &a"),
            ("a:\n  *b", "x, line 2: the alias *b comes without &b"),
            ("a:\n\t- b", tab),
            ("a: b\n\tc: d",tab),
            ("kind: Pod\nkind: Job", 'x, line 2: the key "kind" stands there twice'),
            ("a: 1\nb: xapiVersion: v1",
             "x, line 2: not YAML: found a colon too many"),
            ("a: b\n---\n- c", "x, line 3: what stands here is no object"),
            ("just text", "x, line 1: what stands here is no object"),
            ("a: !!binary aGk=", "x, line 1: the tag !!binary stands here"),
            ("? [a]\n: b", "x, line 1: what stands here can't be a key"),
            ("image: {{ .Values.image }}", "x, line 1: what stands here can't be a key"),
            ("<<: 5", "x, line 1: << takes an object, or a list of objects"),
            ("a: .nan", "x, line 1: it holds a number that JSON has not: infinite, or none"),
            ("a: " + "[" * 1200 + "]" * 1200, "x, line 1: it is nested more than 200 levels deep"),
            ("a: \x01", "can't read x: it holds a control character"),
        ]:  # fmt: skip
            with self.subTest(text[:40]):
                self.assertEqual(self.refused(text), message)
        with self.assertRaises(whook.ConfigError) as caught:
            parse("a:\n\t- b")
        self.assertTrue(
            caught.exception.hint.startswith("indent with spaces, never with a tab, and ")
        )

    def test_what_is_no_json(self):
        for text, message in [
            ('{"a": 1,\n"b" 2}', "x, line 2: not JSON: : is missing"),
            ('{"a": {\n"b" 2}}', "x, line 2: not JSON: Expecting ':' delimiter"),
            ('{"a": 1', "x, line 1: not JSON: , is missing"),
            ('{"a": 1}\nx', "x, line 2: what stands here is no object"),
            ("[]", "x, line 1: what stands here is no object"),
            ('{"a": 1, "a": 2}', "x, line 1: not JSON: 'a' can't be a key here"),
            ('{"a": {"b": 1, "b": 2}}',
             'x, line 1: the key "b" stands twice in what starts here'),
            ('{"a": NaN}', "x, line 1: it holds a number that JSON has not: infinite, or none"),
            ('\n{"a": "\\ud800"}',
             "x, line 2: it holds '\\ud800', which is half a character (a lone surrogate)"),
            ('{"a": ' + "[" * 1200 + "]" * 1200 + "}",
             "x, line 1: it is nested more than 200 levels deep"),
            ('{"kind": "List", "items": null}', "x, line 1: items of this List must be a list"),
            ('{"kind": "PodList", "items": {}}', "x, line 1: items of this PodList must be a list"),
            ('{"kind": "List"}', "x, line 1: items of this List must be a list"),
            ('{"kind": "PodList", "items": [{}]}',
             "x, line 1: this item of a list has no apiVersion and kind"),
            ('{"kind": "List", "items": [' * 150 + "]}" * 150,
             "x, line 1: this item of a list has no apiVersion and kind"),
            ('{"kind": "List", "apiVersion": "v1", "items": [' * 150 + "]}" * 150,
             "x, line 1: it is nested more than 200 levels deep"),
            ('{"kind": "List",\n"items": [\n5]}',
             "x, line 3: this item of a list has no apiVersion and kind"),
        ]:  # fmt: skip
            with self.subTest(text[:40]):
                self.assertEqual(self.refused(text), message)

    def test_without_pyyaml(self):
        with mock.patch.dict(sys.modules, {"yaml": None}):
            self.assertEqual(parse('{"a": 1}'), [({"a": 1}, 1)])
            self.assertEqual(self.refused("a: 1"), "x is YAML, and PyYAML is not there to read it")

    def test_without_libyaml(self):
        import yaml

        text = "a: &a [1, {b: c}]\nd: *a\n---\ne: |\n  f\n"
        fast = parse(text)
        tab, half = self.refused("a:\n\t- b"), "which is half a character"
        with mock.patch.object(yaml, "CSafeLoader", yaml.SafeLoader, create=True):
            self.assertEqual(parse(text), fast)
            self.assertEqual(self.refused("a:\n\t- b"), tab)
            self.assertIn(half, self.refused('a: "\\ud800"'))

    def test_files_and_folders(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "below").mkdir()
            (folder / "none").mkdir()
            for file, content in [
                ("b.yml", b"\xef\xbb\xbfb: 1\r\n"), ("a.json", b'{"a": 1}'), ("c.yaml", b"# none"),
                (".d.yaml", b"d: 1"), ("e.txt", b"e: 1"), ("below/f.yaml", b"f: 1"),
            ]:  # fmt: skip
                (folder / file).write_bytes(content)
            found = list(documents.read(name))
            self.assertEqual([d.value for d in found], [{"a": 1}, {"b": 1}])
            self.assertEqual(found[0].source, str(folder / "a.json"))
            (folder / "g.yaml").write_bytes("x: ä".encode("latin-1"))
            for source, message in [
                (folder / "c.yaml", f"{folder}/c.yaml holds nothing"),
                (folder / "none", f"{folder}/none holds nothing"),
                (folder / "below" / "none", f"can't read {folder}/below/none: No such file"),
                (folder, f"can't read {folder}/g.yaml: it is not UTF-8"),
            ]:
                with self.subTest(message), self.assertRaises(whook.ConfigError) as caught:
                    list(documents.read(str(source)))
                self.assertTrue(caught.exception.message.startswith(message))

    def test_a_list_is_read_one_item_at_a_time(self):
        item = json.dumps(pod(note="x" * 5000))
        pieces = iter(['{"items": [', *[f"{item},\n"] * 2000, item, '], "kind": "List"}'])
        stream = mock.Mock(read=lambda size: "".join(itertools.islice(pieces, size // 5000 + 1)))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(sum(1 for _ in documents._documents(stream, "x")), 2001)
        self.assertLess(tracemalloc.get_traced_memory()[1], 2**20)  # of 10 MB

    def test_the_time_is_linear_in_the_number_of_documents(self):
        def seconds(count: int) -> float:
            text, started = json.dumps(pod()) * count, time.process_time()
            self.assertEqual(sum(1 for _ in documents.parse(text, "x")), count)
            return time.process_time() - started

        few = min(seconds(500) for _ in range(3))
        self.assertLess(min(seconds(5000) for _ in range(3)), 40 * few)


class Reading(unittest.TestCase):
    def read(self, text: str, **given) -> list:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            return [found["request"] for _, found in review.read_reviews([file.name], **given)]

    def test_objects_lists_and_reviews(self):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "b"}}
        both = {"apiVersion": "v1", "kind": "List", "items": [pod, deployment]}
        text = f"{json.dumps(both)}\n{json.dumps(pod)} {POD.decode()}"
        found = self.read(text)
        self.assertEqual(
            [(r["kind"]["kind"], r["resource"], r["namespace"]) for r in found[:2]],
            [
                ("Pod", {"group": "", "version": "v1", "resource": "pods"}, "default"),
                (
                    "Deployment",
                    {"group": "apps", "version": "v1", "resource": "deployments"},
                    "b",
                ),
            ],
        )
        self.assertEqual(found[2]["object"], pod)
        self.assertEqual(found[3], json.loads(POD)["request"])

    def test_plurals(self):
        for kind, expected in [
            ("Pod", "pods"),
            ("Ingress", "ingresses"),
            ("NetworkPolicy", "networkpolicies"),
            ("Gateway", "gateways"),
            ("Endpoints", "endpoints"),
            ("EndpointSlice", "endpointslices"),
            ("Y", "ys"),
        ]:
            self.assertEqual(review.plural(kind), expected)

    def test_resources_that_are_given(self):
        for given, expected in [
            ("mice", ("example.com", "v2", "mice")),
            ("deployments.v1.apps", ("apps", "v1", "deployments")),
            ("pods.v1", ("", "v1", "pods")),
        ]:
            resource = review.resource_of("example.com", "v2", "Mouse", {"Mouse": given})
            self.assertEqual(tuple(resource.values()), expected)

    def test_reviews_are_as_an_api_server_writes_them(self):
        """Made again from their object, recorded reviews come out the same, as far as an object
        tells."""
        told = ("kind", "resource", "name", "namespace", "operation", "object", "oldObject")
        for name, given in [
            ("create-pod", {}),
            ("create-deployment", {}),
            ("create-namespace", {}),
            ("create-pod-binding", {}),
            ("create-widget-custom-resource", {}),
            ("update-deployment", {}),
            ("update-pod-ephemeralcontainers", {"sub_resource": "ephemeralcontainers"}),
            ("update-deployment-scale",
             {"sub_resource": "scale", "plurals": {"Scale": "deployments.v1.apps"}}),
            ("create-pod-eviction",
             {"sub_resource": "eviction", "plurals": {"Eviction": "pods.v1"}}),
            ("delete-service", {"operation": "DELETE"}),
        ]:  # fmt: skip
            with self.subTest(name):
                expected = json.loads(REVIEWS[name])["request"]
                old = expected["oldObject"] if expected["operation"] == "UPDATE" else None
                obj = expected["object"] or expected["oldObject"]
                found = review.as_review(obj, old=old, **given)["request"]
                self.assertEqual({k: found[k] for k in told}, {k: expected[k] for k in told})
                self.assertEqual(found["subResource"], expected.get("subResource", ""))
                for key in ("kind", "apiVersion"):
                    self.assertEqual(found["options"][key], expected["options"][key])

    def test_who_and_where(self):
        (request,) = self.read(
            json.dumps(pod()), user="jo", groups=["a", "b"], namespace="shop", operation="CONNECT"
        )
        self.assertEqual(request["userInfo"], {"username": "jo", "groups": ["a", "b"]})
        self.assertEqual((request["namespace"], request["options"]), ("shop", None))
        (request,) = self.read(json.dumps(pod(namespace="own")), namespace="shop")
        self.assertEqual(request["namespace"], "own")
        for kind, namespace in [("Node", ""), ("Widget", "shop"), ("Namespace", "web")]:
            (request,) = self.read(json.dumps(pod() | {"kind": kind}), namespace="shop")
            self.assertEqual(request["namespace"], namespace)

    def test_old_objects_are_found_by_kind_namespace_and_name(self):
        before = [pod("a", namespace="x", n=1), pod("a", n=2), pod("a") | {"kind": "Job"}]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as old:
            old.write("\n".join(map(json.dumps, before)))
            old.flush()
            (request,) = self.read(json.dumps(pod("a")), old=old.name)
            self.assertEqual((request["operation"], request["oldObject"]), ("UPDATE", before[1]))
            with self.assertRaises(whook.ConfigError) as caught:
                self.read("---\n" + json.dumps(pod("b")), old=old.name)
        self.assertRegex(
            caught.exception.message,
            r"^/.*\.yaml, line 2: /.*\.json holds no such object as it was before$",
        )

    def test_what_is_none_of_these(self):
        whole, why = (
            json.loads(POD),
            "an AdmissionReview says itself what is requested, and by whom",
        )
        for value, given, message in [
            ({"a": 1}, {}, "apiVersion is missing, so this is no Kubernetes object"),
            ({"apiVersion": "v1"}, {}, "kind is missing, so this is no Kubernetes object"),
            (pod() | {"kind": 5}, {}, "kind must be a string"),
            (pod() | {"apiVersion": 1.5}, {}, "apiVersion must be a string"),
            (pod() | {"metadata": "web"}, {}, "metadata must be an object"),
            (pod(5), {}, "metadata.name must be a string"),
            (pod(namespace=["a"]), {}, "metadata.namespace must be a string"),
            (pod(), {"operation": "UPDATE"},
             "an UPDATE needs the object as it was before (--old)"),
            (whole, {"operation": "DELETE"}, why),
            (whole, {"user": "jo"}, why),
            (whole, {"namespace": ""}, why),
        ]:  # fmt: skip
            with self.subTest(message), self.assertRaises(whook.ConfigError) as caught:
                self.read("\n\n" + json.dumps(value), **given)
            self.assertRegex(str(caught.exception), r"^/.*\.yaml, line 3: ")
            self.assertEqual(str(caught.exception).split(": ", 1)[1], message)


class Running(unittest.TestCase):
    def test_every_real_review(self):
        for name, body in REVIEWS.items():
            with self.subTest(name):
                outcome = run(body)
                self.assertTrue(outcome.good)
                self.assertEqual(outcome.before, outcome.after)

    def test_policies_one_after_the_other(self):
        outcome = run(a=LABEL, b='def mutate(o, r): o["metadata"]["labels"]["team"] += "2"')
        self.assertEqual(outcome.after["metadata"]["labels"]["team"], "shop2")
        self.assertEqual([step.policy for step in outcome.steps], ["a", "b"])
        self.assertEqual(outcome.steps[0].patch[0]["value"], "shop")
        self.assertEqual(outcome.not_idempotent, ["b"])

    def test_the_request_of_an_update_keeps_its_old_object(self):
        outcome = run(
            REVIEWS["update-pod"],
            a='def mutate(o, r): o["metadata"]["annotations"]["old"] = r.old_object["kind"]',
        )
        self.assertEqual(outcome.after["metadata"]["annotations"]["old"], "Pod")
        self.assertTrue(outcome.good)

    def test_validate_sees_what_mutate_made(self):
        outcome = run(
            a=LABEL,
            b='def validate(o, r): o["metadata"]["labels"]["team"] == "shop" and r.deny("seen")',
        )
        verb, response = outcome.denied
        self.assertEqual((verb, response.message), ("validate", "seen"))

    def test_a_fault(self):
        outcome = run(a="def mutate(o, r): 1/0")
        self.assertEqual(
            review.as_kubectl(outcome),
            [
                "Error from server (InternalError): Internal error occurred: failed calling "
                'webhook "mutate.whook.local": failed to call webhook: policy "a" failed: '
                "line 1: ZeroDivisionError: division by zero"
            ],
        )
        self.assertEqual(
            review.remarks(outcome), ["with failurePolicy: Ignore the object passes as it was sent"]
        )
        self.assertFalse(outcome.good)

    def test_a_policy_that_denies_or_fails_on_its_own_result(self):
        once = ' o["metadata"]["labels"].get("x") and {}\n o["metadata"]["labels"]["x"] = "y"'
        for what, message in [
            ('r.deny("there is one")', "there is one"),
            ("1/0", 'policy "a" failed: line 2: ZeroDivisionError: division by zero'),
        ]:
            with self.subTest(what):
                outcome = run(a="def mutate(o, r):\n" + once.format(what))
                self.assertEqual(outcome.not_idempotent, ["a"])
                self.assertEqual(
                    review.remarks(outcome),
                    ['policy "a" is not idempotent: on its own result it says: ' + message],
                )

    def test_policies_that_undo_each_other(self):
        outcome = run(
            a='def mutate(o, r): o["metadata"]["labels"]["x"] = "1"',
            b='def mutate(o, r): o["metadata"]["labels"]["x"] = "2"',
            c=LABEL,
        )
        self.assertEqual(outcome.not_idempotent, ["a", "b"])
        outcome = run(
            a='def mutate(o, r):\n if o["metadata"]["labels"].get("team"): r.deny("no")', b=LABEL
        )
        self.assertEqual(outcome.not_idempotent, ["a"])

    def test_every_policy_that_would_deny_or_fail_is_named(self):
        outcome = run(
            a='def validate(o, r): r.deny("first")', b="def validate(o, r): 1/0", c=NOTHING,
            d='def validate(o, r): r.deny("last")',
        )  # fmt: skip
        self.assertEqual(outcome.denials, {"a": "first", "d": "last"})
        fault = 'policy "b" failed: line 1: ZeroDivisionError: division by zero'
        self.assertEqual(outcome.failures, {"b": fault})
        outcome = run(a=LABEL, b='def mutate(o, r): r.deny("no")', c=DENIES)
        self.assertEqual((outcome.denials, outcome.failures), ({"b": "no"}, {}))
        outcome = run(a=LABEL, b="def mutate(o, r): 1/0", c=DENIES)
        self.assertEqual((outcome.denials, outcome.failures), ({}, {"b": fault}))
        outcome = run(a=LABEL, b='def mutate(o, r): o["kind"] = "Job"')
        self.assertEqual(outcome.failures, {"b": "kind was changed from 'Pod' to 'Job'"})

    def test_a_deletion(self):
        outcome = run(
            REVIEWS["delete-service"], a=LABEL,
            b='def validate(o, r): r.deny(f"{o} {r.old_object[\'kind\']}")',
        )  # fmt: skip
        self.assertEqual(outcome.denials, {"b": "None Service"})
        self.assertEqual((outcome.before, outcome.after, outcome.not_idempotent), (None, None, []))

    def test_nothing_is_shared_with_what_is_shown(self):
        edits = 'def validate(o, r): o["metadata"]["labels"]["x"] = "y"'
        outcome = run(a=LABEL, b=edits)
        self.assertNotIn("x", outcome.after["metadata"]["labels"])
        self.assertNotIn("team", outcome.before["metadata"]["labels"])


class Verdict(unittest.TestCase):
    def test_what_an_api_server_would_refuse(self):
        for change, expected in [
            ('o["metadata"]["labels"]["n"] = 5', "/metadata/labels/n is 5, and must be a string"),
            ('o["metadata"]["annotations"] = {"n": True}',
             "/metadata/annotations/n is true, and must be a string"),
            ('o["metadata"]["name"] = "other"',
             "metadata.name was changed from 'tricky' to 'other'"),
            ('o["kind"] = "Job"', "kind was changed from 'Pod' to 'Job'"),
            ('o["spec"]["containers"] = {}', "/spec/containers was a list, and is an object"),
            ('o["spec"]["priority"] = "0"', "/spec/priority was a number, and is a string"),
        ]:  # fmt: skip
            with self.subTest(change):
                outcome = run(a=f"def mutate(o, r): {change}")
                self.assertEqual(outcome.refusals, [expected])

    def test_what_it_would_take(self):
        for change in (
            'o["metadata"]["labels"] = {"a": "b"}',
            'o["spec"]["priority"] = 5.0',
            'del o["spec"]["priority"]',
            'o["spec"]["priority"] = None',
            'o["spec"]["new"] = {"labels": {"a": "b"}}',
        ):
            with self.subTest(change):
                self.assertEqual(run(a=f"def mutate(o, r): {change}").refusals, [])


class Reports(unittest.TestCase):
    def test_a_table_with_the_worst_first(self):
        summary = reports.Summary()
        for namespace, sources in [
            ("a", {"labels": LABEL}),
            ("b", {"labels": LABEL, "pinned": DENIES}),
            ("b", {"pinned": DENIES}),
            ("b", {"grows": GROWS}),
            ("c", {"fails": "def mutate(o, r): 1/0"}),
            ("", {"nothing": NOTHING}),
        ]:
            body = json.loads(POD)
            body["request"]["namespace"] = namespace
            summary.add(review.run(body, policies(**sources)))
        self.assertEqual(
            summary.render().splitlines(),
            [
                "policy  namespace  objects  would deny  would fail  not idempotent  would change",
                "pinned  b                3           2           0               0             0",
                "fails   c                1           0           1               0             0",
                "grows   b                3           0           0               1             1",
                "labels  a                1           0           0               0             1",
                "labels  b                3           0           0               0             1",
                "6 reviewed, namespaces: 4",
            ],
        )
        calm = reports.Summary()
        calm.add(run(a=NOTHING))
        self.assertEqual(calm.render(), "1 reviewed, namespaces: 1; none denied or changed")

    def test_junit(self):
        text = reports.junit("s<", [("Pod", 'a"b', []), ("Pod", "c", ["<no>", "\x1b[31m &\ud800"])])
        suite = ElementTree.fromstring(text)
        self.assertEqual(suite.attrib, {"name": "s<", "tests": "2", "failures": "1", "errors": "0"})
        good, bad = suite
        self.assertEqual((good.attrib, len(good)), ({"classname": "Pod", "name": 'a"b'}, 0))
        self.assertEqual(bad[0].attrib, {"message": "<no>"})
        self.assertEqual(bad[0].text, "<no>\n\ufffd[31m &\ufffd")


class CommandLine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "policies").mkdir()

    def review(self, *arguments, body=POD, **sources) -> tuple[int, str, str]:
        for name, source in (sources or {"nothing": NOTHING}).items():
            (self.folder / "policies" / f"{name}.py").write_text(source)
        (self.folder / "review.json").write_bytes(body)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = review.main(
                    ["--policy", str(self.folder / "policies"), *arguments,
                     str(self.folder / "review.json")]
                )  # fmt: skip
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def test_a_diff(self):
        status, out, _ = self.review(label=LABEL)
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith("CREATE Pod shop2/tricky\n--- sent\n+++ answered\n"))
        self.assertIn('\n+      "team": "shop"\n', out)

    def test_a_large_number_is_the_same_in_json_and_yaml_and_can_be_moved(self):
        import yaml

        thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}}
        thing["spec"] = {"big": 10**20}
        as_yaml = yaml.safe_dump(thing)
        as_review = json.dumps(review.as_review(thing))
        move = "def mutate(o, r): o['spec']['list'] = [o['spec']['big']]"
        patch = [{"op": "add", "path": "/spec/list", "value": [10**20]}]
        for text in (
            json.dumps(thing),
            as_yaml,
            as_yaml.replace(str(10**20), "1e20"),
            as_review,
            as_review.replace(str(10**20), "1e20"),
        ):
            with self.subTest(text):
                status, out, err = self.review("-o", "patch", body=text.encode(), move=move)
                self.assertEqual((status, json.loads(out), err), (0, patch, ""))
                self.assertNotIn("e+20", out)

    def test_a_denial(self):
        status, out, _ = self.review(denies=DENIES)
        self.assertEqual(status, 1)
        self.assertEqual(
            out.splitlines(),
            [
                "CREATE Pod shop2/tricky",
                "  (unchanged)",
                "Warning: old",
                'Error from server (Forbidden): admission webhook "validate.whook.local" denied '
                'the request: container "web": not today',
            ],
        )

    def test_one_that_is_not_idempotent(self):
        status, out, _ = self.review(grows=GROWS)
        self.assertEqual(status, 1)
        self.assertIn('policy "grows" is not idempotent: on its own result it makes [{"op"', out)

    def test_other_forms(self):
        patch = [{"op": "add", "path": "/metadata/labels/team", "value": "shop"}]
        self.assertEqual(json.loads(self.review("-o", "patch", label=LABEL)[1]), patch)
        after = json.loads(self.review("-o", "object", label=LABEL)[1])
        self.assertEqual(after["metadata"]["labels"]["team"], "shop")
        answers = self.review("-o", "review", label=LABEL)[1].splitlines()
        self.assertEqual([json.loads(x)["kind"] for x in answers], ["AdmissionReview"] * 2)

    def test_bad_input(self):
        review_without = b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}'
        for arguments, body, message in [
            ((), b"\xff", "can't read "),
            ((), b"{", "review.json, line 1: not JSON: "),
            ((), b"", "review.json holds nothing"),
            ((), b"\n" + review_without,
             "review.json, line 2: the AdmissionReview has no request"),
            ((), b"kind: Pod\napiVersion: v1\nmetadata: web", "line 1: metadata must be an object"),
            (("--policy", "/nowhere"), POD, "can't read /nowhere"),
            (("/nowhere.json",), POD, "can't read /nowhere.json"),
            (("--old", "/nowhere.json"), POD, "can't read /nowhere.json"),
        ]:  # fmt: skip
            with self.subTest(message):
                status, _, err = self.review(*arguments, body=body)
                self.assertEqual(status, 1)
                error, hint = err.splitlines()
                self.assertIn(message, error)
                self.assertTrue(error.startswith("whook: error: "))
                self.assertTrue(hint.startswith("whook: hint: "))

    def test_odd_objects_are_shown(self):
        """A custom resource may be like this."""
        deep = '{"a":' * 190 + "1" + "}" * 190
        for text in ('{"a": null}', f'{{"a": {deep}}}', '{"labels": 5}', '{"x": "\\u001b[31m"}'):
            with self.subTest(text[:20]):
                start = '{"apiVersion": "v1", "kind": "K", "metadata": null, "spec": '
                body = f"{start}{text}}}"
                edit = 'def mutate(o, r): o["spec"]["b"] = 1'
                status, out, err = self.review(body=body.encode(), edit=edit)
                self.assertEqual((status, err), (0, ""))
                self.assertIn('+    "b": 1', out)

    def test_half_a_character_that_a_policy_makes_is_shown(self):
        (self.folder / "a.py").write_text('def mutate(o, r): o["metadata"]["name2"] = "\\ud800"')
        (self.folder / "pod.json").write_text(json.dumps(pod()))
        done = self.command("--policy", "a.py", "pod.json")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b'+    "name2": "\\ud800"', done.stdout)

    def test_usage(self):
        for arguments, message in [
            (["x.yaml"], "--policy is missing: without one nothing is judged"),
            (["--policy", "p"], "the following arguments are required: FILE|DIR"),
            (["--policy", "p", "--old", "a", "--operation", "DELETE", "x"],
             "--old is for an UPDATE, not for DELETE"),
            (["--policy", "p", "--plural", "mice", "x"], "'mice' is not like Mouse=mice"),
            (["--policy", "p", "--operation", "PATCH", "x"], "invalid choice: 'PATCH'"),
        ]:  # fmt: skip
            with self.subTest(message):
                err = io.StringIO()
                with contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as caught:
                    review.main(arguments)
                self.assertEqual(caught.exception.code, 2)
                self.assertIn(message, err.getvalue())

    def test_what_is_requested(self):
        shows = (
            'def validate(o, r):\n r.deny(f"{r.user_info} {r.resource.resource} {r.old_object}")'
        )
        (self.folder / "old.yaml").write_text(json.dumps(pod()))
        status, out, _ = self.review(
            "--old", str(self.folder / "old.yaml"), "--sub-resource", "resize", "--user", "jo",
            "--group", "a", "--group", "b", "--plural", "Pod=peas", "--namespace", "",
            body=json.dumps(pod()).encode(), shows=shows,
        )  # fmt: skip
        self.assertEqual(status, 1)
        self.assertEqual(out.splitlines()[0], "UPDATE Pod web (resize)")
        expected = f"{{'username': 'jo', 'groups': ['a', 'b']}} peas {pod()}"
        self.assertTrue(out.splitlines()[-1].endswith(f"denied the request: {expected}"), out)
        _, out, _ = self.review("--operation", "delete", body=json.dumps(pod()).encode())
        self.assertEqual(out.splitlines()[:2], ["DELETE Pod default/web", "  (unchanged)"])

    def test_output_for_programs(self):
        body = b"%s\n%s" % (POD, json.dumps(pod()).encode())
        status, out, err = self.review("-o", "json", body=body, label=LABEL, denies=DENIES)
        self.assertEqual((status, err), (1, ""))
        first, second = json.loads(out)
        patch = [{"op": "add", "path": "/metadata/labels", "value": {"team": "shop"}}]
        self.assertEqual(
            second,
            {
                "source": str(self.folder / "review.json"), "line": 3, "operation": "CREATE",
                "kind": "Pod", "namespace": "default", "name": "web", "good": False,
                "denied": {"denies": 'container "web": not today'}, "changed": {"label": patch},
                "failed": {}, "notIdempotent": [], "refused": [], "warnings": ["old"],
                "audit": {}, "lints": [],
            },
        )  # fmt: skip
        self.assertEqual((first["name"], first["line"]), ("tricky", 1))
        status, out, _ = self.review("-o", "junit", body=body)
        self.assertEqual([case.get("name") for case in ElementTree.fromstring(out)],
                         ["shop2/tricky", "default/web"])  # fmt: skip
        status, out, _ = self.review("-o", "summary", body=body)
        self.assertEqual(out.splitlines()[-1], "2 reviewed, namespaces: 2")

    def test_what_came_before_an_error_is_shown(self):
        body = b"%s\n{" % POD
        status, out, err = self.review("-o", "json", body=body)
        self.assertEqual((status, len(json.loads(out))), (1, 1))
        self.assertIn("line 3: not JSON", err)
        status, out, err = self.review("-o", "json", body=b"{")
        self.assertEqual((status, json.loads(out)), (1, []))

    def test_a_policy_that_does_not_load(self):
        policy = self.folder / "policies" / "b.py"
        for source, message, hint in [
            ("from objects import nothing", "line 1: ImportError: cannot import name 'nothing'",
             "mend it there"),
            ("def mutate(", "line 1: SyntaxError: '(' was never closed", "mend it there"),
            ("from objects import read\n\nread({'a': 1}, 'a', str)",
             "line 3: ValueError: a must be a string",
             f"raised in {ROOT}/objects.py, line 40, called in {policy}, line 3"),
            ("LIMIT = '5'\ndef mutate(o, r): pass", "must be a string",
             "as in the policy's source"),
        ]:  # fmt: skip
            with self.subTest(source):
                if "LIMIT" in source:
                    policy.with_suffix(".json").write_text('{"LIMIT": 5}')
                status, _, err = self.review(b=source)
                self.assertEqual(status, 1)
                self.assertIn(message, err.splitlines()[0])
                self.assertEqual(err.splitlines()[1], f"whook: hint: {hint}")

    def command(self, *arguments, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "review.py", *arguments]
        return subprocess.run(command, capture_output=True, cwd=self.folder, **options)

    def test_standard_input(self):
        (self.folder / "a.py").write_text(NOTHING)
        piped = self.command("--policy", "a.py", "-", input=b"\xef\xbb\xbf" + POD)
        self.assertEqual((piped.returncode, piped.stderr), (0, b""))
        empty = self.command("--policy", "a.py", "-", stdin=subprocess.DEVNULL)
        self.assertEqual((empty.returncode, empty.stdout), (1, b""))
        self.assertEqual(
            empty.stderr.decode().splitlines(),
            ["whook: error: standard input holds nothing", f"whook: hint: {documents.HINT}"],
        )

    def test_ctrl_c(self):
        """While it waits for input, and while a policy is at work: it is not the policy's fault."""
        wait = "import time\ndef validate(o, r):\n print('here', flush=True)\n time.sleep(60)"
        for source, text in [(NOTHING, b""), (wait, json.dumps(pod()).encode())]:
            with self.subTest(source):
                (self.folder / "a.py").write_text(source)
                command = [sys.executable, ROOT / "review.py", "--policy", "a.py", "x.json", "-"]
                (self.folder / "x.json").write_bytes(text or POD)
                with subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                ) as process:  # fmt: skip  # a shell's "&" has it ignored
                    process.stdout.readline()
                    process.send_signal(signal.SIGINT)
                    _, err = process.communicate(timeout=30)
                self.assertEqual(process.returncode, 1)
                error, hint = err.decode().splitlines()
                self.assertEqual(error, "whook: error: interrupted")
                self.assertTrue(hint.startswith("whook: hint: "))

    def test_a_reader_that_leaves(self):
        (self.folder / "a.py").write_text(NOTHING)
        (self.folder / "many.json").write_text(json.dumps(pod()) * 20_000)
        command = [sys.executable, ROOT / "review.py", "--policy", "a.py", "many.json"]
        with subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            process.stdout.close()
            self.assertEqual((process.stderr.read(), process.wait(30)), (b"", 1))

    def test_a_line_of_progress_on_a_terminal(self):
        (self.folder / "a.py").write_text(NOTHING)
        (self.folder / "pod.json").write_text(json.dumps(pod()))
        reader, writer = pty.openpty()
        command = [sys.executable, ROOT / "review.py", "--policy", "a.py", "-o", "summary"]
        done = subprocess.run(
            [*command, "pod.json"], cwd=self.folder, stdout=subprocess.PIPE, stderr=writer
        )
        self.assertEqual(done.stdout, b"1 reviewed, namespaces: 1; none denied or changed\n")
        self.assertEqual(os.read(reader, 100), b"\r1 reviewed\r\x1b[K")
        os.close(reader)
        os.close(writer)


if __name__ == "__main__":
    unittest.main()
