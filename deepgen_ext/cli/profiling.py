"""``deepgen profile``: how far each op is from the hardware's limits, and from its rivals."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepgen_ext.cli import app
from deepgen_ext.cli.model_profile import profile_model
from deepgen_ext.recipes import RecipeError

if TYPE_CHECKING:
    from deepgen_ext.profiling.measurement import Setting
    from deepgen_ext.profiling.roofline import Measured

DTYPES = ("float32", "float64", "bfloat16", "float16")
RIVALS = ("eager", "compile", "peers")


@app.command(no_args_is_help=True, rich_help_panel="Speed, and this machine")
def profile(
    what: Annotated[
        str, typer.Argument(metavar="OP|MODEL|all", help="An op, a model, or all ops.")
    ],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES) + ".")] = "float32",
    shape: Annotated[
        str | None,
        typer.Option(help="Of the op's first tensor, or of a model's sample: 64,96,16,16."),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Of eager, compile and peers, with commas; or none.")
    ] = "eager",
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures, tables, CSV and a trace.")
    ] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds of timing for each.")] = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a model's step.")] = 64,
) -> None:
    """Measure ops against a copy, a matrix product and their rivals, in one process.

    Of a model: a training step and a draw, and what our ops have part in them.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler tells of each start and stop
    import torch

    rivals = _rivals(against)
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype must be one of {', '.join(DTYPES)}; got '{dtype}'")
    if device not in ("cpu", "cuda"):
        raise RecipeError(f"--device must be cpu or cuda; got '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: torch sees no CUDA device here")
    from deepgen_ext.profiling.measurement import Setting

    setting = Setting(torch.device(device), getattr(torch, dtype), budget=budget)
    sizes = _sizes(shape)
    if sizes and what == "all":
        raise RecipeError("--shape: each op has its own; name one op")
    names = _ops(what)
    _about(setting)
    if names is None:
        profile_model(what, sizes, batch, setting, out)
    else:
        _profile_ops(names, sizes, rivals, setting, out)
    if "peers" in rivals:
        _peers(names or [what], setting)


def _rivals(against: str) -> list[str]:
    words = [word.strip() for word in against.split(",") if word.strip() not in ("", "none")]
    for word in words:
        if word not in RIVALS:
            raise RecipeError(f"--against takes {', '.join(RIVALS)} or none; got '{word}'")
    return words


