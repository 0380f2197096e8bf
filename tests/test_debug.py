"""Tests of debug.py: the desk as a real process, its page in a real browser; up, down and doctor
on the stand-in API server, and on a real one where there is one.
"""

import ast
import base64
import contextlib
import copy
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib
from pathlib import Path
from unittest import mock

import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import certs
import debug
import review
import whook
from tests import controlplane, pki
from tests.apiserver import Endpoint, Front, Memory, Refusal, Relay
from tests.server import JSON, POD, REVIEWS, ROOT, wait_for

TEAM = """
def mutate(obj, request):
    obj["metadata"].setdefault("labels", {})["team"] = "shop"
"""
PINNED = """
def validate(obj, request):
    for container in (obj or {}).get("spec", {}).get("containers", []):
        if container["image"].endswith(":latest"):
            request.deny(f'container "{container["name"]}": image is not pinned')
"""
GROWING = """
def mutate(obj, request):
    labels = obj["metadata"].setdefault("labels", {})
    labels["count"] = labels.get("count", "") + "x"
"""
TELLING = """
import base64
def mutate(obj, request):
    if request.kind.kind == "Secret":
        for key, value in list((obj.get("data") or {}).items()):
            plain = base64.b64decode(value).decode()
            request.warn(f"{key} is {plain}")
            request.audit("value", plain)
            obj["metadata"].setdefault("annotations", {})["copy"] = plain
            obj["data"]["more"] = base64.b64encode(b"added-by-policy").decode()
    for container in (obj.get("spec") or {}).get("containers") or []:
        for variable in container.get("env") or []:
            if "value" in variable:
                request.deny(f'variable {variable["name"]} is {variable["value"]}')
"""
HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script>"
HOSTILE += "<script>document.title='in'</script>"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzaG9wIn0.c2lnbmF0dXJlLW9mLXRva2Vu"


def changed(body: bytes, **fields) -> bytes:
    """A review with other fields in its request; `obj` is called with the object."""
    document = json.loads(body)
    edit = fields.pop("edit", None)
    document["request"] |= fields
    if edit:
        edit(document["request"]["object"])
    return json.dumps(document).encode()


def named(name: str, number: int = 0, **fields) -> bytes:
    def edit(obj):
        obj["metadata"]["name"] = name

    return changed(POD, uid=f"uid-{name}-{number}", name=name, edit=edit, **fields)


class Desk:
    """A running `python debug.py`, with policies in a folder of its own."""

    def __init__(self, *arguments, policies=None, command="serve", files=(), patches=""):
        self.folder = Path(tempfile.mkdtemp(prefix="desk-test-"))
        self.policies = self.folder / "policies"
        self.policies.mkdir()
        policies = {"team": TEAM} if policies is None else policies
        for name, source in policies.items():
            self.write_policy(name, source)
        self.record, self.cases = self.folder / "reviews", self.folder / "cases"
        options = ["--page-port", "0", "--cases", str(self.cases)]
        options += ["--policy", str(self.policies)] if policies else []
        if command == "serve":
            options += ["--port", "0", "--record", str(self.record)]
            options += ["--cert-dir", str(self.folder / "certs")]
        self.log = open(self.folder / "log", "w")  # noqa: SIM115
        code = f"import sys, debug, whook\n{patches}\nsys.exit(debug.main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, command, *options, *arguments, *files],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.awaited = "the webhook: " if command == "serve" else "the page: "

    def __enter__(self):
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("the page: "):
                self.link = line.split()[-1]
            if line.startswith(self.awaited):
                break
        else:
            raise AssertionError((self.folder / "log").read_text())
        self.page_port = int(re.search(r":(\d+)/#", self.link)[1])
        self.token = self.link.partition("#")[2]
        self.port = int(self.lines[-1].rpartition(":")[2]) if "webhook" in self.lines[-1] else 0
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def write_policy(self, name: str, source: str) -> None:
        new = self.folder / f"{name}.new"
        new.write_text(source)
        new.replace(self.policies / f"{name}.py")

    def post(self, body=POD, path="/mutate?timeout=10s") -> tuple[int, dict]:
        """What the API server would get."""
        context = ssl.create_default_context(cafile=self.folder / "certs/ca.pem")
        connection = http.client.HTTPSConnection("localhost", self.port, context=context)
        try:
            connection.request("POST", path, body, JSON)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def page(self, path, body=None, method=None, **headers) -> tuple[int, dict, str]:
        """Status, headers and text of an answer of the page's server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.page_port, timeout=30)
        headers = {"Authorization": f"Bearer {self.token}"} | headers
        text = json.dumps(body) if body is not None else None
        try:
            connection.request(method or ("POST" if text else "GET"), path, text, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def api(self, path, body=None) -> dict:
        status, _, text = self.page(path, body)
        if status != 200:
            raise AssertionError(f"{path}: {status} {text}")
        return json.loads(text)

    def rows(self) -> list[dict]:
        return self.api("/api/news?after=999999")["reviews"]

    def wait_for_row(self, **fields) -> dict:
        def found():
            return [row for row in self.rows() if row.items() >= fields.items()]

        return wait_for(found, f"a review with {fields}")[-1]

    def recordings(self, count: int) -> list[Path]:
        def found():
            files = sorted(self.record.glob("2*.json"))
            return files if len(files) == count else None

        return wait_for(found, f"{count} recordings")


def call_desk(*arguments) -> tuple[int, str, str]:
    """The exit status, standard output and standard error of debug.py, within this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = debug.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def run_desk(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "debug.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---------------------------------------------------------------------------- redaction


def secret_review(**data) -> dict:
    document = json.loads(REVIEWS["create-secret"])
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    document["request"]["object"]["data"] = encoded
    return document


class RedactionTest(unittest.TestCase):
    def clean(self, obj) -> str:
        redaction = debug.Redaction(obj)
        cleaned = redaction.clean(obj)
        self.assertEqual(redaction.restore(cleaned), obj)
        return json.dumps(cleaned)

    def test_secrets(self):
        escaped = json.dumps({"env": [{"name": "A", "value": 'with "quotes" inside'}]})
        cases = {
            "a Secret": {"kind": "Secret", "data": {"a": "aHVudGVyMg=="}},
            "stringData": {"kind": "Secret", "stringData": {"a": "hunter2"}},
            "binary": {"kind": "Secret", "data": {"a": "/+7dzLuqmYg="}},
            "env": {"env": [{"name": "A", "value": "hunter2"}]},
            "a short one": {"env": [{"name": "A", "value": "!7"}]},
            "token": {"status": {"token": "hunter2"}, "x": ["hunter2 and more"]},
            "tokens in a list": {"extra": {"api-key": ["hunter2"]}},
            "base64 of env": {"env": [{"name": "A", "value": "hunter2"}], "b": "aHVudGVyMg=="},
            "JSON in an annotation": {"annotations": {"last": '{"password":"hunter2"}'}},
            "escaped JSON": {"annotations": {"last": escaped, "text": escaped[3:]}},
            "a JSON Web Token": {"args": [f"--jwt {TOKEN}"]},
            "a key": {"a": "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----"},
            "a flag": {"args": ["--password=hunter2", "--verbose"]},
            "a URL": {"a": "postgres://user:hunter2@db/shop"},
            "a header": {"a": "Authorization: Bearer hunter2-hunter2"},
        }
        for name, obj in cases.items():
            with self.subTest(name):
                text = self.clean(obj)
                self.assertRegex(text, "redacted-|cmVkYWN0ZWQt")
                for secret in ("hunter2", "aHVudGVyMg", "!7", "quotes", TOKEN, "/+7dzLuqmYg"):
                    self.assertNotIn(secret, text)

    def test_what_stays(self):
        for obj in (
            {"secretName": "db", "secretKeyRef": {"name": "db", "key": "password"}},
            {"automountServiceAccountToken": True, "tokenExpirationSeconds": 600},
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
            {"image": "shop:1.2", "kind": "ConfigMap", "data": {"a": "b"}},
        ):
            with self.subTest(obj):
                self.assertEqual(debug.Redaction(obj).clean(obj), obj)

    def test_same_value_same_placeholder(self):
        obj = {"env": [{"name": n, "value": v} for n, v in (("A", "one"), ("B", "two"))] * 2}
        values = [item["value"] for item in debug.Redaction(obj).clean(obj)["env"]]
        self.assertEqual(values, ["redacted-001", "redacted-002"] * 2)

    def test_longest_first(self):
        values = ("hunter2", "hunter2-and-more")
        obj = {"env": [{"name": "A", "value": v} for v in values], "x": "is hunter2-and-more!"}
        self.assertEqual(debug.Redaction(obj).clean(obj)["x"], "is redacted-002!")

    def test_hostile_texts_take_no_long_time(self):
        env = [{"name": "A", "value": f"aaaaaa{n}"} for n in range(20_000)]
        texts = (
            "eyJ" * 300_000,
            "a" * 300_000,
            "://a:" * 200_000,
            "-----BEGIN PRIVATE KEY-----" * 9,
        )
        started = time.monotonic()
        for text in texts:
            obj = {"x": text, "env": env}
            debug.Redaction(obj).clean(obj)
        self.assertLess(time.monotonic() - started, 30)

    def test_base64_stays_base64(self):
        obj = {"kind": "Secret", "data": {"a": "aHVudGVyMg=="}}
        value = debug.Redaction(obj).clean(obj)["data"]["a"]
        self.assertEqual(base64.b64decode(value), b"redacted-001")

    def test_forged_placeholder(self):
        """Whoever writes a placeholder into a label doesn't get the secret into it by an edit."""
        obj = {"labels": {"a": "redacted-001"}, "env": [{"name": "A", "value": "hunter2"}]}
        for turned in (obj, dict(reversed(obj.items()))):
            redaction = debug.Redaction(turned)
            cleaned = redaction.clean(turned)
            self.assertNotEqual(cleaned["labels"]["a"], cleaned["env"][0]["value"])
            self.assertEqual(redaction.restore(cleaned), turned)

    def test_recorded_placeholders_stay(self):
        once = debug.Redaction(secret_review(a="hunter2")).clean(secret_review(a="hunter2"))
        again = debug.Redaction(once)
        self.assertEqual(again.clean(once), once)
        self.assertNotIn(again.hide("new-secret"), json.dumps(once))

    def test_too_deep_is_withheld(self):
        deep = '{"a":' * 1500 + "1" + "}" * 1500
        body = POD.replace(b'"object":{', b'"object":{"env":' + deep.encode() + b",", 1)
        entry = debug.Entry(1, "/mutate", body, "cluster", 0.0)
        text = debug.recording(entry, None, unredacted=False).decode()
        self.assertIn("nested too deeply", text)
        self.assertNotIn("tricky", text)


# ---------------------------------------------------------------------------- one run


def policy_set(**sources) -> whook.PolicySet:
    return whook.load_policies({f"/p/{k}.py": source.encode() for k, source in sources.items()})


class RunTest(unittest.TestCase):
    def test_outcomes(self):
        wrong_type = "def mutate(obj, request):\n    obj['metadata']['labels'] = {'a': 1}"
        cases = (
            (PINNED, "/validate", "denied",
             ['Error from server (Forbidden): admission webhook "validate.whook.local" denied the '
              'request: container "side": image is not pinned']),
            (TEAM, "/mutate", "patched", []),
            (PINNED, "/mutate", "allowed", []),
            (wrong_type, "/mutate", "rejected", []),
            ("def mutate(obj, request):\n    obj['x']", "/mutate", "failed",
             ["Error from server (InternalError): Internal error occurred: failed calling webhook "
              '"mutate.whook.local": failed to call webhook: policy "p" failed: line 2: KeyError: '
              "'x'"]),
            (TEAM, "/elsewhere", "failed", None),
        )  # fmt: skip
        for source, path, outcome, lines in cases:
            with self.subTest(outcome, path=path):
                result = debug.run(path, POD, policy_set(p=source))
                self.assertEqual(result.outcome, outcome)
                if lines is not None:
                    self.assertEqual(result.kubectl, lines)

    def test_second_pass(self):
        result = debug.run("/mutate", POD, policy_set(growing=GROWING, team=TEAM))
        self.assertEqual(list(result.again), ["growing"])
        self.assertEqual(list(result.steps), ["growing", "team"])
        self.assertIn('policy "growing" is not idempotent', result.remarks[0])
        self.assertEqual(debug.run("/mutate", POD, policy_set(team=TEAM)).again, {})

    def test_difference(self):
        base = debug.run("/mutate", POD, policy_set(p=TEAM))
        obj = json.loads(POD)["request"]["object"]
        cases = {
            TEAM: [],
            TEAM.replace('(obj, request):', '(obj, request):\n    obj.update(obj)'): [],
            TEAM.replace('"shop"', '"desk"'): ['replace /metadata/labels/team "desk"'],
            TEAM + "    request.warn('new')": ['warnings was null, is ["new"]'],
            TEAM + "    request.deny('no', 422, 'Invalid')": [
                "was patched, is denied", 'message was null, is "no"',
                "code was null, is 422", 'reason was null, is "Invalid"',
                "remove /metadata/labels/team",
            ],
        }  # fmt: skip
        for source, lines in cases.items():
            with self.subTest(source):
                other = debug.run("/mutate", POD, policy_set(p=source))
                self.assertEqual(debug.difference(base, other, obj), lines)

    def test_every_review(self):
        for name, body in REVIEWS.items():
            with self.subTest(name):
                for path in ("/mutate", "/validate"):
                    result = debug.run(path, body, policy_set(team=TEAM, pinned=PINNED))
                    entry = debug.Entry(1, path, body, "cluster", 0.0, result=result)
                    json.dumps(debug.summary(entry))


class YamlTest(unittest.TestCase):
    def test_read(self):
        cases = {
            "a: 2026-11-22T13:52:00Z": {"a": "2026-11-22T13:52:00Z"},
            '{"a": [1, true, null]}': {"a": [1, True, None]},
            "a: |\n  one\n  two\n": {"a": "one\ntwo\n"},
            "a: !!python/name:os.system x": {"a": "x"},
            "a: 12:30\nb: 0644": {"a": "12:30", "b": 420},
        }
        for text, expected in cases.items():
            with self.subTest(text):
                self.assertEqual(debug.parse_object(text), expected)

    def test_refused(self):
        for text in ("a: [", "- a", "a", "", "a: 1\n---\nb: 2", "a: 1\na: 2"):
            with self.subTest(text), self.assertRaises(ValueError):
                debug.parse_object(text)

    def test_a_list(self):
        """Items of a PodList have no kind of their own."""
        pod = {"metadata": {"name": "web"}, "spec": {}}
        text = json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [pod]})
        (body,) = debug.reviews_of({"pods.json": text.encode()})
        request = json.loads(body)["request"]
        self.assertEqual((request["kind"]["kind"], request["name"]), ("Pod", "web"))
        self.assertEqual(request["object"], {"apiVersion": "v1", "kind": "Pod", **pod})

    def test_no_object(self):
        for content, error in (
            (b"a: 1\n\tb: 2\n", "f.yaml, line 2: not YAML: found a tab"),
            (b"a: 1", "f.yaml: "),
            (b"\xff", "f.yaml: "),
            (b"# nothing\n", "no object in f.yaml"),
        ):
            with self.subTest(content), self.assertRaises(whook.ConfigError) as caught:
                debug.reviews_of({"f.yaml": content})
            self.assertTrue(caught.exception.message.startswith(error), caught.exception.message)


