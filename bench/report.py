"""The results as Markdown. Pure, and of the standard library: the test of the page runs it too.

A figure is the median of the rounds; a ratio is the median of each round's own ratio, for load
from elsewhere then falls on both, with the least and the greatest beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
Results = dict[str, Any]
Value = Callable[[dict[str, Any]], float]


def values(results: Results, peer: str, value: Value) -> list[float]:
    return [value(turns[peer]) for turns in results["rounds"]]


def middle(results: Results, peer: str, value: Value) -> float:
    return median(values(results, peer, value))


def ratio(results: Results, peer: str, against: str, value: Value) -> list[float]:
    """Least, median and greatest of the rounds' ratios."""
    pairs = zip(values(results, peer, value), values(results, against, value), strict=True)
    found = sorted(one / other for one, other in pairs)
    return [found[0], median(found), found[-1]]


def of(review: str, figure: str) -> Value:
    return lambda turn: turn["reviews"][review][figure]


def fresh(turn: dict[str, Any]) -> float:
    """CPU µs that a fresh connection costs over one that is kept."""
    return float(turn["fresh_us"] - turn["reviews"]["1 KB"]["cpu_us"])


def peers(results: Results) -> list[str]:
    cost = of("5 KB", "cpu_us")
    names = list(results["rounds"][0])
    return sorted(names, key=lambda name: (name != "whook", middle(results, name, cost)))


def render(results: Results) -> str:
    parts = [heading(results), table(results), costs(results), ratios(results)]
    if results["growth"]:
        parts.append(
            "![Cost against object size, policies, connections and replicas](../bench/growth.svg)"
        )
    parts.append(
        "Made by `python -m bench`; the first lines of `bench/__main__.py` say what it needs."
    )
    return "\n\n".join(part for part in parts if part)


def heading(results: Results) -> str:
    machine, settings = results["machine"], results["settings"]
    python = machine["python"]
    build = ", built with PGO" if python["pgo_stated"] else ""
    reviews = sum(r["failed"] for t in results["rounds"] for p in t.values()
                  for r in p["reviews"].values())  # fmt: skip
    return (
        f"The machine: {machine['cpu']}, {machine['cores']} cores, which the load shares. Python "
        f"{python['version']}{build}: one `json.loads` of the 5 KB review takes "
        f"{python['loads_us']:.0f} µs. The servers took turns, {settings['rounds']} rounds of "
        f"{settings['seconds']} s for each figure, which is the median. 8 TLS connections were "
        f"kept alive, and a label was added. {reviews:.0f} reviews failed."
    )


def table(results: Results) -> str:
    lines = [
        "| server | CPU µs a review | reviews/s | p50 ms | p99 ms | memory MiB | of a process "
        "| start ms | fresh TLS µs | dependencies | lines to audit |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in peers(results):
        needs, source = results["audit"][name]
        cells = [
            f"{middle(results, name, of('5 KB', 'cpu_us')):.0f}",
            f"{middle(results, name, of('5 KB', 'rate')):,.0f}",
            f"{middle(results, name, of('5 KB', 'p50_us')) / 1000:.2f}",
            f"{middle(results, name, of('5 KB', 'p99_us')) / 1000:.2f}",
            f"{middle(results, name, lambda turn: sum(turn['memory'])):.0f}",
            f"{middle(results, name, lambda turn: max(turn['memory'])):.0f}",
            f"{middle(results, name, lambda turn: turn['start_ms']):.0f}",
            f"{middle(results, name, fresh):.0f}",
            f"{needs}",
            f"{source:,}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs(results: Results) -> str:
    names = list(next(iter(results["rounds"][0].values()))["reviews"])
    lines = [f"| CPU µs a review | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for peer in peers(results):
        cells = [f"{middle(results, peer, of(name, 'cpu_us')):.0f}" for name in names]
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """whook against each gin: the median of the rounds' ratios, and their range."""
    against = [name for name in peers(results) if name.startswith("gin")]
    if "whook" not in results["rounds"][0] or not against:
        return ""
    figures = {
        "CPU, 5 KB": of("5 KB", "cpu_us"),
        "CPU, 70 KB": of("70 KB", "cpu_us"),
        "reviews/s, 5 KB": of("5 KB", "rate"),
        "p99, 5 KB": of("5 KB", "p99_us"),
    }
    lines = [f"| whook against | {' | '.join(figures)} |", "|---|" + "--:|" * len(figures)]
    for name in against:
        cells = []
        for value in figures.values():
            least, mid, most = ratio(results, "whook", name, value)
            cells.append(f"{mid:.2f} ({least:.2f}–{most:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    """The results with figures of four digits: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def update(page: Path, results: Results) -> bool:
    """Put the rendered results between the page's markers; False if it has none."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    page.write_text(f"{before}{BEGIN}\n{render(results)}\n{END}{after}")
    return True


def shown(page: Path) -> str | None:
    """What stands between the page's markers; None if it has none."""
    text = page.read_text() if page.exists() else ""
    rest = text.partition(BEGIN)[2]
    found, end, _ = rest.partition(END)
    return found.strip() if end else None


def read(path: Path) -> Results:
    results: Results = json.loads(path.read_text())
    return results
