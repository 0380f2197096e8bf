"""The pages say what the programs do: figures, flags, metrics, commands, links; and are short."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tempfile
import unittest
from pathlib import Path

import certs
import debug
import review
import whook
from test_whook import POD, ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "policies/README.md", *ROOT.glob("[A-Z]*.md")]
OPERATE = (ROOT / "docs/operate.md").read_text()


def fences(text: str) -> list[str]:
    return re.findall(r"(?ms)^ *```\w*\n(.*?)^ *```", text)


def commands(text: str) -> list[str]:
    """Each command that a page shows, in a block or within a line, as one line."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    blocks = "\n".join(fences(text)).replace("\\\n", " ")
    return [*spans, *blocks.splitlines()]


def anchors(page: Path) -> set[str]:
    """What a link may name after its #, as GitHub makes it of the headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


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


class Length(unittest.TestCase):
    def test_the_first_page_is_one(self):
        self.assertLessEqual(len(README.read_text().splitlines()), 150)

    def test_each_other_page_is_short(self):
        for page in DOCS:
            with self.subTest(page.name):
                self.assertLess(len(page.read_text().splitlines()), 200)


class Links(unittest.TestCase):
    def test_each_leads_somewhere(self):
        for page in PAGES:
            text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                path, _, anchor = target.partition("#")
                if not re.match(r"\w+:", target):
                    with self.subTest(page=page.name, target=target):
                        file = page.parent / path if path else page
                        self.assertTrue(file.exists())
                        if anchor:
                            self.assertIn(anchor, anchors(file))

    def test_the_first_page_names_every_other(self):
        linked = re.findall(r"\(docs/([a-z-]+\.md)", README.read_text())
        others = "".join(page.read_text() for page in DOCS)
        for page in DOCS:
            with self.subTest(page.name):
                self.assertTrue(page.name in linked or f"]({page.name}" in others)


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
    def test_every_flag_of_the_server_and_no_other(self):
        table = OPERATE.split("| flag | what it does |")[1].split("\n\n")[0]
        written = set(re.findall(r"`(--[a-z-]+)", table))
        self.assertEqual(written, set(re.findall(r"^  (--[a-z-]+)", helps("whook"), re.M)))

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
                with self.subTest(page=page.name, name=name):
                    self.assertIn(re.sub("_(bucket|sum|count)$", "", name), whook.METRICS)

    def test_python_is_called_in_one_way(self):
        """As the environment's own, but for what runs before there is one."""
        for page in PAGES:
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
