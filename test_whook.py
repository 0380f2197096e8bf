"""Tests of whook.py, in the order of its sections."""

import ast
import concurrent.futures
import contextlib
import itertools
import json
import math
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import warnings
from datetime import timedelta
from pathlib import Path
from unittest import mock

import whook
from review import apply
from tests import pki
from tests.server import (
    POD,
    REVIEWS,
    ROOT,
    Stream,
    Whook,
    patch_of,
    read_all,
    request_bytes,
    wait_for,
)

LABEL = """
def mutate(obj, request):
    obj.setdefault("metadata", {}).setdefault("labels", {})["team"] = "shop"
"""
CUT = REVIEWS["create-service"].strip()[:-1]  # plain ASCII
LABEL_PATCH = [{"op": "add", "path": "/metadata/labels/team", "value": "shop"}]


def policies(**sources: str) -> tuple[whook.Policy, ...]:
    """Policies by name, from their text."""
    encoded = {f"/p/{name}.py": source.encode() for name, source in sources.items()}
    return whook.load_policies(encoded).policies


def review(**fields) -> bytes:
    """The pod's review with other fields in its request; None takes one away."""
    document = json.loads(POD)
    document["request"] |= fields
    document["request"] = {k: v for k, v in document["request"].items() if v is not None}
    return json.dumps(document).encode()


class HouseRules(unittest.TestCase):
    """1: what the file promises about itself."""

    source = (ROOT / "whook.py").read_text()

    def test_an_old_python_gets_one_line(self):
        old = "import sys; sys.version_info = (3, 10, 1); import whook"
        run = subprocess.run([sys.executable, "-c", old], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(
            (run.returncode, run.stderr), (1, "whook: error: it needs Python 3.11 or later\n")
        )

    def test_this_needs_no_package(self):
        alone = [sys.executable, "-S", "-c", "import test_whook"]
        run = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def test_it_imports_the_standard_library_only(self):
        names = set()
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        self.assertEqual(
            {n for n in names if n.split(".")[0] not in sys.stdlib_module_names}, set()
        )

    def test_it_has_no_thread_no_fork_and_no_lock(self):
        for word in ("threading", "multiprocessing", "concurrent", "fork(", "Lock("):
            self.assertNotIn(word, self.source)

    def test_its_sections_stand_in_the_order_of_its_map(self):
        titles = re.findall(r"^# -+ (\d+ .+)$", self.source, re.M)
        self.assertEqual([int(title.split()[0]) for title in titles], list(range(2, 12)))
        words = " ".join(self.source.split('"""')[1].split())
        self.assertIn("1 this text, " + ", ".join(titles) + ".", words)

    def test_a_section_uses_at_import_only_what_stands_above_it(self):
        run = subprocess.run([sys.executable, "-c", "import whook"], cwd=ROOT, capture_output=True)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, b"", b""))

    def test_functions_are_short(self):
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.FunctionDef):
                with self.subTest(node.name):
                    self.assertLessEqual(node.end_lineno - node.lineno + 1, 50)


