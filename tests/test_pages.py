"""The pages say what the programs do: commands, flags, metrics and figures; links lead somewhere,
and what can be run of a page is run."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
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

import certs
import debug
import objects
import review
import whook

ROOT = Path(__file__).resolve().parent.parent
REVIEWS = {path.stem: path.read_bytes() for path in (ROOT / "tests/reviews").glob("*.json")}
POD = REVIEWS["create-pod"]
SVG = "{http://www.w3.org/2000/svg}"
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
SERVICE |= {"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "policies/README.md", *sorted(ROOT.glob("[A-Z]*.md"))]
OPERATE = (ROOT / "docs/operate.md").read_text()


def fences(text: str) -> list[str]:
    return re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", text)


def commands(text: str) -> list[str]:
    """Each command that a page shows, in a block or within a line, as one line."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    blocks = "\n".join(fences(text)).replace("\\\n", " ")
    return [*spans, *blocks.splitlines()]


def helps(program: str) -> str:
    """All that a program says of its flags, those of its commands too."""
    main = {"whook": whook.main, "certs": certs.main, "review": review.main, "debug": debug.main}
    words = {
        "certs": ["ensure", "check", "local", "ca-bundle"],
        "review": ["test", "rules", "new"],
        "debug": ["try", "up", "doctor", "down", "replay"],
    }
    out = io.StringIO()
    for word in ["", *words.get(program, [])]:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main[program]([*filter(None, [word]), "--help"])
    return out.getvalue()


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


def request_for(kind: str, obj: dict, **fields) -> whook.Request:
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
        for page in [*DOCS, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]:
            with self.subTest(page.name):
                self.assertLess(len(page.read_text().splitlines()), 200)
        self.assertLessEqual(len(README.read_text().splitlines()), 150)

    def test_every_page_is_linked(self):
        linked = re.findall(
            r"\]\((?:docs/)?([a-z-]+\.md)", "".join(map(Path.read_text, self.pages))
        )
        self.assertEqual({page.name for page in DOCS} - {*linked}, set())


class FirstRun(unittest.TestCase):
    """docs/try.md: the commands, as they are typed, and what is on the screen."""

    text = (ROOT / "docs/try.md").read_text()

    def masked(self, text: str) -> str:
        """Without what differs from run to run, and from one Python to the next."""
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text.strip())
        text = re.sub(r"(python|process|hash|duration|admission|health)=\S+", r"\1=", text)
        text = re.sub(r"(reviews=https://)[^/]+", r"\1", text)
        return re.sub(r"(version=)\S+", rf"\g<1>{whook.__version__}", text)

    @unittest.skipUnless(shutil.which("curl"), "there is no curl: apt-get install curl")
    def test_the_commands_and_their_lines(self):
        install, start, ask = blocks(self.text, "sh")
        made, log, patch, line = blocks(self.text, "")
        self.assertTrue(install.startswith("sudo apt-get install "))
        with tempfile.TemporaryDirectory() as folder:
            for name in "certs.py", "whook.py", "objects.py", "policies", "tests":
                Path(folder, name).symlink_to(ROOT / name)
            local, serve = start.replace("python3", shlex.quote(sys.executable)).splitlines()
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
        self.assertEqual(command.split()[:2], ["python", "review.py"])
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
                request = request_for("Service", {"spec": {"type": kind}}, **fields)
                loaded = policies(team=self.first)
                self.assertEqual(whook.evaluate(request, loaded, "validate").allowed, allowed)
        bare = request_for("Service", {})
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
        patch = whook.evaluate(request_for("Service", SERVICE), loaded).patch
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
            "raises an exception": "def validate(obj, request):\n    obj['spek']",
            "returns a value": "def validate(obj, request):\n    return False",
            "adds a value that JSON cannot represent": "def mutate(obj, _):\n    obj['spec'] = {1}",
            "takes more than a second": "def mutate(obj, request):\n    while True: pass",
            "is `async`, or a generator": "async def mutate(obj, request): pass",
            "defines neither function": "MUTATE = 1",
        }
        rows = dict(tables(self.text)[2])
        self.assertEqual([*rows], [*sources])
        for what, source in sources.items():
            with self.subTest(what):
                with self.assertRaises((whook.HTTPError, whook.ConfigError)) as caught:
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
            ("have one second together", whook.TIME_LIMIT, 1),
            ("After 8 seconds of processor time whook exits", whook.WATCHDOG, 8),
            ("has 10 seconds at the start and one second after", whook.START_TIME_LIMIT, 10),
            ("keeps 4096 characters in all", whook.MAX_WARNINGS, 4096),
        ]:
            with self.subTest(figure):
                self.assertIn(figure, words)
                self.assertEqual(constant, value)

    def test_warn_never_refuses(self):
        request = request_for("Service", SERVICE)
        response = whook.evaluate(request, policies(team=self.first), "warn")
        self.assertTrue(response.allowed)
        self.assertEqual([*response.audit], ["would-deny"])
        self.assertEqual(len(response.warnings), 1)


