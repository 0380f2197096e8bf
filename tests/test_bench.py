"""The page's figures are the bench's: what stands between its markers is what the last results
render to. Needs none of the bench's own libraries."""

from __future__ import annotations

import copy
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

from bench import report

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "bench" / "results.json"


def turn(cpu: float, rate: float) -> dict[str, Any]:
    """What one server did in one round."""
    run = {"cpu_us": cpu, "rate": rate, "p50_us": 900, "p99_us": 2000.0, "failed": 0}
    reviews = {name: dict(run) for name in ("1 KB", "5 KB", "70 KB", "passthrough")}
    return {"start_ms": 100.0, "fresh_us": 1000.0 + cpu, "memory": [9.0, 12.4], "reviews": reviews}


def versions_turn(cpu: float) -> dict[str, Any]:
    """What only the versions of whook are measured in."""
    names = ("rate", "p50_ms", "p99_ms", "worst_ms", "failed", "readyz_worst_ms", "readyz_failed")
    figures = dict.fromkeys((*names, "large_rate", "large_failed"), 1.0)
    thirty = {name: {"cpu_us": cpu} for name in ("5 KB", "70 KB")}
    return {"thirty": thirty, "idle_mib": 20.0, "beside": figures}


def results() -> dict[str, Any]:
    python = {"version": "3.11.2", "pgo_stated": True, "loads_us": 24.9}
    return {
        "settings": {"rounds": 3, "seconds": 2},
        "machine": {"cpu": "a processor", "cores": 2, "python": python},
        "audit": {"whook": [0, 1700], "gin, Go 1.19.8": [27, 276695]},
        "rounds": [
            {"whook": turn(100, 9000.0), "gin, Go 1.19.8": turn(250, 4000.0)},
            {"whook": turn(220, 4000.0), "gin, Go 1.19.8": turn(500, 2000.0)},
            {"whook": turn(110, 8000.0), "gin, Go 1.19.8": turn(200, 4000.0)},
        ],
        "growth": {},
    }


class Report(unittest.TestCase):
    def test_a_figure_is_the_median_of_the_rounds(self):
        rows = [line for line in report.table(results()).splitlines() if "whook" in line]
        self.assertEqual(
            rows, ["| whook | 110 | 8,000 | 0.90 | 2.00 | 21 | 12 | 100 | 1000 | 0 | 1,700 |"]
        )

    def test_a_ratio_is_the_median_of_the_rounds_own_with_its_range(self):
        last = report.ratios(results()).splitlines()[-1]
        self.assertEqual(
            last,
            "| gin, Go 1.19.8 | 0.44 (0.40–0.55) | 0.44 (0.40–0.55) | 2.00 (2.00–2.25) "
            "| 1.00 (1.00–1.00) |",
        )

    def test_an_earlier_version_has_its_ratios_and_a_table(self):
        """Its CPU time is twice that of whook; results without it have no ratio to aiohttp."""
        both = results()
        for number, turns in enumerate(both["rounds"]):
            for name, cpu in (("whook", 500 + number), ("whook at 0123abc", 1000 + 2 * number)):
                turns[name] = turn(cpu / 2, 4000.0) | versions_turn(cpu)
            turns["aiohttp"] = turn(500, 4000.0)
        ratios = report.ratios(both).splitlines()
        head = "| whook against | CPU, 5 KB | CPU, 70 KB | CPU, 70 KB, 30 policies "
        self.assertEqual(ratios[0], f"{head}| reviews/s, 5 KB | p99, 5 KB |")
        half = "0.50 (0.50–0.50)"
        self.assertIn(f"| whook at 0123abc | {half} | {half} | {half} |  |  |", ratios)
        self.assertIn(f"| aiohttp | {half} |  |  |  |  |", ratios)
        lines = report.versions(both).splitlines()
        self.assertEqual(lines[0], "| versions of whook | whook | whook at 0123abc |")
        title = "CPU µs a review, 30 policies, 70 KB"
        self.assertIn(f"| {title} | 501 (500–502) | 1002 (1000–1004) |", lines)
        self.assertEqual(report.versions(results()), "")
        del both["rounds"][0]["whook at 0123abc"]
        self.assertNotIn("aiohttp", report.ratios(both))

    def test_failed_reviews_are_told(self):
        failing = copy.deepcopy(results())
        failing["rounds"][1]["whook"]["reviews"]["5 KB"]["failed"] = 7
        for case, expected in ((results(), "0 reviews failed."), (failing, "7 reviews failed.")):
            with self.subTest(expected):
                self.assertIn(f" {expected}", report.heading(case))

    def test_the_text_goes_between_the_markers(self):
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "page.md")
            self.assertFalse(report.update(page, results()))
            page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
            self.assertTrue(report.update(page, results()))
            self.assertEqual(report.shown(page), report.render(results()))
            text = page.read_text()
            self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))


class Readme(unittest.TestCase):
    def test_its_figures_are_those_of_the_last_run(self):
        shown = report.shown(PAGE)
        if shown is None or not RESULTS.exists():
            self.skipTest("the page has no figures of the bench, or no run has left its results")
        self.assertEqual(
            shown,
            report.render(report.read(RESULTS)),
            "run `python -m bench` again, or put back what it wrote",
        )


class Soak(unittest.TestCase):
    """What the page says of the long run is what the run has written."""

    def test_figures(self):
        soak = json.loads((ROOT / "bench/soak.json").read_text())
        start, end = soak["memory_mib"]
        said = " ".join(PAGE.read_text().split())
        for figure in (
            f"{soak['reviews']:,} reviews in {soak['seconds']} s",
            f"changed {sum(soak['rotations'].values())} times",
            f"{soak['failed']} failed, {soak['log_lines_dropped']} log lines dropped",
            f"{start} MiB at the start and {end} MiB at the end",
        ):
            self.assertIn(figure, said)


if __name__ == "__main__":
    unittest.main()
