"""Tests of whook.py, in the order of its sections."""

import argparse
import ast
import contextlib
import errno
import json
import math
import os
import random
import re
import select
import shlex
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
    JSON,
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
SLOW = "import time\ndef mutate(obj, request): time.sleep(0.3)"
LIMIT = r"(1|0\.\d+)"  # seconds: the limit of a review, less the time that parsing took
LABEL_PATCH = [{"op": "add", "path": "/metadata/labels/team", "value": "shop"}]
TRUNCATED = REVIEWS["create-service"].strip()[:-1]  # ASCII only, and without its last brace


def policies(**sources: str) -> tuple[whook.Policy, ...]:
    """Load policies from their sources, given by name."""
    encoded = {f"/p/{name}.py": source.encode() for name, source in sources.items()}
    return whook.load_policies(encoded).policies


def review(**fields) -> bytes:
    """Return the pod's review with other fields in its request; None removes a field."""
    document = json.loads(POD)
    document["request"] |= fields
    document["request"] = {k: v for k, v in document["request"].items() if v is not None}
    return json.dumps(document).encode()


def pod() -> dict:
    """Return a copy of the object in the pod's review."""
    return json.loads(POD)["request"]["object"]


class HouseRules(unittest.TestCase):
    """1: the promises that the file makes about itself."""

    source = (ROOT / "whook.py").read_text()

    def run_python(self, *arguments: str) -> tuple[int, str, str]:
        run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        return run.returncode, run.stdout, run.stderr

    def test_an_old_python_gets_one_line(self):
        old = "import sys; sys.version_info = (3, 10, 1); import whook"
        self.assertEqual(
            self.run_python("-c", old), (1, "", "whook: error: whook needs Python 3.11 or later\n")
        )

    def test_these_tests_need_no_package(self):
        self.assertEqual(self.run_python("-S", "-c", "import test_whook"), (0, "", ""))

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

    def test_its_sections_are_in_the_order_of_its_map(self):
        titles = re.findall(r"^# -+ (\d+ .+)$", self.source, re.M)
        self.assertEqual([int(title.split()[0]) for title in titles], list(range(2, 12)))
        words = " ".join(self.source.split('"""')[1].split())
        self.assertIn("1 this text, " + ", ".join(titles) + ".", words)

    def test_importing_it_has_no_output(self):
        self.assertEqual(self.run_python("-c", "import whook"), (0, "", ""))

    def test_functions_are_short(self):
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.FunctionDef):
                with self.subTest(node.name):
                    self.assertLessEqual(node.end_lineno - node.lineno + 1, 50)


class Log(unittest.TestCase):
    """2: one line per event, which no input can forge, make long or split."""

    def written(self, *calls: dict, log_format="text", write=None, poll=lambda _: [(2, 4)]):
        """Log an event for each dict of fields, and return what was written, line by line."""
        writes: list[bytes] = []
        write = write or (lambda _, data: writes.append(data) or len(data))
        with mock.patch.object(whook.os, "write", write):
            self.log = whook.Log()
            self.log.format, self.log.poll = log_format, mock.Mock(poll=poll)
            for fields in calls:
                self.log("INFO", "event", **fields)
        return writes

    def test_values_are_escaped(self):
        for value, expected in [
            ("plain-1.2/x:y", "plain-1.2/x:y"), ("two words", '"two words"'), ("", '""'),
            ("a=b", '"a=b"'), ("a\nb level=ERROR", '"a\\nb level=ERROR"'),
            ("\x1b[2J", '"\\u001b[2J"'), ("\ud800", '"\\ud800"'), (True, "true"), (1, "1"),
            ("x" * 5000, "x" * whook.MAX_LOGGED),
        ]:  # fmt: skip
            with self.subTest(value=value):
                self.assertEqual(whook._quote(value), expected)

    def test_a_line_is_one_write_of_at_most_PIPE_BUF_bytes(self):
        values = ["x", "x y", "ä", "\n", "\0", "\U0001f600", "\ud800", '"', "\\", [1] * 10**5]
        calls = [
            {f"field{n}": value if type(value) is list else value * 5000 for n in range(count)}
            for value in values
            for count in (1, 8)
        ]
        for log_format in ("text", "json"):
            with self.subTest(log_format):
                lines = self.written(*calls, log_format=log_format)
                self.assertEqual(len(lines), len(calls))
                self.assertLessEqual(max(map(len, lines)), whook.PIPE_BUF)
                for line in lines:
                    self.assertEqual((line.count(b"\n"), line[-1:]), (1, b"\n"))

    def test_a_json_line_keeps_numbers_and_is_valid_whatever_a_review_holds(self):
        fields = {f"field{n}": "\U0001f600" * 5000 for n in range(8)} | {"patch": 2, "ok": True}
        [line] = self.written(fields, log_format="json")
        entry = json.loads(line)
        self.assertEqual((entry["level"], entry["event"]), ("INFO", "event"))
        self.assertEqual((entry["patch"], entry["ok"]), (2, True))
        self.assertEqual(entry["field7"], "\U0001f600" * whook.MAX_LOGGED_LONG)

    def test_lines_that_would_block_or_fail_are_dropped_and_counted(self):
        ready = iter([[(2, 4)], [], [], [(2, 4)]])
        lines = self.written(*[{"n": n} for n in range(4)], poll=lambda _: next(ready))
        self.assertEqual([line[-4:] for line in lines], [b"n=0\n", b"n=3\n"])
        self.assertEqual(self.log.dropped, 2)
        full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        self.written({}, {}, {}, write=full)
        self.assertEqual(self.log.dropped, 3)


class ParseReview(unittest.TestCase):
    """3: bytes become a Request, or an HTTPError with the reason."""

    def test_every_recorded_review(self):
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

    def test_the_name_has_fallbacks(self):
        for fields, expected in [
            ({"name": "given"}, "given"), ({"name": None}, "tricky"),
            ({"name": None, "object": {"metadata": {"generateName": "web-"}}}, "web-"),
            ({"name": None, "object": {"metadata": None}}, ""),
            ({"name": None, "object": None, "operation": "DELETE"}, ""),
        ]:  # fmt: skip
            with self.subTest(fields=fields):
                self.assertEqual(whook.parse_review(review(**fields)).name, expected)

    def test_an_old_api_server_sends_no_request_kind(self):
        request = whook.parse_review(review(requestKind=None, requestResource=None))
        self.assertEqual(request.request_kind, request.kind)
        self.assertEqual(request.request_resource, request.resource)

    def assert_refused(self, body: bytes, status: int, message: str) -> None:
        with self.subTest(message):
            with self.assertRaises(whook.HTTPError) as caught:
                whook.parse_review(body)
            self.assertEqual((caught.exception.status, caught.exception.message), (status, message))

    def test_bodies_that_are_not_json(self):
        for body, reason in [
            (b"", "it is empty"),
            (TRUNCATED, f"Expecting ',' delimiter: line 1 column {len(TRUNCATED) + 1} "
             f"(char {len(TRUNCATED)})"),
            (b"hello", "Expecting value: line 1 column 1 (char 0)"),
            (b"9" * 6000, "Exceeds the limit (4300 digits) for integer string conversion: "
             "value has 6000 digits"),
            (b'{"a":NaN}', "NaN is not a JSON number"),
            (b'{"a":1e999}', "1e999 is not a JSON number"),
        ]:  # fmt: skip
            self.assert_refused(body, 400, f"the body is not JSON: {reason}")
        self.assert_refused(b"\xff\xfe", 400, "the body is not UTF-8")
        for body in (b"[" * 200_000, b'{"a":' * 200_000):
            self.assert_refused(body, 400, "the body is nested too deeply")

    def test_json_that_is_not_a_review(self):
        start = b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":'
        no_review = 'the body is not an AdmissionReview: its kind must be "AdmissionReview"'
        for body, message in [
            (b"[]", no_review),
            (b'{"kind":"Pod"}', no_review),
            (b'{"kind":"AdmissionReview","apiVersion":"v1","request":{}}',
             "apiVersion must be one of admission.k8s.io/v1, admission.k8s.io/v1beta1"),
            (start + b"null}", "the AdmissionReview has no request"),
            (start + b"[]}", "the AdmissionReview has no request"),
            (start + b"{}}", "request.uid is missing"),
            (review(uid=5), "request.uid must be a string"),
            (review(uid="u" * 254), "request.uid is too long"),
            (review(object=None), "request.object is missing; CREATE needs it"),
            (review(object=None, operation="UPDATE"), "request.object is missing; UPDATE needs it"),
            (review(operation="PATCH"),
             "request.operation must be one of CREATE, UPDATE, DELETE, CONNECT"),
            (review(object=[1]), "request.object must be an object"),
            (review(oldObject="x"), "request.oldObject must be an object"),
            (review(kind={"group": 1}), "group, version, kind in request.kind must be strings"),
            (review(dryRun="yes"), "request.dryRun must be true or false"),
            (review(userInfo="me"), "request.userInfo must be an object"),
        ]:  # fmt: skip
            self.assert_refused(body, 400, message)

    def test_a_body_of_too_many_containers_is_refused_before_it_is_parsed(self):
        most = b"[" + b"[]," * (whook.MAX_CONTAINERS - 2) + b"[]]"
        self.assertEqual(most.count(b"["), whook.MAX_CONTAINERS)
        with self.assertRaisesRegex(whook.HTTPError, "the body is not an AdmissionReview"):
            whook.parse_review(most)
        with mock.patch.object(whook, "_decode", side_effect=AssertionError):
            self.assert_refused(most + b"{", 413, "the body has more than 500000 objects and lists")

    def test_the_request_shares_nothing_with_the_object_that_is_edited(self):
        request = whook.parse_review(POD)
        before = request.object
        request.take_object()["spec"] = None
        self.assertEqual(before, pod())
        self.assertEqual(request.object, before)
        self.assertEqual(request.take_object(), pod())


class RenderReview(unittest.TestCase):
    """3: a verdict in the form that the API server accepts."""

    def answer(self, source: str = "", body: bytes = POD, verb="mutate") -> dict:
        request = whook.parse_review(body)
        response = whook.evaluate(request, policies(p=source) if source else (), verb)
        return json.loads(whook.render_review(request, response))

    def test_version_and_uid_are_those_of_the_request(self):
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

    def test_a_patch_has_a_patch_type(self):
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

    def test_warnings_have_no_control_characters_and_a_limited_length(self):
        long = "x" * 3000
        for texts, expected in [
            (["a\nb\x00\x85c"], ["a b c"]),
            (["same", "same", " ", "\n"], ["same"]),
            ([long], [long]),
            ([long, "y" * 2000], ["x" * 256, "y" * 256]),
            ([f"{n:04}" + "z" * 300 for n in range(99)],
             [f"{n:04}" + "z" * 252 for n in range(16)]),
        ]:  # fmt: skip
            with self.subTest(texts=str(texts)[:40]):
                source = f"def mutate(obj, request):\n for t in {texts}: request.warn(t)"
                self.assertEqual(self.answer(source)["response"]["warnings"], expected)

    def test_audit_keys_are_checked(self):
        good = "def mutate(obj, request): request.audit('image.x', 5)"
        self.assertEqual(self.answer(good)["response"]["auditAnnotations"], {"image.x": "5"})
        for key in ("", "a/b", "-a", "a-", "x" * 64, "ä", "a\n"):
            with self.subTest(key=key), self.assertRaises(whook.PolicyError) as caught:
                self.answer(f"def mutate(obj, request): request.audit({key!r}, 5)")
            self.assertEqual(
                caught.exception.message,
                f'policy "p" failed: line 1: ValueError: audit key {key!r} must be 1 to 63 '
                "letters, digits, '-', '_' or '.', with a letter or digit at both ends",
            )

    def test_audit_annotations_have_a_limited_size(self):
        for source in (
            f"request.audit('a', 'x' * {whook.MAX_PATCH})",
            f"[request.audit(f'a{{n}}', 'x' * {whook.MAX_PATCH // 4}) for n in range(4)]",
        ):
            with self.subTest(source), self.assertRaises(whook.PolicyError) as caught:
                self.answer(f"def mutate(obj, request): {source}")
            self.assertEqual(
                caught.exception.message,
                'policy "p" failed: line 1: ValueError: the audit annotations are larger than '
                "14680064 characters",
            )


