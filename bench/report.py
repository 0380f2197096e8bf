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
EARLIER = "whook at "  # the start of the name of an earlier version
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
    parts = [heading(results), table(results), costs(results), ratios(results), versions(results)]
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


FIGURES: dict[str, Value] = {
    "CPU, 5 KB": of("5 KB", "cpu_us"),
    "CPU, 70 KB": of("70 KB", "cpu_us"),
    "CPU, 70 KB, 30 policies": lambda turn: turn["thirty"]["70 KB"]["cpu_us"],
    "reviews/s, 5 KB": of("5 KB", "rate"),
    "p99, 5 KB": of("5 KB", "p99_us"),
    "p99, 5 KB, paced": lambda turn: turn["paced"]["p99_us"],
}
AGAINST = {  # the start of a server's name, and the figures that whook is compared in
    "gin": ("CPU, 5 KB", "CPU, 70 KB", "reviews/s, 5 KB", "p99, 5 KB", "p99, 5 KB, paced"),
    EARLIER: ("CPU, 5 KB", "CPU, 70 KB", "CPU, 70 KB, 30 policies"),
    "aiohttp": ("CPU, 5 KB",),
}


def ratios(results: Results) -> str:
    """whook against other servers: the median of the rounds' ratios, and their range.

    Results from before an earlier version was measured have only the rows of gin.
    """
    turns = results["rounds"][0]
    pairs = [(name, asked) for name in peers(results) for start, asked in AGAINST.items()
             if name.startswith(start) and (earlier(results) or start == "gin")]  # fmt: skip
    if "whook" not in turns or not pairs:
        return ""
    figures = [title for title in FIGURES if any(
        title in asked and measured(turns[name], title) for name, asked in pairs)]  # fmt: skip
    lines = [f"| whook against | {' | '.join(figures)} |", "|---|" + "--:|" * len(figures)]
    for name, asked in pairs:
        cells = []
        for title in figures:
            found = title in asked and ratio(results, "whook", name, FIGURES[title])
            cells.append(spread(found, ".2f") if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(turn: dict[str, Any], title: str) -> bool:
    try:
        FIGURES[title](turn)
    except KeyError:
        return False
    return True


def spread(found: list[float], form: str) -> str:
    least, mid, most = (format(value, form) for value in found)
    return f"{mid} ({least}–{most})"


def earlier(results: Results) -> list[str]:
    return [name for name in results["rounds"][0] if name.startswith(EARLIER)]


def beside(figure: str) -> Value:
    return lambda turn: turn["beside"][figure]


VERSIONS: dict[str, tuple[Value, str]] = {
    "CPU µs a review, 30 policies, 5 KB": (lambda turn: turn["thirty"]["5 KB"]["cpu_us"], ".0f"),
    "CPU µs a review, 30 policies, 70 KB": (lambda turn: turn["thirty"]["70 KB"]["cpu_us"], ".0f"),
    "MiB of 1,000 idle connections": (lambda turn: turn["idle_mib"], ".1f"),
    "beside 2.9 MB reviews: reviews/s": (beside("rate"), ".0f"),
    "beside 2.9 MB reviews: p50 ms": (beside("p50_ms"), ".1f"),
    "beside 2.9 MB reviews: p99 ms": (beside("p99_ms"), ".1f"),
    "beside 2.9 MB reviews: worst ms": (beside("worst_ms"), ".0f"),
    "beside 2.9 MB reviews: failed": (beside("failed"), ".0f"),
    "beside 2.9 MB reviews: /readyz, worst ms": (beside("readyz_worst_ms"), ".0f"),
    "beside 2.9 MB reviews: /readyz, failed": (beside("readyz_failed"), ".0f"),
    "2.9 MB reviews/s": (beside("large_rate"), ".1f"),
    "2.9 MB reviews that failed": (beside("large_failed"), ".0f"),
}


def versions(results: Results) -> str:
    """The figures that only the versions of whook have: the median of the rounds, and the range."""
    names = [name for name in ("whook", *earlier(results)) if name in results["rounds"][0]]
    if not earlier(results):
        return ""
    lines = [f"| versions of whook | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for title, (value, form) in VERSIONS.items():
        cells = []
        for name in names:
            found = sorted(values(results, name, value))
            cells.append(spread([found[0], median(found), found[-1]], form))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    notes = (
        "Beside eight clients that post reviews of 2.9 MB in a loop, honest clients try to post "
        "100 reviews of 5 KB a second on four connections: a review that is due while its "
        "connection waits for an answer is skipped. A prober asks `/readyz` ten times a second. "
        "*Paced*: each of the eight connections waits 4 ms before each review."
    )
    return "\n".join([*lines, "", notes])


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