class Log(unittest.TestCase):
    """2: one line an event, which nothing from outside can forge."""

    def test_values_are_escaped(self):
        for value, expected in [
            ("plain-1.2/x:y", "plain-1.2/x:y"),
            ("two words", '"two words"'),
            ("", '""'),
            ("a\nb level=ERROR", '"a\\nb level=ERROR"'),
            ("\x1b[2J", '"\\u001b[2J"'),
            ("\ud800", '"\\ud800"'),
            (True, "true"),
            (1, "1"),
        ]:
            with self.subTest(value=value):
                self.assertEqual(whook._quote(value), expected)

    def test_values_are_cut(self):
        self.assertEqual(whook._quote("x" * 5000), "x" * whook.MAX_LOGGED)
        written = self.written(lambda log: log("INFO", "e", a="ä" * 10**6, b=[1] * 10**5))
        self.assertLess(len(b"".join(written)), 3000)

    def written(self, use, writable=lambda: True, write=None) -> list[bytes]:
        """What goes out of a Log that is used."""
        writes: list[bytes] = []
        take = write or (lambda _, data: writes.append(data) or len(data))
        with (
            mock.patch.object(whook.os, "write", take),
            mock.patch.object(whook, "_writable", writable),
        ):
            self.log = whook.Log()
            use(self.log)
        return writes

    def test_lines_go_out_together_and_whole(self):
        def use(log):
            log.together = True
            for number in range(200):
                log("INFO", "review", number=number, filler="x" * 100)
            log.flush()

        writes = self.written(use)
        self.assertEqual(len(b"".join(writes).splitlines()), 200)
        self.assertLess(len(writes), 10)
        for data in writes:
            self.assertLessEqual(len(data), whook.LOG_WRITE)
            self.assertTrue(data.endswith(b"\n"))

    def test_lines_that_nobody_takes_are_counted(self):
        writable = iter([True, False, False, True])
        written = self.written(
            lambda log: [log("INFO", "e", n=n) for n in range(4)], lambda: next(writable)
        )
        self.assertEqual([line[-4:] for line in written], [b"n=0\n", b"n=3\n"])
        self.assertEqual(self.log.dropped, 2)

    def test_a_torn_line_does_not_spoil_the_next(self):
        out = bytearray()

        def half(_, data):
            out.extend(data[: len(data) // 2 if not out else None])
            if len(out) < len(data):
                raise OSError(28, "No space left on device")
            return len(data)

        self.written(lambda log: [log("INFO", "e"), log("INFO", "f")], write=half)
        self.assertTrue(out.endswith(b"INFO f\n"))


class ParseReview(unittest.TestCase):
    """3: bytes in, a Request out, or a Refusal that says why."""

    def test_every_real_review(self):
        for name, body in REVIEWS.items():
            with self.subTest(name):
                sent = json.loads(body)
                request = whook.parse_review(body, 7)
                fields = sent["request"]
                self.assertEqual(request.api_version, sent["apiVersion"])
                self.assertEqual(request.uid, fields["uid"])
                self.assertEqual(request.operation, fields["operation"])
                self.assertEqual(request.kind._asdict(), fields["kind"])
                self.assertEqual(request.resource._asdict(), fields["resource"])
                self.assertEqual(request.request_kind._asdict(), fields["requestKind"])
                self.assertEqual(request.sub_resource, fields.get("subResource", ""))
                self.assertEqual(request.user_info, fields["userInfo"])
                self.assertEqual(request.object, fields["object"])
                self.assertEqual(request.old_object, fields["oldObject"])
                self.assertEqual(request.dry_run, fields["dryRun"])
                self.assertEqual(request.options, fields["options"])
                self.assertEqual(request.deadline, 7)

    def test_name_falls_back(self):
        for fields, expected in [
            ({"name": "given"}, "given"),
            ({"name": None}, "tricky"),
            ({"name": None, "object": {"metadata": {"generateName": "web-"}}}, "web-"),
            ({"name": None, "object": {"metadata": None}}, ""),
            ({"name": None, "object": None, "operation": "DELETE"}, ""),
        ]:
            with self.subTest(fields=fields):
                self.assertEqual(whook.parse_review(review(**fields)).name, expected)

    def test_an_old_api_server_sends_no_request_kind(self):
        request = whook.parse_review(review(requestKind=None, requestResource=None))
        self.assertEqual(request.request_kind, request.kind)
        self.assertEqual(request.request_resource, request.resource)

    def test_bad_bodies(self):
        start = b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":'
        for body, message in [
            (b"", "the body is not JSON: it is empty"),
            (
                CUT,
                f"the body is not JSON: Expecting ',' delimiter: line 1 column {len(CUT) + 1} "
                f"(char {len(CUT)})",
            ),
            (b"hello", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
            (b"\xff\xfe", "the body is not UTF-8"),
            (b"[" * 200_000, "the body is nested too deeply"),
            (b'{"a":' * 200_000, "the body is nested too deeply"),
            (
                b"9" * 6000,
                "the body is not JSON: Exceeds the limit (4300 digits) for integer "
                "string conversion: value has 6000 digits",
            ),
            (b'{"a":NaN}', "the body is not JSON: NaN is not a JSON number"),
            (b'{"a":1e999}', "the body is not JSON: 1e999 is not a JSON number"),
            (b"[]", "the body is not an AdmissionReview: its kind must say so"),
            (b'{"kind":"Pod"}', "the body is not an AdmissionReview: its kind must say so"),
            (
                b'{"kind":"AdmissionReview","apiVersion":"v1","request":{}}',
                "apiVersion must be one of admission.k8s.io/v1, admission.k8s.io/v1beta1",
            ),
            (start + b"null}", "the AdmissionReview has no request"),
            (start + b"[]}", "the AdmissionReview has no request"),
            (start + b"{}}", "request.uid is missing"),
            (review(uid=5), "request.uid must be a string"),
            (review(uid="u" * 254), "request.uid is too long"),
            (review(object=None), "request.object is missing, which CREATE needs"),
            (
                review(object=None, operation="UPDATE"),
                "request.object is missing, which UPDATE needs",
            ),
            (
                review(operation="PATCH"),
                "request.operation must be one of CREATE, UPDATE, DELETE, CONNECT",
            ),
            (review(object=[1]), "request.object must be an object"),
            (
                review(kind={"group": 1}),
                "group, version, kind in request.kind must be strings",
            ),
            (review(dryRun="yes"), "request.dryRun must be true or false"),
            (review(userInfo="me"), "request.userInfo must be an object"),
        ]:
            with self.subTest(message):
                with self.assertRaises(whook.Refusal) as caught:
                    whook.parse_review(body)
                self.assertEqual(
                    (caught.exception.status, caught.exception.message), (400, message)
                )

    def test_objects_from_outside_are_nobody_elses(self):
        request = whook.parse_review(POD)
        before = request.object
        request.own_object()["spec"] = None
        self.assertEqual(before, json.loads(POD)["request"]["object"])
        self.assertEqual(request.object, before)


class RenderReview(unittest.TestCase):
    """3: a verdict as the API server takes it."""

    def answer(self, source: str = "", body: bytes = POD, verb="mutate") -> dict:
        request = whook.parse_review(body)
        response = whook.evaluate(request, policies(p=source) if source else (), verb)
        return json.loads(whook.render_review(request, response))

    def test_version_and_uid_are_those_that_came(self):
        for name, body in REVIEWS.items():
            with self.subTest(name):
                sent, answer = json.loads(body), self.answer(body=body)
                self.assertEqual(
                    answer,
                    {
                        "apiVersion": sent["apiVersion"],
                        "kind": "AdmissionReview",
                        "response": {"uid": sent["request"]["uid"], "allowed": True},
                    },
                )

    def test_patch_and_patch_type_come_together(self):
        response = self.answer(LABEL)["response"]
        self.assertEqual(response["patchType"], "JSONPatch")
        self.assertEqual(patch_of({"response": response}), LABEL_PATCH)

    def test_a_denial_has_no_patch(self):
        response = self.answer(LABEL + "    request.deny('not today', 418, 'Teapot')")["response"]
        self.assertEqual(
            response,
            {
                "uid": json.loads(POD)["request"]["uid"],
                "allowed": False,
                "status": {"code": 418, "reason": "Teapot", "message": "not today"},
            },
        )

    def test_warnings_are_cleaned_and_cut(self):
        long = "x" * 3000
        for texts, expected in [
            (["a\nb\x00\x85c"], ["a b c"]),
            (["same", "same", " ", "\n"], ["same"]),
            ([long], [long]),
            ([long, "y" * 2000], ["x" * 256, "y" * 256]),
            (
                [f"{n:04}" + "z" * 300 for n in range(99)],
                [f"{n:04}" + "z" * 252 for n in range(16)],
            ),
        ]:
            with self.subTest(texts=str(texts)[:40]):
                source = f"def mutate(obj, request):\n for t in {texts}: request.warn(t)"
                self.assertEqual(self.answer(source)["response"]["warnings"], expected)

    def test_audit_keys_are_checked(self):
        good = "def mutate(obj, request): request.audit('image.x', 5)"
        self.assertEqual(self.answer(good)["response"]["auditAnnotations"], {"image.x": "5"})
        for key in ("", "a/b", "-a", "a-", "x" * 64, "ä"):
            with self.subTest(key=key), self.assertRaisesRegex(whook.PolicyFault, "audit key"):
                self.answer(f"def mutate(obj, request): request.audit({key!r}, 5)")


class Policies(unittest.TestCase):
    """4: files and folders, in the order of their names."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, text: str = LABEL) -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def load(self, *paths: str) -> whook.PolicySet:
        return whook.load_policies(whook.read_sources(paths))

    def test_order_is_that_of_the_names(self):
        for name in ("d/b.py", "d/_helper.py", "d/.hidden.py", "d/README.md", "c.py", "d/a.py"):
            self.write(name)
        loaded = self.load(str(self.folder / "c.py"), str(self.folder / "d"))
        self.assertEqual([policy.name for policy in loaded.policies], ["a", "b", "c"])

    def test_the_hash_tells_content_and_name(self):
        seen = {
            self.load(self.write("a.py")).digest,
            self.load(self.write("b.py")).digest,
            self.load(self.write("a.py", LABEL + "#")).digest,
        }
        self.assertEqual(len(seen), 3)
        self.assertEqual(self.load(self.write("b.py")).digest, self.load(self.write("b.py")).digest)

    def test_none(self):
        self.assertEqual(self.load().policies, ())

    def test_find(self):
        loaded = self.load(self.write("a.py"), self.write("b.py", "def validate(obj, request): 0"))
        self.assertEqual([p.name for p in loaded.find("mutate", "")], ["a", "b"])
        self.assertEqual([p.name for p in loaded.find("validate", "b")], ["b"])
        for verb, name in (("mutate", "b"), ("validate", "a"), ("mutate", "x")):
            with self.subTest(verb=verb, name=name):
                with self.assertRaises(whook.Refusal) as caught:
                    loaded.find(verb, name)
                self.assertEqual(
                    str(caught.exception), f'there is no policy "{name}" that defines {verb}'
                )

    def test_what_is_no_policy(self):
        (self.folder / "empty").mkdir()
        for text, message in [
            (
                "def mutate(",
                "does not load: line 1: SyntaxError: '(' was never closed (a.py, line 1)",
            ),
            ("\n1/0", "does not load: line 2: ZeroDivisionError: division by zero"),
            ("import sys; sys.exit(3)", "does not load: line 1: SystemExit: 3"),
            ("x = 1", "defines neither mutate nor validate"),
            ("mutate = 1", "defines neither mutate nor validate"),
        ]:
            with self.subTest(text=text), self.assertRaises(whook.SetupError) as caught:
                self.load(self.write("a.py", text))
            expected = f"policy {self.folder}/a.py {message}".replace(
                "(a.py", f"({self.folder}/a.py"
            )
            self.assertIn(
                str(caught.exception), (expected, expected.replace(f"{self.folder}/a.py,", "a.py,"))
            )
        for paths, message in [
            (["/nowhere/x.py"], "can't read /nowhere/x.py: No such file or directory"),
            ([str(self.folder / "empty")], f"no policy (*.py) in folder {self.folder}/empty"),
            (
                [self.write("a.py"), self.write("d/a.py")],
                f'two policies are named "a": {self.folder}/a.py and {self.folder}/d/a.py',
            ),
        ]:
            with self.subTest(paths=paths), self.assertRaises(whook.SetupError) as caught:
                self.load(*paths)
            self.assertEqual(str(caught.exception), message)
            self.assertTrue(caught.exception.hint)

    def test_parameters(self):
        source = """
LIMIT = 5
NAMES = ("a", "b")
RATIO: float = 1.5
TABLE = {"x": 1}
DOUBLE = LIMIT * 2
def validate(obj, request):
    request.deny(f"{LIMIT} {NAMES} {RATIO} {TABLE} {DOUBLE}")
"""
        path = self.write("a.py", source)
        before = self.load(path).digest
        given = '{"LIMIT": 7, "NAMES": ["c"], "RATIO": 2, "TABLE": {}}'
        self.write("a.json", given)
        loaded = self.load(path)
        response = whook.evaluate(whook.parse_review(POD), loaded.policies, "validate")
        self.assertEqual(response.message, "7 ('c',) 2.0 {} 14")
        self.assertNotEqual(loaded.digest, before)
        for text, message in [
            ("[1]", "a.json is not a JSON object"),
            ("{", "a.json is not JSON: "),
            ('{"LIMITS": 1}', f"sets LIMITS, which {path} does not"),
            ('{"validate": 1}', f"sets validate, which {path} does not"),
            ('{"LIMIT": "7"}', "must be a whole number"),
            ('{"LIMIT": true}', "must be a whole number"),
            ('{"LIMIT": 7.0}', "must be a whole number"),
            ('{"NAMES": "c"}', "must be a list"),
            ('{"TABLE": []}', "must be an object"),
        ]:
            with self.subTest(text), self.assertRaises(whook.SetupError) as caught:
                self.write("a.json", text)
                self.load(path)
            self.assertIn(message, caught.exception.message)

    def test_what_would_never_run_is_refused(self):
        for text in (
            "async def mutate(obj, request): 0",
            "def validate(obj, request): yield",
            "async def validate(obj, request): yield",
        ):
            with self.subTest(text), self.assertRaisesRegex(whook.SetupError, "would never run"):
                self.load(self.write("a.py", text))

    def test_dataclasses_load(self):
        for head in ("", "from __future__ import annotations\n"):
            text = head + "from dataclasses import dataclass\n@dataclass\nclass A:\n x: int = 1\n"
            self.assertEqual(len(self.load(self.write("a.py", text + LABEL)).policies), 1)


def exact(value):
    """A form in which true, 1 and 1.0 differ, as they do in JSON, and the order of keys doesn't
    count."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return type(value).__name__, value


class PatchChecks:
    """What holds of every patch; test_properties.py adds a foreign judge to it."""

    def check(self, before, after):
        copies = json.dumps([before, after])
        patch = whook.diff(before, after)
        self.assertEqual(exact(apply(before, patch)), exact(after))
        self.assertEqual(patch == [], exact(before) == exact(after))
        self.assertEqual(json.dumps([before, after]), copies)
        for step in patch:
            self.assertIn(step["op"], ("add", "remove", "replace"))
            self.assertTrue(step["path"].startswith("/"))
        return patch

    def test_table(self):
        for before, after, patch in [
            ({}, {"a/b~c": 1}, [{"op": "add", "path": "/a~1b~0c", "value": 1}]),
            ({"a": True}, {"a": 1}, [{"op": "replace", "path": "/a", "value": 1}]),
            ({"a": 1}, {"a": 1.0}, [{"op": "replace", "path": "/a", "value": 1.0}]),
            ({"a": [0]}, {"a": [False]}, [{"op": "replace", "path": "/a/0", "value": False}]),
            ({"a": {"b": 1}}, {}, [{"op": "remove", "path": "/a"}]),
            ({}, {"a": {"b": {}}}, [{"op": "add", "path": "/a", "value": {"b": {}}}]),
            ({"a": [1, 2, 3]}, {"a": [1, 3]}, [{"op": "remove", "path": "/a/1"}]),
            ({"a": [1]}, {"a": [0, 1]}, [{"op": "add", "path": "/a/0", "value": 0}]),
            ({"a": [1, 2, 3]}, {"a": []}, [{"op": "remove", "path": f"/a/{n}"} for n in (2, 1, 0)]),
            (
                {"a": [{"n": 1, "v": 1}]},
                {"a": [{"n": 1, "v": 2}]},
                [{"op": "replace", "path": "/a/0/v", "value": 2}],
            ),
            ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, []),
            ({"a": [{"x": 1, "y": 2}]}, {"a": [{"y": 2, "x": 1}]}, []),
            ({"a": []}, {"a": {}}, [{"op": "replace", "path": "/a", "value": {}}]),
            (
                {"a": [{"name": "x", "v": 1}, {"name": "y"}]},
                {"a": [{"name": "s"}, {"name": "x", "v": 2}, {"name": "y"}]},
                [
                    {"op": "add", "path": "/a/0", "value": {"name": "s"}},
                    {"op": "replace", "path": "/a/1/v", "value": 2},
                ],
            ),
            (
                {"a": [{"name": "x", "v": 1}]},
                {"a": [{"name": "y", "v": 2}]},
                [{"op": "replace", "path": "/a/0", "value": {"name": "y", "v": 2}}],
            ),
            (
                {"a": [1, 2, 3, 4]},
                {"a": [2, 3, 5, 4, 1]},
                [
                    {"op": "remove", "path": "/a/0"},
                    {"op": "add", "path": "/a/2", "value": 5},
                    {"op": "add", "path": "/a/4", "value": 1},
                ],
            ),
        ]:
            with self.subTest(before=before, after=after):
                self.assertEqual(json.dumps(self.check(before, after)), json.dumps(patch))


class JsonPatch(PatchChecks, unittest.TestCase):
    """5: diff, judged by review.py's apply."""

    def test_a_sidecar_in_front_and_a_mount_in_each(self):
        before = [{"name": f"c{n}", "volumeMounts": [{"name": "x"}]} for n in range(50)]
        after = json.loads(json.dumps(before))
        after.insert(0, {"name": "sidecar"})
        self.assertEqual(len(self.check({"x": before}, {"x": after})), 1)
        after[-1]["volumeMounts"].append({"name": "y"})
        self.assertEqual(len(self.check({"x": before}, {"x": after})), 2)

    def test_the_time_is_linear(self):
        """Twice the size takes about twice as long: counted in steps, not seconds."""

        def steps(size: int, depth: int) -> int:
            before: dict = {"big": [{"n": n, "v": {"w": n}} for n in range(size)]}
            for _ in range(depth):
                before = {"x": before, "side": [[1], {"a": 2}] * 20}
            after = json.loads(json.dumps(before))
            place = after
            for _ in range(depth):
                place = place["x"]
            place["new"] = 1
            count = 0

            def profile(*_):
                nonlocal count
                count += 1

            sys.setprofile(profile)
            try:
                patch = whook.diff(before, after)
            finally:
                sys.setprofile(None)
            self.assertEqual(len(patch), 1)
            return count

        self.assertLess(steps(2000, 300), 3 * steps(1000, 150))
        self.assertLess(steps(4000, 5), 3 * steps(2000, 5) + 1000)

    def test_what_json_cannot_hold(self):
        loop = {}
        loop["a"] = loop
        for after, message in [
            ({"a": {1: 2}}, "/a has the key 1: JSON's keys are strings"),
            ({1: 2}, "/ has the key 1: JSON's keys are strings"),
            ({"a": (1, 2)}, "/a is a tuple: not JSON"),
            ({"a": {"b": {1}}}, "/a/b is a set: not JSON"),
            ({"a": [math.nan]}, "/a/0 is nan: not JSON"),
            ({"a": math.inf}, "/a is inf: not JSON"),
            ({"a": b"x"}, "/a is a bytes: not JSON"),
            ({"a": [10**5000]}, "/a/0 is an integer of more than 64 bits: not JSON"),
            ({"a": {"b/c": [0, {"d": (1,)}]}}, "/a/b~1c/1/d is a tuple: not JSON"),
        ]:
            with self.subTest(after=after), self.assertRaises(ValueError) as caught:
                whook.diff({}, after)
            self.assertEqual(str(caught.exception), message)
        with self.assertRaises((ValueError, RecursionError)):
            whook.diff({}, loop)

    def test_the_root_stays(self):
        for before, after in [({}, []), (1, 2), ([], {}), (None, {})]:
            with self.subTest(before=before, after=after), self.assertRaises(ValueError):
                whook.diff(before, after)
        self.assertEqual(whook.diff(1, 1), [])

    def test_values_are_copies(self):
        after = {"a": {"b": [1]}}
        patch = whook.diff({}, after)
        after["a"]["b"].append(2)
        self.assertEqual(patch[0]["value"], {"b": [1]})

    def test_apply_is_strict(self):
        for document, op, path in [
            ({}, "remove", "/a"),
            ({}, "replace", "/a"),
            ({}, "add", "/a/b"),
            ({"a": None}, "add", "/a/b"),
            ({"a": []}, "add", "/a/1"),
            ({"a": [1]}, "add", "/a/01"),
            ({"a": [1]}, "remove", "/a/-1"),
            ({"a": [1]}, "remove", "/a/1"),
            ({"a": 1}, "test", "/a"),
            ({}, "add", ""),
            ({"a": [1]}, "replace", "/a/-"),
            ({"b2": 1}, "replace", "a/b2"),
            ({"~2": 1}, "remove", "/~2"),
            ({"~": 1}, "remove", "/~"),
            ({"a": 1}, "remove", None),
        ]:
            with self.subTest(op=op, path=path), self.assertRaises(ValueError):
                apply(document, [{"op": op, "path": path, "value": 1}])
        appended = apply({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}])
        self.assertEqual(appended, {"a": [1, 2]})

    def test_a_list_of_very_many_items(self):
        """What there is too much of is not looked for elsewhere, and not patched one by one."""
        many = [{} for _ in range(2 * whook.MATCHED)]
        for after, operations in [
            ([[1], *many[1:], []], ["add", "replace"]),
            ([*many, 1], ["add"]),
            ([1, *many], ["add"]),
            (many[1:], ["remove"]),
            ([{"a": n} for n in range(len(many))], ["replace"]),
            (many[: whook.MATCHED - 1], ["replace"]),
            ([*many, *many], ["replace"]),
        ]:
            with self.subTest(operations, length=len(after)):
                patch = whook.diff({"x": many}, {"x": after})
                self.assertEqual([step["op"] for step in patch], operations)
                self.assertEqual(apply({"x": many}, patch), {"x": after})
        patch = whook.diff(many, many[:9])
        self.assertEqual(len(patch), len(many) - 9, "the root can't be replaced")


class Evaluate(unittest.TestCase):
    """6: policies on a request."""

    def run_policies(self, body=POD, verb="mutate", **sources) -> whook.Response:
        self.request = whook.parse_review(body)
        return whook.evaluate(self.request, policies(**sources), verb)

    def test_each_policy_sees_what_the_last_one_left(self):
        response = self.run_policies(
            a="def mutate(o, r): o['x'] = [1]",
            b="def mutate(o, r): o['x'].append(2)",
            c="def mutate(o, r): assert r.object.get('x') is None and o['x'] == [1, 2]",
        )
        sent = json.loads(POD)["request"]["object"]
        self.assertEqual(apply(sent, response.patch), sent | {"x": [1, 2]})
        self.assertEqual(response.changed_by, {"a": 1, "b": 1})
        self.assertEqual(list(response.spent), ["a", "b", "c"])

    def test_no_way_to_a_field_escapes_the_patch(self):
        """mutate edits a dict that freezes what is looked at, by whatever method."""
        sent = json.loads(POD)["request"]["object"]
        changed = json.loads(POD)["request"]["object"]
        changed["spec"]["nodeName"] = "n"
        for way in (
            "o['spec']",
            "o.get('spec')",
            "o.setdefault('spec', 1)",
            "o.pop('spec'); o['spec'] = x",
            "dict(o.items())['spec']",
            "[v for v in o.values() if type(v) is dict and 'containers' in v][0]",
            "{**o}['spec']",
            "dict(o)['spec']",
            "(o | {})['spec']",
            "({} | o)['spec']",
            "o.copy()['spec']",
            "copy.copy(o)['spec']",
            "(lambda spec, **rest: spec)(**o)",
            "operator.itemgetter('spec')(o)",
            "collections.ChainMap(o)['spec']",
            "{k: o[k] for k in o}['spec']",
            "next(v for k, v in iter(o.popitem, 0) if k == 'spec'); o |= kept; o['spec'] = x",
            "copy.deepcopy(o)['spec']; o['spec'] = x",
            "json.loads(json.dumps(o))['spec']; o['spec'] = x",
        ):
            source = (
                "import collections, copy, json, operator\ndef mutate(o, r):\n"
                f" kept = {{k: v for k, v in r.object.items()}}\n x = {way}\n x['nodeName'] = 'n'"
            )
            with self.subTest(way):
                first, *then = way.split("; ")
                source = source.replace(f"x = {way}", f"x = {first}\n " + "\n ".join(then))
                for more in ({}, {"b": "def mutate(o, r): o['spec']['containers']"}):
                    response = self.run_policies(a=source, **more)
                    self.assertEqual(apply(sent, response.patch), changed)
        source = "def mutate(o, r):\n match o:\n  case {'spec': x, **rest}: x['nodeName'] = 'n'"
        self.assertEqual(apply(sent, self.run_policies(a=source).patch), changed)
        for source, left in [
            ("del o['spec']", {k: v for k, v in sent.items() if k != "spec"}),
            ("o.clear()", {}),
            ("o |= {'spec': None, 'new': 1}", sent | {"spec": None, "new": 1}),
            ("o['spec'], o['status'] = o['status'], o['spec']", None),
            ("o['metadata']['spec'] = o['spec']", None),
        ]:
            with self.subTest(source):
                wanted = left
                if wanted is None:
                    wanted = json.loads(POD)["request"]["object"]
                    exec(source, {}, {"o": wanted})
                response = self.run_policies(a=f"def mutate(o, r): {source}")
                self.assertEqual(apply(sent, response.patch), wanted)

    def test_a_copy_of_the_object_is_a_plain_dict(self):
        source = (
            "import copy\ndef mutate(o, r):\n"
            " assert isinstance(o, dict) and o == r.object and repr(o) == repr(r.object)\n"
            " assert {*map(type, (copy.copy(o), copy.deepcopy(o), o.copy(), o | {}))} == {dict}"
        )
        self.assertEqual(self.run_policies(a=source).patch, [])

    def test_validate_has_a_copy_of_its_own(self):
        response = self.run_policies(
            verb="validate",
            a="def validate(o, r): o.clear()",
            b="def validate(o, r): o['spec'] or r.deny('gone')",
        )
        self.assertTrue(response.allowed)
        self.assertEqual(response.patch, [])

    def test_a_body_is_parsed_once_whatever_the_number_of_policies(self):
        sources = {f"p{n}": "def validate(o, r): o['spec']\nmutate = validate" for n in range(9)}
        for verb in ("mutate", "validate", "warn"):
            with self.subTest(verb), mock.patch.object(whook, "_decode", wraps=whook._decode) as it:
                self.run_policies(verb=verb, **sources)
                self.assertEqual(it.call_count, 1)

    def test_delete_has_no_object(self):
        response = self.run_policies(REVIEWS["delete-secret"], a="def mutate(o, r): 1/0")
        self.assertEqual((response.allowed, response.patch), (True, []))
        source = "def validate(o, r):\n if o is None: r.deny(r.old_object['metadata']['name'])"
        response = self.run_policies(REVIEWS["delete-secret"], "validate", a=source)
        self.assertEqual(response.message, "creds")

    def test_a_denial_ends_the_review_even_if_swallowed(self):
        for swallow in ("Exception", "BaseException"):
            source = f"def mutate(o, r):\n try: r.deny('no')\n except {swallow}: pass"
            response = self.run_policies(a=source, b="def mutate(o, r): 1/0")
            with self.subTest(swallow):
                self.assertEqual(
                    (response.allowed, response.code, response.reason, response.message),
                    (False, 403, "Forbidden", "no"),
                )

    def test_faults_name_policy_line_and_error(self):
        for source, message in [
            ("def mutate(o, r):\n o['x']['y']", "line 2: KeyError: 'x'"),
            (
                "def mutate(o, r):\n\n helper()\ndef helper():\n  1/0",
                "line 5: ZeroDivisionError: division by zero",
            ),
            ("def mutate(o, r): raise SystemExit('bye')", "line 1: SystemExit: bye"),
            ("import sys\ndef mutate(o, r): sys.exit(0)", "line 2: SystemExit: 0"),
            (
                "def mutate(o, r): r.deny('x', 200)",
                "line 1: ValueError: deny code 200 is not between 400 and 599",
            ),
            ("def mutate(o, r): return o", "it returned a dict, not None: deny() refuses"),
            ("def mutate(o, r): return False", "it returned a bool, not None: deny() refuses"),
            (
                "def mutate(o, r): r.deny('x', 403.5)",
                "line 1: ValueError: deny code 403.5 is not between 400 and 599",
            ),
            (
                "def mutate(o, r): raise KeyboardInterrupt",
                "line 1: KeyboardInterrupt: ",
            ),
            (
                "class E(Exception):\n def __str__(self): raise self\ndef mutate(o, r): raise E",
                "line 3: E: ?",
            ),
            (
                "def mutate(o, r): o['x'] = 10 ** 5000",
                "what it made can't be sent: /x is an integer of more than 64 bits: not JSON",
            ),
            (
                "def mutate(o): 0",
                "TypeError: mutate() takes 1 positional argument but 2 were given",
            ),
            (
                "def mutate(o, r): r.uid = r.nothing",
                "line 1: AttributeError: 'Request' object has no attribute 'nothing'",
            ),
            (
                "def mutate(o, r): o['x'] = {1: 2}",
                "what it made can't be sent: /x has the key 1: JSON's keys are strings",
            ),
            (
                "def mutate(o, r): o['x'] = (1,)",
                "what it made can't be sent: /x is a tuple: not JSON",
            ),
            (
                "from collections import defaultdict\ndef mutate(o, r): o['x'] = defaultdict(int)",
                "what it made can't be sent: /x is a defaultdict: not JSON",
            ),
        ]:
            with self.subTest(source=source), self.assertRaises(whook.PolicyFault) as caught:
                self.run_policies(a="def mutate(o, r): o['ok'] = 1", bad=source)
            self.assertEqual(caught.exception.status, 500)
            self.assertEqual(caught.exception.message, f'policy "bad" failed: {message}')
        with self.assertRaises(whook.PolicyFault):
            self.run_policies(bad="def mutate(o, r): o['x'] = o")

    def test_what_a_policy_does_to_the_request_stays_there(self):
        source = (
            "def mutate(o, r):\n r.uid = 'x'; r.object['spec'] = None\n"
            " r.old_object = 5; o['y'] = 1"
        )
        response = self.run_policies(a=source)
        self.assertEqual(response.patch, [{"op": "add", "path": "/y", "value": 1}])

    def test_what_a_policy_inserts_is_nobody_elses(self):
        loaded = policies(
            a="LABELS = {'a': '1'}\ndef mutate(o, r): o['metadata']['labels'] = LABELS",
            b="def mutate(o, r): o['metadata']['labels']['tenant'] = r.uid",
            c="def mutate(o, r): r.audit('labels', sorted(o['metadata']['labels']))",
        )
        for uid in ("one", "two"):
            response = whook.evaluate(whook.parse_review(review(uid=uid)), loaded)
            after = apply(json.loads(POD)["request"]["object"], response.patch)
            self.assertEqual(after["metadata"]["labels"], {"a": "1", "tenant": uid})
            response = whook.evaluate(whook.parse_review(review(uid=uid)), [loaded[0], loaded[2]])
            self.assertEqual(response.audit, {"labels": "['a']"})

    def test_warn_never_refuses(self):
        response = self.run_policies(
            verb="warn",
            a="def validate(o, r): r.deny('old')",
            b="def validate(o, r): r.warn('soft')",
            c="def validate(o, r): r.deny('tag', 418)",
        )
        self.assertTrue(response.allowed)
        self.assertEqual(list(response.warnings), ["old", "soft", "tag"])
        self.assertEqual(response.would_deny, {"a": "old", "c": "tag"})
        self.assertEqual(response.audit, {"would-deny": "a: old; c: tag"})
        with self.assertRaises(whook.PolicyFault):
            self.run_policies(verb="warn", a="def validate(o, r): 1/0")

    def test_many_warnings_cost_nothing(self):
        source = "def mutate(o, r):\n for n in range(40_000): r.warn(f'{n}' + 'x' * 100_000)"
        with mock.patch.object(whook, "BUDGET", 30.0):  # on a busy machine
            response = self.run_policies(a=source)
        self.assertEqual(len(response.warnings), whook.MAX_WARNINGS)

    def test_all_policies_share_one_second(self):
        naps = "import time\ndef mutate(o, r): time.sleep(0.06)"
        with mock.patch.object(whook, "BUDGET", 0.1):
            with self.assertRaises(whook.PolicyFault) as caught:
                self.run_policies(a=naps, b=naps, c=naps)
        self.assertEqual(caught.exception.cause, "time")
        self.assertIn('policy "b" failed: line 2: stopped: ', caught.exception.message)

    def test_at_a_breakpoint_nothing_is_stopped(self):
        source = """
import sys, time
def mutate(o, r):
    sys.settrace(lambda *_: None)
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
    finally:
        sys.settrace(None)
    o["x"] = 1
"""
        with mock.patch.object(whook, "BUDGET", 0.1):
            self.assertEqual(len(self.run_policies(a=source).patch), 1)

    def test_no_policy_runs_past_the_deadline(self):
        request = whook.parse_review(POD, time.monotonic() - 1)
        with self.assertRaises(whook.Refusal) as caught:
            whook.evaluate(request, policies(a=LABEL))
        self.assertEqual(
            (caught.exception.status, caught.exception.message),
            (504, 'the deadline passed before policy "a" ran'),
        )

    def test_again_on_the_same_request(self):
        request, loaded = whook.parse_review(POD), policies(a=LABEL)
        patches = [whook.evaluate(request, loaded).patch for _ in range(3)]
        self.assertEqual(patches, [LABEL_PATCH] * 3)


class Framing(unittest.TestCase):
    """7: the head of a request, read so that nobody can read it differently."""

    def test_refused(self):
        good = b"POST /mutate HTTP/1.1\r\nHost: x\r\n"
        for data, status, message in [
            (b"hello\r\n\r\n", 400, "the request line is not like POST /mutate HTTP/1.1"),
            (b"GET / HTTP/2.0\r\n\r\n", 400, "the request line is not like POST /mutate HTTP/1.1"),
            (
                b"GET http://x/ HTTP/1.1\r\n\r\n",
                400,
                "the request line is not like POST /mutate HTTP/1.1",
            ),
            (b"GET  / HTTP/1.1\r\n\r\n", 400, "the request line is not like POST /mutate HTTP/1.1"),
            (b"GET / HTTP/1.1\n\n", 400, "the request line is not like POST /mutate HTTP/1.1"),
            (
                good + b"A : b\r\n\r\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (
                good + b"A: b\r\n c\r\n\r\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (
                good + b"A: b\x00\r\n\r\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (
                good + b"A: b\rC: d\r\n\r\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (
                good + b"nothing\r\n\r\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (b"POST / HTTP/1.1\r\nA: b\r\n\r\n", 400, "the header host is missing"),
            (good + b"Host: y\r\n\r\n", 400, "the header host stands there twice"),
            (
                good + b"Content-Length: 1\r\ncontent-length: 1\r\n\r\n",
                400,
                "the header content-length stands there twice",
            ),
            (
                b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
                431,
                "a line of the head is longer than 8192 bytes",
            ),
            (
                good + b"A: " + b"x" * 9000 + b"\r\n\r\n",
                431,
                "a line of the head is longer than 8192 bytes",
            ),
            (good + b"A: b\r\n" * 64 + b"\r\n", 431, "there are more than 64 headers"),
            (
                good + b"A: b\r\n\n",
                400,
                "a header is malformed, folded, or has a space before its colon",
            ),
            (good, 400, "the head does not end in a blank line"),
            (b"", 400, "the request line is not like POST /mutate HTTP/1.1"),
        ]:
            with self.subTest(data=data[:60]), self.assertRaises(whook.Refusal) as caught:
                whook.read_head(data)
            self.assertEqual((caught.exception.status, caught.exception.message), (status, message))

    def test_lengths(self):
        for headers, status, message in [
            ({}, 411, "send a content-length"),
            (
                {"transfer-encoding": "chunked"},
                411,
                "send a content-length; transfer-encoding is not supported",
            ),
            (
                {"transfer-encoding": "chunked", "content-length": "1"},
                400,
                "content-length and transfer-encoding exclude each other",
            ),
            (
                {"content-length": "101"},
                413,
                "the body of 101 bytes is over the limit of 100 (--max-body)",
            ),
        ] + [
            ({"content-length": text}, 400, f"the content-length {text!r} is not a number")
            for text in ("+1", "-1", "1 1", "1_0", "", "0x1", "1.0", "١", "1,1", "9" * 19)
        ]:
            with self.subTest(headers=headers), self.assertRaises(whook.Refusal) as caught:
                whook.body_length(whook.Head("POST", "/mutate", "1.1", headers), 100)
            self.assertEqual((caught.exception.status, caught.exception.message), (status, message))
        head = whook.Head("POST", "/mutate", "1.1", {"content-length": "100"})
        self.assertEqual(whook.body_length(head, 100), 100)
        self.assertEqual(whook.body_length(whook.Head("GET", "/", "1.1", {}), 100), 0)

    def test_routes(self):
        head = whook.Head("POST", "", "1.1", {"content-type": "application/json; charset=utf-8"})
        for target, expected in [
            ("/mutate", ("mutate", "", 10.0)),
            ("/mutate?timeout=5s", ("mutate", "", 5.0)),
            ("/validate/team-label?a=b&timeout=30s", ("validate", "team-label", 30.0)),
            ("/warn/x?timeout=9999s", ("warn", "x", 30.0)),
        ]:
            self.assertEqual(whook.route(head._replace(target=target)), expected)
        for changes, status in [
            ({"target": "/"}, 404),
            ({"target": "/mutate/"}, 404),
            ({"target": "/mutate/a/b"}, 404),
            ({"target": "/mutatex"}, 404),
            ({"target": "/mutate", "method": "GET"}, 405),
            ({"target": "/mutate", "headers": {}}, 415),
            ({"target": "/mutate", "headers": {"content-type": "text/json"}}, 415),
            ({"target": "/mutate?timeout=5"}, 400),
            ({"target": "/mutate?timeout=1h"}, 400),
        ]:
            with self.subTest(changes), self.assertRaises(whook.Refusal) as caught:
                whook.route(head._replace(**changes))
            self.assertEqual(caught.exception.status, status)


class Serving(unittest.TestCase):
    """7 and 8: a real process, over real TLS."""

    @classmethod
    def setUpClass(cls):
        cls.whook = Whook(
            "--max-body=100000",
            policies={
                "label": LABEL,
                "pin": """
def validate(obj, request):
    request.deny("not pinned")
""",
            },
        )
        cls.enterClassContext(cls.whook)

    def status_of(self, raw: bytes) -> tuple[int, dict, dict]:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, json.loads(body)

    def test_every_real_review_gets_a_valid_answer(self):
        with self.whook.client() as client:
            for name, body in REVIEWS.items():
                with self.subTest(name):
                    status, answer = self.whook.post(body, connection=client)
                    sent = json.loads(body)
                    self.assertEqual((status, answer["apiVersion"]), (200, sent["apiVersion"]))
                    self.assertEqual(answer["response"]["uid"], sent["request"]["uid"])
                    if sent["request"]["object"] is None:
                        self.assertNotIn("patch", answer["response"])
                    elif sent["request"]["operation"] != "CONNECT":
                        patched = apply(sent["request"]["object"], patch_of(answer))
                        self.assertEqual(patched["metadata"]["labels"]["team"], "shop")

    def test_paths(self):
        for path, status, allowed in [
            ("/mutate/label", 200, True),
            ("/validate", 200, False),
            ("/validate/pin", 200, False),
            ("/validate/label", 404, None),
            ("/mutate/nothing", 404, None),
            ("/warn", 200, True),
            ("/warn/pin", 200, True),
            ("/warn/label", 404, None),
            ("/x", 404, None),
        ]:
            with self.subTest(path):
                got, answer = self.whook.post(path=path)
                self.assertEqual(
                    (got, answer.get("response", {}).get("allowed")), (status, allowed)
                )

    def test_bad_input_gets_a_status_and_the_next_request_an_answer(self):
        for raw, status, says in [
            (request_bytes(b""), 400, "it is empty"),
            (request_bytes(b"[]"), 400, "not an AdmissionReview"),
            (request_bytes(b"[" * 90_000), 400, "nested too deeply"),
            (request_bytes(Content_Type="text/plain"), 415, "application/json"),
            (request_bytes(path="/nowhere"), 404, "nothing here"),
            (request_bytes().replace(b"POST", b"PUT", 1), 405, "PUT is not allowed"),
            (request_bytes(Content_Length=None), 411, "send a content-length"),
            (request_bytes(Content_Length=None, Transfer_Encoding="chunked"), 411, "not supported"),
            (request_bytes(Transfer_Encoding="chunked"), 400, "exclude each other"),
            (request_bytes(Content_Length=100_001), 413, "over the limit of 100000"),
            (request_bytes(Content_Length="+5"), 400, "is not a number"),
            (request_bytes(Host=None), 400, "host is missing"),
            (request_bytes(X="y" * 9000), 431, "longer than"),
            (request_bytes(**{f"X{n}": n for n in range(70)}), 431, "more than 64"),
            (b"\x16\x03\x01 rubbish\r\n\r\n", 400, "the request line"),
            (b"x" * 40_000, 431, "the head is longer than"),
        ]:
            with self.subTest(raw=raw[:80], status=status):
                raw = raw.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
                got, headers, body = self.status_of(self.whook.raw(raw))
                self.assertEqual((got, body["code"], body["kind"]), (status, status, "Status"))
                self.assertEqual((body["apiVersion"], body["status"]), ("v1", "Failure"))
                self.assertIn(says, body["message"])
                self.assertNotIn("Traceback", body["message"])
                self.assertEqual(headers["Connection"], "close")
                if status == 405:
                    self.assertEqual(headers["Allow"], "POST")
                self.assertEqual(self.whook.post()[0], 200)

    def test_a_wrong_review_does_not_cost_the_connection(self):
        with self.whook.client() as client:
            for body, status in [(POD, 200), (b"{", 400), (POD, 200)]:
                self.assertEqual(self.whook.post(body, connection=client)[0], status)

    def test_two_requests_at_once_get_two_answers(self):
        last = request_bytes(Connection="close")
        answers = self.whook.raw(request_bytes() + last)
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), 2)
        self.assertEqual(answers.count(b"Connection: close"), 1)

    def test_a_refusal_after_an_answer_comes_at_once(self):
        """The second of two requests that came together is refused while the first is sent."""
        with Whook(patches="whook.TICK = 60") as server:
            answers = server.raw(request_bytes() + b"rubbish\r\n\r\n", timeout=15)
            server.process.kill()
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), 1)
        self.assertEqual(answers.count(b"HTTP/1.1 400 Bad Request\r\n"), 1)

    def test_a_head_in_pieces(self):
        with self.whook.connect() as client:
            data = request_bytes(Connection="close")
            for start in range(0, len(data), 700):
                client.sendall(data[start : start + 700])
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))

    def test_expect_100(self):
        with self.whook.connect() as client:
            head, _, body = request_bytes(Expect="100-continue", Connection="close").partition(
                b"\r\n\r\n"
            )
            client.sendall(head + b"\r\n\r\n")
            self.assertEqual(client.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            client.sendall(body)
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))

    def test_http_1_0_is_answered_and_closed(self):
        raw = request_bytes().replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        self.assertIn(b"Connection: close", self.whook.raw(raw))

    def test_alpn_is_http_1_1(self):
        context = self.whook.trust()
        context.set_alpn_protocols(["h2", "http/1.1"])
        raw = socket.create_connection(("127.0.0.1", self.whook.port), 20)
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            self.assertEqual(client.selected_alpn_protocol(), "http/1.1")

    def test_old_tls_is_refused(self):
        context = self.whook.trust()
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", self.whook.port), 20) as raw:
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname="localhost")

    def test_the_log_line(self):
        self.whook.post(review(uid="look-for-me", userInfo={"username": "eve\nERROR"}))
        line = self.whook.wait_for_log("uid=look-for-me")
        self.assertRegex(
            line,
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO review "
            r"uid=look-for-me path=/mutate operation=CREATE kind=Pod "
            r'object=shop2/tricky user="eve\\nERROR" allowed=true patch=1 '
            r"duration=\d+\.\d\dms$",
        )

    def test_health(self):
        self.assertEqual(self.whook.get("/livez"), (200, "ok\n"))
        self.assertEqual(self.whook.get("/readyz"), (200, "ok\n"))
        self.assertEqual(self.whook.get("/x")[0], 404)


