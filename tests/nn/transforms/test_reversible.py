"""The reversible mode against the stored one: same numbers, less memory, no tensor harmed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepgen_ext.nn import MLP, GlowConvNet
from deepgen_ext.nn.transforms import (
    ActNorm,
    ActNormConv1x1,
    AdditiveCoupling,
    AffineCoupling,
    GlowSteps,
    Inverse,
    Sequential,
)
from tests.checks import randomize


def chain(
    steps: int, kind: str = "affine", context: int = 0, dropout: float = 0.0
) -> tuple[Sequential, Sequential]:
    """(stored, reversible) twins on four channels."""
    torch.manual_seed(0)
    layers = []
    for index in range(steps):
        partition = ("channel", "checkerboard")[index % 2]
        swap = index % 4 > 1
        width = 2 if partition == "channel" else 4
        net = GlowConvNet(width, width if kind == "additive" else 2 * width, 8, context)
        if dropout:
            net.output = nn.Sequential(nn.Dropout(dropout), net.output)
        coupling = (
            AdditiveCoupling(net, partition=partition, swap=swap)
            if kind == "additive"
            else AffineCoupling(net, partition=partition, swap=swap, scale_map="sigmoid")
        )
        layers.append(Sequential(ActNormConv1x1(4), coupling))
    stored = Sequential(*layers)
    x = torch.randn(16, 4, 4, 4)
    stored(x, torch.zeros(16, context) if context else None)
    randomize(stored, 0.05)
    reversible = copy.deepcopy(stored)
    reversible.reversible = True
    return stored, reversible


def gradients(
    flow: Sequential,
    x: torch.Tensor,
    context: torch.Tensor | None = None,
    direction: str = "forward",
) -> dict[str, torch.Tensor]:
    flow.zero_grad()
    leaf = x.clone().requires_grad_()
    given = None if context is None else context.clone().requires_grad_()
    y, log_det = getattr(flow, direction)(leaf, given)
    (y.square().flatten(1).sum(1) - log_det).mean().backward()
    named = {name: p.grad for name, p in flow.named_parameters()}
    named |= {"y": y.detach(), "log_det": log_det.detach(), "x": leaf.grad}
    if given is not None:
        named["context"] = given.grad
    assert all(grad is not None for grad in named.values())
    return named


def check_same(
    stored: dict[str, torch.Tensor], rebuilt: dict[str, torch.Tensor], tolerance: float
) -> None:
    for name, expected in stored.items():
        error = (rebuilt[name] - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("kind", ["affine", "additive"])
def test_gradients_equal_the_stored_ones_at_32_steps(kind: str) -> None:
    stored, reversible = chain(32, kind)
    x = torch.randn(8, 4, 4, 4)
    check_same(gradients(stored, x), gradients(reversible, x), 1e-5)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_context_and_both_directions(direction: str) -> None:
    stored, reversible = (flow.double() for flow in chain(4, context=3))
    x, context = torch.randn(4, 4, 4, 4).double(), torch.randn(4, 3).double()
    check_same(
        gradients(stored, x, context, direction), gradients(reversible, x, context, direction), 1e-9
    )


def test_dropout_is_replayed_and_the_callers_random_state_kept() -> None:
    stored, reversible = (flow.double() for flow in chain(4, dropout=0.5))
    x = torch.randn(4, 4, 4, 4).double()
    results, draws = [], []
    for flow in (stored, reversible):
        torch.manual_seed(3)
        results.append(gradients(flow, x))
        draws.append(torch.rand(3))
    check_same(*results, 1e-9)
    assert torch.equal(*draws)


def test_dropout_is_replayed_by_layers_without_a_rebuild_of_their_own() -> None:
    stored, reversible = (flow.double() for flow in chain(4, dropout=0.5))
    for flow in (stored, reversible):
        layers = [Inverse(layer) for layer in flow.flattened()]
        flow.transforms = nn.ModuleList(layers)
    x = torch.randn(4, 4, 4, 4).double()
    results = []
    for flow in (stored, reversible):
        torch.manual_seed(3)
        results.append(gradients(flow, x))
    check_same(*results, 1e-9)


def test_autocast_is_replayed() -> None:
    stored, reversible = chain(4)
    x = torch.randn(8, 4, 4, 4)
    results, dtypes = [], []
    for layer in reversible.flattened():
        if isinstance(layer, AffineCoupling):
            layer.conditioner.input.register_forward_hook(
                lambda *args: dtypes.append(args[2].dtype)
            )
    for flow in (stored, reversible):
        flow.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, log_det = flow(x)
            loss = (y.square().flatten(1).sum(1) - log_det).mean()
        loss.backward()
        results.append({name: p.grad for name, p in flow.named_parameters()})
    assert dtypes == 2 * 4 * [torch.bfloat16]  # once forward, and once backward
    check_same(*results, 5e-2)  # a rebuilt input may round to the other bfloat16 neighbour


def test_bytes_kept_for_the_backward_pass_do_not_grow_with_depth() -> None:
    def kept(flow: Sequential) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.randn(8, 4, 4, 4, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = flow(x)
        assert outputs[0].requires_grad
        return sum(storages.values())

    few, many = chain(4), chain(16)
    assert kept(many[1]) == kept(few[1]) == 8 * 4 * 4 * 4 * 4
    assert kept(many[0]) > 3 * kept(few[0])


def test_the_callers_tensors_are_left_alone() -> None:
    _, reversible = chain(4)
    x = torch.randn(8, 4, 4, 4, requires_grad=True)
    before = x.detach().clone()
    y, log_det = reversible(x)
    y_before = y.detach().clone()
    version = x._version, y._version
    (y.sum() + log_det.sum()).backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    (y.sum() + log_det.sum()).backward()
    assert torch.equal(x.grad, first)
    assert torch.equal(x.detach(), before)
    assert torch.equal(y.detach(), y_before)
    assert (x._version, y._version) == version


def test_changing_the_output_in_place_is_noticed() -> None:
    _, reversible = chain(2)
    y, log_det = reversible(torch.randn(8, 4, 4, 4))
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_det.sum().backward()


def test_second_derivatives_are_refused() -> None:
    _, reversible = chain(2)
    x = torch.randn(8, 4, 4, 4, requires_grad=True)
    y, _ = reversible(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_frozen_and_shared_parameters() -> None:
    torch.manual_seed(0)
    shared = AffineCoupling(MLP(2, 4, 8, 1))
    frozen = ActNorm(4).requires_grad_(False)
    stored = Sequential(shared, frozen, AffineCoupling(MLP(2, 4, 8, 1), swap=True), shared).double()
    x = torch.randn(8, 4).double()
    stored(x)
    randomize(stored, 0.3)
    reversible = copy.deepcopy(stored)
    reversible.reversible = True
    results = []
    for flow in (stored, reversible):
        y, log_det = flow(x)  # x needs no gradient here
        (y.square().sum(1) - log_det).mean().backward()
        assert frozen.log_scale.grad is None
        results.append({n: p.grad for n, p in flow.named_parameters() if p.requires_grad})
    check_same(*results, 1e-10)


def test_initialises_actnorm_in_the_first_pass() -> None:
    torch.manual_seed(0)
    flow = Sequential(ActNorm(4), ActNormConv1x1(4), reversible=True)
    y, _ = flow(3 + 5 * torch.randn(64, 4))
    assert flow[0].initialized
    assert flow[1].initialized
    y.sum().backward()
    assert flow[0].shift.grad is not None


def test_glow_steps_rebuild_with_their_matrices_computed_together() -> None:
    couplings = [AffineCoupling(MLP(2, 4, 16), scale_map="sigmoid") for _ in range(12)]
    stored = randomize(GlowSteps(4, couplings))
    stored(torch.randn(64, 4))  # initialises ActNorm
    reversible = copy.deepcopy(stored)
    reversible.reversible = True
    x, weight = torch.randn(5, 4), torch.randn(5, 4)
    results = []
    for steps in (stored, reversible):
        leaf = x.clone().requires_grad_()
        y, log_det = steps(leaf)
        (y * weight).sum().add(log_det.square().sum()).backward()
        results.append([y, log_det, leaf.grad, *(p.grad for p in steps.parameters())])
    for ours, theirs in zip(*reversed(results), strict=True):
        scale = theirs.abs().max().clamp_min(1e-3)
        assert (ours - theirs).abs().max() <= 1e-5 * scale