class Policies(unittest.TestCase):
    """4: policies from files and folders, in the order of their names."""

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

    def error_of(self, *paths: str) -> whook.ConfigError:
        with self.assertRaises(whook.ConfigError) as caught:
            self.load(*paths)
        return caught.exception

    def test_policies_are_in_the_order_of_their_names(self):
        for name in ("d/b.py", "d/_helper.py", "d/.hidden.py", "d/README.md", "c.py", "d/a.py"):
            self.write(name)
        loaded = self.load(str(self.folder / "c.py"), str(self.folder / "d"))
        self.assertEqual([policy.name for policy in loaded.policies], ["a", "b", "c"])
        self.assertEqual(self.load().policies, ())

    def test_the_hash_depends_on_names_contents_and_parameters(self):
        seen = {
            self.load(self.write("a.py", LABEL + "TEAM = 1")).digest,
            self.load(self.write("b.py", LABEL + "TEAM = 1")).digest,
            self.load(self.write("a.py", LABEL + "TEAM = 1#")).digest,
        }
        self.write("a.json", '{"TEAM": 2}')
        seen.add(self.load(str(self.folder / "a.py")).digest)
        self.assertEqual(len(seen), 4)
        self.assertEqual(self.load(self.write("b.py")).digest, self.load(self.write("b.py")).digest)

    def test_a_policy_is_found_by_the_function_that_it_defines(self):
        loaded = self.load(self.write("a.py"), self.write("b.py", "def validate(obj, request): 0"))
        self.assertEqual([p.name for p in loaded.find("mutate", "")], ["a", "b"])
        self.assertEqual([p.name for p in loaded.find("validate", "b")], ["b"])
        self.assertEqual([p.name for p in loaded.find("warn", "b")], ["b"])
        for verb, name, function in [
            ("mutate", "b", "mutate"), ("validate", "a", "validate"), ("warn", "a", "validate"),
            ("mutate", "x", "mutate"),
        ]:  # fmt: skip
            with self.subTest(verb=verb, name=name):
                with self.assertRaises(whook.HTTPError) as caught:
                    loaded.find(verb, name)
                self.assertEqual(
                    (caught.exception.status, caught.exception.message),
                    (404, f'there is no policy "{name}" that defines {function}'),
                )

    def test_files_that_do_not_load(self):
        for text, reason in [
            ("def mutate(", "line 1: SyntaxError: '(' was never closed (FILE, line 1)"),
            ("\n1/0", "line 2: ZeroDivisionError: division by zero"),
            ("int('secret')", "line 1: ValueError: invalid literal for int() with base 10: "
             "'secret'"),
            ("import sys; sys.exit(3)", "line 1: SystemExit: 3"),
            ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt: "),
        ]:  # fmt: skip
            with self.subTest(text=text):
                path = self.write("a.py", text)
                error = self.error_of(path)
                start = f"policy {path} does not load: "
                messages = [start + reason.replace("FILE", name) for name in ("a.py", path)]
                self.assertIn(error.message, messages)
                command = f"python {shlex.quote(whook.__file__)} --check --policy {path}"
                self.assertEqual(error.hint, f"see the traceback: {command}")

    def test_files_that_are_no_policy(self):
        define = "defines neither mutate nor validate"
        for text, reason in [
            ("x = 1", define), ("mutate = 1", define), ("", define),
            ("async def mutate(obj, request): 0", "is async or a generator, and would never run"),
            ("def mutate(obj, request): yield", "is async or a generator, and would never run"),
            ("async def mutate(obj, request): yield",
             "is async or a generator, and would never run"),
            ("def mutate(obj): 0",
             "can't be called with two arguments: too many positional arguments"),
            ("def mutate(obj, request, limit): 0",
             "can't be called with two arguments: missing a required argument: 'limit'"),
        ]:  # fmt: skip
            for verb in ("mutate", "validate"):
                with self.subTest(text, verb=verb):
                    error = self.error_of(path := self.write("a.py", text.replace("mutate", verb)))
                    message, hint = f": {verb} {reason}", f"write `def {verb}(obj, request):`"
                    if reason is define:
                        message = f" {define}"
                        hint = "a policy is a file that defines mutate(obj, request), "
                        hint += "validate(obj, request), or both"
                    self.assertEqual((error.message, error.hint), (f"policy {path}{message}", hint))
        for text in ("def mutate(obj, request, limit=5): 0", "mutate = lambda *_: None"):
            self.load(self.write("a.py", text))

    def test_paths_that_hold_no_policy(self):
        (self.folder / "empty").mkdir()
        for paths, message in [
            (["/nowhere/x.py"], "can't read /nowhere/x.py: No such file or directory"),
            ([""], "the name of a policy file is empty"),
            ([str(self.folder / "empty")], f"no policy (*.py) in folder {self.folder}/empty"),
            ([self.write("a b.py")],
             f"policy {self.folder}/a b.py can't be named in a path like /mutate/NAME"),
            ([self.write("a.py"), self.write("d/a.py")],
             f'two policies are named "a": {self.folder}/a.py and {self.folder}/d/a.py'),
        ]:  # fmt: skip
            with self.subTest(paths=paths):
                error = self.error_of(*paths)
                self.assertEqual(error.message, message)
                self.assertTrue(error.hint)

    def test_loading_has_a_time_limit(self):
        swallows = "try:\n while True: pass\nexcept BaseException: pass\n" + LABEL
        for source, line in [("\nwhile True: pass", 2), (swallows, 2)]:
            with self.subTest(source), self.assertRaises(whook.ConfigError) as caught:
                whook.load_policies({"/a.py": LABEL.encode(), "/p.py": source.encode()}, 0.3)
            self.assertEqual(
                caught.exception.message,
                f"policy /p.py does not load: line {line}: timed out after 0.3 s",
            )

    def test_dataclasses_load(self):
        for head in ("", "from __future__ import annotations\n"):
            text = head + "from dataclasses import dataclass\n@dataclass\nclass A:\n x: int = 1\n"
            self.assertEqual(len(self.load(self.write("a.py", text + LABEL)).policies), 1)

    def test_a_file_that_does_not_load_leaves_the_modules_as_they_were(self):
        good = self.load(self.write("a.py")).policies
        module = sys.modules["policy a"]
        self.error_of(self.write("a.py", "1/0"))
        self.assertIs(sys.modules["policy a"], module)
        self.assertIs(good[0].mutate.__globals__, vars(module))
        self.error_of(self.write("other.py", "1/0"))
        self.assertNotIn("policy other", sys.modules)


class Parameters(unittest.TestCase):
    """4: NAME.json sets constants of NAME.py."""

    def load(self, source: str, given: object) -> whook.PolicySet:
        text = given if type(given) is str else json.dumps(given)
        return whook.load_policies({"/p/a.py": source.encode(), "/p/a.json": text.encode()})

    def values(self, source: str, given: object, *names: str) -> list:
        """Load a policy with parameters, and return the constants of these names."""
        function = "\ndef mutate(obj, request): pass\n"
        [policy] = self.load(source + function, given).policies
        return [policy.mutate.__globals__[name] for name in names]

    def test_a_parameter_replaces_a_constant_and_the_constants_computed_from_it(self):
        source = "LIMIT = 5\nDOUBLE = LIMIT * 2\nTEXT = f'at most {DOUBLE}'\nTABLE = {LIMIT: 'x'}"
        self.assertEqual(
            self.values(source, {"LIMIT": 7}, "LIMIT", "DOUBLE", "TEXT", "TABLE"),
            [7, 14, "at most 14", {7: "x"}],
        )

    def test_every_way_to_assign_a_constant(self):
        for source, name, twice in [
            ("if True:\n A = 1\nelse:\n A = 2", "A", 18),
            ("try:\n import nothing\nexcept ImportError:\n A = 1\nfinally:\n B = 2", "A", 18),
            ("try:\n A = 1\nfinally:\n B = 2", "B", 18),
            ("from contextlib import nullcontext\nwith nullcontext():\n A = 1", "A", 18),
            ("for _ in '12':\n A = 1", "A", 18),
            ("match 1:\n case 1:\n  if True:\n   A = 1", "A", 18),
            ("A, (B, *C) = 1, (2, 3)", "A", 18), ("A, (B, *C) = 1, (2, 3)", "B", 18),
            ("A = B = 3", "A", 18), ("A = B = 3", "B", 18), ("A: int = 1", "A", 18),
            ("A = 1\nA += 1", "A", 18), ("A = 1; B = A; A = 2", "A", 18),
        ]:  # fmt: skip
            with self.subTest(source, name=name):
                values = self.values(f"{source}\nTWICE = {name} * 2", {name: 9}, name, "TWICE")
                self.assertEqual(values, [9, twice])

    def test_a_name_that_is_not_assigned_on_the_level_of_the_module_is_an_error(self):
        for source, name in [
            ("LIMIT = 1", "LIMITS"), ("limit = 1", "limit"), ("def f():\n LIMIT = 1", "LIMIT"),
            ("class A:\n LIMIT = 1", "LIMIT"), ("LIMIT: int", "LIMIT"),
            ("OTHER = [LIMIT := 1]", "LIMIT"), ("import os as LIMIT", "LIMIT"),
            ("def validate(obj, request): 0", "validate"),
        ]:  # fmt: skip
            with self.subTest(source), self.assertRaises(whook.ConfigError) as caught:
                self.load(source + LABEL, {name: 1})
            self.assertEqual(
                caught.exception.message, f"/p/a.json sets {name}, which /p/a.py does not"
            )
            self.assertEqual(
                caught.exception.hint,
                "it can set upper-case names that the policy's source assigns",
            )

    def test_a_parameter_has_the_type_of_its_constant(self):
        for constant, given, expected in [
            ("5", 7, 7), ("1.5", 2, 2.0), ("1.5", 2.5, 2.5), ("'a'", "b", "b"),
            ("True", False, False), ("[1]", ["x"], ["x"]), ("(1, 2)", ["x"], ("x",)),
            ("{1, 2}", ["x"], {"x"}), ("frozenset()", ["x"], frozenset("x")), ("{'a': 1}", {}, {}),
        ]:  # fmt: skip
            with self.subTest(constant, given=given):
                [value] = self.values(f"A = {constant}", {"A": given}, "A")
                self.assertEqual((value, type(value)), (expected, type(expected)))
        for constant, given, wanted in [
            ("5", "7", "a whole number"), ("5", True, "a whole number"),
            ("5", 7.0, "a whole number"), ("5", None, "a whole number"), ("1.5", "2", "a number"),
            ("'a'", 5, "a string"), ("True", 1, "true or false"), ("('a',)", "c", "a list"),
            ("{'a'}", {}, "a list"), ("{'a': 1}", [], "an object"),
            ("b'x'", "x", "left out: JSON has no bytes"),
        ]:  # fmt: skip
            with self.subTest(constant, given=given):
                with self.assertRaises(whook.ConfigError) as caught:
                    self.load(f"A = {constant}{LABEL}", {"A": given})
                self.assertEqual(caught.exception.message, f"A in /p/a.json must be {wanted}")

    def test_the_file_must_hold_a_json_object(self):
        for text, message in [
            ("[1]", "/p/a.json is not a JSON object"),
            ("{", "/p/a.json is not JSON: Expecting property name enclosed in double quotes: "
             "line 1 column 2 (char 1)"),
        ]:  # fmt: skip
            with self.subTest(text), self.assertRaises(whook.ConfigError) as caught:
                self.load("A = 1" + LABEL, text)
            self.assertEqual(caught.exception.message, message)

    def test_parameters_leave_docstring_and_line_numbers_as_they_are(self):
        source = '''"""About."""
from __future__ import annotations
A = B = 1
if A:
    C = 2
def validate(obj, request):
    raise LookupError(f"{A} {B} {C}")
'''
        loaded = self.load(source, {"A": 7, "B": 8, "C": 9})
        self.assertEqual(loaded.policies[0].validate.__globals__["__doc__"], "About.")
        with self.assertRaises(whook.PolicyError) as caught:
            whook.evaluate(whook.parse_review(POD), loaded.policies, "validate")
        self.assertEqual(caught.exception.message, 'policy "a" failed: line 7: LookupError: 7 8 9')
        with self.assertRaises(whook.ConfigError) as caught:
            self.load("A = 1\n\nB = A / 0\n" + LABEL, {"A": 7})
        self.assertIn("line 3: ZeroDivisionError", caught.exception.message)


class Reloading(unittest.TestCase):
    """4: a value that follows its files, and keeps the last good value."""

    def setUp(self):
        self.log = self.enterContext(mock.patch.object(whook, "log"))
        self.content = b"1"

    def reloadable(self, make=int, **options) -> whook.Reloadable:
        return whook.Reloadable(
            "numbers", lambda: {"f": self.content}, lambda files: make(files["f"]), **options
        )

    def test_any_exception_keeps_the_last_good_value(self):
        def make(content: bytes) -> int:
            if content == b"config":
                raise whook.ConfigError("bad config", "fix it")
            return int(content)

        def read() -> dict[str, bytes]:
            if self.content == b"gone":
                raise whook.ConfigError("can't read f", "make it readable")
            return {"f": self.content}

        made = self.reloadable(make)
        made.read = read
        for content, state in [  # the value, how many errors there were, and if one is current
            (b"2", (2, 0, False)), (b"x", (2, 1, True)), (b"x", (2, 1, True)),
            (b"config", (2, 2, True)), (b"2", (2, 2, False)), (b"gone", (2, 3, True)),
            (b"gone", (2, 3, True)), (b"2", (2, 3, False)), (b"x", (2, 4, True)),
            (b"3", (3, 4, False)),
        ]:  # fmt: skip
            with self.subTest(content, state=state):
                self.content = content
                made.refresh()
                self.assertEqual((made.value, made.errors, bool(made.last_error)), state)
        errors = [call.kwargs for call in self.log.mock_calls if call.args[1] == "reload"]
        self.assertRegex(errors[0]["error"], r"^ValueError at test_whook.py:\d+ make < ")
        self.assertEqual((errors[1]["error"], errors[1]["hint"]), ("bad config", "fix it"))

    def test_files_that_failed_are_tried_again_only_if_that_is_asked_for(self):
        for retry, calls in [(False, 2), (True, 4)]:
            with self.subTest(retry=retry):
                self.content, make = b"1", mock.Mock(side_effect=int)
                made = self.reloadable(make, retry=retry)
                self.content = b"x"
                for _ in range(3):
                    made.refresh()
                self.assertEqual((make.call_count, made.errors), (calls, 1))

    def test_files_that_change_while_they_are_read_are_not_used(self):
        contents = iter([{"a": b"1"}, {"a": b"2"}, {"a": b"3"}, {"a": b"3"}, {"a": b"3"}])
        made = whook.Reloadable("x", lambda: next(contents), lambda files: files["a"])
        made.refresh()
        self.assertEqual(made.value, b"1")  # the files were 2 at first, then 3
        made.refresh()
        self.assertEqual(made.value, b"3")

    def test_the_first_value_must_be_good(self):
        self.content = b"x"
        with self.assertRaises(ValueError):
            self.reloadable()


