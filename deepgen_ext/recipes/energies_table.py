"""KL(q||p) of flows fitted to the energies U1 ... U4: the numbers behind a picture often drawn.

Rezende & Mohamed 2015 show the fitted densities and no figures. Here every entry is a mean over
seeds with its spread, measured on fresh samples, with log Z known from quadrature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.energies import log_normalizer
from deepgen_ext.recipes.energy_fits import FLOWS, Fit, Measured, run_fits
from deepgen_ext.recipes.fits import append_row, in_words, markdown, read_rows, write_text

__all__ = ["fill_table", "read_table", "table_of"]

COLUMNS = [f.name for f in dataclasses.fields(Fit)] + ["kl", "standard_error", "seconds", "log_z"]


def fill_table(
    fits: Sequence[Fit], outs: Sequence[Path], *, jobs: int | None, console: Console
) -> None:
    """Run the fits and print the table; every .csv among ``outs`` has a row a fit, a .md the table.

    A .csv is written to as fits are done, and the fits that it holds already are not run again: a
    table that was stopped goes on, and another flow or seed is added to it.
    """
    files = [out for out in outs if out.suffix.lower() == ".csv"]
    results = [measured for file in files if file.exists() for measured in read_table(file)]
    results = list({measured.fit: measured for measured in results}.values())
    known = {measured.fit for measured in results}
    left = [fit for fit in fits if fit not in known]
    if len(left) < len(fits):
        console.print(f"{len(fits) - len(left)} of {len(fits)} fits are done already")
    for measured in run_fits(left, jobs=jobs, console=console):
        results.append(measured)
        for file in files:
            append_row(file, _row(measured))
    console.print(table_of(results))
    for out in outs:
        if out.suffix.lower() == ".md":
            write_text(out, _markdown(results))


def _row(measured: Measured) -> dict[str, object]:
    return dataclasses.asdict(measured.fit) | {
        "kl": f"{measured.kl:.5f}",
        "standard_error": f"{measured.standard_error:.5f}",
        "seconds": f"{measured.seconds:.1f}",
        "log_z": f"{log_normalizer(measured.fit.energy)[0]:.6f}",
    }


def read_table(path: Path) -> list[Measured]:
    rows = read_rows(path, COLUMNS, "a table of energies")
    try:
        return [
            Measured(
                Fit(row["energy"], row["flow"], *(int(row[name]) for name in COLUMNS[2:6])),
                *(float(row[name]) for name in COLUMNS[6:9]),
            )
            for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None


def _rows(results: Sequence[Measured]) -> Iterator[tuple[str, int, int, dict[str, list[float]]]]:
    """(flow, K, steps, {energy: the KL of each seed}) in the order of FLOWS, K, steps."""

    def kind(fit: Fit) -> tuple[int, int, int]:
        return list(FLOWS).index(fit.flow), fit.length, fit.steps

    for place, length, steps in sorted({kind(m.fit) for m in results}):
        by_energy: dict[str, list[float]] = {}
        for m in results:
            if kind(m.fit) == (place, length, steps):
                by_energy.setdefault(m.fit.energy, []).append(m.kl)
        yield list(FLOWS)[place], length, steps, by_energy


def _cells(results: Sequence[Measured]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows, and the row of log Z."""
    energies = sorted({m.fit.energy for m in results})
    rows = [
        [flow, str(length), str(steps), *(in_words(by_energy.get(e, []), 3) for e in energies)]
        for flow, length, steps, by_energy in _rows(results)
    ]
    log_z = ["log Z", "", "", *(f"{log_normalizer(e)[0]:.6f}" for e in energies)]
    return ["flow", "K", "steps", *energies], rows, log_z


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _caption(results: Sequence[Measured]) -> str:
    of_cell: dict[Fit, int] = {}
    for m in results:
        cell = dataclasses.replace(m.fit, seed=0)
        of_cell[cell] = of_cell.get(cell, 0) + 1
    seeds = list(of_cell.values())
    spread = "one seed"
    if max(seeds) > 1:
        several = _range([count for count in seeds if count > 1])
        spread = f"mean ± standard deviation of {several} seeds"
        spread += " (one seed where there is no ±)" if min(seeds) == 1 else ""
    return (
        f"KL(q||p) in nats, {spread}; {_range([m.fit.batch_size for m in results])} samples a "
        f"step; standard error of an estimate at most {max(m.standard_error for m in results):.3f}"
    )


def table_of(results: Sequence[Measured]) -> Table:
    """Flows and K down, energies across; log Z below each. 80 columns wide."""
    header, rows, log_z = _cells(results)
    table = Table(
        box=box.SIMPLE,
        caption=_caption(results),
        caption_justify="left",
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for name in header:
        table.add_column(name, justify="left" if name == "flow" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*log_z)
    return table


def _markdown(results: Sequence[Measured]) -> str:
    header, rows, log_z = _cells(results)
    table, caption = markdown(header, [*rows, log_z]), _caption(results)
    return f"{table}\n\n{caption}. Written by `deepgen energies-table`.\n"