# ---------------------------------------------------------------------------- record, replay


class RecordTest(unittest.TestCase):
    def test_round_trip(self):
        """All real reviews, recorded by the desk and replayed: nothing differs; then a policy is
        changed, and what it changes is told."""
        policies = {"team": TEAM, "pinned": PINNED, "growing": GROWING}
        with Desk(policies=policies) as desk:
            for body in REVIEWS.values():
                for verb in ("mutate", "validate"):
                    desk.post(body, f"/{verb}?timeout=10s")
            files = desk.recordings(2 * len(REVIEWS))
            self.assertEqual({file.stat().st_mode & 0o777 for file in files}, {0o600})
            self.assertEqual(desk.record.stat().st_mode & 0o777, 0o700)
        same = run_desk("replay", desk.record, "--policy", desk.policies)
        self.assertEqual((same.returncode, same.stderr), (0, ""), same.stdout)
        self.assertEqual(same.stdout, f"{2 * len(REVIEWS)} as recorded, 0 not\n")
        desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
        other = run_desk("replay", desk.record, "--policy", desk.policies)
        self.assertEqual(other.returncode, 1)
        self.assertIn('  replace /metadata/labels/team "desk"\n', other.stdout)
        self.assertRegex(other.stdout, r"CREATE Pod shop2/tricky\n")

    def test_nothing_secret_is_recorded(self):
        """Not in the review, nor where a policy repeats it; nor on the page, nor in a test case."""
        secret, variable = "hunter2-and-more", "swordfish-and-more"

        def edit(obj):
            obj["data"] = {"password": base64.b64encode(secret.encode()).decode()}
            applied = {"kind": "Secret", "data": obj["data"]}
            last = "kubectl.kubernetes.io/last-applied-configuration"
            obj["metadata"].setdefault("annotations", {})[last] = json.dumps(applied) + "\n"

        def with_env(obj):
            obj["spec"]["containers"][0]["env"] = [{"name": "A", "value": variable}]
            obj["spec"]["containers"][0]["args"] = [f"--token={TOKEN}", variable]

        with Desk(policies={"telling": TELLING}) as desk:
            _, answer = desk.post(changed(REVIEWS["create-secret"], edit=edit))
            self.assertIn(secret, json.dumps(answer), "the policy must repeat it")
            _, answer = desk.post(changed(POD, edit=with_env))
            self.assertIn(variable, json.dumps(answer), "the policy must repeat it")
            files = desk.recordings(2)
            for row in desk.rows():
                desk.api("/api/replay", {"numbers": [row["number"]]})
                desk.api("/api/save", {"number": row["number"], "name": f"case-{row['number']}"})
            texts = [file.read_text() for file in (*files, *desk.cases.iterdir())]
            texts += [json.dumps(desk.api(f"/api/reviews/{r['number']}")) for r in desk.rows()]
            texts.append((desk.folder / "log").read_text())
        self.assertEqual(len(texts), 7)
        forms = [secret, variable, TOKEN, "added-by-policy"]
        forms += [base64.b64encode(form.encode()).decode().rstrip("=") for form in forms]
        for text in texts:
            for form in forms:
                self.assertNotIn(form, text)
        self.assertEqual(run_desk("replay", desk.cases, "--policy", desk.policies).returncode, 0)

    def test_saved_cases(self):
        """What the desk saves is what `review.py test` reads: of every outcome, and of one policy;
        with other policies it says what is different."""
        broken = 'def mutate(o, r):\n    if r.operation == "DELETE": r.warn("gone")\n    1 / 0'
        copies = 'import base64\ndef mutate(o, r):\n    plain = base64.b64decode(o["data"]["a"])'
        copies += (
            '\n    o["metadata"]["annotations"]["copy"] = plain.decode(); r.warn(plain.decode())'
        )
        secret = json.dumps(secret_review(a="hunter2-and-more")).encode()
        policies = {"team": TEAM, "pinned": PINNED, "broken": broken, "copies": copies}
        posts = {
            "patched": ("mutate/team", REVIEWS["create-deployment"]),
            "allowed": ("validate/pinned", REVIEWS["delete-service"]),
            "denied": ("validate/pinned", POD),
            "failed": ("mutate", POD),
            "secret": ("mutate/copies", secret),
        }
        with Desk(policies=policies) as desk:
            for number, (name, (path, body)) in enumerate(posts.items(), 1):
                desk.post(body, f"/{path}?timeout=10s")
                saved = desk.api("/api/save", {"number": number, "name": name})
                self.assertEqual(saved["file"], str(desk.cases / f"{name}.yaml"))
            status, _, _ = desk.page("/api/save", {"number": 9, "name": "x"})
            self.assertEqual(status, 404)
        command = [sys.executable, str(ROOT / "review.py"), "test", str(desk.cases)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertTrue(done.stdout.endswith("5 cases, 0 failed\n"))
        case = yaml.safe_load((desk.cases / "patched.yaml").read_text())
        self.assertEqual(case["policies"], ["../policies/team.py"])
        self.assertEqual(case["case"], "CREATE Deployment shop/web")
        labels = {"metadata": {"labels": {"team": "shop"}}}
        self.assertEqual(case["expect"], {"changes": labels})
        self.assertNotIn("managedFields", case["review"]["request"]["object"]["metadata"])
        self.assertNotIn("redacted", case)
        case = yaml.safe_load((desk.cases / "secret.yaml").read_text())
        self.assertTrue(case["redacted"])
        hidden = base64.b64decode(case["review"]["request"]["object"]["data"]["a"]).decode()
        self.assertRegex(hidden, "^redacted-[0-9]{3}$")
        self.assertEqual(case["expect"]["warnings"], [hidden])
        desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
        other = run_desk("replay", desk.cases, "--policy", desk.policies)
        self.assertEqual(other.returncode, 1)
        self.assertIn(f"{desk.cases}/patched.yaml:1: CREATE Deployment shop/web\n", other.stdout)
        self.assertRegex(other.stdout, r"\n  -    +team: shop\n  \+    +team: desk\n")
        self.assertTrue(other.stdout.endswith("4 as recorded, 1 not\n"))

    def test_unredacted(self):
        with Desk("--unredacted") as desk:
            desk.post(REVIEWS["create-secret"])
            text = desk.recordings(1)[0].read_text()
        data = json.loads(REVIEWS["create-secret"])["request"]["object"]["data"]
        for value in data.values():
            self.assertIn(value, text)

    def test_bounded_and_read_again(self):
        with Desk("--keep", "3") as desk:
            for number in range(8):
                desk.post(named(f"pod-{number}"))
            wait_for(lambda: len(desk.rows()) == 3, "the bound")
            wait_for(lambda: len(desk.recordings(3)) == 3, "the bound in the folder")
        foreign = desk.record / "mine.txt"
        foreign.write_text("not ours")
        with Desk("--keep", "3", "--record", str(desk.record)) as again:
            names = [row["name"] for row in again.rows()]
            self.assertEqual(names, ["shop2/pod-5", "shop2/pod-6", "shop2/pod-7"])
            self.assertEqual({row["origin"] for row in again.rows()}, {"recording"})
            again.api("/api/replay", {"numbers": [row["number"] for row in again.rows()]})
            self.assertEqual([row["differs"] for row in again.rows()], [False] * 3)
        self.assertTrue(foreign.exists())

    def test_a_folder_with_other_files(self):
        """Its .gitignore stays, and trimming takes nothing that the desk did not make."""
        with tempfile.TemporaryDirectory() as folder:
            ignored, mine = Path(folder, ".gitignore"), Path(folder, "20260101-mine.json")
            ignored.write_text("*.pyc\n")
            result = {"status": 200, "answer": {"response": {"allowed": True}}, "duration": 0.0}
            case = {"path": "/mutate", "review": json.loads(POD), "result": result}
            mine.write_text(json.dumps(case))
            with Desk("--keep", "1", "--record", folder) as desk:
                desk.record = Path(folder)
                desk.post(named("one"))
                desk.recordings(2)  # this one, and mine
                desk.post(named("two"))
                wait_for(lambda: [r["name"] for r in desk.rows()] == ["shop2/two"], "the bound")
                desk.recordings(2)
            self.assertEqual((ignored.read_text(), mine.exists()), ("*.pyc\n", True))
            made = debug.open_folder(f"{folder}/new")
            self.assertEqual((made / ".gitignore").read_text(), "*\n")
            (made / ".gitignore").unlink()
            (made / "notes.txt").touch()
            debug.open_folder(f"{folder}/new")
            self.assertFalse((made / ".gitignore").exists())

    def test_replay_refuses(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.json").write_text("[]")
            Path(folder, "review.json").write_bytes(POD)
            cases = {
                (folder + "/a.json",): f"{folder}/a.json is no recording",
                (folder + "/none.json",): f"can't read {folder}/none.json",
                (folder + "/review.json",): "there is nothing to compare",
            }
            for arguments, message in cases.items():
                with self.subTest(message):
                    status, _, said = call_desk("replay", *arguments)
                    self.assertEqual(status, 1)
                    self.assertIn(f"whook: error: {message}", said)
            self.assertEqual(call_desk("replay")[0], 2)


# ---------------------------------------------------------------------------- the page's server


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.desk = cls.enterClassContext(Desk())
        cls.desk.post()

    def test_token(self):
        for header in ("", "Bearer ", "Bearer wrong", f"Bearer {self.desk.token}x", "Bearer \xff"):
            for path in ("/api/news?after=1", "/api/reviews/1", "/elsewhere"):
                with self.subTest(header, path=path):
                    status, _, text = self.desk.page(path, Authorization=header)
                    self.assertEqual(status, 401)
                    self.assertNotIn("tricky", text)
        self.assertNotIn(self.desk.token, self.desk.page("/", Authorization="")[2])

    def test_host_and_origin(self):
        port = self.desk.page_port
        cases = (
            ({"Host": "evil.example"}, 421),
            ({"Host": f"evil.example:{port}"}, 421),
            ({"Host": "127.0.0.1"}, 421),
            ({"Host": f"localhost:{port}"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": f"https://127.0.0.1:{port}"}, 403),
            ({"Origin": f"http://127.0.0.1:{port}"}, 200),
        )
        for headers, status in cases:
            for path in ("/", "/api/reviews/1"):
                with self.subTest(headers, path=path):
                    self.assertEqual(self.desk.page(path, **headers)[0], status)

    def test_headers(self):
        for path in ("/", "/api/reviews/1"):
            with self.subTest(path):
                _, headers, _ = self.desk.page(path)
                policy = headers["Content-Security-Policy"]
                self.assertIn("default-src 'none'; script-src 'sha256-", policy)
                self.assertIn("frame-ancestors 'none'", policy)
                self.assertNotIn("unsafe", policy)
                self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
                self.assertEqual(headers["Cache-Control"], "no-store")
                self.assertNotIn("Access-Control-Allow-Origin", headers)

    def test_requests(self):
        cases = (
            ("GET", "/api/reviews/99", None, 404),
            ("GET", "/../debug.py", None, 404),
            ("POST", "/api/elsewhere", {}, 404),
            ("OPTIONS", "/api/replay", None, 405),
            ("POST", "/api/replay", {}, 400),
            ("POST", "/api/replay", {"numbers": [1], "text": "a: ["}, 400),
            ("POST", "/api/decide", {"number": 1, "kind": "deny"}, 409),
            ("POST", "/api/decide", {"number": 1, "kind": "explode"}, 400),
            ("POST", "/api/save", {"number": 1, "name": "../../etc/passwd"}, 400),
        )
        for method, path, body, status in cases:
            with self.subTest(path, body=body):
                self.assertEqual(self.desk.page(path, body, method)[0], status)

    def test_loopback_only(self):
        listening = Path(f"/proc/{self.desk.process.pid}/net/tcp")
        if not listening.exists():
            self.skipTest("no /proc/net/tcp on this system")
        ports = {f"{port:04X}" for port in (self.desk.page_port, self.desk.port)}
        found = [line.split()[1] for line in listening.read_text().splitlines()[1:]]
        addresses = {a.partition(":")[0] for a in found if a.partition(":")[2] in ports}
        self.assertEqual(addresses, {"0100007F"})

    def test_page_needs_nothing_from_elsewhere(self):
        html = (ROOT / "debug.html").read_text()
        self.assertEqual(re.findall(r"(?:src|href)=(?!\"data:)[^\s>]+", html), [])
        for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
            self.assertNotIn(word, html)

    def test_whook_does_not_know_the_desk(self):
        for module in ("whook", "review", "certs"):
            self.assertNotIn("import debug", (ROOT / f"{module}.py").read_text())


# ---------------------------------------------------------------------------- hold


class TimeTest(unittest.TestCase):
    """Policies have no time limit at the desk, so a breakpoint is never interrupted."""

    def test_a_policy_may_take_longer_than_the_limit(self):
        slow = "import time\n\ndef mutate(o, r):\n    time.sleep(1.3)\n    o['new'] = {}"
        with Desk(policies={"slow": slow}) as desk:
            status, answer = desk.post()
            self.assertEqual((status, answer["response"]["allowed"]), (200, True))
            self.assertIn("patch", answer["response"])

    def test_ctrl_c_twice_ends_a_policy_without_an_end(self):
        with tempfile.TemporaryDirectory() as folder:
            begun, pod = Path(folder, "begun"), Path(folder, "pod.json")
            pod.write_bytes(json.dumps(json.loads(POD)["request"]["object"]).encode())
            loop = f"def mutate(o, r):\n    open({str(begun)!r}, 'w')\n    while True: pass"
            with Desk(policies={"loop": loop}, command="try", files=[str(pod)]) as desk:
                wait_for(begun.exists, "the policy to begin")

                def interrupted() -> bool:
                    desk.process.send_signal(signal.SIGINT)
                    return desk.process.poll() is not None

                wait_for(interrupted, "the end of the desk")
                self.assertEqual(desk.process.returncode, 1)

    def test_a_review_that_is_answered_before_the_end_is_recorded(self):
        with Desk() as desk:
            desk.post()
        self.assertEqual(len(list(desk.record.glob("*.json"))), 1)


class HoldTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.desk = cls.enterClassContext(Desk("--hold", "pod shop2 -quick"))

    def held(self, name, decision=None, timeout=20, path="/mutate"):
        """The answer to a review that is held until the decision."""
        answers = []
        body = named(name)
        target = f"{path}?timeout={timeout}s"
        thread = threading.Thread(target=lambda: answers.append(self.desk.post(body, target)))
        thread.start()
        row = self.desk.wait_for_row(name=f"shop2/{name}", outcome="held")
        if decision:
            decide = {"number": row["number"], **decision}
            wait_for(lambda: "replay" in self.desk.api(f"/api/reviews/{row['number']}"), "preview")
            self.desk.api("/api/decide", decide)
        thread.join(30)
        return answers[0][1]["response"]

    def test_decisions(self):
        allowed = self.held("allowed", {"kind": "allow"})
        self.assertEqual((allowed["allowed"], "patch" in allowed), (True, False))
        by_policy = self.held("by-policy", {"kind": "policies"})
        self.assertIn(b"shop", base64.b64decode(by_policy["patch"]))
        denied = self.held("denied", {"kind": "deny", "message": "not on a Friday"})
        self.assertEqual(denied["status"]["message"], "not on a Friday")
        self.assertFalse(denied["allowed"])

    def test_edit_keeps_what_the_page_does_not_show(self):
        """The page shows neither env values nor managedFields; an edit changes neither."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.desk.post(named("edited"))))
        thread.start()
        row = self.desk.wait_for_row(name="shop2/edited", outcome="held")
        obj = self.desk.api(f"/api/reviews/{row['number']}")["object"]
        self.assertIn("redacted-", json.dumps(obj["spec"]["containers"][0]["env"]))
        del obj["metadata"]["managedFields"]
        obj["spec"]["containers"][0]["env"].insert(0, {"name": "NEW", "value": "1"})
        decision = {"number": row["number"], "kind": "edit", "text": json.dumps(obj)}
        self.desk.api("/api/decide", decision)
        thread.join(30)
        patch = json.loads(base64.b64decode(answers[0][1]["response"]["patch"]))
        before = json.loads(named("edited"))["request"]["object"]
        expected = copy.deepcopy(before)
        expected["spec"]["containers"][0]["env"].insert(0, {"name": "NEW", "value": "1"})
        self.assertEqual(review.apply(before, patch), expected)

    def test_not_chosen(self):
        started = time.monotonic()
        self.desk.post(named("quick"))
        self.assertLess(time.monotonic() - started, 5)

    def test_timeout(self):
        started = time.monotonic()
        response = self.held("forgotten", timeout=3)
        waited = time.monotonic() - started
        self.assertTrue(1.5 < waited < 2.9, waited)
        self.assertEqual(
            response["warnings"],
            ["held by the debugging desk, and nobody answered in time: allowed unchanged"],
        )
        self.assertTrue(response["allowed"])
        self.assertNotIn("patch", response)


# ---------------------------------------------------------------------------- the browser


def chromium() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "disable-dev-shm-usage", "window-size=1440,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tempfile.mkdtemp(prefix='desk-browser-')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


PAINT = """
const paint = node => {  // [colour, all that shines through], as rgba
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  let ground = [255, 255, 255];
  const line = [];
  for (let at = node; at; at = at.parentElement) line.unshift(getComputedStyle(at));
  for (const style of line) ground = over(numbers(style.backgroundColor), ground);
  const opacity = line.reduce((all, style) => all * style.opacity, 1);
  return {ground, over: color => {
    const [r, g, b, a = 1] = numbers(color);
    return over([r, g, b, a * opacity], ground);
  }};
};
const light = rgb => {
  const [r, g, b] = rgb.map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const found = [];
for (const node of document.querySelectorAll("body, body *")) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!(own || node.placeholder || node.value) || !node.getClientRects().length) continue;
  const {ground, over} = paint(node), part = node.placeholder && !node.value ? "::placeholder" : "";
  const ratio = contrast(light(over(getComputedStyle(node, part).color)), light(ground));
  found.push([ratio, `${node.tagName}.${node.className}${part} ${node.innerText}`.slice(0, 60)]);
}
return found.sort((a, b) => a[0] - b[0]);
"""  # of each visible text its contrast with what is behind it, as WCAG 2 reckons it

TOO_WIDE = """
return [...document.querySelectorAll("body *")].filter(node => !node.closest(".diff") &&
  node.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(node => `${node.tagName}.${node.className} ${node.innerText}`.slice(0, 60));
"""

SHOWN = """
const own = node => [...node.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim());
const seen = [...document.querySelectorAll("body *")].filter(n => n.getClientRects().length);
const words = n => [n.tagName, n.className, n.value || n.placeholder, ...own(n)].join(" ");
return [document.querySelector("style").textContent, ...seen.map(words)].join("\\n");
"""  # the style and each visible element: what decides how the page looks, but for the fonts

VARYING = r"\b(\d\d\D\d\d\D\d\d|[\d.]+ (\u00b5s|ms|s)|[0-9a-f]{12})\b"  # times, a digest
ANEW = "WHOOK_PICTURES=1 python -m unittest tests.test_debug.BrowserTest.test_pictures"


def with_comment(png: bytes, text: str) -> bytes:
    """The PNG with a tEXt chunk before its last one, IEND, which is 12 bytes long."""
    chunk = b"tEXtComment\0" + text.encode()
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:-12] + framed + png[-12:]


HAVE_BROWSER = bool(shutil.which("chromium") and shutil.which("chromedriver"))


@unittest.skipUnless(HAVE_BROWSER, "no browser: apt-get install chromium chromium-driver")
class BrowserTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = chromium()
        cls.addClassCleanup(cls.browser.quit)

    def open(self, desk: Desk) -> None:
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.browser.get(desk.link)
        wait_for(lambda: "live" in self.text("#state"), "the page to be live")

    def one(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of all that match, as one script: nodes come and go between two calls."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(n => n.innerText).join('\\n')"
        )
        return self.browser.execute_script(script, selector)

    def wait_for_text(self, selector: str, *words: str, seconds: float = 20) -> str:
        def found():
            text = self.text(selector)
            return text if all(word in text for word in words) else None

        try:
            return wait_for(found, f"{words} in {selector}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it has {self.text(selector)!r}") from None

    def count(self, selector: str) -> int:
        script = "return document.querySelectorAll(arguments[0]).length"
        return self.browser.execute_script(script, selector)

    def press(self, *keys: str) -> None:
        self.one("body").send_keys(*keys)

    def click(self, label: str) -> None:
        def clicked():
            script = """const b = [...document.querySelectorAll('button')]
                .find(b => b.innerText === arguments[0] && b.offsetParent); b && b.click();
                return Boolean(b)"""
            return self.browser.execute_script(script, label)

        wait_for(clicked, f"the button {label}")

    def filter(self, words: str) -> None:
        self.press("/")
        self.one("#filter").send_keys(Keys.CONTROL, "a")
        self.one("#filter").send_keys(Keys.BACKSPACE, words, Keys.ESCAPE)

    def window(self, width=1440, height=900, scheme="light") -> None:
        """A window of this size (smaller than a browser makes one, too), light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def keys(self, *keys: str) -> None:
        """To whatever has the focus."""
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def focus(self) -> str:
        """The id, or the text, or the name, of what has the focus."""
        script = "const at = document.activeElement; return at.id || at.ariaLabel || at.innerText"
        return self.browser.execute_script(script)

    @contextlib.contextmanager
    def posted(self, desk: Desk, *bodies: bytes):
        """Requests that are on their way meanwhile; yields the list of their answers."""
        answers: list[dict] = []
        path = "/mutate?timeout=30s"
        threads = [
            threading.Thread(target=lambda body=body: answers.append(desk.post(body, path)[1]))
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        yield answers
        for thread in threads:
            thread.join(40)

    def assert_quiet(self) -> None:
        """Nothing was refused by the content policy, and no script failed."""
        self.assertEqual(self.browser.get_log("browser"), [])

    def test_live_list_filter_and_diff(self):
        with Desk(policies={"team": TEAM, "growing": GROWING, "pinned": PINNED}) as desk:
            self.open(desk)
            self.wait_for_text("#right", "Waiting for the first review")
            started = time.monotonic()
            desk.post(REVIEWS["create-deployment"])
            self.wait_for_text("#list", "CREATE Deployment shop/web", "patched")
            self.assertLess(time.monotonic() - started, 5)
            self.wait_for_text("#right h2", "CREATE Deployment shop/web")
            self.wait_for_text(".diff .plus", "team: shop", "count: x")
            self.wait_for_text(".remarks", 'policy "growing" is not idempotent')
            self.wait_for_text(".steps", "growing", "add /metadata/labels/count", "team")
            self.wait_for_text(".facts", "admin", "asked", "/mutate?timeout=10s", "of 10 s")
            desk.post(POD, "/validate?timeout=10s")
            desk.post(REVIEWS["update-deployment"])
            self.filter("denied")
            self.press("j")
            self.wait_for_text("#right .kubectl", "denied the request", "image is not pinned")
            self.wait_for_text("#foot", "1 of 3 reviews")
            self.filter("update -pod")
            self.press("j")
            self.wait_for_text("#right h2", "UPDATE Deployment")
            self.click("What the user changed")
            self.wait_for_text(".diff .minus", "nginx")
            self.filter("nowhere")
            self.wait_for_text("#list", "Nothing matches the filter.")
            self.assert_quiet()

    def test_replay_after_an_edit(self):
        with Desk() as desk:
            desk.post()
            self.open(desk)
            self.wait_for_text(".diff .plus", "team: shop")
            desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
            wait_for(lambda: 'team "desk"' in self.replayed(), "the new policy's answer")
            self.wait_for_text(".sides > div:first-child .plus", "team: shop")
            self.wait_for_text(".sides > div:last-child .plus", "team: desk")
            self.wait_for_text("#list", "differs")
            desk.write_policy("team", "def mutate(")
            self.wait_for_text("#banner", "does not load: line 1", "the last good version is in")
            self.one("#auto").click()
            desk.write_policy("team", TEAM)
            self.wait_for_text(".sides", "team: shop", seconds=30)
            self.wait_for_text("#right", "The policies of now give the same answer.")
            self.assert_quiet()

    def replayed(self) -> str:
        self.press("r")
        return self.text(".changes")

    def test_edit_and_save(self):
        with Desk(policies={"pinned": PINNED}) as desk:
            desk.post(POD, "/validate?timeout=10s")
            self.open(desk)
            self.wait_for_text("#right .badge", "denied")
            self.press("e")
            editor = wait_for(lambda: self.all("#editor"), "the editor")[0]
            text = editor.get_attribute("value")
            self.assertNotIn("managedFields", text)
            given = debug.parse_object(text)
            shown = desk.api("/api/reviews/1")["object"]
            del shown["metadata"]["managedFields"]
            self.assertEqual(given, shown, "YAML that comes back as it was")
            editor.send_keys("\nbroken: [", Keys.CONTROL, Keys.ENTER)
            self.wait_for_text("#problem", "the edited object, line ", ": not YAML: ")
            fixed = text.replace(":latest", ":1.36")
            self.browser.execute_script("arguments[0].value = arguments[1]", editor, fixed)
            self.click("Replay with this")
            self.wait_for_text(".sides .badge", "denied\nallowed")
            self.press("s")
            wait_for(lambda: self.one("#name").is_displayed(), "the dialog")
            self.click("Save")
            self.wait_for_text("#toast", "Saved as")
            done = run_desk("replay", desk.cases, "--policy", desk.policies)
            self.assertEqual((done.returncode, done.stdout), (0, "1 as recorded, 0 not\n"))
            self.assertIn("expect: unchanged\n", next(desk.cases.iterdir()).read_text())

    def test_hold(self):
        with Desk() as desk:
            self.open(desk)
            self.one("#hold").send_keys("pod", Keys.ENTER)
            wait_for(lambda: desk.api("/api/news?after=0")["hold"] == "pod", "the hold")
            answers = []
            thread = threading.Thread(target=lambda: answers.append(desk.post()))
            thread.start()
            self.wait_for_text("#held", "Allowed unchanged, with a warning, in")
            self.wait_for_text(".diff .plus", "team: shop")
            first = self.text("#countdown")
            wait_for(lambda: self.text("#countdown") != first, "the countdown to run")
            self.press("d")
            self.browser.switch_to.active_element.send_keys("no <b>more</b>", Keys.ENTER)
            thread.join(20)
            self.assertEqual(answers[0][1]["response"]["status"]["message"], "no <b>more</b>")
            self.wait_for_text("#right .kubectl", "denied the request: no <b>more</b>")
            self.assert_quiet()

    def test_hostile_content(self):
        def edit(obj):
            obj["metadata"]["labels"] = {HOSTILE: HOSTILE, "turned": "a\u202eb", "__proto__": "x"}
            obj["metadata"]["annotations"] = {"constructor": HOSTILE, "long": "w" * 20_000}
            obj["__proto__"] = {"polluted": "yes"}

        user = {"username": HOSTILE, "groups": [HOSTILE] * 50}
        body = changed(POD, name=HOSTILE, userInfo=user, edit=edit)
        denying = f"def validate(obj, request):\n    request.warn({HOSTILE!r})\n"
        denying += f"    request.audit('a', {HOSTILE!r})\n    request.deny({HOSTILE!r})"
        with Desk(policies={"team": TEAM, "denying": denying}) as desk:
            self.open(desk)
            desk.post(body)
            self.wait_for_text("#right h2", "<img src=x")
            self.click("Object")
            self.wait_for_text(".diff", "a\\u202eb", "polluted", "onerror")
            self.click("Request")
            self.press("e")
            wait_for(lambda: self.all("#editor"), "the editor")
            self.click("Cancel")
            desk.post(body, "/validate?timeout=5s")
            self.wait_for_text("#list", "denied")
            self.press("k")
            self.wait_for_text("#right .kubectl", "Warning: <img", "denied the request: <img")
            self.assertEqual(self.browser.title, "whook desk")
            self.assertEqual(self.all("#right img, #list img, #right script"), [])
            self.assertIsNone(self.browser.execute_script("return ({}).polluted || null"))
            self.assert_quiet()

    def test_a_thousand_reviews_and_megabytes(self):
        def big(obj):
            obj["metadata"]["annotations"] = {f"key-{n}": "v" * 60 for n in range(42_000)}

        with Desk() as desk:
            self.open(desk)
            context = ssl.create_default_context(cafile=desk.folder / "certs/ca.pem")
            connection = http.client.HTTPSConnection("localhost", desk.port, context=context)
            for number in range(999):
                connection.request("POST", "/mutate?timeout=10s", named(f"pod-{number}"), JSON)
                connection.getresponse().read()
            body = changed(POD, name="megabytes", edit=big)
            self.assertGreater(len(body), 3_000_000)
            connection.request("POST", "/mutate?timeout=30s", body, JSON)
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()
            self.wait_for_text("#foot", "1000 reviews")
            self.assertLess(self.count(".row"), 60, "only visible rows exist")
            self.filter("megabytes")
            self.wait_for_text("#right h2", "megabytes", seconds=60)
            self.click("Object")
            self.wait_for_text(".diff", "key-100", "more lines", seconds=30)
            self.assertLess(self.count(".diff .lines > *"), 2000)
            self.filter("pod-998")
            self.wait_for_text("#right h2", "pod-998")

    def test_yaml_comes_back(self):
        """What the page shows as YAML is the object, whatever stands in it."""
        texts = " |a b|yes|n|1|1.5|0x1|12:30|a: b|- a|#a|a #b|~|null|nginx:1.27|1:a|2026-11-22|%a|"
        texts += "@a|'a'|\"a\"|a\\b|{a}|[a]|&a|*a|!a|a:|?|a\n|a\n\n|\na|a\n b\n|a\n\n\nb|a \nb|"
        texts += "\ta\nb|é\nü|\u2028|\u202e|\x07|😀|a\r\nb"
        values = ["", *texts.split("|"), "|", "a" * 5000]
        keys = {key: key for key in values if len(key) < 1000}  # YAML's own limit
        made = {"values": values, "keys": keys, "[]": [[], {}, [[1, [2]]]]}
        objects = [json.loads(body)["request"].get("object") or {} for body in REVIEWS.values()]
        with Desk() as desk:
            self.open(desk)
            for obj in [made, *objects]:
                text = self.browser.execute_script("return toYaml(arguments[0]).join('\\n')", obj)
                self.assertEqual(debug.parse_object(text), obj)

    def test_without_token(self):
        with Desk() as desk:
            self.browser.get("about:blank")
            self.browser.get(desk.link.partition("#")[0])
            self.wait_for_text("#right", "This page needs its token")

    def test_try(self):
        """Local manifests: both calls on the page, and again when a file or a policy is saved."""
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder, "pod.yaml")
            text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n"
            text += "  - name: web\n    image: nginx:latest\n"
            manifest.write_text(text)
            policies = {"team": TEAM, "pinned": PINNED}
            with Desk(policies=policies, command="try", files=[str(manifest)]) as desk:
                self.open(desk)
                self.wait_for_text("#list", "CREATE Pod default/web", "patched", "denied")
                self.wait_for_text("#right .kubectl", "image is not pinned")
                manifest.write_text(text.replace(":latest", ":1.27"))
                self.wait_for_text("#list", "patched", "allowed")
                desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
                self.wait_for_text("#list", "differs")
                manifest.write_text("not: [")
                self.wait_for_text("#banner", "pod.yaml, line ", "not YAML: ", "last good version")

    def test_try_stays(self):
        """A manifest that is saved comes anew, and the page stays with the review of the same."""
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder, "pods.json")

            def write(tag: str) -> None:
                pods = []
                for name in "ab":
                    spec = {"containers": [{"name": "web", "image": f"{name}:latest"}]}
                    metadata = {"name": name, "labels": {"tag": tag}}
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
                    pods.append(json.dumps(pod))
                manifest.write_text("\n".join(pods))

            write("one")
            policies = {"team": TEAM, "pinned": PINNED}
            with Desk(policies=policies, command="try", files=[str(manifest)]) as desk:
                self.open(desk)
                self.wait_for_text("#foot", "4 reviews")
                self.one("#row-2").click()
                self.wait_for_text(".diff", "tag: one", "team: shop")
                write("two")
                self.wait_for_text(".diff", "tag: two", "team: shop")
                self.assertEqual(self.text("#right h2"), "CREATE Pod default/a")

    def test_opens_on_what_tells_most(self):
        """On the newest review that was not just let through; and it goes on to the next such."""
        with Desk(policies={"pinned": PINNED}) as desk:
            desk.post(POD, "/validate?timeout=10s")
            desk.post(REVIEWS["delete-service"], "/validate?timeout=10s")
            self.open(desk)
            self.wait_for_text("#right h2", "CREATE Pod shop2/tricky")
            desk.post(REVIEWS["create-deployment"])
            self.wait_for_text("#foot", "3 reviews")
            self.assertEqual(self.text("#right h2"), "CREATE Pod shop2/tricky")
            desk.post(named("other"), "/validate?timeout=10s")
            self.wait_for_text("#right h2", "CREATE Pod shop2/other")
            self.filter("deployment")
            self.wait_for_text("#right h2", "CREATE Deployment shop/web")

    def test_asks_once_for_what_it_shows(self):
        with Desk() as desk:
            desk.post()
            desk.recordings(1)
            self.open(desk)
            self.wait_for_text(".diff .plus", "team: shop")
            script = "return performance.getEntriesByType('resource').map(e => e.name)"
            asked = [name for name in self.browser.execute_script(script) if "/reviews/" in name]
            self.assertEqual(len(asked), 1, asked)

    def test_nothing_to_show(self):
        """What the page says without a policy, a review, a match, and without the desk."""
        with Desk(policies={}) as desk:
            self.open(desk)
            self.wait_for_text("#right", "Waiting for the first review")
            self.wait_for_text("#list", "No reviews yet.")
            no_policy = "There is no policy, so all is allowed as it is: start the desk with "
            self.wait_for_text("#banner", no_policy + "--policy FOLDER.")
            self.assertIn("0 policies", self.text("#state"))
            desk.post()
            self.wait_for_text("#right", "No change: the object stays as it was sent.")
            self.filter("nowhere")
            self.wait_for_text("#list", "Nothing matches the filter.")
            self.wait_for_text("#foot", "0 of 1 review")
        self.wait_for_text("#state", "the desk is not running")
        gone = "The desk is not running: start it again, and open the link that it prints."
        self.assertEqual(self.text("#banner"), gone)
        self.press("r")
        self.wait_for_text("#toast", "The desk does not answer.")
        with Desk("--page-port", str(desk.page_port)):
            anew = "The desk was started anew: open the link that the terminal shows."
            self.wait_for_text("#banner", anew)
            self.assertIn("shop2/tricky", self.text("#right h2"), "what it showed stays")

    def test_windows(self):
        """Nothing is wider than the window, however long names are, and however narrow it is."""

        def long(obj):
            obj["metadata"]["name"] = "n" * 253
            obj["metadata"]["labels"] = {"example.com/" + "k" * 63: "v" * 63}

        user = {"username": "system:serviceaccount:" + "u" * 120, "groups": ["g" * 80] * 4}
        fields = {"name": "n" * 253, "namespace": "s" * 63, "userInfo": user, "edit": long}
        policies = {"team": TEAM, "p" * 100: GROWING, "pinned": PINNED}
        self.addCleanup(self.window)
        with Desk("--hold", "deployment", policies=policies) as desk:
            self.open(desk)
            self.window(360, 700)
            self.assertLess(self.one("#list").size["height"], 100, "no room for no review")

            def look(state: str) -> None:
                for width in (360, 700, 1024, 2560):
                    self.window(width, 800)
                    with self.subTest(state, width=width):
                        wide = self.browser.execute_script(TOO_WIDE)
                        self.assertEqual(wide, [])

            look("no review")
            desk.post(changed(POD, **fields))
            self.wait_for_text(".diff .plus", "team: shop")
            look("a review")
            self.press("s")
            look("the dialog for a test case")
            self.keys(Keys.ESCAPE, "?")
            look("the keys")
            self.keys(Keys.ESCAPE, "e")
            wait_for(lambda: self.focus() == "editor", "the editor")
            look("the editor")
            self.keys(Keys.ESCAPE, "r")
            self.wait_for_text("#right", "The policies of now give the same answer.")
            look("a replay")
            desk.post(changed(POD, **fields), "/validate?timeout=10s")
            self.wait_for_text("#right .badge", "denied")
            look("a denial")
            with self.posted(desk, REVIEWS["create-deployment"]):
                self.wait_for_text("#held", "The API server waits.")
                look("a held review")
                self.press("a")

    def test_colours(self):
        """Every text has a contrast of 4.5 at least, the least that WCAG 2 lets pass (AA)."""
        self.addCleanup(self.window)
        policies = {"team": TEAM, "growing": GROWING, "pinned": PINNED}

        def look(state: str) -> None:
            for scheme in ("light", "dark"):
                self.window(1440, 900, scheme)
                with self.subTest(state, scheme=scheme):
                    found = self.browser.execute_script(PAINT)
                    self.assertGreater(len(found), 5)
                    self.assertGreaterEqual(found[0][0], 4.5, found[0][1])

        with Desk("--hold", "deployment", policies=policies) as desk:
            self.open(desk)
            look("no review")
            bodies = POD, REVIEWS["delete-service"], POD.replace(b'"kind":"AdmissionReview"', b"")
            for body in bodies:
                desk.post(body)
            desk.post(POD, "/validate?timeout=10s")
            self.wait_for_text("#list", "patched", "allowed", "failed", "denied")
            self.wait_for_text("#right .kubectl", "is not pinned")
            look("a denial")
            self.filter("patched")
            self.wait_for_text(".remarks", "not idempotent")
            self.one("#list").click()
            look("a patch")
            desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
            wait_for(lambda: 'team "desk"' in self.replayed(), "the new policy's answer")
            self.wait_for_text(".diff .plus", "team: desk")
            desk.write_policy("team", "def mutate(")
            self.wait_for_text("#banner", "does not load")
            look("a replay, and a policy that does not load")
            self.press("?")
            look("the keys")
            self.keys(Keys.ESCAPE)
            self.filter("")
            with self.posted(desk, REVIEWS["create-deployment"]):
                self.wait_for_text("#list", "held")
                self.keys(Keys.HOME)
                self.wait_for_text("#held", "The API server waits.")
                look("a held review")
                self.press("a")

    def test_by_keyboard_alone(self):
        with Desk(policies={"team": TEAM, "growing": GROWING}) as desk:
            for body in POD, REVIEWS["create-deployment"], REVIEWS["create-service"]:
                desk.post(body)
            desk.recordings(3)
            self.open(desk)
            self.wait_for_text(".diff .plus", "team: shop")
            outline = "return getComputedStyle(document.activeElement).outlineStyle"
            order = []
            while not order or order[-1][0] != "\u22ef":
                self.keys(Keys.TAB)
                order.append(self.focus())
                self.assertEqual(self.browser.execute_script(outline), "solid", order)
            top = ["filter", "hold", "auto", "replay-all", "help", "list"]
            actions = ["Replay", "Edit and replay", "Save as test case"]
            tabs = ["What the policies change", "Object", "Request", "Answer"]
            fold = "\u22ef 2 unchanged lines"
            self.assertEqual(order, [*top, *actions, *tabs, "YAML", fold])
            self.keys(Keys.ENTER)
            self.assertEqual(self.focus(), "kind: Service", "the first line that was folded")
            self.keys("/", "shop", Keys.ENTER)
            self.assertEqual(self.focus(), "list")
            for key, name in (Keys.END, "tricky"), (Keys.ARROW_UP, "web"), (Keys.HOME, "shop2/web"):
                self.keys(key)
                self.wait_for_text("#right h2", name)
            self.assertEqual(self.text(".row.chosen .title"), "CREATE Service shop2/web")

    def test_the_focus_stays(self):
        """What has the focus keeps it when the review is painted anew; what goes away leaves it
        where it was."""
        with Desk() as desk:
            desk.post()
            self.open(desk)
            self.wait_for_text(".diff .plus", "team: shop")
            self.browser.execute_script("document.querySelectorAll('.tabs button')[1].focus()")
            self.keys(Keys.ENTER)
            self.wait_for_text(".diff", "apiVersion: v1")
            self.assertEqual(self.focus(), "Object")
            self.browser.execute_script("document.querySelector('.actions .main').focus()")
            desk.api("/api/replay", {"numbers": [1]})
            self.wait_for_text("#right", "The policies of now give the same answer.")
            self.assertEqual(self.focus(), "Replay")
            self.press("e")
            self.assertEqual(self.focus(), "editor")
            place = "const at = document.activeElement; return [at.selectionStart, at.scrollTop]"
            self.assertEqual(self.browser.execute_script(place), [0, 0], "where the object starts")
            self.keys(Keys.ESCAPE)
            self.assertEqual((self.all("#editor"), self.focus()), ([], "right"))
            self.press("e")
            self.keys("x", Keys.ESCAPE)
            self.browser.switch_to.alert.dismiss()
            self.assertEqual(self.one("#editor").get_attribute("value")[0], "x")
            self.keys(Keys.ESCAPE)
            self.browser.switch_to.alert.accept()
            self.assertEqual(self.all("#editor"), [])
            for key, dialog in ("s", "save"), ("?", "keys"):
                self.press(key)
                self.assertTrue(self.one(f"#{dialog}").is_displayed())
                self.keys(Keys.ESCAPE)
                self.assertFalse(self.one(f"#{dialog}").is_displayed())

    def test_a_held_review_stays(self):
        """While a person answers one review the page does not go on to the next: what was typed
        must neither get lost nor deny another."""
        with Desk("--hold", "pod") as desk:
            self.open(desk)
            with self.posted(desk, named("first")) as first:
                self.wait_for_text("#right h2", "shop2/first")
                self.press("d")
                self.keys("not ")
                with self.posted(desk, named("second")) as second:
                    desk.wait_for_row(name="shop2/second", outcome="held")
                    self.wait_for_text("#foot", "2 reviews")
                    desk.api("/api/replay", {"numbers": [1]})
                    version = desk.wait_for_row(name="shop2/first")["version"]
                    script = "return details && details.version"
                    wait_for(lambda: self.browser.execute_script(script) >= version, "the replay")
                    self.keys("so", Keys.ENTER)
                    self.wait_for_text("#right h2", "shop2/second")
                    self.wait_for_text("#held", "The API server waits.")
                    self.press("a")
            self.assertEqual(first[0]["response"]["status"]["message"], "not so")
            self.assertTrue(second[0]["response"]["allowed"])

    def test_a_click_while_the_list_changes(self):
        with Desk() as desk:
            desk.post(named("one"))
            desk.post(named("two"))
            self.open(desk)
            self.wait_for_text("#right h2", "shop2/two")
            row = self.one("#row-1")
            webdriver.ActionChains(self.browser).click_and_hold(row).perform()
            desk.post(named("three"))
            self.wait_for_text("#list", "shop2/three")
            webdriver.ActionChains(self.browser).release().perform()
            self.wait_for_text("#right h2", "shop2/one")

    def test_pictures(self):
        """docs/ shows the page as it is. Each picture holds a digest of what it shows, so the two
        can't come apart; pixels are not compared, as fonts differ from machine to machine."""
        growing = "example.com/revision"
        growing = f"""def mutate(obj, request):
    if request.kind.kind not in ("Deployment", "StatefulSet"):
        return
    annotations = obj["metadata"].setdefault("annotations", {{}})
    annotations["{growing}"] = str(int(annotations.get("{growing}", 0)) + 1)
    request.warn("annotation {growing} is set by whook")
"""
        team = TEAM.replace('"team"', '"example.com/team"')
        names = "namespace secret service job cronjob daemonset pod-generatename statefulset"
        names = [f"create-{name}" for name in names.split()]
        names += ["update-pod", "delete-service", "create-deployment"]
        self.addCleanup(self.window)

        def picture(name: str, scheme: str) -> None:
            self.window(1280, 800, scheme)
            shown = re.sub(VARYING, "", self.browser.execute_script(SHOWN))
            digest = hashlib.sha256(shown.encode()).hexdigest()
            file = ROOT / "docs" / f"{name}.png"
            if os.environ.get("WHOOK_PICTURES"):
                file.write_bytes(with_comment(self.browser.get_screenshot_as_png(), digest))
            anew = f"the page is not what {file.name} shows; {ANEW} makes it anew: then look at it"
            with self.subTest(name):
                self.assertTrue(digest.encode() in file.read_bytes(), anew)

        with Desk(policies={"pinned": PINNED, "revision": growing, "team-label": team}) as desk:
            for name in names:
                desk.post(REVIEWS[name])
            desk.post(POD, "/validate?timeout=10s")
            desk.recordings(len(names) + 1)
            self.open(desk)
            self.wait_for_text("#right .badge", "denied")
            self.window(1280, 800)
            self.press("j")
            self.wait_for_text(".remarks", 'policy "revision" is not idempotent')
            picture("desk-light", "light")
            desk.write_policy("team-label", team.replace('"shop"', '"payments"'))
            wait_for(lambda: "payments" in self.replayed(), "the new policy's answer")
            self.wait_for_text(".sides > div:last-child .plus", "payments")
            picture("desk-dark", "dark")
            self.one("#hold").send_keys("pod", Keys.ENTER)
            self.wait_for_text("#hold-box.held-input", "hold")
            with self.posted(desk, POD):
                self.wait_for_text("#list", "held")
                self.keys(Keys.HOME)
                self.wait_for_text(".diff .plus", "payments")
                picture("desk-hold", "light")
                self.press("a")

    def test_names(self):
        """All that takes the focus has a name that a screen reader reads."""
        with Desk("--hold", "pod") as desk:
            self.open(desk)
            found = {}

            def read() -> None:
                tree = self.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
                for node in tree:
                    takes = {one["name"] for one in node.get("properties", ())}
                    role = node.get("role", {}).get("value", "")
                    if "focusable" in takes or role in ("dialog", "option"):
                        found.setdefault(role, set()).add(node["name"]["value"])

            desk.post(REVIEWS["create-deployment"])
            self.wait_for_text(".diff .plus", "team: shop")
            self.press("s")
            read()
            self.keys(Keys.ESCAPE, "?")
            read()
            self.keys(Keys.ESCAPE, "e")
            read()
            self.keys(Keys.ESCAPE)
            with self.posted(desk, POD):
                self.wait_for_text("#held", "The API server waits.")
                read()
                self.press("a")
        for role, names in found.items():
            self.assertNotIn("", names, role)
        self.assertEqual(found["dialog"], {"Save as test case", "Keyboard"})
        self.assertEqual(found["region"], {"Review"})
        fields = {"Filter reviews", "Hold reviews that match", "The object as YAML"}
        self.assertEqual(found["textbox"], {*fields, "Name", "Denial message"})
        deployment = "CREATE Deployment shop/web TIME /mutate \u00b7 admin \u00b7 1 change patched"
        options = {re.sub(r"\d\d:\d\d:\d\d", "TIME", name) for name in found["option"]}
        self.assertIn(deployment, options)


# ---------------------------------------------------------------------------- command line


class CommandLineTest(unittest.TestCase):
    def test_print(self):
        """`up --print` says what it would apply, and needs no cluster for it."""
        with tempfile.TemporaryDirectory() as folder:
            done = run_desk("up", "--address", "192.0.2.7:9443", "--print", "--validating",
                            "--resource", "deployments.apps", "--user", 'o"brien',
                            "--cert-dir", f"{folder}/certs")  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        documents = list(debug.yaml.safe_load_all(done.stdout))
        kinds = [document["kind"] for document in documents]
        expected = ["Namespace", "Service", "EndpointSlice", "Mutating", "Validating"]
        self.assertEqual([k.removesuffix("WebhookConfiguration") for k in kinds], expected)
        _, service, endpoints, mutating, _ = documents
        self.assertEqual(endpoints["endpoints"], [{"addresses": ["192.0.2.7"]}])
        self.assertEqual(endpoints["ports"][0]["port"], 9443)
        self.assertEqual(service["spec"]["ports"][0]["name"], endpoints["ports"][0]["name"])
        webhook = mutating["webhooks"][0]
        self.assertEqual(webhook["failurePolicy"], "Ignore")
        self.assertEqual(webhook["timeoutSeconds"], 30)
        self.assertEqual(webhook["namespaceSelector"], {"matchLabels": {"whook": "debug"}})
        self.assertEqual(webhook["rules"][0]["apiGroups"], ["apps"])
        self.assertEqual(
            webhook["matchConditions"][1]["expression"], 'request.userInfo.username == "o\\"brien"'
        )
        for document in documents:
            self.assertIn(debug.EXPIRES, document["metadata"]["annotations"])

    def test_help(self):
        """It says what each flag is for, and its defaults are the program's."""
        flags = {"--host", "--port"}
        for words in ["serve"], ["try", "x"], ["replay", "x"], ["up", "--address=192.0.2.7"]:
            options = vars(debug.parser().parse_args(words))
            status, out, said = call_desk(words[0], "--help")
            self.assertEqual((status, out, said), (0, debug.USAGE, ""))
            names = {"lifetime": "for"}
            names = {f"--{names.get(n, n)}".replace("_", "-"): v for n, v in options.items()}
            flags |= set(names) - {"--run", "--file", "--command"}
            for flag, default in names.items():
                if default and flag in flags and type(default) in (str, int):
                    self.assertIn(f"{flag} {default}", debug.USAGE)
        for flag in flags:
            self.assertRegex(debug.USAGE, rf"(?m)(^  |, ){flag}\b")
        self.assertLessEqual(max(map(len, debug.USAGE.splitlines())), 100)

    def test_without_the_packages(self):
        bare = [sys.executable, "-S", "-E", str(ROOT / "debug.py")]
        done = subprocess.run([*bare, "--help"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, debug.USAGE, ""))
        done = subprocess.run([*bare, "down"], capture_output=True, text=True)
        error = "whook: error: package cryptography is not installed for "
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertTrue(done.stderr.startswith(f"{error}{sys.executable}\nwhook: hint: python3 -m"))

    def test_an_older_python(self):
        ast.parse((ROOT / "debug.py").read_text(), feature_version=(3, 8))
        code = "import sys; sys.version_info = (3, 10, 2); sys.version = '3.10.2 (main)'; "
        code += f"sys.path.insert(0, {str(ROOT)!r}); import debug"
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
        error = "whook: error: Python 3.11 or later is needed, this is 3.10.2\n"
        self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", error))

    def test_try_looks_for_its_files_first(self):
        done = run_desk("try", "--page-port", "0", "absent.yaml")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("whook: error: can't read absent.yaml: ", done.stderr)

    def test_try_opens_on_what_tells_most(self):
        """The page opens on the newest review: what was refused, else the first that changed."""
        policies = {"team": TEAM, "pinned": PINNED}
        cases = [
            ("a:1", "validate a, mutate a"),
            ("a:1 b:1", "validate b, validate a, mutate b, mutate a"),
            ("a:1 b:latest", "validate a, mutate b, mutate a, validate b"),
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pods.yaml")
            for images, expected in cases:
                pods = [
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": image[0]},
                        "spec": {"containers": [{"name": "web", "image": image}]},
                    }
                    for image in images.split()
                ]
                file.write_text("\n---\n".join(map(json.dumps, pods)))
                with self.subTest(images):
                    with Desk(policies=policies, command="try", files=[str(file)]) as desk:
                        wait_for(lambda e=expected: len(desk.rows()) > e.count(","), "the reviews")
                        rows = [f"{row['path'][1:]} {row['name'][-1]}" for row in desk.rows()]
                        self.assertEqual(", ".join(rows), expected)

    def test_no_place_for_a_certificate(self):
        """It is said once, with the hint that helps."""
        with tempfile.NamedTemporaryFile() as file:
            status, out, said = call_desk("--cert-dir", file.name, "--page-port", "0")
        error = f"whook: error: cannot write to {file.name}: File exists\n"
        hint = "whook: hint: name a folder that can be written with --cert-dir\n"
        self.assertEqual((status, out, said), (1, "", error + hint))

    def test_wrong_usage(self):
        cases = {
            ("up",): "the following arguments are required: --address",
            ("up", "--address", "127.0.0.1"): "127.0.0.1 can't be an endpoint",
            ("up", "--address", "169.254.1.1"): "169.254.1.1 can't be an endpoint",
            ("up", "--address", "[::1]:443"): "::1 can't be an endpoint",
            ("up", "--address", "laptop"): '"laptop" is not like 192.0.2.7:8443',
            ("up", "--address", "192.0.2.7:99999"): "is no number from 1 to 65535",
            ("--page-port", "-1"): "--page-port",
            ("dance",): "invalid choice: 'dance'",
        }
        for arguments, message in cases.items():
            with self.subTest(arguments):
                status, out, said = call_desk(*arguments)
                self.assertEqual((status, out), (2, ""))
                self.assertIn(message, said)
                self.assertTrue(said.startswith("whook: error: "))

    def test_addresses(self):
        cases = {
            "192.0.2.7": ("192.0.2.7", 8443),
            "192.0.2.7:1": ("192.0.2.7", 1),
            "2001:db8::7": ("2001:db8::7", 8443),
            "[2001:db8::7]:9443": ("2001:db8::7", 9443),
        }
        for text, expected in cases.items():
            with self.subTest(text):
                self.assertEqual(debug.address(text), expected)


# ---------------------------------------------------------------------------- a cluster

API = "/api/v1/namespaces"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MUTATING = f"{ADMISSION}/mutatingwebhookconfigurations"
VALIDATING = f"{ADMISSION}/validatingwebhookconfigurations"
SERVICES = f"{API}/desk/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/desk/endpointslices"


class ClusterCases(unittest.TestCase):
    """What up, down and doctor do to a cluster. `front` comes from the subclass; the
    namespace "desk" is there before `up`, as to end one takes a real cluster seconds."""

    front: Front

    @classmethod
    def setUpClass(cls):
        for name, labels in {"desk": {}, "shop": {}, "produce": {"whook": "enabled"}}.items():
            metadata = {"name": name, "labels": labels}
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
            cls.front.ask("POST", API, namespace)

    def setUp(self):
        self.front.reset()
        self.enterContext(mock.patch.object(certs, "POLL", 0.05))
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.certs = f"{folder}/certs"
        self.options = ["--kubeconfig", self.front.kubeconfig(), "--cert-dir", self.certs]
        self.in_desk = ["--namespace", "desk"]
        self.addCleanup(self.desk, "down", *self.in_desk)

    def desk(self, command, *arguments, status=0) -> str:
        actual, out, err = call_desk(command, *self.options, *arguments)
        self.assertEqual(actual, status, out + err)
        return out + err

    def up(self, *arguments, status=0) -> str:
        return self.desk("up", "--address", "192.0.2.7:9443", *arguments, status=status)

    def left(self, namespace="desk") -> list[str]:
        """What carries the desk's labels."""
        places = [MUTATING, VALIDATING, f"{API}/{namespace}/services", API]
        places.append(SLICES.replace("desk", namespace))
        ours = f"{debug.MANAGED}={debug.MANAGER}"
        found = [(p, self.front.ask("GET", p, labelSelector=ours)["items"]) for p in places]
        found.append((API, self.front.ask("GET", API, labelSelector="whook=debug")["items"]))
        return [f"{p.rpartition('/')[2]} {o['metadata']['name']}" for p, os in found for o in os]

    @contextlib.contextmanager
    def edited(self, path: str, edit):
        """An object as somebody else has changed it; after that, as it was."""
        before = self.front.ask("GET", path)
        after = copy.deepcopy(before)
        edit(after)
        self.front.ask("PUT", path, after)
        try:
            yield
        finally:
            now = self.front.ask("GET", path)["metadata"]["resourceVersion"]
            before["metadata"]["resourceVersion"] = now
            self.front.ask("PUT", path, before)

    def labels(self, namespace: str) -> dict:
        return debug.labels_of(self.front.ask("GET", f"{API}/{namespace}"))

    def test_up_again_and_down(self):
        here = ["--namespace", "made"]  # by up, so down takes it away
        configuration, slices = f"{MUTATING}/whook-debug", SLICES.replace("desk", "made")
        self.up(*here, "--validating", "--opt-in", "shop")
        kinds = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations", "services"]
        kinds = [f"{kind} whook-debug" for kind in (*kinds, "endpointslices")]
        self.assertCountEqual(self.left("made"), [*kinds, "namespaces made", "namespaces shop"])
        made = self.front.ask("GET", f"{slices}/whook-debug")
        self.assertEqual(made["endpoints"][0]["addresses"], ["192.0.2.7"])
        self.assertEqual(made["ports"][0]["port"], 9443)
        webhook = self.front.ask("GET", configuration)["webhooks"][0]
        bundle = base64.b64decode(webhook["clientConfig"]["caBundle"])
        self.assertEqual(bundle, certs.read_files(self.certs).bundle)
        self.assertEqual(webhook["rules"][0]["resources"], ["*"])
        said = self.up(*here, "--resource", "pods")
        for name in (*kinds, "namespaces made"):
            self.assertRegex(said, f"(?m)^{name}: left by an earlier run, until 2[-0-9T:]+Z$")
        self.assertIn("validatingwebhookconfigurations whook-debug: deleted\n", said)
        webhook = self.front.ask("GET", configuration)["webhooks"][0]
        self.assertEqual(webhook["rules"][0]["resources"], ["pods"])
        self.assertNotIn("validatingwebhookconfigurations whook-debug", self.left("made"))
        self.assertEqual(
            self.desk("down", *here).splitlines(),
            [
                "mutatingwebhookconfigurations whook-debug: deleted",
                "endpointslices whook-debug: deleted",
                "services whook-debug: deleted",
                "namespaces made: deleted",
                "namespaces shop: label whook=debug removed",
            ],
        )
        self.assertEqual(self.left("made"), [])
        self.assertEqual(self.desk("down", *here), "")

    def test_down_after_an_up_that_broke_off(self):
        refusal = Refusal(403, "Forbidden", "exceeded quota").answer
        self.front.on("PATCH", "/endpointslices/", lambda *_: refusal)
        self.assertIn("whook: error: exceeded quota\n", self.up(*self.in_desk, status=1))
        self.assertEqual(self.left(), ["services whook-debug"])
        self.assertEqual(self.desk("down", *self.in_desk), "services whook-debug: deleted\n")
        self.assertEqual(self.left(), [])

    def test_what_is_not_ours_stays(self):
        before = self.front.ask("GET", f"{API}/produce")
        for namespace, error in (
            ("produce", "namespace produce has the label whook=enabled"),
            ("nowhere", "there is no namespace nowhere"),
        ):
            said = self.up(*self.in_desk, "--opt-in", namespace, status=1)
            self.assertIn(f"whook: error: {error}\n", said)
            self.assertEqual(self.left(), [])
        said = self.up(*self.in_desk)
        self.assertIn("namespaces desk: was there before, and stays as it is\n", said)
        self.assertIn("  python debug.py --host 192.0.2.7 --port 9443\n", said)
        self.assertIn("  python debug.py doctor --host 192.0.2.7 --port 9443\n", said)
        self.assertIn("  ssh -N -R 192.0.2.7:9443:127.0.0.1:8443 192.0.2.7\n", said)
        self.assertEqual(self.front.ask("GET", f"{API}/produce"), before)
        self.desk("down", *self.in_desk)
        self.assertNotIn(debug.MANAGED, self.labels("desk"))

        def label(namespace: dict) -> None:
            namespace["metadata"].setdefault("labels", {})["whook"] = "debug"

        with self.edited(f"{API}/shop", label):
            self.up(*self.in_desk, "--opt-in", "shop")
            said = self.desk("down", *self.in_desk)
            self.assertIn("namespaces shop: label whook=debug was set by others\n", said)
            self.assertEqual(self.left(), ["namespaces shop"])

    def test_two_desks(self):
        other = [*self.in_desk, "--name", "other"]
        self.addCleanup(self.desk, "down", *other)
        for names in self.in_desk, other:
            self.up(*names, "--opt-in", "shop")
        said = self.desk("down", *self.in_desk)
        self.assertIn("namespaces shop: label whook=debug was set by others\n", said)
        kinds = ["mutatingwebhookconfigurations", "services", "endpointslices"]
        theirs = [f"{kind} other" for kind in kinds]
        self.assertCountEqual(self.left(), [*theirs, "namespaces shop"])
        said = self.desk("down", *other)
        self.assertIn("namespaces shop: label whook=debug removed\n", said)
        self.assertEqual(self.left(), [])

    # -- doctor

    here = "127.0.0.1"

    def lead_here(self, found: dict) -> None:
        found["endpoints"][0]["addresses"] = [self.here]

    def listen(self, pair: certs.Pair) -> list[str]:
        """What serves this pair as the desk would; the flags that lead there."""
        endpoint = Endpoint(pki.Pair(pair.chain, pair.key))
        self.addCleanup(endpoint.close)
        return ["--host", "127.0.0.1", "--port", str(endpoint.address[1])]

    def fails(self, hop: str, reason: str, fix: str) -> None:
        """The doctor must end at this hop, for this reason, with this fix."""
        said = self.desk("doctor", *self.in_desk, *self.at, status=1)
        *passed, error, last = said.splitlines()
        self.assertTrue(all(line.startswith("ok     ") for line in passed), said)
        self.assertTrue(error.startswith(f"error  {hop}: {reason}"), said)
        self.assertIn(f"       fix: {fix}", last)

    def test_doctor_certificate_and_desk(self):
        self.at = []
        self.fails("certificate", f"there is no certificate in {self.certs}", "python debug.py up")
        self.up(*self.in_desk, "--name", "other")
        self.addCleanup(self.desk, "down", *self.in_desk, "--name", "other")
        name = "the certificate does not name whook-debug.desk.svc"
        self.fails("certificate", name, "python debug.py up, then restart the desk")
        old = certs.read_files(self.certs)
        self.up(*self.in_desk)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            self.at = ["--port", str(closed.getsockname()[1])]
            nothing = f"nothing listens on 127.0.0.1 port {self.at[-1]}"
            self.fails("desk", nothing, "start python debug.py, or name --host, --port")
        self.at = self.listen(old)
        served = f"what answers on 127.0.0.1 port {self.at[-1]} has another certificate: "
        self.fails("desk", served, "restart python debug.py, or name its --host and --port")

    def test_doctor_what_stands_in_the_cluster(self):
        def untrusting(found: dict) -> None:
            del found["webhooks"][0]["clientConfig"]["caBundle"]

        def expired(found: dict) -> None:
            found["metadata"]["annotations"][debug.EXPIRES] = "2020-01-01T00:00:00Z"

        def selecting(found: dict) -> None:
            found["spec"]["selector"] = {"app": "whook"}

        def plain_service(found: dict) -> None:
            found["spec"]["ports"][0]["name"] = "http"

        def empty(found: dict) -> None:
            found["endpoints"] = []

        def plain_slice(found: dict) -> None:
            found["ports"][0]["name"] = "http"

        trust = "mutate.whook-debug.local does not trust the desk: the bundle holds no valid CA"
        again = "python debug.py down, then up"
        cases = [
            ("configuration", MUTATING, untrusting, trust, "python debug.py up once more"),
            ("configuration", MUTATING, expired, "it was meant to end at 2020-01-01", "python "),
            ("service", SERVICES, selecting, "it has a selector, so it leads to pods", again),
            ("service", SERVICES, plain_service, "port 443 is not named https: ", "python "),
            ("slice", SLICES, empty, "the service has 0 addresses, not one", "down, then up"),
            ("slice", SLICES, plain_slice, "no port is named https, as the service's is", "py"),
        ]
        self.up(*self.in_desk)
        self.at = self.listen(certs.read_files(self.certs))
        for hop, collection, edit, reason, fix in cases:
            with self.subTest(reason), self.edited(f"{collection}/whook-debug", edit):
                self.fails(hop, reason, fix)
        self.front.ask("DELETE", f"{SERVICES}/whook-debug")
        self.fails("service", "there is no desk/whook-debug", "python debug.py up")
        self.front.ask("DELETE", f"{MUTATING}/whook-debug")
        none = 'there is no webhook configuration "whook-debug"'
        self.fails("configuration", none, "python debug.py up")

    def test_doctor_call_label_and_dry_run(self):
        """What the API server says of its call to the desk comes from a rule here."""
        self.up(*self.in_desk)
        self.at = [*self.listen(certs.read_files(self.certs)), "--timeout", "1"]
        arrived, denied = f"{debug.ARRIVED}: ", "denied the request: "
        doctor = 'admission webhook "doctor.whook-debug.local" '

        def answer(text: str, nonce: bool = False):
            def refuse(call, _):
                self.assertEqual(call.query["dryRun"], "All")
                labels = call.body["metadata"]["labels"]
                return Refusal(403, "", text + labels[debug.DOCTOR] * nonce).answer

            return refuse

        hint = "is the ssh tunnel up"
        desk, shop = f"{API}/desk/configmaps", f"{API}/shop/configmaps"
        self.front.on("POST", desk, lambda call, _: (201, call.body), times=99)
        self.fails("call", "the API server does not call", hint)
        self.assertNotIn("validatingwebhookconfigurations doctor.whook-debug.local", self.left())
        self.front.reset()
        refused = f'failed calling webhook "{doctor}": connection refused'
        self.front.on("POST", desk, answer(refused))
        self.fails("call", refused, hint)
        with self.edited(f"{SLICES}/whook-debug", self.lead_here):
            self.front.on("POST", desk, answer(refused))
            here = f"{self.here} is this machine: does the desk listen there "
            here += f"(python debug.py --host {self.here} --port 9443), is a firewall in between"
            self.fails("call", refused, here)
        self.front.on("POST", desk, answer(doctor + denied + arrived, nonce=True), times=99)
        label = "kubectl label namespace NAMESPACE whook=debug"
        self.fails("label", "no namespace has it", label)
        self.up(*self.in_desk, "--opt-in", "shop")
        self.front.on("POST", shop, lambda call, _: (201, call.body))
        passed = "an object in namespace shop did not come by the desk: no error"
        self.fails("dry run", passed, "do the configuration's rules")
        self.front.on("POST", shop, answer(arrived, nonce=True))
        said = self.desk("doctor", *self.in_desk, *self.at)
        self.assertEqual(said.count("ok     "), 8, said)
        self.assertIn("the API server reaches the desk\n", said)


class StandIn(ClusterCases):
    """The cases against the stand-in."""

    @classmethod
    def setUpClass(cls):
        cls.front = cls.enterClassContext(Front(Memory()))
        super().setUpClass()


class RealCluster(ClusterCases):
    """The cases against a real control plane, and the calls that only that makes."""

    @classmethod
    def setUpClass(cls):
        if reason := controlplane.missing():
            raise unittest.SkipTest(reason)
        cls.here = cls.address = cls.enterClassContext(controlplane.network_namespace())
        cls.plane = cls.enterClassContext(controlplane.ControlPlane())
        cls.front = cls.enterClassContext(Front(Relay(cls.plane)))
        super().setUpClass()

    def test_from_up_to_down(self):
        address, options = f"{self.address}:8443", ("--host", self.address, "--port", "8443")
        before = self.plane.kubectl("get", "namespace", "produce", "-o", "json").stdout
        self.assertIn("error  certificate: there is no", self.desk("doctor", status=1))
        said = self.desk("up", "--address", address, "--validating", "--opt-in", "shop")
        self.assertIn(f"ssh -N -R {address}:127.0.0.1:8443 {self.address}", said)
        self.assertIn("error  desk: nothing listens on", self.desk("doctor", *options, status=1))
        with Desk(
            *options, "--cert-dir", self.certs, policies={"team": TEAM, "pinned": PINNED}
        ) as desk:
            said = self.desk("doctor", *options)
            self.assertEqual(said.count("ok     "), 8, said)
            self.assertEqual([row["name"] for row in desk.rows() if row["kind"] == "Pod"], [])
            started = time.monotonic()
            self.plane.kubectl("run", "web", "--image=nginx:1.27", "-n", "shop")
            desk.wait_for_row(name="shop/web", outcome="patched")
            self.assertLess(time.monotonic() - started, 5)
            pod = json.loads(self.plane.kubectl("get", "pod", "web", "-n", "shop", "-ojson").stdout)
            self.assertEqual(pod["metadata"]["labels"]["team"], "shop")
            denied = self.plane.kubectl("run", "x", "--image=x:latest", "-n", "shop", check=False)
            self.assertIn('denied the request: container "x": image is not', denied.stderr)
            row = desk.wait_for_row(name="shop/x", outcome="denied")
            path = f"/api/reviews/{row['number']}"
            shown = wait_for(lambda: desk.api(path)["result"]["kubectl"], "the judgement")
            spoken = shown[0].replace("validate.whook.local", "validate.whook-debug.local")
            self.assertEqual(denied.stderr.strip(), spoken)
            desk.write_policy("team", TEAM.replace('"shop"', '"desk"'))
            row = desk.wait_for_row(name="shop/web", outcome="patched")

            def differs():
                desk.api("/api/replay", {"numbers": [row["number"]]})
                return desk.wait_for_row(number=row["number"])["differs"]

            wait_for(differs, "the replay to differ")
            said = self.desk("up", "--address", address, "--resource", "pods")
            self.assertIn("mutatingwebhookconfigurations whook-debug: left by an earlier", said)
            self.assertIn("validatingwebhookconfigurations whook-debug: deleted", said)
            self.assertEqual(self.desk("doctor", *options).count("ok     "), 8)
        self.plane.kubectl("run", "later", "--image=nginx:latest", "-n", "shop")  # no desk: Ignore
        with Desk("--port", "8443", "--cert-dir", self.certs):
            said = self.desk("doctor", status=1)  # it listens here, and not where the slice leads
            self.assertIn("error  call: ", said)
            self.assertIn("connection refused", said)
        said = self.desk("up", "--address", address, "--opt-in", "produce", status=1)
        self.assertIn("namespace produce has the label whook=enabled", said)
        self.desk("down")
        self.assertEqual(self.left("whook-debug"), [])
        self.assertEqual(self.desk("down"), "")
        after = self.plane.kubectl("get", "namespace", "produce", "-o", "json").stdout
        self.assertEqual(after, before)


del ClusterCases  # a mixin: not to be collected by itself

if __name__ == "__main__":
    unittest.main()