def exact(value):
    """Return a form of a JSON value in which true, 1 and 1.0 differ; the order of keys does not
    count."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return type(value).__name__, value


class PatchChecks:
    """Checks that hold for every patch; test_properties.py adds another library as a judge."""

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
            ({"a": [{"n": 1, "v": 1}]}, {"a": [{"n": 1, "v": 2}]},
             [{"op": "replace", "path": "/a/0/v", "value": 2}]),
            ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, []),
            ({"a": [{"x": 1, "y": 2}]}, {"a": [{"y": 2, "x": 1}]}, []),
            ({"a": []}, {"a": {}}, [{"op": "replace", "path": "/a", "value": {}}]),
            ({"a": [{"name": "x", "v": 1}, {"name": "y"}]},
             {"a": [{"name": "s"}, {"name": "x", "v": 2}, {"name": "y"}]}, [
             {"op": "add", "path": "/a/0", "value": {"name": "s"}},
             {"op": "replace", "path": "/a/1/v", "value": 2}]),
            ({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "y", "v": 2}]},
             [{"op": "replace", "path": "/a/0", "value": {"name": "y", "v": 2}}]),
            ({"a": [{"name": "x"}, {"name": "y"}]}, {"a": [{"name": "y"}, {"name": "x"}]},
             [{"op": "remove", "path": "/a/1"},
              {"op": "add", "path": "/a/0", "value": {"name": "y"}}]),
        ]:  # fmt: skip
            with self.subTest(before=before, after=after):
                self.assertEqual(json.dumps(self.check(before, after)), json.dumps(patch))


class JsonPatch(PatchChecks, unittest.TestCase):
    """5: diff, judged by review.py's apply."""

    def test_a_sidecar_at_the_start_and_a_mount_in_one_container(self):
        before = [{"name": f"c{n}", "volumeMounts": [{"name": "x"}]} for n in range(50)]
        after = json.loads(json.dumps(before))
        after.insert(0, {"name": "sidecar"})
        self.assertEqual(len(self.check({"x": before}, {"x": after})), 1)
        after[-1]["volumeMounts"].append({"name": "y"})
        self.assertEqual(len(self.check({"x": before}, {"x": after})), 2)

    def test_the_time_grows_linearly(self):
        """Twice the size takes about twice as long: counted in calls, not seconds."""

        def calls(size: int, depth: int) -> int:
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

        self.assertLess(calls(2000, 300), 3 * calls(1000, 150))
        self.assertLess(calls(4000, 5), 3 * calls(2000, 5) + 1000)

    def test_values_that_are_not_json(self):
        for after, message in [
            ({"a": {1: 2}}, "/a has a key of type int: JSON's keys are strings"),
            ({1: 2}, "/ has a key of type int: JSON's keys are strings"),
            ({"a": (1, 2)}, "/a is a tuple: not JSON"),
            ({"a": {"b": {1}}}, "/a/b is a set: not JSON"),
            ({"a": [math.nan]}, "/a/0 is nan: not JSON"),
            ({"a": math.inf}, "/a is inf: not JSON"),
            ({"a": b"x"}, "/a is a bytes: not JSON"),
            ({"a": [10**5000]}, "/a/0 is an integer of more than 4300 digits: not JSON"),
            ({"a": {"b/c": [0, {"d": (1,)}]}}, "/a/b~1c/1/d is a tuple: not JSON"),
        ]:
            with self.subTest(message), self.assertRaises(ValueError) as caught:
                whook.diff({}, after)
            self.assertEqual(str(caught.exception), message)
        loop = {}
        loop["a"] = loop
        with self.assertRaises((ValueError, RecursionError)):
            whook.diff({}, loop)

    def test_the_patch_shares_nothing_with_the_arguments(self):
        after = {"a": {"b": [1]}}
        patch = whook.diff({}, after)
        after["a"]["b"].append(2)
        self.assertEqual(patch[0]["value"], {"b": [1]})

    def test_the_size_of_a_patch_is_limited(self):
        limit = whook.MAX_PATCH
        self.assertEqual(len(whook.diff({}, {"a": "x" * (limit - 100)})), 1)
        for before, after, message in [
            ({}, {"a": "x" * limit}, "changed fields are"),
            ({}, {f"a{n}": "x" * (limit // 8) for n in range(8)}, "changed fields are"),
            ({}, {"a": [0] * (limit // 2)}, "changed fields are"),
            ({"k" * (limit + 1): 1}, {}, "patch is"),
        ]:
            with self.subTest(length=len(after)), self.assertRaises(ValueError) as caught:
                whook.diff(before, after)
            self.assertEqual(str(caught.exception), f"the {message} larger than {limit} bytes")

    def test_apply_is_strict(self):
        for document, op, path in [
            ({}, "remove", "/a"), ({}, "replace", "/a"), ({}, "add", "/a/b"),
            ({"a": None}, "add", "/a/b"), ({"a": []}, "add", "/a/1"), ({"a": [1]}, "add", "/a/01"),
            ({"a": [1]}, "remove", "/a/-1"), ({"a": [1]}, "remove", "/a/1"),
            ({"a": 1}, "test", "/a"), ({}, "add", ""), ({"a": [1]}, "replace", "/a/-"),
            ({"b2": 1}, "replace", "a/b2"), ({"~2": 1}, "remove", "/~2"),
            ({"~": 1}, "remove", "/~"), ({"a": 1}, "remove", None),
        ]:  # fmt: skip
            with self.subTest(op=op, path=path), self.assertRaises(ValueError):
                apply(document, [{"op": op, "path": path, "value": 1}])
        appended = apply({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}])
        self.assertEqual(appended, {"a": [1, 2]})

    def test_a_list_with_too_many_changes_is_replaced(self):
        many = [{} for _ in range(2 * whook.MAX_LIST_EDITS)]
        for after, operations in [
            ([[1], *many[1:], []], {"replace", "add"}),
            ([*many, 1], {"add"}),
            ([1, *many], {"add"}),
            (many[1:], {"remove"}),
            ([{"a": n} for n in range(len(many))], {"replace"}),
            (many[: whook.MAX_LIST_EDITS - 1], {"replace"}),
            ([*many, *many], {"replace"}),
        ]:
            with self.subTest(operations, length=len(after)):
                patch = whook.diff({"x": many}, {"x": after})
                self.assertLessEqual({step["op"] for step in patch}, operations)
                self.assertLessEqual(len(patch), 2)
                self.assertEqual(apply({"x": many}, patch), {"x": after})
        named = [{"name": f"n{n}", "v": n} for n in range(whook.MAX_LIST_EDITS)]
        for count, length in [(len(named), len(named)), (len(named) + 1, 1)]:
            before = [{"name": f"n{n}", "v": 0} for n in range(1, count + 1)]
            after = [{"name": f"n{n}", "v": 1} for n in range(1, count + 1)]
            self.assertEqual(len(self.check({"x": before}, {"x": after})), length)


class Evaluate(unittest.TestCase):
    """6: policies run on a request."""

    def run_policies(self, body=POD, verb="mutate", **sources) -> whook.Response:
        self.request = whook.parse_review(body)
        return whook.evaluate(self.request, policies(**sources), verb)

    def error_of(self, body=POD, verb="mutate", **sources) -> whook.PolicyError:
        with self.assertRaises(whook.PolicyError) as caught:
            self.run_policies(body, verb, **sources)
        return caught.exception

    def test_each_policy_gets_the_result_of_the_one_before(self):
        response = self.run_policies(
            a="def mutate(o, r): o['x'] = [1]",
            b="def mutate(o, r): o['x'].append(2)",
            c="def mutate(o, r): assert r.object.get('x') is None and o['x'] == [1, 2]",
        )
        self.assertEqual(apply(pod(), response.patch), pod() | {"x": [1, 2]})
        self.assertEqual(response.changed_by, {"a": 1, "b": 1})
        self.assertEqual(list(response.spent), ["a", "b", "c"])

    def test_the_object_is_a_plain_dict(self):
        source = (
            "import copy\ndef {}(o, r):\n"
            " assert type(o) is dict and o == r.object and repr(o) == repr(r.object)\n"
            " copies = copy.copy(o), copy.deepcopy(o), o.copy(), o | {{}}\n"
            " assert {{*map(type, copies)}} == {{dict}}"
        )
        for verb in ("mutate", "validate"):
            response = self.run_policies(verb=verb, a=source.format(verb), b=source.format(verb))
            self.assertEqual((response.patch, response.allowed), ([], True))

    def test_no_way_to_edit_a_field_escapes_the_patch(self):
        changed = pod()
        changed["spec"]["nodeName"] = "n"
        for way in (
            "x = o['spec']",
            "x = o.get('spec')",
            "x = dict.get(o, 'spec')",
            "x = dict.__getitem__(o, 'spec')",
            "x = o.setdefault('spec', 1)",
            "x = o.pop('spec'); o['spec'] = x",
            "x = dict(o.items())['spec']",
            "x = [v for v in o.values() if type(v) is dict and 'containers' in v][0]",
            "x = {**o}['spec']",
            "x = dict(o)['spec']",
            "x = (o | {})['spec']",
            "x = ({} | o)['spec']",
            "x = o.copy()['spec']",
            "x = copy.copy(o)['spec']",
            "x = (lambda spec, **rest: spec)(**o)",
            "x = operator.itemgetter('spec')(o)",
            "x = collections.ChainMap(o)['spec']",
            "x = {k: o[k] for k in o}['spec']",
            "x = next(v for k, v in iter(o.popitem, 0) if k == 'spec'); o |= r.object; "
            "o['spec'] = x",
            "x = copy.deepcopy(o)['spec']; o['spec'] = x",
            "x = json.loads(json.dumps(o))['spec']; o['spec'] = x",
            "self = types.SimpleNamespace(); self.__dict__ = o; x = self.spec",
            "self = Namespace(); self.__dict__ = o; x = self.spec; self.spec = x",
            "self = Namespace(); self.__dict__ = o; self.spec = x = {**self.spec}",
            "match o:\n  case {'spec': x, **rest}: pass\n ",
        ):
            source = (
                "import collections, copy, json, operator, types\n"
                "class Namespace: pass\n"
                f"def mutate(o, r):\n {way.replace('; ', chr(10) + ' ')}\n x['nodeName'] = 'n'"
            )
            if "SimpleNamespace" in way:  # its __dict__ can't be assigned
                source = source.replace("types.SimpleNamespace()", "Namespace()")
            with self.subTest(way):
                for more in ({}, {"b": "def mutate(o, r): o['spec']['containers']"}):
                    response = self.run_policies(a=source, **more)
                    self.assertEqual(apply(pod(), response.patch), changed)

    def test_whole_fields_can_be_removed_replaced_swapped_and_shared(self):
        for statement in (
            "del o['spec']",
            "o.clear()",
            "o |= {'spec': None, 'new': 1}",
            "o['spec'], o['status'] = o['status'], o['spec']",
            "o['metadata']['spec'] = o['spec']",
            "o['spec'] = o['metadata'] = {'a': 1}",
            "o['metadata'] = {}",
            "o['metadata'].clear(); o['metadata']['labels'] = {}",
            "o['kind'] = {'a': 1}",
            "o['spec'] = 'text'",
            "o['x'] = {}; o['x']['y'] = {}",
        ):
            with self.subTest(statement):
                wanted = pod()
                exec(statement, {}, {"o": wanted})
                response = self.run_policies(a=f"def mutate(o, r): {statement}")
                self.assertEqual(exact(apply(pod(), response.patch)), exact(wanted))

    def test_validate_has_a_copy_of_its_own(self):
        response = self.run_policies(
            verb="validate",
            a="def validate(o, r): o.clear()",
            b="def validate(o, r): o['spec'].clear()",
            c="def validate(o, r): o == r.object or r.deny('changed')",
        )
        self.assertEqual((response.allowed, response.patch), (True, []))

    def test_a_body_is_parsed_once_whatever_the_number_of_policies(self):
        sources = {f"p{n}": "def validate(o, r): o['spec']\nmutate = validate" for n in range(9)}
        for verb in ("mutate", "validate", "warn"):
            with self.subTest(verb), mock.patch.object(whook, "_decode", wraps=whook._decode) as it:
                self.run_policies(verb=verb, **sources)
                self.assertEqual(it.call_count, 1)

    def test_a_deletion_has_no_object(self):
        response = self.run_policies(REVIEWS["delete-secret"], a="def mutate(o, r): 1/0")
        self.assertEqual((response.allowed, response.patch), (True, []))
        source = "def validate(o, r):\n if o is None: r.deny(r.old_object['metadata']['name'])"
        response = self.run_policies(REVIEWS["delete-secret"], "validate", a=source)
        self.assertEqual(response.message, "creds")

    def test_a_denial_ends_the_review_even_if_the_policy_swallows_it(self):
        for swallowed in ("Exception", "BaseException"):
            source = f"def mutate(o, r):\n try: r.deny('no')\n except {swallowed}: pass"
            response = self.run_policies(a=source, b="def mutate(o, r): 1/0")
            with self.subTest(swallowed):
                self.assertEqual(
                    (response.allowed, response.code, response.reason, response.message),
                    (False, 403, "Forbidden", "no"),
                )

    def test_a_policy_that_raises_is_named_with_line_and_error(self):
        for source, message in [
            ("def mutate(o, r):\n o['x']['y']", "line 2: KeyError: 'x'"),
            ("def mutate(o, r):\n\n helper()\ndef helper():\n  1/0",
             "line 5: ZeroDivisionError: division by zero"),
            ("def mutate(o, r): raise SystemExit('bye')", "line 1: SystemExit: bye"),
            ("import sys\ndef mutate(o, r): sys.exit(0)", "line 2: SystemExit: 0"),
            ("def mutate(o, r): raise KeyboardInterrupt", "line 1: KeyboardInterrupt: "),
            ("def mutate(o, r): r.deny('x', 200)",
             "line 1: ValueError: deny code 200 is not between 400 and 599"),
            ("def mutate(o, r): r.deny('x', 403.5)",
             "line 1: ValueError: deny code 403.5 is not between 400 and 599"),
            ("class E(Exception):\n def __str__(self): raise self\ndef mutate(o, r): raise E",
             "line 3: E: ?"),
            ("def mutate(o, r): r.uid = r.nothing",
             "line 1: AttributeError: 'Request' object has no attribute 'nothing'"),
        ]:  # fmt: skip
            with self.subTest(source=source):
                error = self.error_of(a="def mutate(o, r): o['ok'] = 1", bad=source)
                self.assertEqual((error.status, error.cause), (500, "exception"))
                self.assertEqual(error.message, f'policy "bad" failed: {message}')

    def test_a_policy_must_return_nothing(self):
        for verb, source, message in [
            ("mutate", "return o", "a dict; edit obj in place"),
            ("mutate", "return False", "a bool; edit obj in place"),
            ("validate", "return False", "a bool; call request.deny(message)"),
            ("validate", "return (x for x in o)", "a generator; call request.deny(message)"),
        ]:
            with self.subTest(source):
                error = self.error_of(verb=verb, bad=f"def {verb}(o, r): {source}")
                self.assertEqual(error.cause, "return")
                self.assertEqual(
                    error.message,
                    f'policy "bad" failed: it returned {message} and return nothing',
                )

    def test_a_result_that_can_not_be_sent_is_the_fault_of_its_policy(self):
        for source, message in [
            ("o['x'] = 10 ** 5000", "/x is an integer of more than 4300 digits: not JSON"),
            ("o['x'] = {1: 2}", "/x has a key of type int: JSON's keys are strings"),
            ("o[1] = 2", "/ has a key of type int: JSON's keys are strings"),
            ("o['x'] = (1,)", "/x is a tuple: not JSON"),
            ("o['x'] = collections.defaultdict(int)", "/x is a defaultdict: not JSON"),
            ("o['metadata'] = collections.Counter(o['metadata'])", "/metadata is a Counter: not "
             "JSON"),
            (f"o['x'] = 'x' * {whook.MAX_PATCH}", "the changed fields are larger than 14680064 "
             "bytes"),
        ]:  # fmt: skip
            with self.subTest(source):
                bad = f"import collections\ndef mutate(o, r): {source}"
                error = self.error_of(a="def mutate(o, r): o['ok'] = 1", bad=bad)
                self.assertEqual((error.cause, error.summary), ("patch", "ValueError"))
                self.assertEqual(
                    error.message, f'policy "bad" failed: its result can\'t be sent: {message}'
                )
        for source in (
            "o['x'] = o",
            "o['spec']['x'] = o",
            "[o.__setitem__('x', {'x': o.get('x')}) for _ in range(5000)]",
        ):
            with self.subTest(source):
                error = self.error_of(bad=f"def mutate(o, r): {source}")
                self.assertEqual(error.cause, "patch")
                self.assertIn("its result can't be sent: ", error.message)

    def test_the_policies_of_a_review_share_the_size_of_the_patch(self):
        more = f"def mutate(o, r): o[r.uid[:0] + NAME] = 'x' * {whook.MAX_PATCH * 2 // 3}"
        self.run_policies(a="NAME = 'a'\n" + more)
        error = self.error_of(a="NAME = 'a'\n" + more, b="NAME = 'b'\n" + more)
        self.assertEqual((error.policy.name, error.cause), ("b", "patch"))

    def test_what_a_policy_keeps_is_not_edited_by_the_next_one(self):
        """A policy that keeps a part of the object, on any level, keeps it as it was."""
        for kept in ("o", "o['metadata']", "o['metadata']['labels']", "o['spec']['containers'][0]"):
            for verb in ("mutate", "validate"):
                with self.subTest(kept, verb=verb):
                    loaded = policies(
                        a=f"KEPT = []\ndef {verb}(o, r):\n KEPT.append({kept})\n"
                        " if len(KEPT) > 1: r.audit('kept', 'mallory' in repr(KEPT[0]))",
                        b=f"def {verb}(o, r):\n o['metadata']['labels']['x'] = 'mallory'\n"
                        " o['spec']['containers'][0]['x'] = o['x'] = 'mallory'",
                    )
                    for _ in range(2):
                        response = whook.evaluate(whook.parse_review(POD), loaded, verb)
                    self.assertEqual(response.audit, {"kept": "False"})

    def test_a_policy_that_changes_nothing_causes_no_copy(self):
        """Else thirty policies on a large object would take several times as long."""
        for verb in ("mutate", "validate"):
            source = f"def {verb}(o, r): o['metadata'].get('labels'), o['spec']['containers']"
            with mock.patch.object(whook, "copy_json") as copy, mock.patch.object(whook, "_loads"):
                self.run_policies(verb=verb, **{f"p{n}": source for n in range(5)})
            self.assertEqual(copy.call_count, 0)

    def test_deny_of_an_earlier_request_is_an_error(self):
        source = "KEPT = []\ndef validate(o, r):\n KEPT.append(r)\n KEPT[0].deny('no')"
        loaded = policies(a=source)
        self.assertFalse(whook.evaluate(whook.parse_review(POD), loaded, "validate").allowed)
        with self.assertRaises(whook.PolicyError) as caught:
            whook.evaluate(whook.parse_review(POD), loaded, "validate")
        self.assertIn("deny() of a request that was answered before", caught.exception.message)

    def test_big_integers_of_an_object_can_be_moved(self):
        big = {"metadata": {"name": "x"}, "spec": {"a": 2**64, "b": [-(10**4299)]}}
        source = "def mutate(o, r):\n o['spec']['c'] = o['spec'].pop('a'); o['d'] = o['spec']['b']"
        response = self.run_policies(review(object=big), a=source)
        self.assertEqual(
            apply(big, response.patch),
            big | {"spec": {"b": [-(10**4299)], "c": 2**64}, "d": [-(10**4299)]},
        )
        json.loads(whook.render_review(self.request, response))

    def test_one_object_in_two_places_does_not_use_endless_memory(self):
        """The result is small as a graph, but 2**60 values as JSON."""
        source = "def mutate(o, r):\n x = 1\n for _ in range(60): x = [x, x]\n o['x'] = x"
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 ** 30, 2 ** 30))\n"
            "import test_whook\n"
            f"error = test_whook.Evaluate().error_of(bad={source!r})\n"
            "print(error.cause, error.message)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r'^(patch|time) policy "bad" failed: ')

    def test_warn_never_denies(self):
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
        self.error_of(verb="warn", a="def validate(o, r): 1/0")

    def test_the_number_of_warnings_is_limited(self):
        source = "def mutate(o, r):\n for n in range(40_000): r.warn(f'{n}' + 'x' * 100_000)"
        with mock.patch.object(whook, "TIME_LIMIT", 60.0):  # on a busy machine
            response = self.run_policies(a=source)
        self.assertEqual(len(response.warnings), whook.MAX_WARNINGS)

    def test_a_request_can_be_evaluated_again(self):
        request, loaded = whook.parse_review(POD), policies(a=LABEL)
        patches = [whook.evaluate(request, loaded).patch for _ in range(3)]
        self.assertEqual(patches, [LABEL_PATCH] * 3)


class PoliciesShareNothing(unittest.TestCase):
    """6: no policy can edit what another policy, review or log line uses."""

    # Puts one constant into two places; the next policy edits it in one of them.
    CONSTANT = """
ADDED = {"limits": {"cpu": "1"}}
def mutate(obj, request):
    for container in obj["spec"]["containers"]:
        container["resources"] = ADDED
"""
    EDITS = """
def mutate(obj, request):
    obj["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2"
"""

    def resources(self, obj: dict, **sources: str) -> list:
        """Evaluate twice with the same policies, and return the resources of both containers."""
        loaded, seen = policies(**sources), []
        for _ in range(2):
            response = whook.evaluate(whook.parse_review(review(object=obj)), loaded)
            result = apply(obj, response.patch)
            seen.append(
                [each["resources"]["limits"]["cpu"] for each in result["spec"]["containers"]]
            )
        self.assertEqual(seen[0], seen[1], "the second review saw an edit of the first")
        return seen[0]

    def test_a_constant_in_two_places_is_edited_in_one(self):
        different, equal = pod(), pod()
        for container in equal["spec"]["containers"]:
            container["resources"] = {"limits": {"cpu": "1"}}
        both = "def validate(obj, request): pass"
        for name, obj in (("it changes the object", different), ("it is equal", equal)):
            for policies_between in ({}, {"b": both}, {"b": "def mutate(o, r): o['spec']"}):
                with self.subTest(name, between=policies_between):
                    sources = {"a": self.CONSTANT, **policies_between, "c": self.EDITS}
                    self.assertEqual(self.resources(obj, **sources), ["2", "1"])
                    self.assertEqual(self.resources(obj, a=self.CONSTANT), ["1", "1"])

    def test_a_field_replaced_by_an_equal_constant_is_not_the_constant(self):
        labels = pod()["metadata"]["labels"]
        for place, value in [
            ("obj['metadata']['labels']", labels),
            ("obj['metadata']", {"labels": labels}),
            ("obj['spec']['containers'][0]['resources']['limits']", {}),
            ("obj['spec']['containers'][0]['resources']", {"limits": {}}),
            ("obj['spec']['containers']", [{"name": "a"}]),
        ]:
            obj = pod()
            obj["spec"]["containers"][0]["resources"] = {"limits": {}}
            exec(f"{place} = {value}", {}, {"obj": obj})
            with self.subTest(place):
                loaded = policies(
                    a=f"VALUE = {value}\ndef mutate(obj, request): {place} = VALUE",
                    b=f"def mutate(obj, request):\n x = {place}\n"
                    " x.append(1) if type(x) is list else x.update(new={})",
                )
                for _ in range(2):
                    request = whook.parse_review(review(object=obj))
                    self.assertEqual(whook.evaluate(request, loaded[:1]).patch, [])
                    self.assertEqual(len(whook.evaluate(request, loaded).patch), 1)
                self.assertEqual(loaded[0].mutate.__globals__["VALUE"], value)

    def test_a_part_that_a_policy_keeps_is_not_edited_by_a_later_review(self):
        loaded = policies(
            a="KEPT = []\ndef mutate(o, r):\n KEPT.append(o['spec'])\n"
            " for spec in KEPT[:-1]: spec['evil'] = True\n o['spec'] = KEPT[0]",
            b="def mutate(o, r): r.audit('evil', 'evil' in o['spec'])",
        )
        answers = [whook.evaluate(whook.parse_review(POD), loaded) for _ in range(2)]
        self.assertEqual([each.audit["evil"] for each in answers], ["False", "True"])
        self.assertEqual([len(each.patch) for each in answers], [0, 1])

    def test_a_field_that_was_replaced_by_its_copy_is_not_used_any_more(self):
        source = (
            "import copy\ndef mutate(o, r):\n"
            " for old, key in ((o, 'a'), (o['b'], 'c')):\n"
            "  kept = old[key]\n  old[key] = copy.deepcopy(kept)\n  kept.append(5)"
        )
        obj = {"metadata": {}, "a": [1], "b": {"c": [2]}}  # the copies have the same marshal bytes
        loaded = policies(a=source, b="def mutate(o, r): r.audit('same', o == r.object)")
        response = whook.evaluate(whook.parse_review(review(object=obj)), loaded)
        self.assertEqual((response.patch, response.audit), ([], {"same": "True"}))

    def test_edits_of_the_request_are_seen_by_no_other_policy(self):
        edits = """
def mutate(obj, request):
    request.user_info["username"] = request.namespace = request.uid = request.name = "eve"
    request.user_info.pop("groups")
    request.options.clear()
    request.object["spec"] = request.object["kind"] = None
    request.old_object["metadata"]["labels"] = None
    request.operation, request.dry_run = "DELETE", True
validate = mutate
"""
        looks = """
def mutate(obj, request):
    for field in ("user_info", "namespace", "uid", "name", "options", "object", "old_object",
                  "operation", "dry_run"):
        request.audit(field, repr(getattr(request, field)))
validate = mutate
"""
        body = review(operation="UPDATE", oldObject=pod())
        fields = ("user_info", "options", "object", "old_object")
        for verb in ("mutate", "validate", "warn"):
            with self.subTest(verb):
                request = whook.parse_review(body)
                before = [repr(getattr(request, field)) for field in fields]
                seen = whook.evaluate(request, policies(a=looks), verb).audit
                self.assertEqual(seen["object"], repr(pod()))
                changed = whook.evaluate(request, policies(a=edits, b=looks), verb)
                self.assertEqual(changed.audit, seen)
                self.assertEqual(changed.patch, [])
                self.assertEqual(whook.evaluate(request, policies(a=looks), verb).audit, seen)
                self.assertEqual([repr(getattr(request, field)) for field in fields], before)

    def test_the_log_line_has_the_names_of_the_request(self):
        edits = (
            "def mutate(obj, request):\n request.namespace = request.uid = request.name = 'eve'\n"
            " request.user_info['username'] = request.operation = 'eve'"
        )
        with Whook(policies={"p": edits}) as server:
            for user, logged in [("admin", "admin"), (["a"], '""'), ({"a": 1}, '""')]:
                answer = server.post(review(uid=f"u-{user}", userInfo={"username": user}))
                self.assertEqual((answer[0], answer[1]["response"]["uid"]), (200, f"u-{user}"))
                server.wait_for_log(
                    "operation=CREATE kind=Pod object=shop2/tricky "
                    f"user={logged} allowed=true patch=0"
                )
            self.assertEqual(server.post(review(userInfo=None))[0], 200)


class TimeLimit(unittest.TestCase):
    """4 and 6: a review has one time limit, whatever its policies do."""

    def error_of(self, seconds=0.4, deadline=math.inf, **sources) -> whook.PolicyError:
        with mock.patch.object(whook, "TIME_LIMIT", seconds):
            with self.assertRaises(whook.PolicyError) as caught:
                whook.evaluate(whook.parse_review(POD, deadline), policies(**sources))
        self.assertEqual(caught.exception.cause, "time")
        return caught.exception

    def test_all_policies_of_a_review_share_one_limit(self):
        naps = "import time\ndef mutate(o, r): time.sleep(0.1)"
        error = self.error_of(0.4, **{f"p{n}": naps for n in range(8)})
        self.assertRegex(error.message, r'^policy "p\d" failed: (line 2: )?timed out after 0\.4 s')
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0, 0))

    def test_the_deadline_of_the_request_shortens_the_limit(self):
        error = self.error_of(60, time.monotonic() + 0.5, a="def mutate(o, r):\n while True: pass")
        self.assertRegex(error.message, r'^policy "a" failed: line 2: timed out after 0\.\d+ s$')

    def test_no_policy_runs_after_the_deadline(self):
        request = whook.parse_review(POD, time.monotonic() - 1)
        with self.assertRaises(whook.HTTPError) as caught:
            whook.evaluate(request, policies(a=LABEL))
        self.assertEqual(
            (caught.exception.status, caught.exception.message),
            (504, "the deadline passed while the review was queued"),
        )

    def test_the_work_of_whook_is_inside_the_limit(self):
        def spin(*_):
            while True:
                pass

        with mock.patch.object(whook._Difference, "compare_objects", spin):
            error = self.error_of(a=LABEL)
        self.assertEqual(
            error.message,
            'policy "a" failed: timed out after 0.4 s while whook processed its changes',
        )

    def test_a_policy_that_hangs_is_interrupted(self):
        sources = {  # and the line on which
            "loop": ("def mutate(o, r):\n while True:\n  pass", "[23]"),
            "regex": ("import re\ndef mutate(o, r):\n re.fullmatch('(a+)+b', 'a' * 60)", "3"),
            "sleeps": ("import time\ndef mutate(o, r):\n time.sleep(3600)", "3"),
            "swallows": (
                "import time\ndef mutate(o, r):\n try:\n  try:\n   time.sleep(60)\n"
                "  except:\n   time.sleep(60)\n except:\n  time.sleep(60)",
                "5",
            ),
            "swallows-and-returns": (
                "import time\ndef mutate(o, r):\n try:\n  time.sleep(60)\n except: pass",
                "4",
            ),
            "denies": (
                "import time\ndef mutate(o, r):\n try:\n  time.sleep(60)\n except: r.deny('no')",
                "4",
            ),
            "handles": (
                "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
                "def mutate(o, r):\n while True:\n  pass",
                "[45]",
            ),
            "joins": (
                "import threading, time\ndef mutate(o, r):\n"
                " t = threading.Thread(target=time.sleep, args=(60,), daemon=False)\n"
                " t.start()\n t.join()",
                "5",
            ),
        }
        with Whook(policies={name: source for name, (source, _) in sources.items()}) as server:
            for name, (_, line) in sources.items():
                with self.subTest(name):
                    status, answer = server.post(path=f"/mutate/{name}?timeout=10s")
                    self.assertEqual(status, 500)
                    self.assertRegex(
                        answer["message"],
                        rf'^policy "{name}" failed: line {line}: timed out after {LIMIT} s$',
                    )
                    self.assertEqual(server.post(path="/validate")[0], 200)
                    self.assertEqual(
                        server.metric("whook_policy_errors_total", name, 'cause="time"'), 1
                    )
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)  # the thread does not delay the exit

    def test_a_policy_that_changes_handlers_switches_the_limit_off_for_no_other(self):
        sources = {
            "a": "import signal, sys\ndef mutate(o, r):\n"
            " signal.setitimer(signal.ITIMER_REAL, 0)\n"
            " signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
            " signal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
            " sys.settrace(lambda *_: None)",
            "b": "def mutate(o, r):\n while r.uid == 'hang': pass",
        }
        with Whook(policies=sources) as server:
            for path in ("/mutate", "/mutate/b", "/mutate"):
                self.assertEqual(server.post(path=path)[0], 200)
                status, answer = server.post(review(uid="hang"), path)
                self.assertEqual(status, 500)
                self.assertRegex(
                    answer["message"], f'^policy "b" failed: line 2: timed out after {LIMIT} s$'
                )

    def test_code_that_swallows_the_interruption_for_ever_ends_the_process(self):
        loop = "while True:\n{0} try:\n{0}  {1}\n{0} except BaseException: pass"
        body = "time.sleep(60)"
        for depth in (6, 4, 2):  # an outer loop catches what is raised outside the inner try
            body = loop.format(" " * (depth - 1), body)
        source = f"import time\ndef mutate(o, r):\n {body}"
        with Whook(policies={"p": source}) as server:
            with self.assertRaises(OSError):
                server.post(path="/mutate?timeout=30s")
            self.assertEqual(server.process.wait(30), 1)
            self.assertRegex(
                server.wait_for_log("ERROR exit"),
                r'ERROR exit error="code can\'t be interrupted after its time limit" '
                r'at="?.*\bp\.py:\d',
            )

    def test_debug_policies_interrupts_nothing(self):
        source = (
            "import time\ndef mutate(o, r):\n end = time.monotonic() + 0.5\n"
            " while time.monotonic() < end: pass"
        )
        short = "whook.TIME_LIMIT = 0.1"
        with Whook("--debug-policies", policies={"p": source}, patches=short) as server:
            self.assertEqual(server.post()[0], 200)
            self.assertTrue(
                server.logged('WARN debug error="--debug-policies: policies have no time limit"')
            )
        with Whook(policies={"p": source}, patches=short) as server:
            self.assertEqual(server.post()[0], 500)


