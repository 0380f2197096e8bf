"""Tests of review.py: the same policies, offline."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import review
import whook
from testing.server import POD, REVIEWS, ROOT

LABEL = 'def mutate(o, r): o["metadata"].setdefault("labels", {})["team"] = "shop"'
GROWS = 'def mutate(o, r): o["metadata"].setdefault("finalizers", []).append("x/y")'
DENIES = 'def validate(o, r):\n r.warn("old"); r.deny("container \\"web\\": not today")'


def policies(**sources):
    return whook.load_policies({f"/p/{k}.py": v.encode() for k, v in sources.items()}).policies


def run(body=POD, **sources) -> review.Outcome:
    return review.run(json.loads(body), policies(**sources))


class Reading(unittest.TestCase):
    def test_objects_lists_and_reviews(self):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "b"}}
        both = {"apiVersion": "v1", "kind": "List", "items": [pod, deployment]}
        text = f"{json.dumps(both)}\n{json.dumps(pod)} {POD.decode()}"
        found = [r["request"] for r in review.read_reviews(text, "-")]
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
        ]:
            self.assertEqual(review.plural(kind), expected)

    def test_what_is_none_of_these(self):
        for text, message in [
            ("kind: Pod", "x is not JSON: Expecting value: line 1 column 1 (char 0)"),
            ('{"a": 1}', "x holds something without apiVersion and kind"),
            ("[]", "x holds something without apiVersion and kind"),
            (
                '{"apiVersion": "v1", "kind": "List", "items": [5]}',
                "x holds something without apiVersion and kind",
            ),
            ("", "x holds nothing"),
        ]:
            with self.subTest(text), self.assertRaises(whook.SetupError) as caught:
                review.read_reviews(text, "x")
            self.assertEqual(str(caught.exception), message)


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


class CommandLine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def review(self, *arguments, body=POD, **sources) -> tuple[int, str, str]:
        for name, source in sources.items():
            (self.folder / f"{name}.py").write_text(source)
        (self.folder / "review.json").write_bytes(body)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = review.main(
                [*(["--policy", str(self.folder)] if sources else []), *arguments,
                 str(self.folder / "review.json")]
            )  # fmt: skip
        return status, out.getvalue(), err.getvalue()

    def test_a_diff(self):
        status, out, _ = self.review(label=LABEL)
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith("CREATE Pod shop2/tricky\n--- sent\n+++ answered\n"))
        self.assertIn('\n+      "team": "shop"\n', out)

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
        for arguments, body, message in [
            ((), b"\xff", "can't read "),
            ((), b"{", "review.json is not JSON: "),
            ((), b'{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}',
             "the AdmissionReview has no request"),
            (("--policy", "/nowhere"), POD, "can't read /nowhere"),
            (("/nowhere.json",), POD, "can't read /nowhere.json"),
        ]:  # fmt: skip
            with self.subTest(message):
                status, _, err = self.review(*arguments, body=body)
                self.assertEqual(status, 1)
                error, hint = err.splitlines()
                self.assertIn(message, error)
                self.assertTrue(error.startswith("whook: error: "))
                self.assertTrue(hint.startswith("whook: hint: "))

    def test_standard_input_and_usage(self):
        command = [sys.executable, ROOT / "review.py"]
        piped = subprocess.run([*command, "-"], input=POD, capture_output=True)
        self.assertEqual((piped.returncode, piped.stderr), (0, b""))
        self.assertEqual(subprocess.run(command, capture_output=True).returncode, 2)


if __name__ == "__main__":
    unittest.main()