class Reload(unittest.TestCase):
    """4 and 8: policies and certificates that change under a running server."""

    def test_policies(self):
        other = LABEL.replace("shop", "other")
        with Whook(policies={"p": LABEL}) as server:
            team = lambda: patch_of(server.post()[1])[0]["value"]  # noqa: E731
            self.assertEqual(team(), "shop")
            server.write_policy("p", other)
            wait_for(lambda: team() == "other", "the new policy")
            server.write_policy("p", "def mutate(")
            line = server.wait_for_log("ERROR reload what=policies")
            self.assertIn("SyntaxError", line)
            self.assertEqual(team(), "other")
            server.write_policy("p", LABEL)
            wait_for(lambda: team() == "shop", "the mended policy")
            self.assertEqual(len(server.logged("ERROR reload")), 1)
            self.assertEqual(server.metric("whook_reload_errors_total", "policies"), 1)
            self.assertEqual(server.metric("whook_policies_info"), 1)

    def test_a_config_map_swaps_a_linked_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            mount = Path(folder)
            for name, source in (("..1", LABEL), ("..2", LABEL.replace("shop", "other"))):
                (mount / name).mkdir()
                (mount / name / "p.py").write_text(source)
            (mount / "..data").symlink_to("..1")
            (mount / "p.py").symlink_to("..data/p.py")
            with Whook(f"--policy={folder}") as server:
                self.assertEqual(patch_of(server.post()[1])[0]["value"], "shop")
                (mount / "..new").symlink_to("..2")
                (mount / "..new").rename(mount / "..data")
                wait_for(lambda: patch_of(server.post()[1])[0]["value"] == "other", "the swap")

    def test_certificates(self):
        def serial():
            with server.connect() as client:
                return client.getpeercert()["serialNumber"]

        with Whook() as server:
            first = serial()
            server.cert.write_text("rubbish")
            server.wait_for_log("ERROR reload what=tls", "can't serve with")
            self.assertEqual(serial(), first)
            server.write_pair(server.authority.issue(not_after=-timedelta(hours=1)))
            server.wait_for_log("ERROR reload what=tls", "expired")
            self.assertEqual(serial(), first)
            server.write_pair(server.authority.issue())
            wait_for(lambda: serial() != first, "the new certificate")
            self.assertEqual(server.post()[0], 200)


