"""The training loop. Read it, copy it, change it: one function on Lightning Fabric, no trainer."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from deepgen_ext.models import LatentModel
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import checkpoint, loop, registry
from deepgen_ext.recipes.batches import batch_indices, batch_noise, generator_for
from deepgen_ext.recipes.data import Dataset, load
from deepgen_ext.recipes.energies import (
    inverse_temperature,
    leave_identity,
    log_density,
    reverse_kl,
)
from deepgen_ext.recipes.metrics import evaluate
from deepgen_ext.recipes.pictures import save_density, save_grid
from deepgen_ext.recipes.processes import Step, Together, start_processes, stop_processes
from deepgen_ext.recipes.progress import Meter
from deepgen_ext.recipes.run import Settings, load_state

__all__ = ["train"]

TEMPERED_STEPS = 1000  # over which an energy rises to its full height
TEST_SAMPLES = 512  # held-out samples scored while training; `deepgen evaluate` scores all of them


def train(
    settings: Settings, out: Path, *, resume: bool = False, console: Console | None = None
) -> nn.Module:
    """Train ``settings.model`` on ``settings.data``, keep the run in ``out``, return the model.

    The global batch and its noise are functions of (seed, step), so that n processes train the same
    model as one, and a resumed run the same as one that was never stopped.
    """
    recipe = registry.recipe(settings.model)
    data = load(settings.data, size=settings.size)
    torch.manual_seed(settings.seed)
    net = registry.build(
        settings.model, data.shape, data.n_levels, settings.options, data.energy is not None
    )
    if data.energy is not None:
        leave_identity(net)

    fabric = start_processes(settings)
    chief = fabric.is_global_zero
    console = (console or Console()) if chief else Console(quiet=True)
    share = settings.batch_size // fabric.world_size
    mine = slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    path = out / "checkpoint.pt"
    state = checkpoint.load(path) if resume else None

    net.to(fabric.device)
    if state is not None:
        load_state(net, state, settings, path)
    elif hasattr(net, "initialize"):
        # data-dependent: every process sees the whole first batch, so all get the same result
        batch, noise = _batch(settings, data, 0, slice(None), fabric.device)
        net.initialize(batch, noise=noise)
    adam = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    step_of = recipe.step if data.energy is None else partial(_energy_step, data.energy)
    stepper, optimizer = fabric.setup(Step(net, step_of), adam)
    if state is not None:
        adam.load_state_dict(state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["precision"])
        if fabric.global_rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][fabric.global_rank])
    first = state["step"] if state is not None else 0
    if loop.is_done(settings, first, out, console):
        return net

    metrics = loop.open_run(fabric, settings, data, out, first_step=first)
    loop.introduce(fabric, settings, net, data.description, out, console)

    # The first step whose loss or gradient was not finite, -1 while all is well. It stays on the
    # device and is read where the loss is read anyway, before anything is saved, so that no step
    # waits for the GPU.
    bad_step = torch.full((), -1, device=fabric.device)
    # in float16 a gradient may overflow now and then, and the loss scaler skips that step
    gradient_must_be_finite = settings.precision != "16-mixed"
    start = last_time = time.monotonic()
    last_step = step = saved = first
    line_every = max(settings.log_every, settings.checkpoint_every // 5)
    last = settings.max_steps if settings.max_seconds is None else None
    unit = getattr(net, "unit", data.unit)
    with Meter(console, unit, first_step=first, last=last, line_every=line_every) as meter:
        while step < settings.max_steps:
            batch, noise = _batch(settings, data, step, mine, fabric.device)
            if isinstance(net, LatentModel):
                latents = _latent_noise(settings, net, step, mine, fabric.device)
                noise = noise, latents, net.kl_weight(step)
            warmth = min(1.0, (step + 1) / max(1, settings.warmup_steps))
            learning_rate = settings.learning_rate * warmth
            for group in adam.param_groups:
                group["lr"] = learning_rate

            loss = stepper(batch, noise)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            norm = fabric.clip_gradients(
                stepper, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
            optimizer.step()

            finite = loss.detach().isfinite()
            if gradient_must_be_finite:
                finite &= norm.isfinite()
            bad_step = torch.where((bad_step < 0) & ~finite, step, bad_step)
            step += 1

            done = step == settings.max_steps
            saving = done or step % settings.checkpoint_every == 0
            sampling = done or step % settings.sample_every == 0
            if not (saving or sampling or step % settings.log_every == 0):
                continue
            loop.stop_if_not_finite(int(fabric.all_reduce(bad_step, reduce_op="max")), saved, path)
            now = time.monotonic()
            if settings.max_seconds is not None:
                done |= bool(fabric.broadcast(now - start > settings.max_seconds))
            row = {
                "step": step,
                "epoch": step * settings.batch_size / len(data.train),
                "train": fabric.all_reduce(_shown(net, data, batch, loss), reduce_op="mean").item(),
                "test": None,
                "unit": unit,
                "gradient_norm": norm.item(),
                "learning_rate": learning_rate,
                "steps_per_second": (step - last_step) / max(now - last_time, 1e-9),
            }
            with Together(fabric):
                if chief and (sampling or done):
                    # What is drawn here must not shift what the next steps draw.
                    with torch.random.fork_rng(loop.cuda_devices(fabric.device)):
                        row["test"] = _score(net, data)
                        _draw(net, data, out / f"samples-{step:06d}.png", settings.seed)
                if metrics is not None:
                    metrics.write(row)
            if saving or done:
                loop.save(fabric, path, settings, net, adam.state_dict(), step)
                saved = step
            meter.update(step, row, loop.fraction(settings, first, step, now - start, done))
            last_step, last_time = step, time.monotonic()
            if done:
                break
    if metrics is not None:
        metrics.close()
    stop_processes(fabric)
    return net


def _batch(
    settings: Settings, data: Dataset, step: int, part: slice, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The ``part`` of a step's batch, and of its dequantisation noise if the data are levels.

    For an energy: latents, and by how much it is tempered.
    """
    if data.energy is not None:
        generator = generator_for(settings.seed, "latents", step)
        latents = torch.randn((settings.batch_size, *data.shape), generator=generator)
        beta = inverse_temperature(step, TEMPERED_STEPS)
        return latents[part].to(device), torch.tensor(beta, device=device)
    indices = batch_indices(settings.seed, step, settings.batch_size, len(data.train))
    batch = data.train[indices[part]].to(device)
    if not data.is_image:
        return batch, None
    noise = batch_noise(settings.seed, step, (settings.batch_size, *data.shape))
    return batch, noise[part].to(device)