class DeployPolicies(unittest.TestCase):
    """docs/deploy-policies.md: what --check prints. The rest is in tests/test_e2e.py."""

    text = (ROOT / "docs/deploy-policies.md").read_text()

    def check(self, folder: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "whook.py", "--check", f"--policy={folder}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def test_check_prints_each_policy(self):
        done = self.check("policies")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        shown = f"$ python whook.py --check --policy policies\n{done.stdout}```"
        self.assertIn(self.masked(shown), self.masked(self.text))

    def masked(self, text: str) -> str:
        return re.sub("hash [0-9a-f]+", "hash …", text)

    def test_check_says_what_the_log_of_a_pod_says(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "broken.py").write_text("def mutate(obj, request:\n")
            done = self.check(folder)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        (error,) = re.findall("(?m)^whook: error: .*$", done.stderr)
        self.assertIn(f"grep error\n{error.replace(folder, '/policies')}\n", self.text)

    def test_check_checks_tls_files_if_there_are_any(self):
        command = [sys.executable, "whook.py", "--check", "--policy=policies"]
        command += ["--tls-cert=nowhere", "--tls-key=nowhere"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn("whook: error: can't read nowhere", done.stderr)


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


class Figures(unittest.TestCase):
    def test_the_line_count(self):
        source = (ROOT / "whook.py").read_text()
        prose = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                prose |= set(range(node.lineno, node.end_lineno + 1))
        lines = source.splitlines()
        code = [n for n, line in enumerate(lines, 1) if n not in prose and line.strip()]
        code = [n for n in code if not lines[n - 1].lstrip().startswith("#")]
        text = README.read_text()
        self.assertEqual(re.findall(r"<!-- lines -->(\d+)<!-- -->", text), [str(len(lines))])
        self.assertEqual(re.findall(r"<!-- code -->(\d+)<!-- -->", text), [str(len(code))])


class Programs(unittest.TestCase):
    renamed = ("whook_held_bytes",)  # the changelog names metrics that are gone

    def test_every_flag_of_the_server_and_no_other(self):
        table = OPERATE.split("| flag | what it does |")[1].split("\n\n")[0]
        written = set(re.findall(r"`(--[a-z-]+)", table))
        self.assertEqual(written, set(re.findall(r"^  (--[a-z-]+)", helps("whook"), re.M)))

    def test_each_starts_without_its_folder_in_the_path(self):
        """PYTHONSAFEPATH keeps Python from putting the program's folder into sys.path."""
        with tempfile.TemporaryDirectory() as folder:
            source = "from objects import read\n\ndef validate(obj, request): pass"
            Path(folder, "p.py").write_text(source)
            for program, *arguments in [
                ("whook.py", "--check", "--policy=p.py"),
                ("review.py", "--policy=p.py", str(ROOT / "tests/reviews/create-pod.json")),
                ("review.py", "test", "--help"),
                ("debug.py", "--help"),
                ("certs.py", "--help"),
            ]:
                with self.subTest(program, arguments=arguments):
                    done = subprocess.run(
                        [sys.executable, ROOT / program, *arguments],
                        cwd=folder,
                        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""},
                        capture_output=True,
                        text=True,
                    )
                    self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_every_metric_and_no_other(self):
        self.assertEqual(re.findall(r"^\| `(whook_\w+)` \|", OPERATE, re.M), list(whook.METRICS))

    def test_flags_in_commands_exist(self):
        programs = ("whook", "certs", "review", "debug")
        known = {p: {"--help", *re.findall("--[a-z-]+", helps(p))} for p in programs}
        for page in PAGES:
            for command in commands(page.read_text()):
                for part in re.split(r"[|;&]|\s#\s", command):
                    program = re.search(r"(?:^|\s)(whook|certs|review|debug)\.py\b(.*)", part)
                    for flag in re.findall(r"(?:^|\s)(--[a-z-]+)", program[2] if program else ""):
                        with self.subTest(page=page.name, command=command):
                            self.assertIn(flag, known[program[1]])

    def test_metrics_that_are_named_exist(self):
        for page in PAGES:
            for name in re.findall(r"\bwhook_[a-z_]+\b", page.read_text()):
                if page.name == "CHANGELOG.md" and name in self.renamed:
                    continue
                with self.subTest(page=page.name, name=name):
                    self.assertIn(re.sub("_(bucket|sum|count)$", "", name), whook.METRICS)

    def test_limits_that_are_named(self):
        """Compare the limits on two pages with those of the server."""
        security = (ROOT / "docs/security.md").read_text()
        self.assertEqual((whook.MAX_BODY, whook.MAX_CONTAINERS), (7 * 2**20, 500_000))
        self.assertEqual((whook.MAX_CONNECTIONS, whook.MAX_HEALTH_CONNECTIONS), (1000, 64))
        self.assertEqual((whook.MAX_BUFFERED_BODIES, whook.MAX_PATCH), (8, 14 * 2**20))
        self.assertEqual((whook.HANDSHAKES_PER_TURN, whook.STEP), (16, 16 * 1024))
        self.assertEqual((whook.TIME_LIMIT, whook.WATCHDOG, whook.SETTLE_TIME), (1, 8, 5))
        self.assertEqual(whook.TIME_LIMIT + whook.MAX_ALARMS * whook.ALARM_INTERVAL, 3)
        for text in (
            "7 MiB (`--max-body`), 500,000 objects and lists",
            "8 bodies of full size in sum",
            "1000 (`--max-connections`)",
            "64 connections, no bodies",
            "16 steps of handshakes in each turn of the loop, 32 KB for a handshake; 16 KB",
            "one second for each review",
            "a review's audit annotations | 14 MiB each",
            "8 s of processor time",
        ):
            self.assertIn(text, security)
        for text in (
            "more than 14 MiB",
            "more than 500,000 objects and lists",
            "all 1000 places",
            "64 connections, and no\nrequest bodies",
            "and again every 50 ms",
            "about 3 s after the policies began",
            "8 s of processor time",
            "connected for 5 s",
        ):
            self.assertIn(text, OPERATE)

    def test_the_timeouts_of_connections(self):
        rows = OPERATE.split("| state | the connection waits for | at most |")[1].split("\n\n")[0]
        found = dict(re.findall(r"(?m)^\| (\w+) \|.*\| (.*) \|$", rows))
        expected = {state: f"{seconds:g} s" for state, seconds in whook.TIMEOUTS.items()}
        self.assertEqual(found, expected | {"waiting": "the review's deadline"})

    def test_python_is_called_in_one_way(self):
        """As the environment's own, but for what runs before there is one."""
        for page in set(PAGES) - {ROOT / "docs/try.md"}:
            text = page.read_text()
            for name in ("run", "test", "curl", "claim") if page == README else ():
                text = re.sub(rf"(?s)<!-- {name} -->.*?<!-- end -->", "", text)
            for command in commands(text):
                with self.subTest(page=page.name, command=command):
                    self.assertNotRegex(command, r"^(\$ )?(pip3|python3(?! -m venv)|\.venv/bin)")


class FirstPage(unittest.TestCase):
    text = README.read_text()

    def block(self, name: str) -> str:
        """The shell commands between the markers of this name."""
        return self.text.split(f"<!-- {name} -->\n```sh\n")[1].split("```")[0]

    def test_the_policy_is_one_that_is_shipped(self):
        shown = self.text.split("```python\n")[1].split("```")[0]
        self.assertEqual(shown, (ROOT / "policies/team-label.py").read_text())

    def test_the_diff_is_what_review_shows(self):
        pod = {"name": "web", "namespace": "shop"}
        obj = {"apiVersion": "v1", "kind": "Pod", "metadata": pod,
               "spec": {"containers": [{"name": "web", "image": "nginx"}]}}  # fmt: skip
        out = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pod.json")
            file.write_text(json.dumps(obj))
            with contextlib.redirect_stdout(out):
                policy = str(ROOT / "policies/team-label.py")
                self.assertEqual(review.main(["--policy", policy, str(file)]), 0)
        self.assertIn(out.getvalue().strip(), self.text)

    def test_the_first_run(self):
        options = whook.parse_arguments(self.block("run").split("whook.py ")[1].split())
        self.assertEqual(options.port, 8443)
        loaded = whook.load_policies(whook.read_sources([str(ROOT / p) for p in options.policy]))
        response = whook.evaluate(whook.parse_review(POD), loaded.policies)
        self.assertIn(json.dumps(response.patch, separators=(",", ":")), self.text)
        body = re.search(r"--data-binary @(\S+)", self.block("curl"))[1]
        self.assertEqual((ROOT / body).read_bytes(), POD)

    def test_the_claim_is_checked_without_a_package(self):
        self.assertEqual(self.block("claim").strip(), "python3 -m unittest test_whook.HouseRules")


if __name__ == "__main__":
    unittest.main()