class Framing(unittest.TestCase):
    """7: the head of a request, accepted only if every reader would understand it alike."""

    GOOD = b"POST /mutate HTTP/1.1\r\nHost: x\r\n"

    def test_heads_that_are_refused(self):
        line = "the request line is not like POST /mutate HTTP/1.1"
        header = "a header is malformed, folded, or has a space before its colon"
        for data, message in [
            (b"hello\r\n\r\n", line),
            (b"GET / HTTP/2.0\r\n\r\n", line),
            (b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", line),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", line),
            (b"GET  / HTTP/1.1\r\n\r\n", line),
            (b"GET / HTTP/1.1\n\n", line),
            (b"", line),
            (self.GOOD + b"A : b\r\n\r\n", header),
            (self.GOOD + b"A: b\r\n c\r\n\r\n", header),
            (self.GOOD + b"A: b\x00\r\n\r\n", header),
            (self.GOOD + b"A: b\rC: d\r\n\r\n", header),
            (self.GOOD + b"A\xa0: b\r\n\r\n", header),
            (self.GOOD + b"\xa0A: b\r\n\r\n", header),
            (self.GOOD + b"nothing\r\n\r\n", header),
            (b"POST / HTTP/1.1\r\nA: b\r\n\r\n", "the header host is missing"),
            (self.GOOD, "the head does not end in a blank line"),
            (self.GOOD + b"A: b\r\n\n", "the head does not end in a blank line"),
        ] + [
            (self.GOOD + field.encode() + b"\r\n\r\n", f"the header {name} is given twice")
            for name, field in [
                ("host", "Host: y"),
                ("content-length", "Content-Length: 1\r\ncontent-length: 1"),
                ("connection", "Connection: close\r\nConnection: keep-alive"),
                ("content-type", "Content-Type: a\r\nContent-Type: a"),
                ("transfer-encoding", "Transfer-Encoding: a\r\nTransfer-Encoding: a"),
            ]
        ]:
            with self.subTest(data=data[:60]), self.assertRaises(whook.HTTPError) as caught:
                whook.read_head(data)
            self.assertEqual((caught.exception.status, caught.exception.message), (400, message))

    def test_heads_that_are_too_large(self):
        for data, message in [
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", "longer than 8192 bytes"),
            (self.GOOD + b"A: " + b"x" * 9000 + b"\r\n\r\n", "longer than 8192 bytes"),
            (self.GOOD + (b"A: " + b"x" * 600 + b"\r\n") * 60 + b"\r\n", "longer than"),
            (self.GOOD + b"A: b\r\n" * 64 + b"\r\n", "there are more than 64 headers"),
        ]:
            with self.subTest(data=data[:60]), self.assertRaises(whook.HTTPError) as caught:
                whook.read_head(data)
            self.assertEqual(caught.exception.status, 431)
            self.assertIn(message, caught.exception.message)
        whook.read_head(self.GOOD + (b"A: " + b"x" * 500 + b"\r\n") * 60 + b"\r\n")

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
            with self.subTest(headers=headers), self.assertRaises(whook.HTTPError) as caught:
                whook.body_length(whook.Head("POST", "/mutate", headers), 100)
            self.assertEqual((caught.exception.status, caught.exception.message), (status, message))
        head = whook.Head("POST", "/mutate", {"content-length": "100"})
        self.assertEqual(whook.body_length(head, 100), 100)
        self.assertEqual(whook.body_length(whook.Head("GET", "/", {}), 100), 0)

    def test_unicode_spaces_around_a_length_are_no_spaces(self):
        for space in (b"\xa0", b"\x85"):
            for field in (space + b"5", b"5" + space, b"\t 5 " + space):
                with self.subTest(field):
                    head = whook.read_head(self.GOOD + b"Content-Length: " + field + b"\r\n\r\n")
                    with self.assertRaisesRegex(whook.HTTPError, "is not a number"):
                        whook.body_length(head, 100)
        head = whook.read_head(self.GOOD + b"Content-Length: \t 5 \t\r\n\r\n")
        self.assertEqual(whook.body_length(head, 100), 5)

    def test_routes(self):
        head = whook.Head("POST", "", {"content-type": "application/json; charset=utf-8"})
        for target, expected in [
            ("/mutate", ("mutate", "", 10.0)),
            ("/mutate?timeout=5s", ("mutate", "", 5.0)),
            ("/validate/team-label?a=b&timeout=30s", ("validate", "team-label", 30.0)),
            ("/warn/x?timeout=9999s", ("warn", "x", 30.0)),
        ]:
            self.assertEqual(whook.route(head._replace(target=target)), expected)
        paths = "the paths are /mutate, /validate, /warn; for one policy /mutate/NAME"
        for changes, status, message in [
            ({"target": "/"}, 404, paths),
            ({"target": "/mutate/"}, 404, paths),
            ({"target": "/mutate/a/b"}, 404, paths),
            ({"target": "/mutatex"}, 404, paths),
            ({"method": "GET"}, 405, "GET is not allowed: POST an AdmissionReview"),
            ({"headers": {}}, 415, "the content-type '' is not application/json"),
            ({"headers": {"content-type": "text/json"}}, 415,
             "the content-type 'text/json' is not application/json"),
            ({"target": "/mutate?timeout=5"}, 400,
             "the timeout '5' is not in whole seconds, as in 5s"),
            ({"target": "/mutate?timeout=1h"}, 400,
             "the timeout '1h' is not in whole seconds, as in 5s"),
        ]:  # fmt: skip
            with self.subTest(changes), self.assertRaises(whook.HTTPError) as caught:
                whook.route(head._replace(**({"target": "/mutate"} | changes)))
            self.assertEqual((caught.exception.status, caught.exception.message), (status, message))