class Bounds(unittest.TestCase):
    """7 and 10: what a client may take up, and for how long."""

    def test_the_longest_idle_makes_room(self):
        with Whook("--max-connections=2") as server, server.client() as one, server.client() as two:
            for client in (one, two, one):
                self.assertEqual(server.post(connection=client)[0], 200)
            self.assertEqual(server.post()[0], 200)  # in the place of `two`
            self.assertEqual(server.post(connection=one)[0], 200)
            two.sock.settimeout(5)
            self.assertEqual(two.sock.recv(1), b"")

    def test_too_many_connections_are_told_to_come_again(self):
        with Whook("--max-connections=2") as server, server.client() as one, server.client() as two:
            for client in (one, two):
                client.connect()
                client.sock.sendall(request_bytes()[:-1])
            wait_for(lambda: server.metric("whook_held_bytes") > 1000, "two bodies")
            head, _, body = server.raw(request_bytes()).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 503 Service Unavailable"))
            self.assertIn(b"\r\nRetry-After: 1", head)
            self.assertIn(b"\r\nConnection: close", head)
            self.assertEqual(json.loads(body)["message"], "whook is at its limit")
            one.close()
            wait_for(lambda: server.post()[0] == 200, "room for one more")
            self.assertGreaterEqual(server.metric("whook_refusals_total", "503"), 1)

    def test_bytes_that_wait_are_bounded(self):
        part = request_bytes(POD[:-2] + b" " * 90_000 + POD[-2:])[:-1]
        with Whook("--max-body=100000") as server, contextlib.ExitStack() as clients:
            answers = []
            for _ in range(12):
                client = clients.enter_context(server.connect())
                client.sendall(part)
                answers.append(client)
            told = []
            for client in answers:
                client.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    told.append(client.recv(100)[:12])
            self.assertGreaterEqual(len(told), 3)
            self.assertEqual(set(told), {b"HTTP/1.1 503"})
            self.assertLessEqual(server.metric("whook_held_bytes"), 8 * 100_000)
            self.assertEqual(server.post()[0], 200)
            clients.close()
            wait_for(lambda: server.metric("whook_held_bytes") == 0, "all given back")

    def test_slow_clients_are_cut(self):
        shorter = "whook.TICK = 0.1; whook.PATIENCE |= {p: (0.5, 0.5) for p in "
        shorter += "('handshake', 'fresh', 'idle', 'head', 'body', 'write')}"
        hello = bytes.fromhex("160301020001")  # the start of a TLS record
        with Whook(patches=shorter) as server:
            address = ("127.0.0.1", server.port)
            silent, half = socket.create_connection(address), socket.create_connection(address)
            half.sendall(hello)
            idle, head, body = server.connect(), server.connect(), server.connect()
            head.sendall(b"POST /mutate HTTP/1.1\r\nHo")
            body.sendall(request_bytes()[:-100])
            dripping = server.connect()
            clients = {
                "silent": silent,
                "half a handshake": half,
                "idle": idle,
                "half a head": head,
                "half a body": body,
                "dripping": dripping,
            }
            for name, client in clients.items():
                with self.subTest(name), client:
                    client.settimeout(0.05 if name == "dripping" else 20)
                    self.assertEqual(self.drip(client, name == "dripping"), b"")
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.logged("Traceback"), [])

    def drip(self, client, slowly: bool) -> bytes:
        """What comes back, at the end, while a byte is sent now and then if `slowly`."""
        end = time.monotonic() + 20
        while slowly and time.monotonic() < end:
            try:
                client.send(b"P")
                return client.recv(100)
            except TimeoutError:
                continue
            except OSError:
                return b""
        return read_all(client)

    def test_who_never_reads_is_cut(self):
        with Whook(
            patches="whook.PATIENCE['write'] = (0.5, 0.5); whook.TICK = 0.1",
            policies={"p": "def mutate(o, r): r.audit('x', 'y' * 200_000)"},
        ) as server:
            with server.connect() as client:
                with self.assertRaises(OSError):
                    for _ in range(1000):  # until both sides' buffers are full
                        client.sendall(request_bytes())
            self.assertEqual(server.post()[0], 200)

    def test_who_sends_without_end_leaves_others_their_turn(self):
        """A byte at a time, each at once: the selector would never be asked again."""
        taken = itertools.count()

        class Client:
            def recv(self, size):
                if next(taken) > 1000:
                    raise AssertionError("it never lets go")
                return b"x"

        loop = whook.Loop()
        listener = whook.listen("127.0.0.1", 0, "--port")
        server = whook.Server(listener, lambda *_: None, loop)
        self.addCleanup(server.server_close)
        connection = whook.Connection(server, Client(), "peer", False)
        connection.go_on()
        self.assertEqual(next(taken), whook.READS)
        self.assertEqual([*loop.jobs], [connection.go_on])

    def test_a_thousand_silent_clients(self):
        with Whook("--max-connections=300") as server:
            clients = []
            for _ in range(1000):
                clients.append(socket.create_connection(("127.0.0.1", server.port)))
            wait_for(lambda: self.try_post(server) == 200, "an answer among silent clients")
            for client in clients:
                client.close()
            wait_for(lambda: server.metric("whook_connections") == 0, "the end of all of them")

    def try_post(self, server) -> int:
        try:
            return server.post()[0]
        except OSError:
            return 0

    def test_resets_and_rubbish(self):
        noise = random.Random(7)
        with Whook() as server:
            for turn in range(200):
                raw = socket.create_connection(("127.0.0.1", server.port))
                if turn % 4:
                    client = server.trust().wrap_socket(raw, server_hostname="localhost")
                    client.sendall(noise.randbytes(300) if turn % 2 else request_bytes()[:3000])
                else:
                    client = raw
                    client.sendall(noise.randbytes(300))
                linger = b"\x01\0\0\0\0\0\0\0"  # on, for no time: close by a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.close()
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.logged("bug"), [])
            wait_for(lambda: server.metric("whook_connections") == 0, "the end of all of them")

    def test_file_descriptors_run_out(self):
        few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
        with Whook(patches=few) as server:
            clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(80)]
            for client in clients:
                client.close()
            wait_for(lambda: self.try_post(server) == 200, "an answer after the flood")

    def test_client_ca(self):
        with tempfile.TemporaryDirectory() as folder:
            clients = pki.Authority("clients")
            ca = Path(folder, "ca.pem")
            ca.write_bytes(clients.pem)
            with Whook(f"--client-ca={ca}") as server:
                with server.connect(client=clients.issue(client=True)) as client:
                    client.sendall(request_bytes(Connection="close"))
                    self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))
                for pair in (None, pki.Authority("others").issue(client=True)):
                    with self.assertRaises(OSError), server.connect(client=pair) as client:
                        client.sendall(request_bytes())
                        if not client.recv(100):
                            raise ConnectionResetError
                self.assertEqual(server.get("/readyz")[0], 200)


