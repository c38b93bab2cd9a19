"""The alternating loop: n_critic steps of the critic, one of the generator.

As `recipes.train`, one function on Lightning Fabric to read and change. A step is one of the
generator. The batch and all noise of each step are functions of (seed, step): a resumed run is the
one that was never stopped, and n processes share the batch of one, whose batch norms alone see
their own part of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from deepgen_ext.models import AdversarialModel, BiGAN, CycleGAN, FlowVAE
from deepgen_ext.models.adversarial.modes import evaluated
from deepgen_ext.recipes import RecipeError, checkpoint, loop, registry
from deepgen_ext.recipes.adversarial_pictures import save_losses, save_model
from deepgen_ext.recipes.batches import batch_indices, generator_for
from deepgen_ext.recipes.data import Dataset, load
from deepgen_ext.recipes.domains import load_domains
from deepgen_ext.recipes.processes import Together, start_processes, stop_processes
from deepgen_ext.recipes.progress import Meter
from deepgen_ext.recipes.run import Settings, load_state

__all__ = ["COLUMNS", "data_of", "held_out_gap", "reconstruction_error", "train"]

COLUMNS = (
    "step",
    "epoch",
    "critic",
    "penalty",
    "gap",
    "test_gap",
    "generator",
    "reconstruction",
    "critic_gradient_norm",
    "generator_gradient_norm",
    "learning_rate",
    "steps_per_second",
)
TEST_SAMPLES = 512  # held-out samples of a row with a picture


def train(
    settings: Settings, out: Path, *, resume: bool = False, console: Console | None = None
) -> AdversarialModel:
    """Train ``settings.model`` on ``settings.data``, keep the run in ``out``, return the model."""
    datasets = data_of(settings)
    data = datasets[0]
    torch.manual_seed(settings.seed)
    net = registry.build(settings.model, data.shape, data.n_levels, settings.options)
    _check(settings, net, data)

    fabric = start_processes(settings)
    chief = fabric.is_global_zero
    console = (console or Console()) if chief else Console(quiet=True)
    share = settings.batch_size // fabric.world_size
    mine = slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    path = out / "checkpoint.pt"
    state = checkpoint.load(path) if resume else None
    if state is not None:
        load_state(net, state, settings, path)
    net = fabric.strategy.precision.convert_module(net.to(fabric.device))
    if state is None and hasattr(net, "initialize"):
        whole = _batch(settings, net, datasets, "generator", 0, slice(None), fabric.device)
        net.initialize(whole[0], noise=whole[2]["dequantisation"])
    own = {
        "critic": net.optimizer(net.critic_parameters(), settings.learning_rate),
        "generator": net.optimizer(net.generator_parameters(), settings.learning_rate),
    }
    critic_optimizer, generator_optimizer = fabric.setup_optimizers(*own.values())
    if state is not None:
        for name, optimizer in own.items():
            optimizer.load_state_dict(state["optimizer"][name])
        fabric.strategy.precision.load_state_dict(state["precision"])
        if fabric.global_rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][fabric.global_rank])
    first = state["step"] if state is not None else 0
    if loop.is_done(settings, first, out, console):
        return net
    metrics = loop.open_run(fabric, settings, data, out, first_step=first, columns=COLUMNS)
    description = " and ".join(dataset.description for dataset in datasets)
    loop.introduce(fabric, settings, net, description, out, console)

    def draw(kind: str, index: int) -> tuple[Any, Tensor | None, dict[str, Tensor]]:
        """Data, classes and noise of this process, of one step of the critic or generator."""
        return _batch(settings, net, datasets, kind, index, mine, fabric.device)

    def descend(loss: Tensor, optimizer: Any) -> Tensor:
        """One step; the norm of the gradient."""
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        _average_gradients(fabric, optimizer)
        norm = fabric.clip_gradients(
            net, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
        )
        optimizer.step()
        return norm

    # As in `recipes.train`: on the device, and read only where the losses are read.
    bad_step = torch.full((), -1, device=fabric.device)
    gradient_must_be_finite = settings.precision != "16-mixed"
    start = last_time = time.monotonic()
    last_step = step = saved = first
    line_every = max(settings.log_every, settings.checkpoint_every // 5)
    last = settings.max_steps if settings.max_seconds is None else None
    net.train()
    with Meter(console, "", first_step=first, last=last, line_every=line_every) as meter:
        while step < settings.max_steps:
            warmth = min(1.0, (step + 1) / max(1, settings.warmup_steps))
            learning_rate = settings.learning_rate * warmth
            for optimizer in own.values():
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
            for turn in range(net.n_critic):
                batch, labels, noise = draw("critic", step * net.n_critic + turn)
                with fabric.autocast():
                    terms = net.critic_terms(batch, labels, noise=noise)
                critic_norm = descend(terms.loss, critic_optimizer)
                net.after_critic_step()
            batch, labels, noise = draw("generator", step)
            with fabric.autocast():
                loss = net.generator_loss(batch, labels, noise=noise)
            generator_norm = descend(loss, generator_optimizer)
            net.after_generator_step()

            finite = terms.loss.detach().isfinite() & loss.detach().isfinite()
            if gradient_must_be_finite:
                finite &= critic_norm.isfinite() & generator_norm.isfinite()
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
            shown = fabric.all_reduce(torch.stack([*terms, loss]).detach(), reduce_op="mean")
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row.update(zip(("critic", "penalty", "gap", "generator"), shown.tolist(), strict=True))
            row.update(
                step=step,
                epoch=step * net.n_critic * settings.batch_size / len(data.train),
                critic=row["critic"] + row["penalty"],
                critic_gradient_norm=critic_norm.item(),
                generator_gradient_norm=generator_norm.item(),
                learning_rate=learning_rate,
                steps_per_second=(step - last_step) / max(now - last_time, 1e-9),
            )
            with Together(fabric):
                if chief and (sampling or done):
                    with torch.random.fork_rng(loop.cuda_devices(fabric.device)):
                        held_out = [dataset.test[:TEST_SAMPLES] for dataset in datasets]
                        row["test_gap"] = held_out_gap(net, held_out, settings.seed)
                        row["reconstruction"] = reconstruction_error(net, held_out)
                        latents = generator_for(settings.seed, "samples")
                        save_model(net, held_out, out, step, latents)
                if metrics is not None:
                    metrics.write(row)
                    if sampling or done:
                        save_losses(out / "metrics.csv", out / "losses.png")
            if saving or done:
                states = {name: optimizer.state_dict() for name, optimizer in own.items()}
                loop.save(fabric, path, settings, net, states, step)
                saved = step
            meter.update(step, row, loop.fraction(settings, first, step, now - start, done))
            last_step, last_time = step, time.monotonic()
            if done:
                break
    if metrics is not None:
        metrics.close()
    stop_processes(fabric)
    return net


def data_of(settings: Settings) -> list[Dataset]:
    """The data of a run: one set, or both domains of a translator."""
    if settings.model == "cyclegan":
        return list(load_domains(settings.data, settings.data_b, size=settings.size))
    if settings.data_b is not None:
        raise RecipeError(f"--data-b is the other domain of cyclegan: {settings.model} has one")
    return [load(settings.data, size=settings.size)]


@torch.no_grad()
def held_out_gap(net: AdversarialModel, held_out: list[Tensor], seed: int) -> float | None:
    """E[s(x)] - E[s(G(z))] on held-out data, nothing moved; None where scores are of pairs or
    patches. Larger than the gap on training data: the critic has learned these by heart.
    """
    if isinstance(net, (BiGAN, CycleGAN)) or net.n_classes:
        return None
    device = next(net.parameters()).device
    x = held_out[0].to(device)
    noise = net.draw_noise(len(x), generator_for(seed, "held out"))
    noise = {name: values.to(device) for name, values in noise.items()}
    if isinstance(net, FlowVAE):
        training = net.training
        gap = net.eval().critic_terms(x, noise=noise).gap.item()
        net.train(training)
        return gap
    fake = evaluated(net.generator, noise["latents"], None)
    scores = (evaluated(net.critic, part).double().mean() for part in (net.stretch(x, noise), fake))
    real_score, fake_score = scores
    return (real_score - fake_score).item()


def reconstruction_error(net: AdversarialModel, held_out: list[Tensor]) -> float | None:
    """Of a BiGAN the mean over images of the root mean square of G(E(x)) - x, of a CycleGAN the
    mean |there and back - x| of both domains, in units of [0, 1]; None of others.
    """
    device = next(net.parameters()).device
    if isinstance(net, BiGAN):
        return net.reconstruction_error(held_out[0].to(device)).double().mean().item()
    if isinstance(net, CycleGAN):
        errors = [
            net.cycle_error(domain.to(device), direction).double().mean().item()
            for domain, direction in zip(held_out, ("a-to-b", "b-to-a"), strict=True)
        ]
        return sum(errors) / 2
    return None


def _check(settings: Settings, net: AdversarialModel, data: Dataset) -> None:
    if net.n_classes:
        if data.labels is None:
            raise RecipeError(f"n_classes={net.n_classes}: no classes are known of '{data.name}'")
        found = int(max(labels.max() for labels in data.labels)) + 1
        if found > net.n_classes:
            raise RecipeError(
                f"n_classes={net.n_classes}: '{data.name}' has {found} classes: --set "
                f"n_classes={found}"
            )
    if isinstance(net, CycleGAN):
        size = net.buffers_of["a"].size
        if settings.devices > 1:
            raise RecipeError(
                "--devices: cyclegan trains on one, which keeps its buffer of past translations"
            )
        if size and settings.batch_size > size:
            raise RecipeError(
                f"--batch-size {settings.batch_size} is larger than the buffer of past "
                f"translations: --set buffer={settings.batch_size} or more, or 0 for none"
            )


def _batch(
    settings: Settings,
    net: AdversarialModel,
    datasets: list[Dataset],
    kind: str,
    index: int,
    part: slice,
    device: torch.device,
) -> tuple[Any, Tensor | None, dict[str, Tensor]]:
    """The ``part`` of the data, classes and noise of a step; of two domains pairs by chance."""
    n = settings.batch_size
    batches, labels = [], None
    for domain, dataset in enumerate(datasets):
        # Other seeds give other orders: of the generator's data, and of the second domain's.
        seed = settings.seed if (kind, domain) == ("critic", 0) else _seed(settings, kind, domain)
        chosen = batch_indices(seed, index, n, len(dataset.train))[part]
        batches.append(dataset.train[chosen].to(device))
        if net.n_classes:
            labels = dataset.labels[0][chosen].to(device)
    noise = net.draw_noise(n, generator_for(settings.seed, kind, index))
    # What has a row for each sample is shared among the processes.
    noise = {
        name: (values[part] if len(values) == n else values).to(device)
        for name, values in noise.items()
    }
    return batches[0] if len(batches) == 1 else tuple(batches), labels, noise


def _seed(settings: Settings, kind: str, domain: int) -> int:
    return generator_for(settings.seed, "order", kind, domain).initial_seed()


def _average_gradients(fabric: Any, optimizer: Any) -> None:
    """Over the processes, in one message. DistributedDataParallel would want one forward for one
    backward through all parameters, and here two players share a module.
    """
    if fabric.world_size == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    gradients = [gradient for gradient in gradients if gradient is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    torch.distributed.all_reduce(flat)
    flat /= fabric.world_size
    parts = torch._utils._unflatten_dense_tensors(flat, gradients)
    torch._foreach_copy_(gradients, list(parts))
