"""The growth plots: one small SVG that can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

GREY = "#808080"  # on white and on black alike
COLOURS = ("#2f81f7", "#d4761f", "#3fa34d")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "whook",
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "legend.frameon": False,
    "savefig.transparent": True,
}
Points = dict[str, dict[str, dict[str, float]]]


def draw(growth: dict[str, Points], path: Path) -> None:
    panels: list[tuple[str, str, str, Callable[[dict[str, float]], float], str]] = [
        ("size", "bytes of the review", "CPU µs a review", cost, "log"),
        ("policies", "policies", "CPU µs a review", cost, "linear"),
        ("connections", "connections", "reviews/s", lambda point: point["rate"], "log"),
        ("replicas", "replicas", "reviews/s", lambda point: point["rate"], "linear"),
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        axes = figure.subplots(2, 2)
        for axis, (what, x_label, y_label, value, scale) in zip(axes.flat, panels, strict=True):
            panel(axis, growth[what], value)
            axis.set(xlabel=x_label, ylabel=y_label, xscale=scale)
            if what == "size":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            if what == "replicas":
                axis.set_xticks(sorted(int(x) for x in growth[what]["whook"]))
            axis.minorticks_off()
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def cost(point: dict[str, float]) -> float:
    return point["cpu_us"]


def panel(axis: Any, series: Points, value: Callable[[dict[str, float]], float]) -> None:
    for name, points in series.items():
        xs = sorted(int(x) for x in points)
        axis.plot(xs, [value(points[str(x)]) for x in xs], marker=".", label=name)
    axis.grid(color=GREY, alpha=0.25, linewidth=0.5)
    axis.legend()