class Metrics(unittest.TestCase):
    """9: numbers."""

    def test_all_of_them(self):
        sources = {
            "label": LABEL,
            "bad": "def mutate(o, r):\n if r.dry_run: 1/0",
            "no": "def validate(o, r): r.deny('no')",
        }
        with Whook(policies=sources) as server:
            for _ in range(10):
                server.post()
            server.post(REVIEWS["create-pod-dryrun"])
            server.post(path="/validate")
            server.post(path="/warn")
            server.post(path="/nowhere")
            count = lambda *labels: server.metric("whook_reviews_total", *labels)  # noqa: E731
            self.assertEqual(count(), 13)
            self.assertEqual(count('outcome="allowed"', 'kind="Pod"', 'operation="CREATE"'), 10)
            self.assertEqual((count('outcome="error"'), count('outcome="denied"')), (1, 1))
            self.assertEqual(count('outcome="would_deny"', 'path="/warn"'), 1)
            self.assertEqual(
                server.metric("whook_policy_errors_total", "bad", 'cause="exception"'), 1
            )
            self.assertEqual(server.metric("whook_patch_operations_total", "label"), 10)
            self.assertEqual(server.metric("whook_review_duration_seconds_count"), 13)
            self.assertEqual(server.metric("whook_refusals_total", '"404"'), 1)
            self.assertEqual(server.metric("whook_ready"), 1)
            self.assertEqual(server.metric("whook_reload_failing"), 0)
            self.assertGreater(
                server.metric("whook_certificate_not_after_timestamp_seconds"), time.time()
            )
            text = server.get("/metrics")[1]
            named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
            self.assertEqual(named, set(whook.METRICS))

    def test_what_watches_them_names_real_ones(self):
        files = list((ROOT / "manifests/monitoring").iterdir())
        self.assertGreaterEqual(len(files), 3)
        for file in files:
            with self.subTest(file.name):
                for name in set(re.findall(r"whook_\w+", file.read_text())):
                    self.assertIn(re.sub("_(bucket|sum|count)$", "", name), whook.METRICS)

    def test_labels_are_bounded(self):
        metrics = whook.Metrics()
        for number in range(5000):
            request = whook.parse_review(review(kind={"kind": f"Kind{number}" * 500}))
            metrics.review(f"/mutate/{number}", request, "allowed", 0.1)
        metrics.review("/mutate", whook.parse_review(POD), "allowed", 0.1)
        series = metrics.series["whook_reviews_total"]
        self.assertLessEqual(len(series), whook.MAX_SERIES + 1)
        self.assertEqual(sum(count for [count] in series.values()), 5001)
        self.assertLess(max(len(label) for labels in series for label in labels), 64)

    def test_junk_kinds_hide_no_real_one(self):
        metrics = whook.Metrics()
        for number in range(500):
            request = whook.parse_review(review(kind={"kind": f"Kind{number}"}))
            metrics.review("/mutate", request, "allowed", 0.1)
        metrics.review("/mutate", whook.parse_review(POD), "allowed", 0.1)
        kinds = {labels[2] for labels in metrics.series["whook_reviews_total"]}
        self.assertIn("Pod", kinds)
        self.assertIn("other", kinds)
        self.assertLessEqual(len(kinds), whook.MAX_KINDS + 1)

    def test_a_histogram(self):
        metrics = whook.Metrics()
        for seconds in (0.00005, 0.0001, 0.3, 99):
            metrics.observe("whook_review_duration_seconds", "/x", seconds=seconds)
        text = metrics.render().decode()
        self.assertIn('whook_review_duration_seconds_bucket{path="/x",le="0.0001"} 2\n', text)
        self.assertIn('whook_review_duration_seconds_bucket{path="/x",le="0.5"} 3\n', text)
        self.assertIn('whook_review_duration_seconds_bucket{path="/x",le="+Inf"} 4\n', text)
        self.assertIn('whook_review_duration_seconds_count{path="/x"} 4\n', text)
        self.assertIn('whook_review_duration_seconds_sum{path="/x"} 99.30015\n', text)


