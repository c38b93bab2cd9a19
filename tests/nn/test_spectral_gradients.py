"""Spectral norms in graphs that are shared, run twice, or run in parts; and in two processes."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from deepgen_ext.nn import SpectralLinear, spectral_norm, spectral_norm_all


class TwoHeads(nn.Module):
    """Two losses from layers of their own, and a layer that no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(6, 5), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x).square().sum(), self.b(x).square().sum()


class Trunk(nn.Module):
    """A network that keeps its activations, or a checkpoint that runs it again."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.layers(x)
        return checkpoint(self.layers, x, use_reentrant=self.reentrant)


def each_of(norm):
    def apply(model):
        for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
            norm(layer)
        return model

    return apply


def output_scaled(model):
    """The same weights in layers that scale their output."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                made = SpectralLinear(layer.in_features, layer.out_features).double()
                made.load_state_dict(layer.state_dict(), strict=False)
                setattr(parent, name, made)
    return model


THEIRS = each_of(parametrizations.spectral_norm)
NORMALISED = {"each": each_of(spectral_norm), "all": spectral_norm_all}


def make(build, how):
    torch.manual_seed(0)
    model = build().double()
    torch.manual_seed(1)
    return how(model)


@pytest.fixture
def x():
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, f"{name} was not used and has a gradient"
        else:
            torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("how", NORMALISED)
@pytest.mark.parametrize("losses", ["one", "both, apart"])
def test_backwards_are_independent(how, losses, x):
    models = make(TwoHeads, NORMALISED[how]), make(TwoHeads, THEIRS)
    for model in models:
        first, second = model(x)
        first.backward()
        if losses == "both, apart":
            second.backward()
    check_same(*map(gradients, models))


@pytest.mark.parametrize("how", NORMALISED)
def test_two_forwards_and_their_backwards_apart(how, x):
    """pytorch#13350: what a second forward moves is no part of the first one's graph."""
    models = make(TwoHeads, NORMALISED[how]), make(TwoHeads, THEIRS)
    for model in models:
        real, fake = sum(model(x)), sum(model(2 * x))
        real.backward()
        fake.backward()
    check_same(*map(gradients, models))
    for name in ("a", "b"):  # a group moves u, v of the layer that is not used, too
        check_same(*(getattr(model, name).state_dict() for model in models))


@pytest.mark.parametrize("how", [*NORMALISED, "scaled output"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_finds_the_weight_of_its_first_forward(how, reentrant, x):
    """Gradients and u, v of the network without one: torch's own moves them twice."""
    normalise = NORMALISED.get(how, output_scaled)
    inside = make(lambda: Trunk(reentrant), normalise)
    around, parts, plain = (make(lambda: Trunk(None), normalise) for _ in range(3))
    x.requires_grad_()
    results = {
        plain: plain(x),
        inside: inside(x),
        around: checkpoint(around, x, use_reentrant=reentrant),
        parts: checkpoint(parts.layers, x, use_reentrant=reentrant),
    }
    for model, y in results.items():
        y.square().sum().backward()
        check_same(gradients(model), gradients(plain))
        check_same(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("how", NORMALISED)
def test_gradient_penalty(how, x):
    """The gradient of a gradient, through sigma."""
    models = make(lambda: Trunk(None), NORMALISED[how]), make(lambda: Trunk(None), THEIRS)
    for model in models:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
        (grad.norm(dim=1) - 1).square().mean().backward()
    names = [name for name, _ in models[0].named_parameters() if "original" in name]
    check_same(*({name: gradients(model)[name] for name in names} for model in models))


@pytest.mark.parametrize("how", NORMALISED)
def test_second_derivatives_in_the_weights(how, x):
    models = make(lambda: Trunk(None), NORMALISED[how]), make(lambda: Trunk(None), THEIRS)
    results = []
    for model in models:
        leaves = [p for name, p in model.named_parameters() if "original" in name]
        first = torch.autograd.grad(model(x).sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append(dict(enumerate(second)))
    check_same(*results)


@pytest.mark.parametrize("coefficient", [None, 0.3])
def test_gradients_in_eval_see_every_change(coefficient):
    """gradcheck writes through `.data`, which moves no version counter."""
    torch.manual_seed(0)
    layer = spectral_norm(nn.Linear(4, 3).double(), coefficient=coefficient).eval()
    original = layer.parametrizations.weight.original
    # With a coefficient each change is a little off the singular vectors that are kept.
    assert torch.autograd.gradcheck(lambda _: layer.weight.sin(), original, atol=1e-6)


@pytest.mark.parametrize("how", NORMALISED)
def test_a_weight_changed_before_its_backward_is_refused(how, x):
    model = make(TwoHeads, NORMALISED[how])
    loss, _ = model(x)
    with torch.no_grad():
        model.a.parametrizations.weight.original.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("how", NORMALISED)
@pytest.mark.parametrize("part", ["model", "layer"])
@pytest.mark.parametrize("training", [True, False])
def test_buffers_written_between_forward_and_backward(how, part, training, x):
    """DDP's broadcast does that before a second forward: pytorch#62293."""
    model = make(TwoHeads, NORMALISED[how]).train(training)
    original = model.a.parametrizations.weight.original
    loss = model(x)[0] if part == "model" else model.a(x).square().sum()
    (expected,) = torch.autograd.grad(loss, original, retain_graph=True)
    for buffer in model.buffers():
        buffer.copy_(torch.randn_like(buffer))
    (actual,) = torch.autograd.grad(loss, original)
    torch.testing.assert_close(actual, expected)


def _train_as(rank: int, port: int, path) -> None:
    """Train on every other row, as one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    model = make(lambda: Trunk(None), spectral_norm_all)
    wrapped = nn.parallel.DistributedDataParallel(model)
    _train(wrapped, model, _data()[rank::2], halves=2)
    torch.save(model.state_dict(), path)
    # The group waits for its threads, with the GIL held that they need: without a destructor.
    os._exit(0)


def _data() -> torch.Tensor:
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _train(callable_model, model, x, halves: int) -> None:
    """Two forwards before each backward; the mean over the processes is the sum over the halves / 2."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = callable_model(x).square().sum() - callable_model(0.5 * x).sum()
        (loss * halves).backward()
        optimizer.step()


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [tmp_path / "first.pt", tmp_path / "second.pt"]
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_train_as, args=(rank, port, path))
        for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    first, second = (torch.load(path) for path in paths)
    alone = make(lambda: Trunk(None), spectral_norm_all)
    _train(alone, alone, _data(), halves=1)
    check_same(first, second)
    check_same(first, alone.state_dict())