class Serving(unittest.TestCase):
    """7: a real process, over real TLS."""

    @classmethod
    def setUpClass(cls):
        pin = 'def validate(obj, request): request.deny("not pinned")'
        cls.whook = Whook("--max-body=100000", policies={"label": LABEL, "pin": pin})
        cls.enterClassContext(cls.whook)

    def parse_response(self, raw: bytes) -> tuple[int, dict, dict]:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, json.loads(body)

    def test_every_recorded_review_gets_a_valid_response(self):
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
            ("/mutate/label", 200, True), ("/validate", 200, False), ("/validate/pin", 200, False),
            ("/validate/label", 404, None), ("/mutate/nothing", 404, None), ("/warn", 200, True),
            ("/warn/pin", 200, True), ("/warn/label", 404, None), ("/x", 404, None),
        ]:  # fmt: skip
            with self.subTest(path):
                got, answer = self.whook.post(path=path)
                self.assertEqual(
                    (got, answer.get("response", {}).get("allowed")), (status, allowed)
                )

    def test_bad_input_gets_a_status_and_harms_no_other_request(self):
        for raw, status, message in [
            (request_bytes(b""), 400, "it is empty"),
            (request_bytes(b"[]"), 400, "not an AdmissionReview"),
            (request_bytes(b"[" * 90_000), 400, "nested too deeply"),
            (request_bytes(Content_Type="text/plain"), 415, "application/json"),
            (request_bytes(path="/nowhere"), 404, "the paths are"),
            (
                request_bytes().replace(b"POST", b"PUT", 1),
                405,
                "PUT is not supported: use GET or POST",
            ),
            (
                request_bytes().replace(b"POST", b"HEAD", 1),
                405,
                "HEAD is not supported: use GET or POST",
            ),
            (request_bytes().replace(b"1.1", b"1.0", 1), 400, "the request line"),
            (request_bytes(Content_Length=None), 411, "send a content-length"),
            (request_bytes(Content_Length=None, Transfer_Encoding="chunked"), 411, "not supported"),
            (request_bytes(Transfer_Encoding="chunked"), 400, "exclude each other"),
            (request_bytes(Content_Length=100_001), 413, "over the limit of 100000"),
            (request_bytes(Content_Length="+5"), 400, "is not a number"),
            (request_bytes(Host=None), 400, "host is missing"),
            (request_bytes(Connection="keep-alive"), 400, "connection is given twice"),
            (request_bytes(X="y" * 9000), 431, "longer than"),
            (request_bytes(**{f"X{n}": n for n in range(70)}), 431, "more than 64"),
            (b"\x16\x03\x01 rubbish\r\n\r\n", 400, "the request line"),
            (b"x" * 40_000, 431, "the head is longer than"),
        ]:
            with self.subTest(raw=raw[:80], status=status):
                raw = raw.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
                got, headers, body = self.parse_response(self.whook.raw(raw))
                self.assertEqual((got, body["code"], body["kind"]), (status, status, "Status"))
                self.assertEqual((body["apiVersion"], body["status"]), ("v1", "Failure"))
                self.assertIn(message, body["message"])
                self.assertNotIn("Traceback", body["message"])
                self.assertEqual(headers["Connection"], "close")
                if status == 405:
                    self.assertIn("POST", headers["Allow"])
                self.assertEqual(self.whook.post()[0], 200)

    def test_a_bad_review_does_not_close_the_connection(self):
        with self.whook.client() as client:
            for body, status in [(POD, 200), (b"{", 400), (POD, 200)]:
                self.assertEqual(self.whook.post(body, connection=client)[0], status)

    def test_only_the_option_close_closes_the_connection(self):
        for value, closes in [
            ("close", True), ("Close", True), ("keep-alive, close", True), ("keep-alive", False),
            ("x-not-close", False),
        ]:  # fmt: skip
            with self.subTest(value), self.whook.client() as client:
                client.request("POST", "/mutate", POD, JSON | {"Connection": value})
                response = client.getresponse()
                response.read()
                self.assertEqual(response.getheader("Connection"), "close" if closes else None)
                if not closes:
                    self.assertEqual(self.whook.post(connection=client)[0], 200)

    def test_two_requests_at_once_get_two_responses(self):
        answers = self.whook.raw(request_bytes() + request_bytes(Connection="close"))
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), 2)
        self.assertEqual(answers.count(b"Connection: close"), 1)

    def test_an_error_in_the_second_of_two_requests_needs_no_tick(self):
        with Whook(patches="whook.TICK = 60") as server:
            answers = server.raw(request_bytes() + b"rubbish\r\n\r\n", timeout=30)
            server.process.kill()
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), 1)
        self.assertEqual(answers.count(b"HTTP/1.1 400 Bad Request\r\n"), 1)

    def test_a_request_in_pieces(self):
        with self.whook.connect() as client:
            data = request_bytes(Connection="close")
            for start in range(0, len(data), 700):
                client.sendall(data[start : start + 700])
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))

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
        self.assertEqual(self.whook.get("/readyz?verbose"), (200, "ok\n"))
        self.assertEqual(self.whook.get("/x")[0], 404)