class ChangeWithoutLoss(unittest.TestCase):
    """10: not one failed review, whatever changes under it."""

    def test_rotation_and_reload_under_a_stream(self):
        with Whook(policies={"p": LABEL}) as server, Stream(server) as stream:
            for turn in range(3):
                server.write_pair(server.authority.issue())
                server.write_policy("p", "def mutate(" if turn == 1 else LABEL + f"# {turn}")
                before = len(server.logged("reload"))
                wait_for(lambda n=before: len(server.logged("reload")) >= n + 2, "reloads")
                stream.wait_for_more()
        self.assertEqual(stream.failures, [])

    def test_rolling_restart(self):
        old = Whook(policies={"p": LABEL}, grace=60)
        with old, Stream(old) as stream:
            for _ in range(2):
                new = Whook(policies={"p": LABEL}, grace=60, pair=old.authority.issue())
                new.authority = old.authority
                self.enterContext(new)
                old.process.send_signal(signal.SIGTERM)
                wait_for(lambda o=old: o.get("/readyz")[0] == 503, "not ready")
                stream.wait_for_more()  # still sent to the old one, as endpoints lag behind
                stream.servers.append(new)
                self.assertEqual(old.process.wait(30), 0)
                stream.wait_for_more()
                old = new
        self.assertEqual(stream.failures, [])

    def test_draining(self):
        with Whook(policies={"slow": SLOW}, grace=60) as server, server.client() as client:
            self.assertEqual(server.post(connection=client)[0], 200)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.get("/readyz") == (503, "not ok: draining\n"), "503")
            self.assertEqual(server.get("/livez")[0], 200)
            client.request("POST", "/mutate", POD, {"Content-Type": "application/json"})
            answer = client.getresponse()
            self.assertEqual((answer.status, answer.getheader("Connection")), (200, "close"))
            answer.read()
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.process.wait(30), 0)

    def test_reviews_that_came_are_answered_without_grace(self):
        with (
            Whook(policies={"slow": SLOW}) as server,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            at_once = [pool.submit(server.post) for _ in range(4)]
            server.wait_for_log("INFO review")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual([each.result()[0] for each in at_once], [200] * 4)
            self.assertEqual(server.process.wait(10), 0)

    def test_no_answer_is_cut_while_it_is_sent(self):
        big = "def validate(o, r):\n for n in range(12): r.audit(f'a{n}', 'x' * 1_000_000)"
        patient = "whook.PATIENCE['write'] = (100.0, 100.0)"  # the last client waits for the others
        with (
            Whook(policies={"big": big}, patches=patient) as server,
            contextlib.ExitStack() as stack,
        ):
            clients = [stack.enter_context(server.connect()) for _ in range(4)]
            for client in clients:
                client.sendall(request_bytes(path="/validate", Connection="close"))
            wait_for(lambda: len(server.logged("INFO review")) == 4, "all to be answered")
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                head, _, body = read_all(client).partition(b"\r\n\r\n")
                length = int(re.search(rb"Content-Length: (\d+)", head)[1])
                self.assertEqual(len(body), length)
            self.assertEqual(server.process.wait(10), 0)

    def test_a_second_sigterm_changes_nothing(self):
        with Whook(grace=60) as server, server.client() as client:
            server.post(connection=client)
            for _ in range(2):
                server.process.send_signal(signal.SIGTERM)
                wait_for(lambda: server.get("/readyz")[0] == 503, "draining")
            self.assertEqual(server.post(connection=client)[0], 200)
            self.assertEqual(server.process.wait(15), 0)

    def test_a_second_interrupt_ends_at_once(self):
        with Whook(policies={"slow": SLOW}) as server, server.connect() as client:
            client.sendall(request_bytes() * 20)
            server.wait_for_log("INFO review")
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.1)  # two signals of a kind that wait are one
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(server.process.wait(5), 1)

    def test_ready_means_a_valid_certificate(self):
        clock = "clock = whook.time.time\nwhook.time.time = lambda: clock() + "
        clock += "2 * 86400 * bool(whook.os.path.exists(sys.argv[-1]))"
        authority = pki.Authority()
        with tempfile.TemporaryDirectory() as folder:
            later = Path(folder, "later")
            pair = authority.issue(not_after=timedelta(days=1))
            with Whook(
                "--log-format=text",
                patches=clock.replace("sys.argv[-1]", repr(str(later))),
                pair=pair,
            ) as server:
                self.assertEqual(server.get("/readyz")[0], 200)
                later.touch()
                self.assertEqual(
                    server.get("/readyz"), (503, "not ok: the serving certificate has expired\n")
                )
                self.assertEqual(server.get("/livez")[0], 200)