def _sizes(shape: str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    parts = shape.replace("x", ",").split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise RecipeError(f"--shape: expected numbers with commas, as 64,96,16,16; got '{shape}'")
    return tuple(int(part) for part in parts)


def _ops(what: str) -> list[str] | None:
    """The ops meant, or None for a model."""
    from deepgen_ext.profiling.cases import OPS
    from deepgen_ext.recipes.registry import RECIPES

    if what == "all":
        return list(OPS)
    if what in OPS:
        return [what]
    if what in RECIPES:
        return None
    close = difflib.get_close_matches(what, [*OPS, *RECIPES], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise RecipeError(
        f"no op or model called '{what}'; {hint}the ops are: {', '.join(OPS)}; "
        f"the models are: {', '.join(RECIPES)}"
    )


def _about(setting: Setting) -> None:
    import torch

    import deepgen_ext

    info = deepgen_ext.build_info()
    place = f"CPU, {info['threads']} threads, {info['simd']}"
    if setting.device.type == "cuda":
        place = torch.cuda.get_device_name()
    print(f"{place}, torch {torch.__version__}")


def _profile_ops(
    names: Sequence[str],
    shape: tuple[int, ...] | None,
    rivals: Sequence[str],
    setting: Setting,
    out: Path | None,
) -> None:
    from deepgen_ext.profiling import report
    from deepgen_ext.profiling.roofline import measure_op

    found: list[Measured] = []
    for name in names:
        try:
            of_op = list(measure_op(name, setting, shape, rivals))
        except (ValueError, TypeError, IndexError) as error:
            if shape is None and len(names) > 1:  # the other ops are still worth measuring
                print(f"\n{name}: {str(error).splitlines()[0]}"[: report.WIDTH])
                continue
            raise RecipeError(_refusal(name, shape, setting, error)) from None
        found += of_op
        print("\n" + "\n".join(report.lines_of(of_op)), flush=True)
    print("\n" + report.LEGEND)
    if out is not None:
        for path in _write(found, names, shape, setting, out):
            print(f"wrote {path}")
    _kernels(names, setting, out)
    if setting.device.type == "cuda":
        _counters(names, shape, setting)


def _refusal(name: str, shape: tuple[int, ...] | None, setting: Setting, error: Exception) -> str:
    from deepgen_ext.profiling.cases import OPS

    dtype = str(setting.dtype).removeprefix("torch.")
    said = str(error).splitlines()[0]
    given = f"--shape {','.join(map(str, shape))}" if shape else f"--dtype {dtype}"
    return f"{name} refuses {given}: {said} (its shape is {OPS[name].axes})"


def _write(
    found: Sequence[Measured],
    names: Sequence[str],
    shape: tuple[int, ...] | None,
    setting: Setting,
    out: Path,
) -> list[Path]:
    import deepgen_ext
    from deepgen_ext.profiling import pictures, report, tables
    from deepgen_ext.profiling.cases import OPS, case_of

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("roofline.png", "rivals.png", "ops.csv", "ops.md")]
    pictures.draw_roofline(found, paths[0])
    pictures.draw_rivals(found, paths[1])
    tables.write_csv(paths[2], report.as_rows(found))
    paths[3].write_text(tables.markdown(report.as_markdown(found)) + "\n")
    paths.append(out / "trace.json")
    runs = [
        case_of(name, direction, setting, shape, False).ours
        for name in names
        for direction in OPS[name].directions
        if any(m.op == name for m in found)
    ]
    for run in runs:
        run()
    with deepgen_ext.profile(trace=True) as watched:
        for run in runs:
            run()
    watched.trace(paths[-1])
    return paths


def _kernels(names: Sequence[str], setting: Setting, out: Path | None) -> None:
    """Registers, shared memory and occupancy of the CUDA kernels: on a GPU, and into the folder."""
    from deepgen_ext.profiling import kernel_resources, report, tables

    on_gpu = setting.device.type == "cuda"
    if not on_gpu and out is None:
        return
    kernels = kernel_resources.kernels_of_this_build()
    if isinstance(kernels, str):
        print(f"registers of CUDA kernels: {kernels}")
        return
    rows = kernel_resources.table(kernels, list(names))
    if on_gpu:
        print("\n" + "\n".join(tables.aligned([row[1:] for row in rows], report.WIDTH)))
    if out is not None:
        (out / "kernels.md").write_text(tables.markdown(rows) + "\n")
        print(f"wrote {out / 'kernels.md'}")


def _counters(names: Sequence[str], shape: tuple[int, ...] | None, setting: Setting) -> None:
    """What Nsight Compute measures of each op's kernels, on a GPU."""
    from deepgen_ext.profiling import nsight, report, tables
    from deepgen_ext.profiling.cases import OPS

    dtype = str(setting.dtype).removeprefix("torch.")
    for name in names:
        for direction in OPS[name].directions:
            rows = nsight.measure(name, direction, dtype, shape)
            if isinstance(rows, str):  # the others would be told the same
                print(f"counters of Nsight Compute: {rows}")
                return
            print(f"\n{name} {direction}, counters of Nsight Compute")
            print("\n".join(tables.aligned(rows, report.WIDTH)))


def _peers(names: Sequence[str], setting: Setting) -> None:
    """Other libraries at the shapes of benchmarks/, which knows them and is no part of a wheel."""
    from deepgen_ext.profiling import report, roofline

    if roofline.checkout() is None:
        print("\npeers: not measured, benchmarks/ is found only in a checkout of the source")
        return
    for name in names:
        found = False
        for result in roofline.peer_results(name, setting):
            found = True
            print("\n" + "\n".join(report.peer_lines(result)), flush=True)
        if not found:
            print(f"\npeers: benchmarks/ has no entry for {name}")