class Bounds(unittest.TestCase):
    """7: the limits of a client, in number, size and time."""

    def try_post(self, server) -> int:
        try:
            return server.post()[0]
        except OSError:
            return 0

    def test_the_connection_that_is_idle_for_the_longest_time_is_evicted(self):
        with Whook("--max-connections=2") as server, server.client() as one, server.client() as two:
            for client in (one, two, one):
                self.assertEqual(server.post(connection=client)[0], 200)
            self.assertEqual(server.post()[0], 200)  # in the place of `two`
            self.assertEqual(server.post(connection=one)[0], 200)
            self.assertEqual(two.sock.recv(1), b"")

    def test_an_incomplete_request_is_evicted_before_an_idle_connection(self):
        with Whook("--max-connections=2") as server, server.client() as idle:
            self.assertEqual(server.post(connection=idle)[0], 200)
            with server.connect() as slow:
                slow.sendall(request_bytes()[:-1])
                wait_for(lambda: server.metric("whook_buffered_bytes") > 1000, "the body")
                self.assertEqual(server.post()[0], 200)
                self.assertEqual(read_all(slow), b"")
            self.assertEqual(server.post(connection=idle)[0], 200)

    def test_buffered_bytes_are_limited(self):
        part = request_bytes(POD[:-2] + b" " * 90_000 + POD[-2:])[:-1]
        with Whook("--max-body=100000") as server, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(12)]
            for client in clients:
                client.sendall(part)
            refused = lambda: server.metric("whook_refusals_total", '"503"')  # noqa: E731
            wait_for(lambda: refused() >= 3, "refusals")
            self.assertLessEqual(server.metric("whook_buffered_bytes"), 8 * 100_000)
            self.assertEqual(server.post()[0], 200)
            answered, _, _ = select.select(clients, [], [], 20)
            head, _, body = read_all(answered[0]).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"))
            self.assertIn(b"\r\nRetry-After: 1\r\nConnection: close", head)
            self.assertEqual(json.loads(body)["message"], "whook is at its limit")
            stack.close()
            wait_for(lambda: server.metric("whook_buffered_bytes") == 0, "empty buffers")

    def test_slow_clients_are_closed(self):
        short = "whook.TICK = 0.1; whook.TIMEOUTS |= {s: 3.0 for s in whook.TIMEOUTS}"
        with Whook(patches=short) as server:
            address = ("127.0.0.1", server.port)
            clients = {
                "silent": socket.create_connection(address, 20),
                "half a handshake": socket.create_connection(address, 20),
                "new": server.connect(),
                "half a head": server.connect(),
                "half a body": server.connect(),
                "one byte at a time": server.connect(),
            }
            clients["half a handshake"].sendall(bytes.fromhex("160301020001"))
            clients["half a head"].sendall(b"POST /mutate HTTP/1.1\r\nHo")
            clients["half a body"].sendall(request_bytes()[:-100])
            for name, client in clients.items():
                with self.subTest(name), client:
                    slowly = name == "one byte at a time"
                    self.assertEqual(self.send_slowly(client) if slowly else read_all(client), b"")
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.logged("bug"), [])

    def send_slowly(self, client) -> bytes:
        """Send a byte now and then until the server closes; return what it sent."""
        client.settimeout(0.05)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                client.send(b"P")
                return client.recv(100)
            except TimeoutError:
                continue
            except OSError:
                return b""
        raise AssertionError("the connection is still open")

    def test_a_client_that_never_reads_is_closed(self):
        with Whook(
            patches="whook.TIMEOUTS['writing'] = 0.5; whook.TICK = 0.1",
            policies={"p": "def mutate(o, r): r.audit('x', 'y' * 200_000)"},
        ) as server:
            with server.connect() as client:
                with self.assertRaises(OSError):
                    for _ in range(1000):  # until the buffers of both sides are full
                        client.sendall(request_bytes())
            self.assertEqual(server.post()[0], 200)

    def test_a_step_reads_a_limited_number_of_bytes(self):
        loop, pair = whook.Loop(), socket.socketpair()
        server = whook.Server("127.0.0.1", 0, "--port", lambda *_: None, loop)
        for each in (server.socket, *pair, loop.selector):
            self.addCleanup(each.close)
        pair[0].setblocking(False)
        connection = whook.Connection(server, pair[0], "peer")
        pair[1].sendall(b"x" * 2 * whook.STEP)
        connection.step()
        self.assertEqual(len(connection.received), whook.STEP)

    def test_a_thousand_silent_clients(self):
        with Whook("--max-connections=300") as server:
            clients = []
            for _ in range(1000):
                clients.append(socket.create_connection(("127.0.0.1", server.port)))
            wait_for(lambda: self.try_post(server) == 200, "a response among silent clients")
            for client in clients:
                client.close()
            wait_for(lambda: server.metric("whook_connections") == 0, "the end of all of them")

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
                linger = b"\x01\0\0\0\0\0\0\0"  # on, for no time: close with a reset
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
            wait_for(lambda: self.try_post(server) == 200, "a response after the flood")

    def test_an_old_connection_is_closed_by_a_response(self):
        with Whook(patches="whook.MAX_CONNECTION_AGE = 0.3") as server, server.client() as client:
            client.connect()
            seen = []

            def closed():
                client.request("POST", "/mutate", POD, JSON)
                answer = client.getresponse()
                seen.append(answer.status)
                answer.read()
                return answer.getheader("Connection") == "close"

            wait_for(closed, "a response that closes")
            self.assertEqual(set(seen), {200})

    @unittest.skipUnless(socket.has_dualstack_ipv6(), "there is no IPv6 here")
    def test_without_a_host_both_families_are_served(self):
        for host in ("", "::"):
            with self.subTest(host=host):
                server = whook.Server(host, 0, "--port", lambda *_: None, whook.Loop())
                self.addCleanup(server.server_close)
                port = server.socket.getsockname()[1]
                socket.create_connection(("127.0.0.1", port), 5).close()
                socket.create_connection(("::1", port), 5).close()