SLOW = "import time\ndef mutate(obj, request): time.sleep(0.3)"


class Process(unittest.TestCase):
    """10: policies that do what they should not, and what else can go wrong around it."""

    def test_policies_that_do_not_end_are_stopped(self):
        sources = {
            "loop": "def mutate(o, r):\n while True:\n  pass",
            "regex": "import re\ndef mutate(o, r):\n re.fullmatch('(a+)+b', 'a' * 60)",
            "sleeps": "import time\ndef mutate(o, r):\n time.sleep(3600)",
            "swallows": "import time\ndef mutate(o, r):\n while True:\n"
            "  try:\n   time.sleep(9)\n  except BaseException:\n   pass",
            "handles": "import signal\ntry:\n signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
            "except ValueError:\n pass\ndef mutate(o, r):\n while True:\n  pass",
            "joins": "import threading, time\ndef mutate(o, r):\n"
            " t = threading.Thread(target=time.sleep, args=(60,), daemon=False)\n"
            " t.start()\n t.join()",
        }
        with Whook(policies=sources) as server:
            for name in sources:
                with self.subTest(name):
                    status, answer = server.post(path=f"/mutate/{name}")
                    self.assertEqual(status, 500)
                    self.assertRegex(
                        answer["message"],
                        rf'^policy "{name}" failed: line \d+: stopped: it had 1 s$',
                    )
                    self.assertEqual(server.post(path="/validate")[0], 200)
                    self.assertEqual(
                        server.metric("whook_policy_errors_total", name, 'cause="time"'), 1
                    )
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(10), 0)  # the thread does not hold it up

    def test_a_call_into_c_that_does_not_end_ends_the_process(self):
        hangs = "def mutate(o, r):\n sum(range(10 ** 13))\n"
        with Whook(policies={"p": hangs}, patches="whook.STUCK_AFTER = 2") as server:
            with self.assertRaises(OSError):
                server.post()
            self.assertEqual(server.process.wait(20), 1)
            server.collected.wait(5)
            self.assertTrue(server.logged("Timeout"))
            self.assertTrue(server.logged("p.py", "line 2 in mutate"))

    def test_a_policy_that_kills_its_process(self):
        source = "import os\ndef mutate(o, r):\n if r.uid == 'die': os._exit(9)"
        with Whook(policies={"p": source}) as server:
            self.assertEqual(server.post()[0], 200)
            with self.assertRaises(OSError):
                server.post(review(uid="die"))
            self.assertEqual(server.process.wait(10), 9)

    def test_loading_is_stopped_and_the_last_good_set_stays(self):
        with Whook(policies={"p": LABEL}) as server:
            for source, says in [
                ("while True: pass", "line 1: stopped: it had 1 s"),
                ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt: "),
                ("import os, sys\nsys.exit(3)", "line 2: SystemExit: 3"),
            ]:
                with self.subTest(source):
                    server.write_policy("p", source)
                    server.wait_for_log("ERROR reload what=policies", says)
                    self.assertEqual(patch_of(server.post()[1]), LABEL_PATCH)
                    self.assertEqual(server.metric("whook_reload_failing", "policies"), 1)
            server.write_policy("p", LABEL + "#")
            server.wait_for_log("INFO reloaded what=policies names=p")
            self.assertEqual(server.metric("whook_reload_failing", "policies"), 0)

    def test_bad_policies_cost_their_review_only(self):
        sources = {
            "raises": "def mutate(o, r): raise ValueError('x' * 9000)",
            "garbage": "def mutate(o, r): o['x'] = object()",
            "request": "def mutate(o, r): r.__dict__.clear()",
            "threads": "import threading, time\ndef mutate(o, r):\n"
            " [threading.Thread(target=time.sleep, args=(1,)).start() for _ in '9' * 50]",
            "gigabyte": "def mutate(o, r): bytearray(2 ** 28)",
            "exits": "import sys\ndef mutate(o, r): sys.exit(3)",
            "recursion": "def mutate(o, r): mutate(o, r)",
            "deep": "def mutate(o, r):\n for _ in range(5000): o['x'] = {'x': o.get('x')}",
            "base": "def mutate(o, r): raise BaseException('a\\nb INFO forged')",
            "generator": "def mutate(o, r): raise GeneratorExit",
            "interrupt": "def mutate(o, r): raise KeyboardInterrupt",
            "digits": "def mutate(o, r): o['x'] = 10 ** 5000",
            "returns": "def mutate(o, r): return False",
        }
        with Whook(policies=sources, patches="whook.BUDGET = 20.0") as server:  # a busy machine
            for name in sources:
                with self.subTest(name):
                    status, answer = server.post(path=f"/mutate/{name}")
                    fine = name in ("threads", "gigabyte")
                    self.assertEqual(status, 200 if fine else 500)
                    if name != "request" and not fine:
                        self.assertIn(f'policy "{name}" failed: ', answer["message"])
                    self.assertEqual(server.post(path="/validate")[0], 200)
            self.assertEqual(server.logged("INFO forged"), server.logged("\\nb INFO forged"))

    def test_nobody_reads_the_log(self):
        full = """
class Loop(whook.Loop):
    def tick(self, late, pipe=os.pipe()):
        os.dup2(pipe[1], 2)
        super().tick(late)
whook.Loop = Loop"""
        with Whook(patches=full) as server, server.client() as client:
            for _ in range(1000):
                self.assertEqual(server.post(connection=client)[0], 200)
            self.assertGreater(server.metric("whook_log_lines_dropped_total"), 100)
            self.assertEqual(server.get("/readyz")[0], 200)

    def test_a_full_disk_under_the_log(self):
        full = """
class Loop(whook.Loop):
    def tick(self, late):
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        super().tick(late)
whook.Loop = Loop"""
        with Whook(patches=full) as server:
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.logged("review"), [])

    def test_nothing_from_outside_sizes_a_line_or_a_series(self):
        long = "x" * 1_000_000
        with Whook("--log-format=json") as server:
            status, _ = server.post(
                review(kind={"kind": long}, name=long, userInfo={"username": long})
            )
            self.assertEqual(status, 200)
            self.assertEqual(server.post(review(operation=long))[0], 400)
            self.assertEqual(server.post(path="/mutate/" + "y" * 5000)[0], 404)
            self.assertLess(max(map(len, server.log)), 4096)
            self.assertLess(len(server.get("/metrics")[1]), 20_000)

    def test_the_wall_clock_steps(self):
        steps = "import itertools\nclock = itertools.cycle([0, 4e9, 1.8e9])\n"
        steps += "whook.time.time = lambda: next(clock)"
        with Whook(patches=steps, policies={"p": LABEL}) as server:
            for _ in range(5):
                self.assertEqual(server.post()[0], 200)

    def test_files_that_change_while_they_are_read(self):
        contents = iter([{"a": b"1"}, {"a": b"2"}, {"a": b"3"}, {"a": b"3"}, {"a": b"3"}])
        self.enterContext(mock.patch.object(whook, "log"))
        watched = whook.Watched("x", lambda: next(contents), lambda files: files["a"])
        watched.refresh()
        self.assertEqual(watched.value, b"1")  # it read 2, then 3
        watched.refresh()
        self.assertEqual(watched.value, b"3")

    def test_a_certificate_that_is_not_valid_yet_is_tried_again(self):
        with Whook() as server:
            server.write_pair(server.authority.issue(not_before=timedelta(seconds=3)))
            server.wait_for_log("ERROR reload what=tls", "not yet valid")
            server.wait_for_log("INFO reloaded what=tls")

    def test_connections_live_a_while(self):
        with Whook(patches="whook.LIFETIME = 0.3") as server, server.client() as client:
            client.connect()
            seen = []

            def closed():
                client.request("POST", "/mutate", POD, JSON_TYPE)
                answer = client.getresponse()
                seen.append((answer.status, answer.getheader("Connection")))
                answer.read()
                return answer.getheader("Connection") == "close"

            wait_for(closed, "an answer that closes")
            self.assertEqual({status for status, _ in seen}, {200})
            self.assertGreater(len(seen), 1)

    def test_a_connection_carries_so_many_answers(self):
        with Whook(patches="whook.MAX_ANSWERS = 3") as server, server.client() as client:
            closed = []
            for _ in range(6):
                client.request("POST", "/mutate", POD, JSON_TYPE)
                answer = client.getresponse()
                closed.append(answer.getheader("Connection") == "close")
                answer.read()
            self.assertEqual(closed, [False, False, True] * 2)

    def test_nobody_is_cut_for_time_that_whook_took(self):
        soon = "whook.PATIENCE['body'] = (0.6, 0.6); whook.TICK = 0.1"
        with Whook(patches=soon) as server, server.connect() as client:
            client.sendall(request_bytes(Connection="close")[:-1])
            wait_for(lambda: server.metric("whook_held_bytes") > 1000, "the body")
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            server.process.send_signal(signal.SIGCONT)
            client.sendall(request_bytes()[-1:])
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))

    def test_a_stop_and_a_go(self):
        with Whook() as server, Stream(server) as stream:
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            server.process.send_signal(signal.SIGCONT)
            stream.wait_for_more()
        self.assertEqual(stream.failures, [])


