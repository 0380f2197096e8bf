"""The pages say what the program does: every block of docs/policies.md runs, links lead somewhere,
and the figures of docs/compare.md are those of the files that it names."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import objects
import whook

ROOT = Path(__file__).parent
REVIEWS = {path.stem: path.read_bytes() for path in (ROOT / "testing/reviews").glob("*.json")}
POD = REVIEWS["create-pod"]
SVG = "{http://www.w3.org/2000/svg}"
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
SERVICE |= {"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of this language, "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for name, block in found if name == language]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table's rows, without the row of titles."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in table[2:]] for table in rows]


def in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def policies(**sources: str) -> tuple[whook.Policy, ...]:
    return whook.load_policies({f"{n}.py": s.encode() for n, s in sources.items()}).policies


def review(kind: str, obj: dict, **fields) -> whook.Request:
    names = {"group": "", "version": "v1"}
    request = {"uid": "1", "operation": "CREATE", "kind": {**names, "kind": kind}, "object": obj}
    head = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
    return whook.parse_review(json.dumps(head | {"request": request | fields}).encode())


class Pages(unittest.TestCase):
    """All that is written in Markdown."""

    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "policies/README.md"])

    def test_links_lead_to_files_and_headings(self):
        for page in self.pages:
            text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if target.startswith(("https://", "mailto:")):
                    continue
                with self.subTest(page=page.name, link=target):
                    name, _, anchor = target.partition("#")
                    file = (page.parent / name).resolve() if name else page
                    self.assertTrue(file.exists())
                    if anchor:
                        self.assertIn(anchor, self.anchors(file.read_text()))

    def anchors(self, text: str) -> list[str]:
        """As GitHub makes them: lower case, spaces to hyphens, punctuation dropped."""
        text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        return [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings]

    def test_pages_are_short(self):
        for page in [*(ROOT / "docs").glob("*.md"), ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]:
            with self.subTest(page.name):
                self.assertLess(len(page.read_text().splitlines()), 200)


class FirstRun(unittest.TestCase):
    """docs/try.md: the commands, as they are typed, and what is on the screen."""

    text = (ROOT / "docs/try.md").read_text()

    def masked(self, text: str) -> str:
        """Without what differs from run to run, and from one Python to the next."""
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text.strip())
        text = re.sub(r"(python|process|hash|duration|admission|health)=\S+", r"\1=", text)
        return re.sub(r"(version=)\S+", rf"\g<1>{whook.__version__}", text)

    @unittest.skipUnless(shutil.which("curl"), "there is no curl: apt-get install curl")
    def test_the_commands_and_their_lines(self):
        install, start, ask = blocks(self.text, "sh")
        made, log, patch, line = blocks(self.text, "")
        self.assertTrue(install.startswith("sudo apt-get install "))
        with tempfile.TemporaryDirectory() as folder:
            for name in "certs.py", "whook.py", "objects.py", "policies", "testing":
                Path(folder, name).symlink_to(ROOT / name)
            local, serve = start.replace("python3", sys.executable).splitlines()
            shell = {"shell": True, "cwd": folder, "text": True}
            done = subprocess.run(local, **shell, capture_output=True)
            self.assertEqual((self.masked(done.stdout), done.stderr), (self.masked(made), ""))
            words = [*shlex.split(serve), "--port=0", "--health-port=0", "--host=127.0.0.1"]
            pipe = subprocess.PIPE
            with subprocess.Popen(words, cwd=folder, text=True, stderr=pipe) as server:
                self.addCleanup(server.kill)
                lines = [server.stderr.readline() for _ in log.splitlines()]
                port = re.findall(r"admission=\S+:(\d+)", lines[-1])[0]
                asked = subprocess.run(ask.replace("8443", port), **shell, capture_output=True)
                lines.append(server.stderr.readline())
                server.send_signal(signal.SIGINT)
        self.assertEqual(self.masked("".join(lines)), self.masked(log + line))
        self.assertEqual((asked.stdout, asked.stderr), (patch, ""))

    def test_every_line_is_explained(self):
        events = [in_code(row[0])[0] for row in tables(self.text)[0]]
        log = blocks(self.text, "")[1].splitlines()
        self.assertEqual(events, [line.split()[2] for line in log])


class WritingPolicies(unittest.TestCase):
    """docs/policies.md"""

    text = (ROOT / "docs/policies.md").read_text()
    first, second = blocks(text, "python")

    def test_the_first_policy_and_what_it_does(self):
        """The command as it is typed, and what is said to be on the screen."""
        (command,), screen = blocks(self.text, "sh"), blocks(self.text, "")[0]
        words = [sys.executable, str(ROOT / "review.py"), *command.split()[2:]]
        self.assertEqual(command.split()[:2], ["python3", "review.py"])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "team.py").write_text(self.first)
            Path(folder, "service.json").write_text(json.dumps(SERVICE))
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        self.assertEqual(done.stdout + done.stderr, screen)
        self.assertEqual(done.returncode, 1)

    def test_what_was_so_before_may_stay(self):
        for old, kind, allowed in [
            ({}, "LoadBalancer", False),
            ({"spec": {"type": "ClusterIP"}}, "LoadBalancer", False),
            ({"spec": {"type": "LoadBalancer"}}, "LoadBalancer", True),
            ({}, "ClusterIP", True),
        ]:
            with self.subTest(old=old, kind=kind):
                fields = {"operation": "UPDATE", "oldObject": old} if old else {}
                request = review("Service", {"spec": {"type": kind}}, **fields)
                loaded = policies(team=self.first)
                self.assertEqual(whook.evaluate(request, loaded, "validate").allowed, allowed)
        bare = review("Service", {})
        self.assertTrue(whook.evaluate(bare, policies(team=self.first), "validate").allowed)
        self.assertEqual(len(whook.evaluate(bare, policies(team=self.first)).patch), 1)

    def test_the_policy_for_containers(self):
        for name in "create-pod", "create-deployment":
            with self.subTest(name):
                request = whook.parse_review(REVIEWS[name])
                patch = whook.evaluate(request, policies(root=self.second)).patch
                self.assertTrue(patch)
                self.assertIn("readOnlyRootFilesystem", json.dumps(patch))

    def test_parameters(self):
        (parameters,) = blocks(self.text, "json")
        sources = {"team.py": self.first.encode(), "team.json": parameters.encode()}
        loaded = whook.load_policies(sources).policies
        patch = whook.evaluate(review("Service", SERVICE), loaded).patch
        self.assertEqual(patch[0]["value"], {"example.com/team": json.loads(parameters)["TEAM"]})

    def test_every_field_of_the_request_and_its_type(self):
        types = {"str": str, "dict": dict, "dict or None": (dict, type(None)), "bool": bool}
        types |= {"float": float, "Kind": whook.Kind, "Resource": whook.Resource}
        types |= {"as above": (whook.Kind, whook.Resource, str)}
        rows = {name: types[row[1]] for row in tables(self.text)[0] for name in in_code(row[0])}
        self.assertEqual({*rows}, {*whook.Request.__annotations__, "object"})
        for name, body in REVIEWS.items():
            request = whook.parse_review(body)
            for field, kind in rows.items():
                with self.subTest(review=name, field=field):
                    self.assertIsInstance(getattr(request, field), kind)

    def test_every_call(self):
        written = [in_code(row[0])[0] for row in tables(self.text)[1]]
        real = []
        for name in "deny", "warn", "audit":
            function = getattr(whook.Request, name)
            parameters = [*inspect.signature(function).parameters.values()][1:]
            shown = [
                p.name if p.default is p.empty else f"{p.name}={json.dumps(p.default)}"
                for p in parameters
            ]
            real.append(f"request.{name}({', '.join(shown)})")
        self.assertEqual(written, real)

    def test_every_fault(self):
        sources = {
            "raises anything": "def validate(obj, request):\n    obj['spek']",
            "returns a value": "def validate(obj, request):\n    return False",
            "puts in what JSON has not": "def mutate(obj, request):\n    obj['spec'] = {1}",
            "takes more than a second": "def mutate(obj, request):\n    while True: pass",
            "is `async`, or yields": "async def mutate(obj, request): pass",
            "defines neither function": "MUTATE = 1",
        }
        rows = dict(tables(self.text)[2])
        self.assertEqual([*rows], [*sources])
        for what, source in sources.items():
            with self.subTest(what):
                with self.assertRaises((whook.Refusal, whook.SetupError)) as caught:
                    loaded = policies(p=source)
                    verb = "mutate" if loaded[0].mutate else "validate"
                    whook.evaluate(whook.parse_review(POD), loaded, verb)
                status = getattr(caught.exception, "status", "does not load")
                self.assertTrue(rows[what].startswith(str(status)))
                self.assertEqual(in_code(rows[what])[-1], caught.exception.message)

    def test_every_function_of_objects(self):
        rows = [name for row in tables(self.text)[3] for name in in_code(row[0])]
        found = inspect.getmembers(objects, inspect.isfunction)
        public = {name for name, _ in found if not name.startswith("_")}
        self.assertEqual({call.partition("(")[0] for call in rows}, public)

    def test_figures(self):
        words = " ".join(self.text.split())
        for figure, constant, value in [
            ("7 MiB at most", whook.MAX_BODY, 7 * 2**20),
            ("have one second together", whook.BUDGET, 1),
            ("After 15 seconds whook ends itself", whook.STUCK_AFTER, 15),
            ("has 10 seconds at the start and one second after", whook.START_BUDGET, 10),
            ("keeps 4096 characters in all", whook.MAX_WARNINGS, 4096),
        ]:
            with self.subTest(figure):
                self.assertIn(figure, words)
                self.assertEqual(constant, value)

    def test_warn_never_refuses(self):
        request = review("Service", SERVICE)
        response = whook.evaluate(request, policies(team=self.first), "warn")
        self.assertTrue(response.allowed)
        self.assertEqual([*response.audit], ["would-deny"])
        self.assertEqual(len(response.warnings), 1)


class Contributing(unittest.TestCase):
    """CONTRIBUTING.md"""

    def test_the_sections_are_those_of_whook(self):
        written = [row[0] for row in tables((ROOT / "CONTRIBUTING.md").read_text())[1]]
        source = (ROOT / "whook.py").read_text()
        self.assertEqual(written, re.findall(r"^# -{20,} (\d+ .*)$", source, re.M))


class Picture(unittest.TestCase):
    """docs/way.svg"""

    text = (ROOT / "docs/way.svg").read_text()

    def test_it_is_small_and_complete(self):
        self.assertLess(len(self.text.encode()), 6 * 1024)
        tree = ElementTree.fromstring(self.text)
        self.assertNotRegex(self.text, r"<image|<script|href=|url\((?!#)|@import")
        words = " ".join("".join(node.itertext()) for node in tree.iter(f"{SVG}text"))
        for word in "API server", "AdmissionReview", "whook", "your function", "JSON Patch":
            self.assertIn(word, words)

    def test_every_colour_has_one_for_dark(self):
        light, dark = self.text.split("@media (prefers-color-scheme: dark)")
        classes = {*re.findall(r"^    ([.\w, ]+?) {.*(?:fill|stroke): #", light, re.M)}
        again = {name for names in re.findall(r"^      ([.\w, ]+?) {", dark, re.M)
                 for name in names.split(", ")}  # fmt: skip
        self.assertEqual({name for names in classes for name in names.split(", ")}, again)


if __name__ == "__main__":
    unittest.main()