class TLS(unittest.TestCase):
    """8: certificates that serve, and the reason if they don't."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.authority = pki.Authority()

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def pair(self, pair: pki.Pair) -> tuple[str, str]:
        return self.file("tls.crt", pair.cert_pem), self.file("tls.key", pair.key_pem)

    def load(self, cert: str, key: str, client_ca: str | None = None) -> whook.ServingCertificate:
        options = argparse.Namespace(tls_cert=cert, tls_key=key, client_ca=client_ca)
        return whook.load_tls(options, whook.read_tls(options))

    def assert_refused(self, files: tuple[str, ...], *words: str, hint: str) -> None:
        with self.subTest(words), self.assertRaises(whook.ConfigError) as caught:
            self.load(*files)
        for word in words:
            self.assertIn(word, caught.exception.message)
        self.assertEqual(caught.exception.hint, hint)

    def test_one_file_with_certificate_and_key(self):
        pair = self.authority.issue()
        for content in (pair.cert_pem + pair.key_pem, pair.key_pem + pair.cert_pem):
            path = self.file("both.pem", content)
            loaded = self.load(path, path)
            self.assertEqual(loaded.names, ("localhost", "127.0.0.1", "0:0:0:0:0:0:0:1"))
            self.assertEqual(loaded.not_after, pair.certificate.not_valid_after_utc.timestamp())

    def test_files_that_do_not_belong_together(self):
        cert, key = self.pair(self.authority.issue())
        other = self.file("other.key", self.authority.issue().key_pem)
        together = "take both from the same Secret, and use no password"
        self.assert_refused(
            (cert, other), f"can't serve with {cert} with {other}: KEY_VALUES_MISMATCH",
            hint=together,
        )  # fmt: skip
        self.assert_refused(
            (key, cert),
            f"{key} holds a private key and {cert} does not: they are swapped",
            hint="--tls-cert is the certificate, --tls-key its private key",
        )
        text = self.file("text", b"rubbish")
        self.assert_refused((text, key), f"can't serve with {text} with {key}: ", hint=together)
        self.assert_refused(
            (cert, key, text),
            f"can't serve with {text}: ",
            hint="give the CA's certificates as PEM",
        )

    def test_a_key_with_a_password(self):
        pair = self.authority.issue()
        key = pki.serialization.load_pem_private_key(pair.key_pem, None)
        encrypted = key.private_bytes(
            pki.serialization.Encoding.PEM,
            pki.serialization.PrivateFormat.PKCS8,
            pki.serialization.BestAvailableEncryption(b"secret"),
        )
        cert, path = self.pair(pki.Pair(pair.cert_pem, encrypted))
        self.assert_refused(
            (cert, path),
            f"can't serve with {cert} with {path}: the key has a password",
            hint="take both from the same Secret, and use no password",
        )

    def test_a_format_that_is_not_pem_is_named(self):
        pair = self.authority.issue()
        cert, key = self.pair(pair)
        der = pki.serialization.Encoding.DER
        private = pki.serialization.load_pem_private_key(pair.key_pem, None).private_bytes(
            der, pki.serialization.PrivateFormat.PKCS8, pki.serialization.NoEncryption()
        )
        der_cert = self.file("cert.der", pair.certificate.public_bytes(der))
        der_key = self.file("key.der", private)
        for files, path, kind in [
            ((der_cert, key), der_cert, "x509"),
            ((cert, der_key), der_key, "pkey"),
        ]:
            self.assert_refused(
                files,
                f"{path} is in DER format, not PEM",
                hint=f"convert it: openssl {kind} -inform der -in {path} -out NEW.pem",
            )
        for replacement in (b" ", b"", b"\\n"):
            one_line = self.file("line.pem", pair.cert_pem.strip().replace(b"\n", replacement))
            key_line = self.file("key-line.pem", pair.key_pem.strip().replace(b"\n", replacement))
            for files, path in [((one_line, key), one_line), ((cert, key_line), key_line)]:
                self.assert_refused(
                    files,
                    f"{path} is PEM without line breaks",
                    hint="keep the line breaks; a shell needs quotes around a variable that "
                    "holds them",
                )
        windows = [self.file("w", x.replace(b"\n", b"\r\n")) for x in (pair.cert_pem,)]
        self.load(windows[0], key)

    def test_certificates_that_no_api_server_would_accept(self):
        day = timedelta(days=1)
        inner = {"parent": self.authority, "not_before": -2 * day}
        for pair, reason in [
            (self.authority.issue(not_after=-day / 24), "certificate has expired"),
            (self.authority.issue(not_before=day), "certificate is not yet valid"),
            (self.authority.issue(client=True), "unsuitable certificate purpose"),
            (self.authority.issue(names=()),
             "it has no subject alternative name, which the API server needs"),
            (pki.Authority("inner", not_after=-day / 24, **inner).issue(), "expired"),
        ]:  # fmt: skip
            for folder, command in [
                ("a", "python certs.py"),
                ("local-certs", "python certs.py local"),
            ]:
                cert = self.file(f"{folder}/tls.crt", pair.cert_pem)
                files = (cert, self.file(f"{folder}/tls.key", pair.key_pem))
                with self.subTest(reason, folder=folder):
                    self.assert_refused(
                        files,
                        f"can't serve with {cert}: ",
                        reason,
                        hint=f"make a new one: {command}",
                    )

    def test_missing_files_have_a_hint_that_depends_on_the_folder(self):
        for folder, command in [("certs", "certs.py"), ("local-certs", "certs.py local")]:
            self.assert_refused(
                (f"{folder}/no.pem", f"{folder}/no.key"),
                f"can't read {folder}/no.pem: No such file or directory",
                hint=f"`python {command}` makes a certificate and its key",
            )

    def test_the_chain_expires_with_its_first_certificate(self):
        inner = pki.Authority("inner", parent=self.authority, not_after=timedelta(days=5))
        moment = inner.certificate.not_valid_after_utc.timestamp()
        later = self.folder / "later"
        clock = (
            "clock = whook.time.time\nwhook.time.time = lambda: clock() + "
            f"6 * 86400 * os.path.exists({str(later)!r})"
        )
        server = Whook(patches=clock, pair=inner.issue())
        server.authority = self.authority
        with server:
            name = "whook_certificate_not_after_timestamp_seconds"
            self.assertEqual(server.metric(name), moment)
            self.assertEqual(server.get("/readyz")[0], 200)
            self.assertEqual(server.post()[0], 200)  # the client trusts the root only
            later.touch()
            self.assertEqual(
                server.get("/readyz"), (503, "not ok: the serving certificate has expired\n")
            )
            self.assertEqual(server.get("/livez")[0], 200)

    def test_client_certificates(self):
        clients = pki.Authority("clients")
        inner = pki.Authority("inner", parent=clients)
        for authority, name in [(clients, "root"), (inner, "intermediate only")]:
            ca = self.file("ca.pem", authority.pem)
            with self.subTest(name), Whook(f"--client-ca={ca}") as server:
                with server.connect(client=authority.issue(client=True)) as client:
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

    def test_alerts_and_dashboards_use_metrics_that_exist(self):
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

    def test_a_kind_that_is_no_name_is_counted_as_other(self):
        metrics = whook.Metrics()
        for kind in ("a b", 'x"y', "x\n", "", "é", "A" * 64):
            request = whook.parse_review(review(kind={"kind": kind}))
            metrics.review("/mutate", request, "allowed", 0.1)
        self.assertEqual(
            metrics.series["whook_reviews_total"], {("/mutate", "CREATE", "other", "allowed"): [6]}
        )

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


class Reload(unittest.TestCase):
    """10: files that change under a running server."""

    def team(self, server: Whook) -> str:
        return patch_of(server.post()[1])[0]["value"]

    def test_policies_are_read_at_start_only(self):
        with Whook(policies={"p": LABEL}) as server:
            server.write_policy("p", LABEL.replace("shop", "other"))
            server.write_pair(server.authority.issue())
            server.wait_for_log("INFO reloaded what=tls")  # so a whole tick has passed
            self.assertEqual(self.team(server), "shop")
            self.assertEqual(server.logged("what=policies"), [])

    def test_with_reload_policies_follow_their_files(self):
        with Whook("--reload", policies={"p": LABEL}) as server:
            self.assertEqual(self.team(server), "shop")
            server.write_policy("p", LABEL.replace("shop", "other"))
            wait_for(lambda: self.team(server) == "other", "the new policy")
            for source, message in [
                ("def mutate(", "SyntaxError"),
                ("while True: pass", "line 1: timed out after 1 s"),
                ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt: "),
                ("import os, sys\nsys.exit(3)", "line 2: SystemExit: 3"),
            ]:
                with self.subTest(source):
                    server.write_policy("p", source)
                    server.wait_for_log("ERROR reload what=policies", message)
                    self.assertEqual(self.team(server), "other")
                    self.assertEqual(server.metric("whook_reload_failing", "policies"), 1)
            server.write_policy("p", LABEL)
            wait_for(lambda: self.team(server) == "shop", "the fixed policy")
            self.assertEqual(len(server.logged("ERROR reload")), 4)
            self.assertEqual(server.metric("whook_reload_errors_total", "policies"), 4)
            self.assertEqual(server.metric("whook_reload_failing", "policies"), 0)
            self.assertEqual(server.metric("whook_policies_info"), 1)

    def test_a_config_map_replaces_a_linked_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            mount = Path(folder)
            for name, source in (("..1", LABEL), ("..2", LABEL.replace("shop", "other"))):
                (mount / name).mkdir()
                (mount / name / "p.py").write_text(source)
            (mount / "..data").symlink_to("..1")
            (mount / "p.py").symlink_to("..data/p.py")
            with Whook(f"--policy={folder}", "--reload") as server:
                self.assertEqual(self.team(server), "shop")
                (mount / "..new").symlink_to("..2")
                (mount / "..new").rename(mount / "..data")
                wait_for(lambda: self.team(server) == "other", "the new folder")

    def test_certificates_follow_their_files(self):
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

    def test_a_certificate_that_is_not_valid_yet_is_tried_again(self):
        with Whook() as server:
            server.write_pair(server.authority.issue(not_before=timedelta(seconds=5)))
            server.wait_for_log("ERROR reload what=tls", "not yet valid")
            server.wait_for_log("INFO reloaded what=tls")

    def test_no_review_is_lost_while_files_change(self):
        with Whook("--reload", policies={"p": LABEL}) as server, Stream(server) as stream:
            for turn in range(3):
                before = len(server.logged("reload"))
                server.write_pair(server.authority.issue())
                server.write_policy("p", "def mutate(" if turn == 1 else LABEL + f"# {turn}")
                wait_for(lambda n=before: len(server.logged("reload")) >= n + 2, "reloads")
                stream.wait_for_more()
        self.assertEqual(stream.failures, [])


class Draining(unittest.TestCase):
    """10: signals, and the end without a lost review."""

    def test_a_rolling_restart_loses_no_review(self):
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
                self.assertEqual(old.process.wait(60), 0)
                stream.wait_for_more()
                old = new
        self.assertEqual(stream.failures, [])

    def test_a_draining_server_is_not_ready_and_still_answers(self):
        with Whook(policies={"slow": SLOW}, grace=60) as server, server.client() as client:
            self.assertEqual(server.post(connection=client)[0], 200)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.get("/readyz") == (503, "not ok: draining\n"), "503")
            self.assertEqual(server.get("/livez")[0], 200)
            client.request("POST", "/mutate", POD, JSON)
            answer = client.getresponse()
            self.assertEqual((answer.status, answer.getheader("Connection")), (200, "close"))
            answer.read()
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.process.wait(60), 0)

    def test_received_reviews_are_answered_after_the_grace_period(self):
        with Whook(policies={"slow": SLOW}) as server, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(4)]
            for client in clients:
                client.sendall(request_bytes(Connection="close"))

            def received():
                answered = server.metric("whook_reviews_total")
                return answered + server.metric("whook_buffered_bytes") // len(POD) >= 4

            wait_for(received, "four reviews")
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))
            self.assertEqual(server.process.wait(60), 0)

    def test_a_response_that_is_being_sent_is_sent_completely(self):
        big = "def validate(o, r):\n for n in range(6): r.audit(f'a{n}', 'x' * 1_000_000)"
        patient = "whook.TIMEOUTS['writing'] = 100.0"  # the last client waits for the others
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
            self.assertEqual(server.process.wait(60), 0)

    def test_a_second_sigterm_changes_nothing(self):
        with Whook(grace=60) as server, server.client() as client:
            server.post(connection=client)
            for _ in range(2):
                server.process.send_signal(signal.SIGTERM)
                wait_for(lambda: server.get("/readyz")[0] == 503, "draining")
            self.assertEqual(server.post(connection=client)[0], 200)
            self.assertEqual(server.process.wait(60), 0)

    def test_a_second_interrupt_ends_at_once(self):
        with Whook(policies={"slow": SLOW}) as server, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(40)]
            for client in clients:  # 12 seconds of work, which a single interrupt would wait for
                client.sendall(request_bytes())
            server.wait_for_log("INFO review")
            server.process.send_signal(signal.SIGINT)
            server.wait_for_log("INFO drain")  # two pending signals of a kind would be one
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(server.process.wait(60), 1)

    def test_sigterm_and_sigint_end_it_and_sighup_does_not(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number=number), Whook() as server:
                server.process.send_signal(signal.SIGHUP)
                self.assertEqual(server.post()[0], 200)
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(60), 0)
                server.wait_for_log("INFO drain")
                server.wait_for_log("INFO end")


class Process(unittest.TestCase):
    """10: policies that do what they should not, and other things that go wrong."""

    def test_a_call_into_c_that_does_not_return_ends_the_process(self):
        hangs = "def mutate(o, r):\n sum(range(10 ** 13))\n"
        with Whook(policies={"p": hangs}, patches="whook.WATCHDOG = 2") as server:
            with self.assertRaises(OSError):
                server.post()
            self.assertEqual(server.process.wait(60), -signal.SIGPROF)
            server.wait_for_log("p.py", "line 2 in mutate")

    def test_a_policy_that_exits_the_process(self):
        source = "import os\ndef mutate(o, r):\n if r.uid == 'die': os._exit(9)"
        with Whook(policies={"p": source}) as server:
            self.assertEqual(server.post()[0], 200)
            with self.assertRaises(OSError):
                server.post(review(uid="die"))
            self.assertEqual(server.process.wait(60), 9)

    def test_a_bad_policy_fails_its_own_review_only(self):
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
            "returns": "def mutate(o, r): return o",
        }
        with Whook(policies=sources, patches="whook.TIME_LIMIT = 20.0") as server:  # a busy machine
            for name in sources:
                with self.subTest(name):
                    status, answer = server.post(path=f"/mutate/{name}?timeout=30s")
                    if name in ("threads", "gigabyte", "request"):
                        self.assertEqual(status, 200)
                    else:
                        self.assertEqual(status, 500)
                        self.assertIn(f'policy "{name}" failed: ', answer["message"])
                    self.assertEqual(server.post(path="/validate")[0], 200)
            self.assertEqual((server.logged("forged"), server.logged("bug")), ([], []))

    def test_the_text_of_an_exception_is_not_logged(self):
        """The text may quote an object, which may be a Secret."""
        sources = {
            "number": "def mutate(o, r): int(o['data']['password'])",
            "key": "def mutate(o, r): o['data'][o['data']['password']]",
            "chained": "def mutate(o, r):\n try: int(o['data']['password'])\n"
            " except ValueError as error: raise RuntimeError(str(error)) from error",
            "own": "def mutate(o, r): raise SystemExit(o['data']['password'])",
            "result": "def mutate(o, r): o[o['data']['password']] = {1}",
            "returned": "def mutate(o, r): return o['data']['password']",
            "slow": "import time\ndef mutate(o, r):\n try: time.sleep(60)\n"
            " finally: raise ValueError(o['data']['password'])",
        }
        secret = {"kind": "Secret", "metadata": {}, "data": {"password": "hunter2"}}
        with Whook(policies=sources) as server:
            for name in sources:
                with self.subTest(name):
                    status, answer = server.post(review(object=secret), f"/mutate/{name}")
                    self.assertEqual(status, 500)
                    if name in ("number", "key", "chained", "own", "result"):
                        self.assertIn("hunter2", answer["message"])
                    server.wait_for_log("ERROR policy", f"policy={name}")
            line = server.wait_for_log("ERROR policy", "policy=number")
            self.assertIn('error=ValueError at="number.py:1 mutate < whook.py:', line)
            self.assertEqual(server.logged("hunter2"), [])

    def test_nobody_reads_the_log(self):
        full = """
