"""Tests of workbench/cases.py and what it stands on: reading, judging, rewriting, coverage."""

import contextlib
import io
import json
import os
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

import review
import whook
from tests.server import POD, REVIEWS
from workbench import cases, documents
from workbench.cover import Cover, missed
from workbench.rewrite import as_yaml, set_key

TEAM = """\
def mutate(obj, request):
    obj["metadata"].setdefault("labels", {})["team"] = "shop"
"""
PICKY = """\
LIMIT = 1

def validate(obj, request):
    if obj is None:
        request.warn("gone")
        return
    request.audit("containers", len(obj["spec"]["containers"]))
    for container in obj["spec"]["containers"]:
        if container["image"].endswith(":latest"):
            request.deny(f'container "{container["name"]}": not latest')
    if len(obj["spec"]["containers"]) > LIMIT:
        request.deny("too many", 429, "TooManyRequests")
"""
OBJECT = """\
object:
  apiVersion: v1
  kind: Pod
  metadata: {name: web}
  spec:
    containers:
      - {name: web, image: "nginx:1.27"}
"""


class Folder(unittest.TestCase):
    """Policies in a folder, cases in a folder beside them, and the command line."""

    maxDiff = None

    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.folder = Path(os.path.realpath(folder))
        self.enterContext(contextlib.chdir(self.folder))
        self.write("team.py", TEAM)
        self.write("picky.py", PICKY)

    def write(self, name: str, text: str | bytes) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def case(self, text: str, name: str = "cases/team.yaml") -> cases.Case:
        [case] = cases.read([str(self.write(name, text))])
        return case

    def judge(self, text: str, name: str = "cases/team.yaml") -> cases.Result:
        [result] = cases.run_all([self.case(text, name)])
        return result

    def run_tests(self, *arguments: str) -> tuple[int, str, str]:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                status = review.main(list(arguments))
            except SystemExit as end:
                status = int(end.code)
        return status, out.getvalue(), err.getvalue()


# ---------------------------------------------------------------------------- reading


