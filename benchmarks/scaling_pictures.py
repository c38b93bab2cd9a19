"""Log-log pictures of the scaling curves, and how steep they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.scaling_curves import Scaling

Line = dict[str, str]
Points = list[tuple[float, float, float]]  # x, figure, spread

# Ours, ours on one thread, the work of the same size; the rest in turn.
COLOURS = {"ours": "#c1272d", "ours, reversible": "#c1272d", "ours, one thread": "#e8998d"}
FLOOR = "#555555"
OTHERS = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf")


def points(lines: Sequence[Line], series: str, column: str) -> Points:
    spread = "spread" if column == "in_units" else "spread_same"
    found = [
        (float(line["x"]), float(line[column]), float(line[spread] or 0))
        for line in lines
        if line["series"] == series and line[column]
    ]
    return sorted(found)


def exponent(given: Points, above: float) -> float | None:
    """The power of x that fits best, least squares of the logarithms, from `above` on."""
    logs = [(math.log(x), math.log(y)) for x, y, _ in given if x >= above and y > 0]
    if len(logs) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs))
    square = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / square


def names(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["series"] for line in lines))


def draw(curve: Scaling, lines: Sequence[Line], path: Path) -> None:
    """Left the growth, its exponents in the legend; right, of what is timed, in passes or copies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("in_units", _time_label(curve))]
    if curve.same:
        panels.append(("in_same", f"time, in units of {curve.same} of the same size"))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.2 * len(panels), 4.8), squeeze=False, layout="constrained"
    )
    colours = _colours(curve, names(lines))
    for axis, (column, label) in zip(axes[0], panels, strict=True):
        for series in names(lines):
            found = points(lines, series, column)
            if not found or (column == "in_same" and series == curve.same):
                continue
            counted = series in curve.counted
            text = series
            if column == "in_units":
                power = exponent(found, curve.above)
                text += "" if power is None else f":  x^{power:.2f}"
                text += _theory(curve, series)
            xs, ys, spreads = zip(*found)
            axis.errorbar(
                xs, ys, yerr=_bars(ys, spreads), color=colours[series], label=text,
                marker=None if counted else "o", markersize=4, capsize=2,
                linestyle="--" if counted or series == curve.same else "-",
                linewidth=2.2 if series.startswith("ours") else 1.3,
            )  # fmt: skip
        if column == "in_same":
            axis.axhline(1, color=FLOOR, linestyle="--", linewidth=1.3)
        axis.set(xscale="log", yscale="log", xlabel=curve.x_label, ylabel=label)
        axis.grid(which="major", alpha=0.3)
        axis.minorticks_off()
        if all(x == int(x) < 1e5 for x in curve.xs):
            axis.set_xticks(curve.xs, [f"{x:g}" for x in curve.xs])
        if column == "in_units":
            axis.legend(fontsize=8, frameon=False)
    figure.suptitle(curve.title + _threads(lines), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _bars(ys: Sequence[float], spreads: Sequence[float]) -> tuple[list[float], list[float]]:
    """Half a spread to either side, but for what a logarithm has no place for."""
    return [min(s / 2, 0.7 * y) for y, s in zip(ys, spreads)], [s / 2 for s in spreads]


def _time_label(curve: Scaling) -> str:
    return curve.unit if curve.count else f"time, in units of {curve.unit}"


def _theory(curve: Scaling, series: str) -> str:
    power = curve.theory.get(series)
    return "" if power is None else f" (theory x^{power:g})"


def _colours(curve: Scaling, series: Sequence[str]) -> dict[str, str]:
    left = [name for name in series if name not in COLOURS and name != curve.same]
    others = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(left)}
    return COLOURS | {curve.same: FLOOR} | others


def summary(
    curves: Sequence[tuple[Scaling, str]], folder: Path, read: Callable[[Path], list[Line]]
) -> str:
    """The folder's README: growth against theory, and what each point is."""
    parts = [
        "# How costs grow",
        "Written by `python benchmarks/scaling.py`; the figures are in the .csv of each name. Growth: the "
        "power of x that fits the points from the x given, least squares of logarithms. Times are "
        "ratios within rounds, so that they hold on a busy machine; dashed lines are counts.",
    ]
    for curve, file in curves:
        lines = read(folder / f"{file}.csv")
        if not lines:
            continue
        last = max(float(line["x"]) for line in lines)
        column = "in_same" if curve.same else "in_units"
        unit = f"in units of {curve.same}" if curve.same else curve.unit
        rows = [
            ["", f"growth from {curve.above:g} on", "theory", f"{unit}, at {last:g}"],
            ["---"] * 4,
        ]
        for series in names(lines):
            power = exponent(points(lines, series, "in_units"), curve.above)
            known = sorted(points(lines, series, column))[-1:]
            where_known = f" (at {known[0][0]:g})" if known and known[0][0] != last else ""
            theory = curve.theory.get(series)
            rows.append(
                [
                    series + (" (counted)" if series in curve.counted else ""),
                    "" if power is None else f"x^{power:.2f}",
                    "" if theory is None else f"x^{theory:g}",
                    _figure(known, curve) + where_known,
                ]
            )
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        where = sorted(
            {
                f"{x['device']}, {x['threads']} thread{'s' * (x['threads'] != '1')}, "
                f"torch {x['torch']}, commit {x['commit']}"
                for x in lines
            }
        )
        missing = [x for x in curve.xs if f"{x:g}" not in {line["x"] for line in lines}]
        notes = [curve.notes, "; ".join(where) + "."]
        notes += [f"Not measured: {', '.join(f'{x:g}' for x in missing)}."] if missing else []
        parts += [
            f"## {curve.title}{_threads(lines)}",
            f"![{file}]({file}.png)",
            f"x: {curve.x_label}",
            table,
            " ".join(filter(None, notes)),
        ]
    return "\n\n".join(parts) + "\n"


def _threads(lines: Sequence[Line]) -> str:
    return "" if lines[0]["threads"] == "2" else f", {lines[0]['threads']} thread"


def _figure(found: Points, curve: Scaling) -> str:
    if not found:
        return ""
    _, figure, spread = found[0]
    return f"{figure:.3g}" + (f" ± {spread:.3g}" if spread else "")
