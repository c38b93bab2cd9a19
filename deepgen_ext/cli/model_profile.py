"""``deepgen profile MODEL``: a training step and a draw, and what our ops have part in them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepgen_ext.recipes import RecipeError

if TYPE_CHECKING:
    from deepgen_ext.profiling.measurement import Setting


def profile_model(
    name: str, shape: tuple[int, ...] | None, batch: int, setting: Setting, out: Path | None
) -> None:
    import torch

    from deepgen_ext.recipes.registry import RECIPES, build

    if RECIPES[name].adversarial:
        raise RecipeError(f"{name} is a game of two networks: it has no training step of its own")
    shape = shape or (1, 8, 8)
    n_levels = 17 if len(shape) == 3 else None
    torch.manual_seed(0)
    model = build(name, shape, n_levels, {}).to(setting.device, setting.dtype)
    if n_levels is None:
        data = setting.random(batch, *shape, seed=0)
    else:
        data = torch.randint(n_levels, (batch, *shape), device=setting.device)
    if hasattr(model, "initialize"):
        model.initialize(data)

    def step() -> None:
        model.zero_grad()
        loss = model.loss(data) if n_levels is not None else -model.log_prob(data)
        loss.mean().backward()

    @torch.no_grad()
    def draw() -> None:
        model.sample(batch)

    for title, run in (("training step", step), ("draw", draw)):
        _watch(f"{name} {shape}, {title}, {batch} samples", run, setting, title, out)


def _watch(
    title: str, run: Callable[[], Any], setting: Setting, name: str, out: Path | None
) -> None:
    import deepgen_ext

    run()
    times = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < setting.budget:
        with deepgen_ext.profile() as watched:
            run()
        times.append((watched.wall, watched))
    seconds = [wall for wall, _ in times]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    print(f"\n{title}: {1e3 * middle:.3g} ms +- {1e3 * (high - low):.2g}, {len(times)} rounds")
    watched = min(times, key=lambda one: abs(one[0] - middle))[1]
    print(watched.table(), flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        stem = name.replace(" ", "-")
        watched.to_csv(out / f"{stem}.csv")
        with deepgen_ext.profile(trace=True) as traced:
            run()
        traced.trace(out / f"{stem}.json")
        print(f"wrote {out / f'{stem}.csv'}\nwrote {out / f'{stem}.json'}")