class Reading(Folder):
    def test_what_is_requested(self):
        """A CREATE by default; what the case says of the request besides its object."""
        old = OBJECT.replace("object:", "oldObject:")
        exec_ = "object: {apiVersion: v1, kind: PodExecOptions}\n"
        scale = "object: {apiVersion: autoscaling/v1, kind: Scale}\n"
        pods = {"group": "", "version": "v1", "resource": "pods"}
        for text, expected in [
            (OBJECT, {"operation": "CREATE", "namespace": "default", "name": "web",
                      "resource": pods, "oldObject": None}),
            (OBJECT + "namespace: shop", {"namespace": "shop"}),
            (OBJECT + "user: ann", {"userInfo": {"username": "ann", "groups": []}}),
            (OBJECT + "groups: [a, b]", {"userInfo": {"username": "local", "groups": ["a", "b"]}}),
            (OBJECT + "groups: a", {"userInfo": {"username": "local", "groups": ["a"]}}),
            (OBJECT + old, {"operation": "UPDATE"}),
            (OBJECT + old + "subResource: resize", {"subResource": "resize"}),
            (old, {"operation": "DELETE", "object": None, "name": "web"}),
            (exec_ + "operation: CONNECT\nresource: pods\nname: x",
             {"operation": "CONNECT", "resource": pods, "name": "x", "options": None}),
            (scale + "resource: apps/deployments",
             {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}}),
        ]:  # fmt: skip
            with self.subTest(text):
                request = self.case(f"{text}\nexpect: unchanged").review["request"]
                self.assertEqual({key: request[key] for key in expected}, expected)

    def test_a_whole_review(self):
        """As it is, here or in a file, and with other fields; or a file with an object."""
        whole = json.loads(POD)
        self.write("cases/review.json", POD)
        self.assertEqual(self.case("review: review.json\nexpect: unchanged").review, whole)
        text = as_yaml({"review": whole, "expect": "unchanged"})
        self.assertEqual(self.case(text).review, whole)
        changed = self.case(
            "review: review.json\nnamespace: other\nuser: ann\n"
            "object: {metadata: {labels: {tier/x: null, new: a}}}\nexpect: unchanged"
        ).review["request"]
        self.assertEqual((changed["namespace"], changed["userInfo"]["username"]), ("other", "ann"))
        self.assertEqual(changed["userInfo"]["groups"], whole["request"]["userInfo"]["groups"])
        labels = {"app.kubernetes.io/name": "tricky", "new": "a"}
        self.assertEqual(changed["object"]["metadata"]["labels"], labels)
        self.assertEqual(changed["object"]["spec"], whole["request"]["object"]["spec"])
        self.write("cases/pod.yaml", textwrap.dedent(OBJECT.partition("\n")[2]))
        pod = self.case("review: pod.yaml\nexpect: unchanged").review["request"]
        self.assertEqual((pod["operation"], pod["name"]), ("CREATE", "web"))

    def test_policies(self):
        """By path from the case's file, by name, or by the name of the case's file."""
        self.write("other/far.py", TEAM)
        for line, found in [
            ("", ["team.py"]),
            ("policies: ../picky.py\n", ["picky.py"]),
            ("policies: picky\n", ["picky.py"]),
            ("policies: [picky, ../team.py]\n", ["picky.py", "team.py"]),
            ("policies: ..\n", ["."]),
            ("policies: far\n", ["other/far.py"]),
        ]:
            with self.subTest(line):
                path = self.write("cases/team.yaml", f"{line}{OBJECT}expect: unchanged")
                [case] = cases.read([str(path)], ["other"])
                self.assertEqual(list(case.policies), found)

    def test_parameters(self):
        text = f"policies: picky\nparameters: {{LIMIT: 0}}\n{OBJECT}"
        text += "expect: {denied: too many, code: 429, reason: TooManyRequests, "
        self.assertEqual(cases.why(self.judge(text + 'audit: {containers: "1"}}')), [])

    def test_titles_and_places(self):
        text = f"# first\ncase: one\n{OBJECT}expect: unchanged\n---\n\n{OBJECT}expect: unchanged\n"
        found = list(cases.read([str(self.write("cases/team.yaml", text))]))
        self.assertEqual(
            [(case.place, case.title, case.number) for case in found],
            [
                ("cases/team.yaml:2", "one", 0),
                ("cases/team.yaml:13", "CREATE Pod default/web", 1),
            ],
        )

    def test_folders(self):
        """YAML right in them, and in folders below that are named `cases`; not what is hidden, and
        not the objects that cases refer to."""
        case = OBJECT + "policies: picky\nexpect: unchanged\n"
        for name in ("cases/a.yaml", "cases/more/b.yml", "lib/cases/c.yaml", "lib/not.yaml"):
            self.write(name, case)
        for name in (".git/cases/x.yaml", "_old/cases/x.yaml", "cases/x.json", "values.yaml"):
            self.write(name, "no: case")
        self.write("cases/objects/pod.yaml", textwrap.dedent(OBJECT.partition("\n")[2]))
        everywhere = ["cases/a.yaml", "cases/more/b.yml", "lib/cases/c.yaml"]
        for folder, expected in [
            ("", everywhere),
            ("cases", everywhere[:2]),
            ("cases/more", ["cases/more/b.yml"]),
            ("lib", ["lib/cases/c.yaml", "lib/not.yaml"]),
            (str(self.folder / "lib"), [f"{self.folder}/{x}" for x in
                                        ("lib/cases/c.yaml", "lib/not.yaml")]),
        ]:  # fmt: skip
            with self.subTest(folder):
                found = [str(path) for path in cases.files_in(folder)]
                self.assertEqual([path for path in found if "objects" not in path], expected)
        self.assertEqual([case.source for case in cases.read([""])], everywhere)

    def test_policies_are_loaded_without_cases(self):
        self.write("cases/team.yaml", OBJECT)
        self.assertEqual(sorted(whook.read_sources(["."])), ["picky.py", "team.py"])

    def test_bad_input(self):
        """One error, which names the file and the line, and a hint."""
        fine = OBJECT + "expect: unchanged\n"
        form = cases.FORM
        for text, message, hint in [
            (OBJECT, "line 1: the case has no `expect`",
             "say what should come of it, or let --accept write what does"),
            (OBJECT + "expect:", "line 1: the case has no `expect`",
             "say what should come of it, or let --accept write what does"),
            (OBJECT + "expect: {}", "line 1: the case has no `expect`",
             "say what should come of it, or let --accept write what does"),
            (OBJECT + "expect: allowed", "line 8: `expect` can't be 'allowed'",
             "`expect: unchanged`, or an object such as `expect: {denied: …}`"),
            (OBJECT + "expect: [a]", "line 8: `expect` must be a text or an object", form),
            (OBJECT + "expect: {warning: x}", "line 1: `expect` has no key 'warning'",
             "do you mean `warnings`?"),
            (OBJECT + "expect:\n  denied: x\n  changes: {a: b}",
             "line 8: `expect` has both `changes` and `denied`", form),
            (OBJECT + "expect: {code: 429}", "line 8: `code` belongs to `denied`", form),
            (fine + "expects: x", "line 9: a case has no key 'expects'", "do you mean `expect`?"),
            (fine + "xyz: x", "line 9: a case has no key 'xyz'", "it has case, policies,"),
            (fine + "user: 5", "line 9: `user` must be a text", form),
            (fine + "groups: [5]", "line 9: `groups` must be a list of texts", form),
            (fine + "verb: deny", "line 9: there is no verb 'deny'",
             "mutate, validate or warn"),
            (fine + "policies: nowhere", "line 9: there is no policy 'nowhere'",
             "a path from the case's file on, or the name of a file beside it or further up"),
            (fine + "policies: ../x.py", "line 9: there is no policy '../x.py'",
             "a path from the case's file on, or the name of a file beside it or further up"),
            (fine + "policies: []", "line 9: the case is about no policy", form),
            (fine + "policies: ..\nparameters: {A: 1}",
             "line 10: `parameters` are those of one policy", form),
            (fine + "operation: UPDATE", "line 9: an UPDATE has `object` and `oldObject`", form),
            (fine + "operation: DESTROY", "line 1: the review can't be read: request.operation "
             "must be one of CREATE, UPDATE, DELETE, CONNECT", form),
            ("expect: unchanged", "line 1: the case has no `object`",
             "or `oldObject`, or `review`"),
            ("object: {kind: Pod}\nexpect: unchanged",
             "line 1: the object: apiVersion is missing, so this is no Kubernetes object",
             documents.HINT),
            ("review: {kind: AdmissionReview, apiVersion: v1}\nexpect: unchanged",
             "line 1: the AdmissionReview has no request", form),
            ("review: {kind: AdmissionReview, apiVersion: admission.k8s.io/v1, request: "
             "{userInfo: [a], resource: 5}}\nuser: a\nresource: pods\nexpect: unchanged",
             "line 1: the review can't be read: request.uid is missing", form),
            (fine + "# user: this\nuser: 5\n---\nuser: a", "line 10: `user` must be a text", form),
            ("review: two.yaml\nexpect: unchanged",
             "line 1: two.yaml holds 2 documents, and must hold one",
             "give each a file of its own"),
            ("apiVersion: v1\nkind: Pod", "line 1: this is a Pod, and no case",
             "put it below `object:`"),
            (fine + "---\n" + OBJECT, "line 10: the case has no `expect`",
             "say what should come of it, or let --accept write what does"),
            ("a: &a [*a]", "line 1: the alias *a stands inside of &a",
             "name a value that ends above it"),
            (fine + fine, 'line 9: the key "object" stands there twice',
             "put a line of --- between two documents"),
        ]:  # fmt: skip
            with self.subTest(text):
                self.write("cases/two.yaml", "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\n")
                self.write("cases/team.yaml", text)
                status, out, err = self.run_tests("test", "cases/team.yaml")
                self.assertEqual((status, out), (1, ""))
                error, told = err.splitlines()
                self.assertEqual(error, f"whook: error: cases/team.yaml, {message}")
                self.assertTrue(told.startswith(f"whook: hint: {hint}"), told)

    def test_a_tab(self):
        self.write("cases/team.yaml", f"{OBJECT}expect: unchanged\n\tx: y")
        status, _, err = self.run_tests("test", "cases/team.yaml")
        error, hint = err.splitlines()
        self.assertEqual(status, 1)
        self.assertRegex(error, "^whook: error: cases/team.yaml, line 9: not YAML: found ")
        self.assertTrue(hint.startswith("whook: hint: indent with spaces, never with a tab"))

    def test_files_that_are_not_there(self):
        self.write("cases/team.yaml", "review: none.yaml\nexpect: unchanged")
        self.write("cases/other.yaml", f"{OBJECT}expect: unchanged\n")
        self.write("cases/bytes.yaml", b"\xff")
        self.write("cases/broken.yaml", f"{OBJECT}expect: unchanged\n")
        self.write("broken.py", "def mutate(")
        for path, message in [
            ("nowhere.yaml", "can't read nowhere.yaml: "),
            ("cases/bytes.yaml", "can't read cases/bytes.yaml: "),
            ("cases/team.yaml", "can't read cases/none.yaml: "),
            ("cases/other.yaml", "cases/other.yaml, line 1: there is no policy 'other'"),
            ("cases/broken.yaml", "policy broken.py does not load: line 1: SyntaxError: "),
        ]:
            with self.subTest(path):
                status, out, err = self.run_tests("test", path)
                self.assertEqual((status, out), (1, ""))
                self.assertIn(f"whook: error: {message}", err)
                self.assertEqual(len(err.splitlines()), 2)


