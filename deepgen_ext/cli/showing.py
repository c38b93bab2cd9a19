"""``deepgen demo`` and ``deepgen info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepgen_ext.cli import app


@app.command(rich_help_panel="Speed, and this machine")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the run.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=1.0, help="Time to train.")] = 60.0,
) -> None:
    """Train a small Glow on digits, draw from it, and time the fused op: about two minutes."""
    from deepgen_ext.recipes.demo import run_demo

    run_demo(out, seconds=seconds, console=Console())


@app.command(rich_help_panel="Speed, and this machine")
def info() -> None:
    """Show versions, devices, SIMD level, compiled architectures, and which op has which
    kernels.
    """
    import deepgen_ext

    console = Console()
    for table in _info_tables(dict(deepgen_ext.build_info())):
        console.print(table)


def _info_tables(facts: dict[str, Any]) -> list[Any]:
    """One table of facts, and one of ops against devices from the entry ``ops``: {name: ["cpu",
    "cuda"]}.
    """
    from rich import box
    from rich.table import Table

    ops = facts.pop("ops", {})
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(name.replace("_", " "), text if value not in (None, "", [], ()) else "none")
    kernels = Table("op", "cpu", "cuda", box=box.SIMPLE, pad_edge=False)
    for name, devices in ops.items():
        kernels.add_row(name, *("yes" if device in devices else "-" for device in ("cpu", "cuda")))
    return [table, kernels]
