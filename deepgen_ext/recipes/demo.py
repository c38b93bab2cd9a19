"""``deepgen demo``: a small Glow trained on digits, its pictures, and the fused op against
torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deepgen_ext import ops, reference
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.metrics import evaluate, reconstruct
from deepgen_ext.recipes.pictures import save_grid, save_reconstruction
from deepgen_ext.recipes.run import Settings
from deepgen_ext.recipes.train import train
from deepgen_ext.recipes.trained import draw

__all__ = ["run_demo", "time_affine_coupling"]

GLOW = {"levels": 2, "steps": 6, "hidden_channels": 64}
MAP = "sigmoid"  # Glow's


def run_demo(out: Path, *, seconds: float, console: Console) -> None:
    """Train for ``seconds``, write the pictures into ``out``, print the timings."""
    run = out / "run"
    for name in ("checkpoint.pt", "metrics.csv", "samples-*.png"):  # of the demo before
        for path in run.glob(name):
            path.unlink()
    settings = Settings(
        model="glow",
        data="digits",
        options=GLOW,
        max_steps=1_000_000,
        max_seconds=seconds,
        warmup_steps=20,
        learning_rate=2e-3,
        log_every=5,
        checkpoint_every=100,
        sample_every=250,
    )
    model = train(settings, run, console=console).eval()
    digits = load("digits")
    result = evaluate(model, digits.test, n_levels=17)
    console.print(
        f"held-out digits: {result.mean:.3f} +- {result.standard_error:.3f} bits/dim "
        f"({result.n} samples, 17 levels, uniform dequantisation)",
        highlight=False,
        soft_wrap=True,
    )
    for temperature in (0.7, 1.0):
        levels = quantize(draw(model, 100, temperature=temperature, seed=0), 17)
        save_grid(levels, 17, out / f"samples-{temperature}.png")
    some = digits.test[:12]
    x, rebuilt = reconstruct(model, some, n_levels=17)
    save_reconstruction(some, quantize(rebuilt, 17), 17, out / "reconstruction.png")
    console.print(
        f"largest |inverse(forward(x)) - x|: {(rebuilt - x).abs().max():.1e}", highlight=False
    )
    for name in ("samples-0.7.png", "samples-1.0.png", "reconstruction.png", "run/metrics.csv"):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console.print(f"timing the fused affine coupling on the {device} ...", highlight=False)
    console.print(time_affine_coupling(device))


@dataclass(frozen=True)
class _Case:
    name: str
    shape: tuple[int, ...]
    backward: bool
    # Tensors read and written: x, raw scale, shift and y; backward reads x, raw scale and y's
    # gradient, and writes three gradients.
    moved: int
    results: int  # of these, allocated anew


CASES = (
    _Case("forward (64, 96, 16, 16)", (64, 96, 16, 16), False, moved=4, results=1),
    _Case("forward + backward, the same", (64, 96, 16, 16), True, moved=10, results=4),
    _Case("forward (1048576, 8)", (1_048_576, 8), False, moved=4, results=1),
)


def time_affine_coupling(device: str, *, rounds: int = 20, compiled: bool = True) -> Table:
    """Fused op, eager torch and torch.compile, each checked first, then timed in turns.

    Medians over ``rounds``, as multiples of a copy of the bytes that must be moved, with as much of
    it into newly allocated memory as the results need: first touching new memory costs time too.
    """
    table = Table(
        "affine coupling, float32",
        "fused",
        "eager",
        "compile",
        "fused is faster by",
        box=box.SIMPLE,
        pad_edge=False,
        caption="time / copy of the same bytes; last column: against the better rival",
    )
    for case in CASES:
        row = _time(case, device, rounds, compiled)
        rivals = [row[name] for name in ("eager", "compile") if name in row]
        cells = [
            f"{row[name]:.2f}" if name in row else "-" for name in ("fused", "eager", "compile")
        ]
        table.add_row(case.name, *cells, f"{min(rivals) / row['fused']:.1f}x")
    return table


def _time(case: _Case, device: str, rounds: int, compiled: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(case.shape, generator=generator).to(device) for _ in range(3)]
    gradients = [torch.randn(case.shape, generator=generator).to(device)]
    gradients.append(torch.randn(case.shape[0], generator=generator).to(device))
    rivals: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "fused": ops.affine_coupling,
        "eager": reference.affine_coupling,
    }
    if compiled:
        rivals["compile"] = torch.compile(reference.affine_coupling, dynamic=False)

    def outputs(
        function: Callable[..., tuple[Tensor, Tensor]], values: list[Tensor]
    ) -> list[Tensor]:
        if not case.backward:
            with torch.no_grad():
                return list(function(*values, scale_map=MAP))
        values = [value.detach().requires_grad_() for value in values]
        result = function(*values, scale_map=MAP)
        weights = [gradient.to(values[0].dtype) for gradient in gradients]
        return [part.detach() for part in result] + list(
            torch.autograd.grad(result, values, weights)
        )

    expected = outputs(reference.affine_coupling, [value.double() for value in inputs])
    for name in list(rivals):
        try:
            found = outputs(rivals[name], inputs)
        except Exception:  # torch.compile needs a compiler; the others must not fail
            if name != "compile":
                raise
            del rivals[name]
            continue
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=1e-3)

    n = inputs[0].numel()
    into_new = torch.randn(case.results * n, device=device)
    into_old = torch.randn((case.moved // 2 - case.results) * n, device=device)
    old = torch.empty_like(into_old).copy_(into_old)
    actions: dict[str, Callable[[], object]] = {
        "copy": lambda: (into_new.clone(), old.copy_(into_old))
    }
    for name, function in rivals.items():
        actions[name] = lambda function=function: outputs(function, inputs)
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            _wait(device)
            start = time.perf_counter()
            action()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(measured) for name, measured in times.items()}
    return {name: median[name] / median["copy"] for name in rivals}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