# ---------------------------------------------------------------------------- what changes


class Changes(unittest.TestCase):
    TABLE = (
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, {"b": 3}),
        ({"a": 1, "b": 2}, {"b": 2, "c": {"d": 4}}, {"a": None, "c": {"d": 4}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
        ({"a": True}, {"a": 1}, {"a": 1}),
        ({"l": [1, 2]}, {"l": [2]}, {"l": [2]}),
        (
            {"l": [{"name": "a", "x": 1}, {"name": "b", "x": 1}, {"name": "c"}]},
            {"l": [{"name": "n"}, {"name": "b", "x": 2}, {"name": "a", "x": 1}]},
            {"l": [{"name": "n"}, {"name": "b", "x": 2}, {"name": "a"}]},
        ),
        ({"l": [{"name": "a"}]}, {"l": []}, {"l": []}),
        ({"l": [{"key": "a"}]}, {"l": [{"key": "a"}, {"key": "b"}]},
         {"l": [{"key": "a"}, {"key": "b"}]}),
        ({"a": {}}, {"a": []}, {"a": []}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
    )  # fmt: skip

    def test_changes(self):
        for before, after, expected in self.TABLE:
            with self.subTest(before=before, after=after):
                changes = cases.changes_of(before, after)
                self.assertEqual(whook.diff(changes, expected), [])
                self.assertEqual(whook.diff(cases.merged(before, changes), after), [])

    def test_in_the_order_of_the_object(self):
        names = [f"key-{number}" for number in range(20)]
        changes = cases.changes_of(dict.fromkeys(names, 1), dict.fromkeys(names[::-1][10:], 2))
        self.assertEqual(list(changes), names[10:] + names[:10][::-1])

    def test_fields(self):
        obj = {"a": {"b": 1, "c": 2}, "l": [{"name": "x", "v": 1, "w": 2}, {"name": "y"}]}
        for asked, expected in [
            ({"a": {"b": 5}}, {"a": {"b": 1}}),
            ({"z": 1}, {"z": None}),
            ({"a": 1}, {"a": obj["a"]}),
            ({"l": [{"name": "x", "v": 9}]}, {"l": [{"name": "x", "v": 1}]}),
            ({"l": [{"name": "gone"}, {"name": "y"}]}, {"l": [{"name": "y"}]}),
            ({"l": []}, {"l": []}),
            ({"l": [1]}, {"l": obj["l"]}),
        ]:
            with self.subTest(asked):
                self.assertEqual(cases.fields_of(obj, asked), expected)

    VALUES = st.recursive(
        st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "y"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "b", "name"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
    OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)

    @settings(max_examples=150, deadline=None)
    @given(OBJECTS, OBJECTS)
    def test_any_two_objects(self, before, after):
        """What is accepted is what would be expected: changes, or where these can't say it (two
        items of one name), the object whole."""
        expect = cases.accept({"object": after}, before, after)
        if expect == cases.UNCHANGED:
            self.assertEqual(whook.diff(before, after), [])
        else:
            whole = expect.get("object", cases.merged(before, expect.get("changes")))
            self.assertEqual(whook.diff(whole, after), [])


# ---------------------------------------------------------------------------- judging


class Judging(Folder):
    def test_as_expected(self):
        latest = OBJECT.replace("1.27", "latest")
        gone = OBJECT.replace("object:", "oldObject:")
        for name, text, expect in [
            ("team", OBJECT, "changes: {metadata: {labels: {team: shop}}}"),
            ("team", OBJECT, "fields: {metadata: {labels: {team: shop}}}"),
            ("team", OBJECT, "object: {apiVersion: v1, kind: Pod, metadata: {name: web, labels: "
             '{team: shop}}, spec: {containers: [{name: web, image: "nginx:1.27"}]}}'),
            ("picky", OBJECT, 'audit: {containers: "1"}'),
            ("picky", latest, "denied: 'container \"web\": not latest'\n  "
             'audit: {containers: "1"}'),
            ("picky", gone, "warnings: [gone]"),
            ("picky", gone, "warnings: gone"),
            ("picky", OBJECT + "verb: mutate\n", "unchanged"),
            ("picky", latest + "verb: warn\n", "warnings: 'container \"web\": not latest'\n  "
             "audit: {containers: '1', would-deny: 'picky: container \"web\": not latest'}"),
            ("team", OBJECT + "verb: validate\n", "unchanged"),
            ("fault", OBJECT, "failed: 'ZeroDivisionError: division by zero'"),
            ("fault", OBJECT + "verb: warn\n", "failed: 'ZeroDivisionError: division by zero'"),
        ]:  # fmt: skip
            with self.subTest(name, expect=expect):
                self.write("fault.py", "def mutate(o, r): 1 / 0\nvalidate = mutate")
                expect = f" {expect}" if expect == "unchanged" else f"\n  {expect}"
                result = self.judge(f"policies: {name}\n{text}expect:{expect}")
                self.assertEqual(cases.why(result), [])
                self.assertTrue(result.ok)

    def test_not_as_expected(self):
        """What is not named must not happen."""
        latest = OBJECT.replace("1.27", "latest")
        for name, text, expect, lines in [
            ("team", OBJECT, "changes: {metadata: {labels: {team: x}}}",
             ["     name: web", "     labels:", "-      team: x", "+      team: shop"]),
            ("team", OBJECT, "changes: {metadata: {labels: {team: shop, more: x}}}",
             ["-      more: x"]),
            ("team", OBJECT, "fields: {metadata: {labels: {team: 5}}}",
             ["-      team: 5", "+      team: shop"]),
            ("team", OBJECT, "object: {kind: Pod}", ["+  apiVersion: v1"]),
            ("team", OBJECT, "unchanged", ["+    labels:", "+      team: shop"]),
            ("team", OBJECT, "denied: x", ["-denied: x", "+changes:", "+      team: shop"]),
            ("picky", OBJECT, "unchanged", ["+audit:", "+  containers: '1'"]),
            ("picky", OBJECT, "audit: {containers: 1}",
             ["-  containers: 1", "+  containers: '1'"]),
            ("picky", latest, "unchanged",
             ["-unchanged: true", "+denied: 'container \"web\": not latest'"]),
            ("picky", latest, "denied: not latest\n  audit: {containers: '1'}",
             ["-denied: not latest", "+denied: 'container \"web\": not latest'"]),
            ("picky", latest, "denied: 'container \"web\": not latest'\n  code: 429\n  "
             "audit: {containers: '1'}", ["-code: 429"]),
            ("fault", OBJECT, "unchanged", ["+failed: 'ZeroDivisionError: division by zero'"]),
        ]:  # fmt: skip
            with self.subTest(name, expect=expect):
                self.write("fault.py", "def mutate(o, r): 1 / 0")
                expect = f" {expect}" if expect == "unchanged" else f"\n  {expect}"
                result = self.judge(f"policies: {name}\n{text}expect:{expect}")
                self.assertFalse(result.ok)
                self.assertEqual(result.diff()[:2], ["--- expected", "+++ found"])
                for line in lines:
                    self.assertIn(line, result.diff())

    def test_what_no_case_can_expect(self):
        """A policy that is not idempotent, and what an API server would refuse."""
        self.write("grows.py", 'def mutate(o, r): o["metadata"]["name"] += "x"')
        result = self.judge(f"policies: grows\n{OBJECT}expect: {{changes: "
                            "{metadata: {name: webx}}}\n")  # fmt: skip
        self.assertEqual(result.diff(), [])
        self.assertFalse(result.ok)
        self.assertIn('policy "grows" is not idempotent: on its own result it', result.problems[0])
        self.assertIn("metadata.name was changed from 'web' to 'webx'", result.problems[1])

    def test_every_real_review(self):
        """Can be a case as it is; and what was found is what is then expected."""
        for name, body in REVIEWS.items():
            with self.subTest(name):
                document = json.loads(body)
                text = cases.to_yaml("x", document, cases.UNCHANGED, policies=["../team.py"])
                result = self.judge(text)
                self.assertEqual(result.case.review, document)
                again = cases.to_yaml("x", document, result.accepted, policies=["../team.py"])
                self.assertEqual(cases.why(self.judge(again)), [])

    def test_redacted(self):
        """What comes out is redacted before it is compared, as it was when the case was saved."""
        self.write("tells.py", 'def mutate(o, r):\n    o["stringData"] = {"x": "grown-in-here"}\n'
                   '    r.warn(f"token=hunter2-hunter2")')  # fmt: skip
        secret = "object: {apiVersion: v1, kind: Secret, metadata: {name: s}, "
        secret += "data: {a: cmVkYWN0ZWQtMDAx}}\npolicies: tells\nredacted: true\n"
        expect = "expect: {changes: {stringData: {x: redacted-002}}, warnings: token=redacted-003}"
        self.assertEqual(cases.why(self.judge(secret + expect)), [])


# ---------------------------------------------------------------------------- rewriting


TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "y",
        "on",
        "1.0",
        "0o17",
        "~",
        "a: b",
        "- a",
        "#",
        "*a",
        "a\nb\n",
        "\n",
        "a\n\n",
        "a \nb",
        " a\nb",
        "é",
        "\x85",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
EXPECTATIONS = st.dictionaries(st.sampled_from(["a", "b", "c d", "y"]), VALUES, min_size=1)


class Rewriting(unittest.TestCase):
    maxDiff = None

    def check(self, before: str, value, after: str, number: int = 0) -> None:
        self.assertEqual(set_key(before, "x", "expect", {number: value}), after)

    def test_only_what_differs(self):
        start = "# why\ncase: one  # what\nobject: {a: 1}\n"
        rest = "\n# the second\n---\ncase: two\nexpect: unchanged  # so\n"
        for before, value, after in [
            ("expect: unchanged", {"denied": "x"}, "expect:\n  denied: x"),
            ("expect: unchanged  # so it is", {"denied": "x"},
             "expect:\n  denied: x  # so it is"),
            ("expect:\n  denied: x  # why", {"denied": "y: z"},
             "expect:\n  denied: 'y: z'  # why"),
            ("expect:\n  # first\n  denied: x\n  # second\n  code: 429\n",
             {"denied": "x", "code": 400}, "expect:\n  # first\n  denied: x\n  # second\n"
             "  code: 400\n"),
            ("expect:\n  denied: x\n  # second\n  code: 429\n", {"denied": "x"},
             "expect:\n  denied: x\n  # second\n"),
            ("expect:\n  denied: x\n", {"denied": "x", "warnings": ["a", "b"]},
             "expect:\n  denied: x\n  warnings:\n  - a\n  - b\n"),
            ("expect:\n    changes:\n        a: 1  # one\n        b: {c: 2, d: 3}\n",
             {"changes": {"a": 1, "b": {"c": 2, "d": 4}, "e": {"f": 5}}},
             "expect:\n    changes:\n        a: 1  # one\n        b: {c: 2, d: 4}\n"
             "        e:\n          f: 5\n"),
            ("expect:\n  changes:\n    b: {c: 2}\n", {"changes": {"b": {"c": 2, "e": 3}}},
             "expect:\n  changes:\n    b: {c: 2, e: 3}\n"),
            ("expect:\n  warnings:\n    - a  # one\n    - b\n", {"warnings": ["a", "c"]},
             "expect:\n  warnings:\n    - a  # one\n    - c\n"),
            ("expect:\n  warnings:\n    - a\n    - b\n", {"warnings": ["a"]},
             "expect:\n  warnings:\n    - a\n"),
            ("expect:\n  warnings:\n  - a\n", {"warnings": ["a", "b"]},
             "expect:\n  warnings:\n  - a\n  - b\n"),
            ("expect:\n  object:\n    l:\n      - {name: a, x: 1}\n      - name: b\n        x: 2",
             {"object": {"l": [{"name": "a", "x": 1}, {"name": "b", "x": 3}]}},
             "expect:\n  object:\n    l:\n      - {name: a, x: 1}\n      - name: b\n        x: 3"),
            ("expect:\n  denied: >-\n    a long\n    text\n  code: 400\n",
             {"denied": "a short text", "code": 400},
             "expect:\n  denied: a short text\n  code: 400\n"),
            ("expect:\n  changes:\n    t: |\n      one\n      two\n", {"changes": {"t": "one\n"}},
             "expect:\n  changes:\n    t: |\n      one\n"),
            ("expect:\n  changes: {a: 1}\n", "unchanged", "expect: unchanged\n"),
            ('"expect": {"denied": "x"}\n', {"denied": "y"}, '"expect": {denied: \'y\'}\n'),
            ("expect:\n", {"denied": "x"}, "expect:\n  denied: x\n"),
        ]:  # fmt: skip
            with self.subTest(before):
                self.check(start + before + rest, value, start + after + rest)

    def test_a_case_without_one(self):
        """Gets it at its end, before what is commented above the next."""
        start, rest = "case: one\nobject:\n  a: 1\n", "\n# next\n---\ncase: two\n"
        self.check(start + rest, "unchanged", f"{start}expect: unchanged\n{rest}")
        self.check("---\ncase: one\n---\ncase: two", {"denied": "x"},
                   "---\ncase: one\n---\ncase: two\nexpect:\n  denied: x", 1)  # fmt: skip

    def test_an_alias_is_written_out(self):
        """What stands elsewhere is not changed there."""
        self.check(
            "object: {a: &a {b: 1}}\nexpect:\n  changes: *a\n# end\n",
            {"changes": {"b": 2}},
            "object: {a: &a {b: 1}}\nexpect:\n  changes:\n    b: 2\n# end\n",
        )
        self.check(
            "object: &a {b: 1}\nexpect: *a\ncase: x\n",
            {"denied": "x"},
            "object: &a {b: 1}\nexpect:\n  denied: x\ncase: x\n",
        )

    def test_many(self):
        """Several documents at once, in time that grows as the file does."""
        text = "case: é\nobject: &a {b: 1}\nexpect: *a\n---\ncase: y\nexpect: unchanged  # so\n"
        many = "---\n".join([text] * 400)
        started = time.process_time()
        found = set_key(many, "x", "expect", {i: {"denied": "x"} for i in range(800)})
        self.assertLess(time.process_time() - started, 5)
        text = text.replace("expect: *a", "expect:\n  denied: x")
        text = text.replace("expect: unchanged", "expect:\n  denied: x")
        self.assertEqual(found.split("---\n"), ("---\n".join([text] * 400)).split("---\n"))

    def test_windows_lines(self):
        self.check("case: a\r\nexpect: unchanged\r\n", {"denied": "x"},
                   "case: a\r\nexpect:\r\n  denied: x\r\n")  # fmt: skip

    def test_what_can_not_be(self):
        with self.assertRaises(whook.ConfigError) as caught:
            text = '{"case": "x", "expect": "unchanged"}'
            set_key(text, "f.json", "expect", {0: {"denied": "y"}})
        self.assertEqual(caught.exception.message, "f.json can't be rewritten")
        self.assertEqual(caught.exception.hint, "edit its `expect` by hand")

    @settings(max_examples=200, deadline=None)
    @given(EXPECTATIONS, EXPECTATIONS, st.booleans())
    def test_any_value(self, old, new, flow):
        """Whatever is there, the new value can be put in its place, and the rest stays."""
        with contextlib.suppress(UnicodeEncodeError):
            json.dumps([old, new], ensure_ascii=False).encode()
            body = f" {as_yaml(old, flow=True)}" if flow else "\n" + textwrap.indent(
                as_yaml(old), "  ", lambda line: True)  # fmt: skip
            text = f"# one\ncase: x\nexpect:{body}# two\n---\ncase: z\n"
            found = set_key(text, "x", "expect", {0: new})
            self.assertTrue(found.startswith("# one\ncase: x\nexpect:"))
            self.assertTrue(found.endswith("# two\n---\ncase: z\n"), found)
            values = [document.value for document in documents.parse(found, "x")]
            self.assertEqual(values, [{"case": "x", "expect": new}, {"case": "z"}])


# ---------------------------------------------------------------------------- coverage


class Coverage(unittest.TestCase):
    def missed(self, source: str, *objects) -> list[str]:
        """What of a policy these objects do not reach."""
        source = textwrap.dedent(source)
        policies = whook.load_policies({"p.py": source.encode()}).policies
        cover = Cover()
        for obj in objects:
            fields = json.loads(POD)
            fields["request"]["object"] = obj
            with cover.watch(["p.py"]), contextlib.suppress(whook.PolicyError):
                whook.evaluate(whook.parse_review(json.dumps(fields).encode()), policies)
        return missed("p.py", source.encode(), cover.arcs.get("p.py", set()))

    SOURCE = '''\
        """What it is."""
        LIMITS = {name: 1 for name in ("a", "b") if name}

        def mutate(obj, request):
            """What it does."""
            if obj.get("a"):
                obj["x"] = 1
            elif obj.get("b"):
                obj["x"] = 2
                obj["y"] = 2
            else:
                helper(obj)
            for item in obj.get("items", []):
                if (item
                        and item != 5):
                    obj["z"] = item
            while obj.get("n"):
                obj["n"] -= 1

        def helper(obj):
            try:
                obj["q"] = 1 / obj["c"]
            except ZeroDivisionError:
                obj["q"] = 0
        '''

    def test_lines_and_branches(self):
        never = "no case comes here"
        for objects, expected in [
            ((), [f"6-24: {never}"]),
            (({"a": 1},), ["6: this is never false", f"8-12: {never}",
                           "13: this loop never has an item", f"14-16: {never}",
                           "17: this loop never begins", f"18-24: {never}"]),
            (({"b": 1, "items": [1]},),
             ["6: this is never true", f"7: {never}", "8: this is never false", f"12: {never}",
              "14: this is never false", "17: this loop never begins", f"18-24: {never}"]),
            (({"a": 1}, {"b": 1}, {"c": 1, "items": [0, 5]}, {"c": 0, "n": 2}),
             ["14: this is never true", f"16: {never}"]),
            (({"a": 1}, {"b": 1}, {"c": 1, "items": [0, 1]}, {"c": 0, "n": 2}), []),
        ]:  # fmt: skip
            with self.subTest(objects):
                self.assertEqual(self.missed(self.SOURCE, *objects), expected)

    def test_other_ways(self):
        for source, objects, expected in [
            ("""\
             def mutate(obj, request):
                 match obj.get("a"):
                     case 1:
                         obj["x"] = 1
                     case [_]:
                         obj["x"] = 2
                     case _:
                         obj["x"] = 3
             """, ({"a": 1}, {"a": 5}),
             ["5: this never matches", "6: no case comes here"]),
            ("""\
             def mutate(obj, request):
                 for item in obj["l"]:
                     if item == "x":
                         break
                 else:
                     obj["x"] = 1
             """, ({"l": ["x"]},),
             ["2: this loop never comes to its end", "3: this is never false",
              "6: no case comes here"]),
            ("""\
             def mutate(obj, request):
                 if obj["a"]: obj["b"] = 1
                 while True:
                     return
             """, ({"a": 0},), []),
            ("""\
             def mutate(obj, request):
                 if obj["none"]:
                     obj["b"] = 1
             """, ({"a": 0},), ["2: this is never false", "2: this is never true",
                                "3: no case comes here"]),
            ("""\
             class Table:
                 rows = [row for row in "ab"]

                 def row(self):
                     return self.rows

             def mutate(obj: dict, request: object) -> None:
                 obj["x"] = [*(each for each in obj["l"])]
             """, ({"l": ["x"]},), ["5: no case comes here"]),
        ]:  # fmt: skip
            with self.subTest(source):
                self.assertEqual(self.missed(source, *objects), expected)

    def test_who_traced_before_goes_on(self):
        def trace(*_):
            return None

        before = sys.gettrace()
        try:
            sys.settrace(trace)
            with Cover().watch(["p.py"]):
                pass
            self.assertIs(sys.gettrace(), trace)
        finally:
            sys.settrace(before)


# ---------------------------------------------------------------------------- the command line


class CommandLine(Folder):
    GOOD = (
        f"case: the label\n{OBJECT}expect: {{changes: {{metadata: {{labels: {{team: shop}}}}}}}}\n"
    )
    BAD = f"case: no label\n{OBJECT}expect: unchanged\n"

    def test_lines(self):
        self.write("cases/team.yaml", f"{self.GOOD}---\n{self.BAD}")
        status, out, err = self.run_tests("test")
        self.assertEqual((status, err), (1, ""))
        lines = out.splitlines()
        self.assertEqual(lines[0], "ok    cases/team.yaml:1  the label")
        self.assertEqual(lines[1], "FAIL  cases/team.yaml:11  no label")
        self.assertEqual(lines[2:4], ["      --- expected", "      +++ found"])
        self.assertEqual(lines[-1], "2 cases, 1 failed")
        self.write("cases/team.yaml", self.GOOD)
        self.assertEqual(self.run_tests("test")[0], 0)

    def test_without_pyyaml(self):
        """A case may be JSON, and its failure is shown as such; --accept says what it needs."""
        bad = next(documents.parse(self.BAD, "x")).value
        self.write("cases/team.json", json.dumps(bad))
        with mock.patch.dict(sys.modules, {"yaml": None}):
            status, out, _ = self.run_tests("test", "cases/team.json")
            self.assertEqual(status, 1)
            self.assertIn('      +        "team": "shop"', out)
            status, _, err = self.run_tests("test", "cases/team.json", "--accept")
        self.assertEqual(status, 1)
        message = "PyYAML is not there to rewrite cases/team.json"
        hint = "python -m pip install PyYAML"
        self.assertEqual(err, f"whook: error: {message}\nwhook: hint: {hint}\n")

    def test_no_case_at_all(self):
        Path("empty").mkdir()
        self.write("objects/pod.yaml", textwrap.dedent(OBJECT.partition("\n")[2]))
        hint = "whook: hint: a case is a YAML file in a folder named `cases`, or is named here\n"
        for arguments, where in [
            ((), "the folders named `cases` below this one"),
            (("empty",), "empty"),
            (("empty", "objects"), "empty objects"),
        ]:
            with self.subTest(arguments):
                status, out, err = self.run_tests("test", *arguments)
                self.assertEqual((status, out), (1, ""))
                self.assertEqual(err, f"whook: error: there is no case in {where}\n{hint}")

    def test_accept(self):
        """The files say what was found, and else what they said; the next run is good."""
        text = f"# why\n{self.GOOD}---\n{self.BAD}  # as it is\n---\n{OBJECT}# none yet\n"
        path = self.write("cases/team.yaml", text)
        status, out, _ = self.run_tests("test", "--accept")
        self.assertEqual(status, 0)
        words = [line.split()[0] for line in out.splitlines() if "cases/team.yaml:" in line]
        self.assertEqual(words, ["ok", "new", "new"])
        change = "expect:\n  changes:\n    metadata:\n      labels:\n        team: shop"
        expected = text.replace("expect: unchanged", change)
        expected = expected.replace("\n# none yet", f"\n{change}\n# none yet")
        self.assertEqual(path.read_text(), expected)
        self.assertEqual(self.run_tests("test")[0], 0)
        stamp = path.stat().st_mtime_ns
        self.assertEqual(self.run_tests("test", "--accept")[0], 0)
        self.assertEqual(path.stat().st_mtime_ns, stamp, "nothing to write")

    def test_what_can_not_be_accepted(self):
        source = "import itertools\nN = itertools.count()\ndef mutate(o, r):\n"
        self.write("team.py", source + ' o["metadata"]["generateName"] = str(next(N))')
        self.write("cases/team.yaml", self.BAD)
        status, out, _ = self.run_tests("test", "--accept")
        self.assertEqual(status, 1)
        self.assertIn('policy "team" is not idempotent', out)

    def test_reports(self):
        self.write("cases/team.yaml", f"{self.GOOD}---\n{self.BAD}")
        status, out, _ = self.run_tests("test", "-o", "json", "--cover")
        found = json.loads(out)
        self.assertEqual(status, 1)
        good, bad = found["cases"]
        self.assertEqual(
            good,
            {"file": "cases/team.yaml", "line": 1, "case": "the label", "policies": ["team.py"],
             "ok": True, "why": []},
        )  # fmt: skip
        self.assertEqual((bad["ok"], bad["why"][0]), (False, "--- expected"))
        self.assertEqual(found["uncovered"]["team.py"], [])
        status, out, _ = self.run_tests("test", "-o", "junit")
        suite = ElementTree.fromstring(out)
        self.assertEqual((status, suite.attrib["tests"], suite.attrib["failures"]), (1, "2", "1"))
        self.assertEqual(
            [(test.attrib["name"], len(test)) for test in suite],
            [("the label", 0), ("no label", 1)],
        )

    def test_cover(self):
        """Policies that have no case at all are named, too; a policy that hangs is stopped."""
        self.write("cases/team.yaml", self.GOOD)
        self.write("hangs.py", "def mutate(o, r):\n    while r: pass")
        self.write("cases/hangs.yaml", f"{OBJECT}expect: {{failed: 'timed out after 0.1 s'}}")
        with mock.patch.object(whook, "TIME_LIMIT", 0.1):
            status, out, err = self.run_tests("test", "--cover")
        self.assertEqual((status, out.splitlines()[-1]), (0, "2 cases, 0 failed"))
        never = "no case comes here"
        self.assertEqual(err, f"hangs.py:2: {never}\npicky.py:4-12: {never}\n")
        _, _, err = self.run_tests("test", "cases/team.yaml", "--cover")
        self.assertEqual(err, "", "of a file that is named, only its own policies")

    def test_usage(self):
        for arguments in (
            ["test", "--nonsense"],
            ["test", "-o", "xml"],
            ["new"],
            ["new", "a", "b"],
        ):
            with self.subTest(arguments):
                self.assertEqual(self.run_tests(*arguments)[0], 2)
        status, out, _ = self.run_tests("test", "--help")
        self.assertEqual(status, 0)
        self.assertIn("Exit status: 0 all as expected; 1 a case failed, or none ran", out)


class New(Folder):
    def test_a_first_file(self):
        """A policy that loads, and a case that fails until the policy does its work."""
        status, out, err = self.run_tests("new", "owner")
        self.assertEqual((status, err), (0, ""))
        case = "policies/cases/owner.yaml"
        self.assertEqual(
            out,
            f"policies/owner.py\n{case}\nthe case fails as yet: python review.py test {case}\n",
        )
        status, out, err = self.run_tests("test", case)
        self.assertEqual((status, err), (1, ""))
        self.assertIn('      -denied: \'metadata.labels: "example.com/owner" is missing;', out)
        policy = Path("policies/owner.py")
        self.assertRegex(policy.read_text(), r"\nRule: CREATE of pods\.\n")
        policy.write_text(policy.read_text().replace("pass  # request", "request"))
        self.assertEqual(self.run_tests("test", case)[0], 0)
        self.assertEqual([p.name for p in review.load_policies(["policies"])], ["owner"])

    def test_elsewhere(self):
        self.assertEqual(self.run_tests("new", "mine/block.py")[0], 0)
        self.assertTrue(Path("mine/block.py").exists())
        self.assertTrue(Path("mine/cases/block.yaml").exists())

    def test_refusals(self):
        self.write("policies/a.py", "mine")
        self.write("policies/cases/b.yaml", "mine")
        self.write("file", "")
        load = "whook would load no policy "
        for name, message in [
            ("a", "policies/a.py is there already"),
            ("b", "policies/cases/b.yaml is there already"),
            ("file/x", "can't write file: "),
            ("_x", load + "'_x'"),
            (".x", load + "'.x'"),
            ("a b", load + "'a b'"),
            ("é", load + "'é'"),
            ("x" * 201, load),
            (".py", load),
        ]:
            with self.subTest(name):
                status, out, err = self.run_tests("new", name)
                self.assertEqual((status, out), (1, ""))
                self.assertTrue(err.startswith(f"whook: error: {message}"), err)
                self.assertEqual(len(err.splitlines()), 2)
        self.assertEqual(Path("policies/a.py").read_text(), "mine")
        self.assertFalse(Path("policies/b.py").exists())


if __name__ == "__main__":
    unittest.main()