def _latent_noise(
    settings: Settings, net: LatentModel, step: int, part: slice, device: torch.device
) -> Tensor:
    """The ``part`` of the normal noise of a step's latents, k draws for each image."""
    shape = (settings.batch_size, net.k, net.noise_features)
    return torch.randn(shape, generator=generator_for(settings.seed, "latents", step))[part].to(
        device
    )


def _energy_step(name: str, net: Any, latents: Tensor, beta: Tensor | None) -> Tensor:
    """The loss of one batch for an energy: mean nats of KL(q||p), tempered by ``beta``."""
    return reverse_kl(net, name, latents, 1.0 if beta is None else beta).mean()


def _shown(net: Any, data: Dataset, batch: Tensor, loss: Tensor) -> Tensor:
    """The loss; for an energy that of its full height, which is KL(q||p)."""
    if data.energy is None:
        return loss.detach()
    with torch.no_grad():
        return _energy_step(data.energy, net, batch, None)


def _score(net: Any, data: Dataset) -> float:
    """Of held-out samples: the mean of -log q in bits/dim or nats; for an energy KL(p||q)."""
    samples = data.test[:TEST_SAMPLES]
    score = evaluate(net, samples, n_levels=data.n_levels).mean
    if data.energy is None:
        return score
    return score + log_density(data.energy, samples).mean().item()


@torch.no_grad()
def _draw(net: Any, data: Dataset, path: Path, seed: int) -> None:
    """The same latents at every step, so that the pictures of a run can be compared."""
    if data.n_levels is None and data.shape != (2,):
        return
    device = next(net.parameters()).device
    generator = torch.Generator(device).manual_seed(generator_for(seed, "samples").initial_seed())
    net.eval()
    if data.n_levels is None:
        target = None if data.energy is None else partial(log_density, data.energy)
        save_density(net, net.sample(4000, generator=generator), path, target=target)
    else:
        # of latents the expected pixels: their noise would hide what was learned
        shows_mean = isinstance(net, LatentModel) and net.distribution.has_mean
        options = {"mean": True} if shows_mean else {}
        samples = net.sample(64, generator=generator, **options)
        if samples.is_floating_point():
            samples = quantize(samples, data.n_levels)
        save_grid(samples, data.n_levels, path)
    net.train()
