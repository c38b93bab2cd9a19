"""The roofline and the rivals, drawn. The only file here that needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from deepgen_ext.profiling.roofline import Measured

COLOURS = {"forward": "#1f77b4", "inverse": "#2ca02c", "backward": "#d62728"}
MARKERS = "osD^v<>PX*dp1x+2"


def draw_roofline(measured: Sequence[Measured], path: Path) -> None:
    """Operations a second over operations a byte: under the slope of the copy, and under the roof
    of the matrix product, each the best that this run measured.
    """
    from matplotlib import pyplot

    points = [m for m in measured if not m.refused and m.operations]
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    if points:
        largest = max(points, key=lambda m: m.bytes)
        bandwidth = largest.copy_rate()
        roof = max(m.product_rate() for m in points)
        low = min(0.1, *(m.intensity / 2 for m in points))
        high = max(10 * roof / bandwidth, *(2 * m.intensity for m in points))
        ridge = roof / bandwidth
        axes.plot([low, ridge, high], [low * bandwidth / 1e9, roof / 1e9, roof / 1e9],
                  color="black", linewidth=1.5)  # fmt: skip
        axes.annotate(f"copy, {bandwidth / 1e9:.1f} GB/s", (ridge / 4, bandwidth * ridge / 4e9),
                      textcoords="offset points", xytext=(-8, 4), ha="right", fontsize=9)  # fmt: skip
        axes.annotate(f"matrix product, {roof / 1e9:.0f} GFLOP/s", (high, roof / 1e9),
                      textcoords="offset points", xytext=(0, 5), ha="right", fontsize=9)  # fmt: skip
    names = list(dict.fromkeys(m.op for m in points))
    for m in points:
        axes.scatter(
            m.intensity, m.operations_per_second / 1e9, color=COLOURS[m.direction],
            marker=MARKERS[names.index(m.op) % len(MARKERS)], s=45, zorder=3,
        )  # fmt: skip
    for i, name in enumerate(names):
        axes.scatter([], [], color="black", marker=MARKERS[i % len(MARKERS)], s=30, label=name)
    for direction in dict.fromkeys(m.direction for m in points):
        axes.scatter([], [], color=COLOURS[direction], marker="s", s=60, label=direction)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.grid(which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_rivals(measured: Sequence[Measured], path: Path) -> None:
    """Times over ours, a group of bars for each op and direction; ours is the line at 1."""
    from matplotlib import pyplot

    found = [m for m in measured if not m.refused]
    kinds = list(dict.fromkeys(row.name.split(",")[0] for m in found for row in m.rivals))
    figure, axes = pyplot.subplots(
        figsize=(9, max(2.5, 0.4 + 0.32 * len(found) * max(1, len(kinds)))), layout="constrained"
    )
    height = 0.8 / max(1, len(kinds))
    for k, kind in enumerate(kinds):
        ratios = [_ratio_to(m, kind) for m in found]
        places = [i + (k - (len(kinds) - 1) / 2) * height for i in range(len(found))]
        bars = axes.barh(places, ratios, height * 0.9, label=kind)
        axes.bar_label(bars, ["" if math.isnan(r) else f"{r:.3g}" for r in ratios],
                       padding=2, fontsize=8)  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    labels = [f"{m.op} {m.direction}" for m in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)  # the first at the top
    axes.set(xscale="log", xlabel="time over ours")
    axes.margins(x=0.15)
    if kinds:
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _ratio_to(m: Measured, kind: str) -> float:
    for row in m.rivals:
        if row.name.split(",")[0] == kind and row.times:
            return m.result.ratio(row, m.result.rows[0]).median
    return math.nan