class Loop(whook.Loop):
    def tick(self, pipe=os.pipe()):
        os.dup2(pipe[1], 2)
        super().tick()
whook.Loop = Loop"""
        with Whook(patches=full) as server, server.client() as client:
            for _ in range(1000):
                self.assertEqual(server.post(connection=client)[0], 200)
            self.assertGreater(server.metric("whook_log_lines_dropped_total"), 100)
            self.assertEqual(server.get("/readyz")[0], 200)

    @unittest.skipUnless(Path("/dev/full").exists(), "there is no /dev/full here")
    def test_a_full_disk_under_the_log(self):
        full = """
class Loop(whook.Loop):
    def tick(self):
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        super().tick()
whook.Loop = Loop"""
        with Whook(patches=full) as server:
            self.assertEqual(server.post()[0], 200)
            self.assertEqual(server.logged("INFO review"), [])

    def test_no_input_makes_a_line_or_a_metric_long(self):
        long = "\U0001f600" * 100_000
        with Whook("--log-format=json") as server:
            body = review(kind={"kind": long}, name=long, userInfo={"username": long})
            self.assertEqual(server.post(body)[0], 200)
            self.assertEqual(server.post(review(operation=long))[0], 400)
            self.assertEqual(server.post(path="/mutate/" + "y" * 5000)[0], 404)
            server.wait_for_log('"review"')
            for line in server.log:
                self.assertLess(len(line), whook.PIPE_BUF)
                json.loads(line)
            self.assertLess(len(server.get("/metrics")[1]), 20_000)

    def test_the_wall_clock_jumps(self):
        jumps = """
import itertools
class Process(whook.Process):
    def run(self, clock=itertools.cycle([0, 4e9, 1.8e9])):
        whook.time.time = lambda: next(clock)
        super().run()
whook.Process = Process"""
        with Whook(patches=jumps, policies={"p": LABEL}) as server:
            for _ in range(5):
                self.assertEqual(server.post()[0], 200)

    def test_no_client_loses_the_time_for_which_whook_was_stopped(self):
        short = "whook.TIMEOUTS['body'] = 2.5; whook.TICK = 0.1"
        with Whook(patches=short) as server, server.connect() as client:
            client.sendall(request_bytes(Connection="close")[:-1])
            wait_for(lambda: server.metric("whook_buffered_bytes") > 1000, "the body")
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(3)  # longer than the timeout
            server.process.send_signal(signal.SIGCONT)
            client.sendall(request_bytes()[-1:])
            self.assertTrue(read_all(client).startswith(b"HTTP/1.1 200 OK"))

    def test_a_stream_of_reviews_continues_after_a_stop(self):
        with Whook() as server, Stream(server) as stream:
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            server.process.send_signal(signal.SIGCONT)
            stream.wait_for_more()
        self.assertEqual(stream.failures, [])


class CommandLine(unittest.TestCase):
    """11: usage, the errors at start, and the ways to start."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.authority = pki.Authority()
        cls.cert, cls.key = cls.authority.issue().write(cls.folder)
        cls.tls = (f"--tls-cert={cls.cert}", f"--tls-key={cls.key}")

    def run_whook(self, *arguments: object, **environment: str) -> tuple[int, str, str]:
        run = subprocess.run(
            [sys.executable, ROOT / "whook.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | environment,
        )
        return run.returncode, run.stdout, run.stderr

    def write(self, name: str, text: str = LABEL) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def test_a_host_without_an_address(self):
        status, _, printed = self.run_whook(*self.tls, "--host=no.such.invalid")
        self.assertEqual(status, 1)
        self.assertIn("whook: error: can't listen on no.such.invalid, port 8443: ", printed)

    def test_an_error_at_start_is_two_lines_and_status_1(self):
        bad = self.write("bad.py", "def mutate(obj): pass")
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        port = taken.getsockname()[1]
        listen = f"can't listen on 127.0.0.1, port {port}: Address already in use"
        choose = "choose another port or address with {} or --host, or stop what uses it"
        files = "--policy takes a Python file, or a folder with Python files"
        for arguments, message, hint in [
            (("--tls-cert=/no.pem", "--tls-key=/no.key"),
             "can't read /no.pem: No such file or directory",
             "`python certs.py` makes a certificate and its key"),
            ((*self.tls, "--policy=/no"), "can't read /no: No such file or directory", files),
            ((*self.tls, "--policy", ""), "the name of a policy file is empty", files),
            ((*self.tls, f"--policy={bad}"),
             f"policy {bad}: mutate can't be called with two arguments: too many positional "
             "arguments", "write `def mutate(obj, request):`"),
            ((*self.tls, "--host=127.0.0.1", f"--port={port}"), listen, choose.format("--port")),
            ((*self.tls, "--host=127.0.0.1", "--port=0", f"--health-port={port}"), listen,
             choose.format("--health-port")),
        ]:  # fmt: skip
            with self.subTest(message):
                status, _, printed = self.run_whook(*arguments)
                lines = [line for line in printed.splitlines() if line.startswith("whook: ")]
                self.assertEqual(
                    (status, lines), (1, [f"whook: error: {message}", f"whook: hint: {hint}"])
                )

    def test_wrong_usage_is_status_2(self):
        for arguments, message in [
            ((), "the following arguments are required: --tls-cert, --tls-key\n"),
            (("--tls-cert=a",), "the following arguments are required: --tls-key\n"),
            (("--tls-cert=a", "--tls-key=b", "--port=x"),
             "argument --port: 'x' is not a number from 0 to 65535"),
            (("--tls-cert=a", "--tls-key=b", "--port=8080"),
             "--port and --health-port must differ"),
            (("--tls-cert=a", "--tls-key=b", "--max-body=0"),
             "argument --max-body: '0' is not a number from 1024 to 1073741824"),
            (("--tls-cert=a", "--tls-key=b", "--log-format=xml"), "invalid choice: 'xml'"),
        ]:  # fmt: skip
            with self.subTest(message):
                status, _, printed = self.run_whook(*arguments)
                self.assertEqual(status, 2)
                self.assertIn("\nwhook: error: ", printed)
                self.assertIn(message, printed)
                if "required" in message:
                    hint = "`python certs.py local` makes a certificate and its key"
                    self.assertIn(f"\nwhook: hint: {hint}", printed)

    def test_help_has_the_defaults_and_explains_reload(self):
        text = " ".join(self.run_whook("--help", COLUMNS="80")[1].split())
        for value in ("8443", "8080", "7340032", "1000", "95", "text", "all"):
            self.assertIn(f"(default: {value})", text)
        self.assertIn(
            "--reload load policies again when they change; for development: an import that hangs "
            "in C or exits the process ends whook",
            text,
        )

    def test_version(self):
        self.assertEqual(self.run_whook("--version"), (0, f"whook {whook.__version__}\n", ""))

    def test_check_prints_the_policies_and_the_certificate(self):
        one, two = self.write("ok/b.py"), self.write("ok/a.py", "def validate(o, r): 0\n" + LABEL)
        expected = (
            rf"a: mutate, validate \({re.escape(str(two))}\)\n"
            rf"b: mutate \({re.escape(str(one))}\)\n2 policies, hash [0-9a-f]{{12}}\n"
        )
        certificate = (
            r"certificate for localhost,127\.0\.0\.1,0:0:0:0:0:0:0:1, "
            r"expires \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n"
        )
        for arguments, output in [((), expected), (self.tls, expected + certificate)]:
            status, printed, errors = self.run_whook(
                "--check", "--policy", self.folder / "ok", *arguments
            )
            self.assertEqual((status, errors), (0, ""))
            self.assertRegex(printed, f"^{output}$")

    def test_check_fails_for_bad_policies_and_certificates(self):
        bad, expired = self.write("bad/p.py", "x = 1"), self.folder / "expired"
        expired.mkdir()
        pair = self.authority.issue(not_after=-timedelta(hours=1)).write(expired)
        for arguments, message in [
            (("--policy", bad), f"policy {bad} defines neither mutate nor validate\n"),
            ((f"--tls-cert={pair[0]}", f"--tls-key={pair[1]}"),
             f"can't serve with {pair[0]}: certificate has expired\n"),
        ]:  # fmt: skip
            with self.subTest(message):
                status, _, errors = self.run_whook("--check", *arguments)
                self.assertEqual(status, 1)
                self.assertTrue(errors.startswith(f"whook: error: {message}whook: hint: "), errors)

    def test_the_command_in_the_hint_prints_the_traceback(self):
        bad = self.write("my policies/bad.py", "import json\njson.loads('{')\n")
        status, _, errors = self.run_whook(*self.tls, "--policy", bad)
        self.assertNotIn("Traceback", errors)
        command = re.search("^whook: hint: see the traceback: (python .+)$", errors, re.M)[1]
        Path(self.folder, "bin").mkdir()
        Path(self.folder, "bin", "python").symlink_to(sys.executable)
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        run = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, env=os.environ | {"PATH": path}
        )
        self.assertEqual((status, run.returncode), (1, 1))
        self.assertIn("Traceback (most recent call last):\n", run.stderr)
        self.assertIn(f'File "{bad}", line 2, in <module>\n', run.stderr)
        self.assertIn(f"whook: error: policy {bad} does not load: line 2: JSON", run.stderr)

    def test_the_start_is_logged(self):
        with Whook(policies={"b": LABEL, "a": LABEL}) as server:
            for words, pattern in [
                ("INFO start", r"version=1\.0\.0 python=3\.\S+ process=\d+$"),
                ("INFO policies", r"names=a,b hash=[0-9a-f]{12}$"),
                ("INFO tls", r"names=localhost,127\.0\.0\.1,0:0:0:0:0:0:0:1 not_after=\d{4}-.*Z$"),
                ("INFO ready", rf"admission=127\.0\.0\.1:{server.port} health=127\.0\.0\.1:\d+ "
                 rf"reviews=https://127\.0\.0\.1:{server.port}/mutate$"),
            ]:  # fmt: skip
                self.assertRegex(server.wait_for_log(words), pattern)
        with Whook("--host=0.0.0.0") as server:
            server.wait_for_log("INFO ready", f" reviews=https://localhost:{server.port}/mutate")

    def test_json_log(self):
        with Whook("--log-format=json", policies={"a": LABEL}) as server:
            server.post()
            entry = json.loads(server.wait_for_log('"review"'))
            self.assertEqual(
                (entry["level"], entry["event"], entry["kind"], entry["allowed"], entry["patch"]),
                ("INFO", "review", "Pod", True, 1),
            )

    def test_policies_import_objects_with_a_safe_path(self):
        source = "from objects import edit\n" + LABEL
        with Whook(policies={"p": source}, environment={"PYTHONSAFEPATH": "1"}) as server:
            self.assertEqual(patch_of(server.post()[1]), LABEL_PATCH)

    @unittest.skipUnless(Path("/proc/self/fd").exists(), "there is no /proc here")
    def test_closed_standard_streams_are_opened(self):
        ready, code = (
            self.folder / "ready",
            f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
import whook
class Process(whook.Process):
    def run(self):
        pathlib.Path(sys.argv[1]).write_text(f"{{self.health.socket.getsockname()[1]}}\\n")
        super().run()
whook.Process = Process
os._exit(whook.main(sys.argv[2:]))""",
        )
        for closed in ("2>&-", "<&- >&- 2>&-", "<&-"):
            with self.subTest(closed):
                ready.write_text("")
                options = ["--host=127.0.0.1", "--port=0", "--health-port=0", "--grace-period=0"]
                command = [sys.executable, "-c", code, str(ready), *self.tls, *options]
                process = subprocess.Popen(
                    ["sh", "-c", f"exec {shlex.join(command)} {closed}"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                self.addCleanup(process.kill)
                wait_for(lambda: ready.read_text().endswith("\n"), "the start")
                for number in range(3):
                    link = os.readlink(f"/proc/{process.pid}/fd/{number}")
                    self.assertNotIn("socket", link)
                    self.assertNotIn("eventpoll", link)
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(60), 0)


if __name__ == "__main__":
    unittest.main()
