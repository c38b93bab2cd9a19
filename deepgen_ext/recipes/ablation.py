"""The ablation of adaptive density estimation, as in the paper's table: bits/dim, IS and FID.

Lucas et al. 2019 show it for CIFAR-10: GAN [7.0] / 6.8 / 31.4, VAE 4.4 / 2.0 / 171, V-ADE
3.5 / 3.0 / 112, AV-GDE 4.4 / 5.1 / 58.6, AV-ADE 3.9 / 7.1 / 28.0. Here the scores are of another
feature network, which the table names, and of other data: the order of the rows can be compared,
the figures cannot.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deepgen_ext.models.latent.flow_vae import ABLATION
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.ablation_fits import Fit, Measured, fit_model, score_held_out
from deepgen_ext.recipes.feature_network import save_feature_network, train_classifier
from deepgen_ext.recipes.fits import (
    append_row,
    in_words,
    markdown,
    read_rows,
    run_side_by_side,
    write_text,
)
from deepgen_ext.recipes.scores import MANIFOLD_SAMPLES

__all__ = ["fill_table", "prepare_feature_network", "read_table"]

_FIT = [field.name for field in dataclasses.fields(Fit)]
_MEASURED = [field.name for field in dataclasses.fields(Measured) if field.name != "fit"]
COLUMNS = [*_FIT, *_MEASURED]
HEADER = ("", "bits/dim", "IS", "FID", "precision", "recall")


def prepare_feature_network(path: Path, data: str, console: Console) -> None:
    """Train a classifier of ``data`` into ``path`` where there is no such file."""
    if path.exists():
        return
    console.print(f"training a classifier of {data} into {path}", soft_wrap=True)
    save_feature_network(path, train_classifier(data, console=console))


def fill_table(
    fits: Sequence[Fit],
    outs: Sequence[Path],
    *,
    jobs: int | None,
    pictures: Path | None,
    console: Console,
) -> None:
    """Run the fits and print the table; every .csv among ``outs`` has a row a fit, a .md the table.

    Fits that a .csv holds already are not run again: a stopped table goes on, and seeds are added.

    Raises:
        RecipeError: a .csv of something else, or of another feature network.
    """
    files = [out for out in outs if out.suffix.lower() == ".csv"]
    done = {m.fit: m for file in files if file.exists() for m in read_table(file)}
    results = [done[fit] for fit in fits if fit in done]
    left = [fit for fit in fits if fit not in done]
    if results:
        console.print(f"{len(results)} of {len(fits)} fits are done already")
    held_out = score_held_out(fits[0])
    for measured in done.values():
        if measured.network != held_out.network:
            raise RecipeError(
                f"{files[0]}: its scores are of another feature network, {measured.network}; "
                f"{fits[0].feature_network} is a {held_out.network}"
            )
    run = functools.partial(fit_model, pictures=pictures)
    for number, measured in enumerate(run_side_by_side(run, left, jobs), 1):
        fit = measured.fit
        console.print(
            f"{number}/{len(left)}  {fit.row} seed {fit.seed}: {measured.bits_per_dim:.3f} bits/dim, "
            f"IS {measured.inception:.3f}, FID {measured.frechet:.3f}, {measured.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        results.append(measured)
        for file in files:
            append_row(file, _row(measured))
    console.print(_table(results, held_out))
    for out in outs:
        if out.suffix.lower() == ".md":
            text = markdown(HEADER, _cells(results, held_out))
            write_text(out, f"{text}\n\n{_caption(results, held_out)}\n")


def _row(measured: Measured) -> dict[str, object]:
    values = {name: getattr(measured, name) for name in _MEASURED}
    shown = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()}
    return dataclasses.asdict(measured.fit) | shown


def read_table(path: Path) -> list[Measured]:
    rows = read_rows(path, COLUMNS, "a table of this ablation")
    try:
        return [
            Measured(
                Fit(**{name: _typed(Fit, name, row[name]) for name in _FIT}),
                **{name: _typed(Measured, name, row[name]) for name in _MEASURED},
            )
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None


def _typed(kind: type, name: str, text: str) -> str | int | float:
    """The fields of both dataclasses are str, int or float."""
    kinds = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    return {"str": str, "int": int, "float": float}[kinds[name]](text)


def _cells(results: Sequence[Measured], held_out: Measured) -> list[list[str]]:
    rows = []
    for name in ABLATION:
        mine = [m for m in results if m.fit.row == name]
        if not mine:
            continue
        bits = in_words([m.bits_per_dim for m in mine], 2)
        rows.append([name, f"[{bits}]" if name == "GAN" else bits, *_scores(mine)])
    return [*rows, ["test images", "", *_scores([held_out])]]


def _scores(measured: Sequence[Measured]) -> list[str]:
    return [
        "none"
        if math.isnan(getattr(measured[0], name))
        else in_words([getattr(m, name) for m in measured], 2)
        for name in ("inception", "frechet", "precision", "recall")
    ]


def _caption(results: Sequence[Measured], held_out: Measured) -> str:
    fit, seeds = results[0].fit, len({m.fit.seed for m in results})
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    minutes = sum(m.seconds for m in results) / 60
    return (
        f"{fit.data}, {spread}; {fit.steps} steps of {fit.batch_size} images. bits/dim: of the test "
        f"split, dequantised uniformly, an upper bound; in brackets of an encoder and a scale fitted "
        f"to the finished GAN. IS, FID, precision, recall: {held_out.network}; "
        f"{fit.n_generated:,} generated images against {held_out.n_real:,} of the train split, and "
        f"in the last row {held_out.fit.n_generated:,} of the test split (the fewer images, the "
        f"larger the bias of their FID); precision and recall of {MANIFOLD_SAMPLES:,} at most. "
        f"{minutes:.0f} minutes in all. Written by `deepgen ablation`."
    )


def _table(results: Sequence[Measured], held_out: Measured) -> Table:
    table = Table(
        box=box.SIMPLE,
        caption=_caption(results, held_out),
        caption_justify="left",
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for name in HEADER:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in _cells(results, held_out):
        table.add_row(*row)
    return table