JSON_TYPE = {"Content-Type": "application/json"}


class CommandLine(unittest.TestCase):
    """11: what it says when it can't start, and how it ends."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.authority = pki.Authority()
        cls.cert, cls.key = cls.authority.issue().write(cls.folder)

    def run_whook(self, *arguments: object) -> tuple[int, str]:
        run = subprocess.run(
            [sys.executable, ROOT / "whook.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return run.returncode, run.stderr

    def test_errors_have_a_hint(self):
        old = self.authority.issue(not_after=-timedelta(hours=1))
        old_cert, old_key = old.write(self.folder, "old.pem", "old-key.pem")
        client = self.authority.issue(client=True)
        client_cert, client_key = client.write(self.folder, "client.pem", "client-key.pem")
        _, other_key = self.authority.issue().write(self.folder, "other.pem", "other-key.pem")
        bad = self.folder / "bad.py"
        bad.write_text("def mutate(")
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        port = taken.getsockname()[1]
        good = (f"--tls-cert={self.cert}", f"--tls-key={self.key}")
        for arguments, message in [
            (("--tls-cert=/no.pem", f"--tls-key={self.key}"), "can't read /no.pem: No such file"),
            (
                (f"--tls-cert={self.cert}", f"--tls-key={other_key}"),
                f"can't serve with {self.cert} with {other_key}: KEY_VALUES_MISMATCH",
            ),
            (
                (f"--tls-cert={bad}", f"--tls-key={self.key}"),
                f"can't serve with {bad} with {self.key}: ",
            ),
            (
                (f"--tls-cert={old_cert}", f"--tls-key={old_key}"),
                f"can't serve with {old_cert}: certificate has expired",
            ),
            (
                (f"--tls-cert={client_cert}", f"--tls-key={client_key}"),
                f"can't serve with {client_cert}: ",
            ),
            ((*good, "--policy=/nowhere"), "can't read /nowhere: No such file"),
            ((*good, f"--policy={bad}"), f"policy {bad} does not load: line 1: SyntaxError"),
            (
                (*good, "--host=127.0.0.1", f"--port={port}"),
                f"can't listen on 127.0.0.1, port {port}: Address already in use",
            ),
            ((*good, f"--client-ca={bad}"), f"can't serve with {bad}: "),
            (
                (f"--tls-cert={self.key}", f"--tls-key={self.cert}"),
                f"can't serve with {self.key} with {self.cert}: they are swapped",
            ),
            ((*good, "--host=no.such.invalid"), "--host no.such.invalid has no address here"),
        ]:
            with self.subTest(message):
                status, printed = self.run_whook(*arguments)
                lines = [line for line in printed.splitlines() if line.startswith("whook: ")]
                self.assertEqual((status, len(lines)), (1, 2), printed)
                self.assertTrue(lines[0].startswith("whook: error: "))
                self.assertIn(message, lines[0])
                self.assertTrue(lines[1].startswith("whook: hint: "))

    def test_wrong_usage(self):
        for arguments, message in [
            ((), "the following arguments are required: --tls-cert, --tls-key"),
            (
                ("--tls-cert=a", "--tls-key=b", "--port=x"),
                "argument --port: 'x' is not a number from 0 to 65535",
            ),
            (
                ("--tls-cert=a", "--tls-key=b", "--port=8080"),
                "--port and --health-port must differ",
            ),
            (
                ("--tls-cert=a", "--tls-key=b", "--max-body=0"),
                "argument --max-body: '0' is not a number from 1024 to 1073741824",
            ),
            (("--tls-cert=a", "--tls-key=b", "--log-format=xml"), "invalid choice: 'xml'"),
        ]:
            with self.subTest(message):
                status, printed = self.run_whook(*arguments)
                self.assertEqual(status, 2)
                self.assertIn("\nwhook: error: ", printed)
                self.assertIn(message, printed)

    def test_start_up_says_what_it_serves(self):
        with Whook(policies={"b": LABEL, "a": LABEL}) as server:
            self.assertRegex(
                server.wait_for_log("INFO start"), r"version=1\.0\.0 python=3\.\S+ process=\d+$"
            )
            self.assertRegex(server.wait_for_log("INFO policies"), r"names=a,b hash=[0-9a-f]{12}$")
            self.assertRegex(
                server.wait_for_log("INFO tls"),
                r"names=localhost,127\.0\.0\.1,0:0:0:0:0:0:0:1 not_after=\d{4}-.*Z$",
            )
            self.assertRegex(
                server.wait_for_log("INFO ready"),
                r"admission=127\.0\.0\.1:\d+ health=127\.0\.0\.1:\d+$",
            )

    def test_json_log(self):
        with Whook("--log-format=json", policies={"a": LABEL}) as server:
            server.post()
            entry = json.loads(server.wait_for_log('"review"'))
            self.assertEqual(
                (entry["level"], entry["event"], entry["kind"], entry["allowed"]),
                ("INFO", "review", "Pod", True),
            )

    def test_signals_end_it_cleanly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number=number), Whook() as server:
                server.post()
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(15), 0)
                server.collected.wait(5)
                self.assertTrue(server.logged("INFO drain"))
                self.assertTrue(server.logged("INFO end"))

    def test_missing_flags_have_a_hint(self):
        printed = self.run_whook("--tls-cert=a")[1]
        self.assertIn("the following arguments are required: --tls-key\n", printed)
        self.assertIn("\nwhook: hint: `python certs.py local` makes", printed)

    def test_help_says_the_defaults(self):
        run = subprocess.run(
            [sys.executable, ROOT / "whook.py", "--help"], capture_output=True, text=True
        )
        for default in ("(8443)", "(8080)", "(7340032)", "(1000)", "(95)", "(text)"):
            self.assertIn(default, run.stdout)

    @unittest.skipUnless(socket.has_dualstack_ipv6(), "there is no IPv6 here")
    def test_all_addresses_are_those_of_both_families(self):
        for host in ("", "::"):
            with self.subTest(host=host), whook.listen(host, 0, "--port") as listener:
                port = listener.getsockname()[1]
                socket.create_connection(("127.0.0.1", port), 5).close()
                socket.create_connection(("::1", port), 5).close()

    def test_version(self):
        run = subprocess.run(
            [sys.executable, ROOT / "whook.py", "--version"], capture_output=True, text=True
        )
        self.assertEqual((run.returncode, run.stdout), (0, f"whook {whook.__version__}\n"))


if __name__ == "__main__":
    unittest.main()
