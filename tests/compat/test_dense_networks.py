"""The dense conditioners of nflows and normflows: the same bits, whatever is hooked in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from deepgen_ext import report
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

PEERS = {"nflows": "nflows.nn.nets.resnet", "normflows": "normflows.nets.resnet"}


def residual_net(peer: str, **options: Any) -> nn.Module:
    return pytest.importorskip(PEERS[peer]).ResidualNet(4, 6, hidden_features=8, **options)


def mlp(*sizes: int, **options: Any) -> nn.Module:
    return pytest.importorskip("normflows.nets.mlp").MLP(list(sizes), **options)


def inputs_of(model: nn.Module, context: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = next(model.parameters())
    sizes = (4, 3) if context else (4,)
    return [torch.randn(5, size, generator=generator, dtype=weight.dtype) for size in sizes]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("activation", [F.relu, torch.relu, F.elu, nn.Tanh()], ids=str)
@pytest.mark.parametrize("context", [False, True])
def test_residual_nets(peer: str, activation: Any, context: bool) -> None:
    model = residual_net(peer, activation=activation, context_features=3 if context else None)
    check_accelerated(model, lambda m: [m(*inputs_of(m, context))], 1, tolerance=0.0)


@pytest.mark.parametrize("options", [{}, {"leaky": 0.2}, {"output_fn": "tanh", "score_scale": 2.0}])
def test_mlps(options: dict) -> None:
    model = mlp(4, 7, 7, 6, **options)
    check_accelerated(model, lambda m: [m(*inputs_of(m))], 1, tolerance=0.0)


def test_an_mlp_of_one_layer_and_one_whose_slope_is_negative() -> None:
    for model in (mlp(4, 6), mlp(4, 7, 6, leaky=-0.5)):
        fast, x = strictly_accelerated(model, 1), inputs_of(model)[0].requires_grad_()
        for found, expected in zip(
            (fast(x), *torch.autograd.grad(fast(x).sum(), [x])),
            (model(x), *torch.autograd.grad(model(x).sum(), [x])),
            strict=True,
        ):
            assert torch.equal(found, expected)


def test_preprocessing() -> None:
    model = randomize(residual_net("normflows", preprocessing=nn.Linear(4, 4)))
    close([strictly_accelerated(model, 1)(*inputs_of(model))], [model(*inputs_of(model))], 0.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["nflows", "mlp"])
def test_dropout_draws_the_same(kind: str, training: bool) -> None:
    model = (
        mlp(4, 8, 6, dropout=0.5)
        if kind == "mlp"
        else residual_net("nflows", dropout_probability=0.5)
    )
    fast = strictly_accelerated(randomize(model).train(training), 1)
    results = []
    for net in (model, fast):
        torch.manual_seed(3)
        results.append([net(*inputs_of(net)), torch.rand(2)])
    close(*results, 0.0)


def layers_of(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("kind", ["nflows", "mlp"])
def test_hooks_that_come_later_are_called_and_see_the_layers_results(kind: str) -> None:
    model = randomize(mlp(4, 8, 8, 6) if kind == "mlp" else residual_net("nflows"))
    fast = strictly_accelerated(model, 1)
    seen: dict[int, list[Tensor]] = {}
    for place, net in enumerate((model, fast)):
        kept = seen.setdefault(place, [])
        for layer in layers_of(net):
            layer.register_forward_hook(lambda _, __, y, kept=kept: kept.append(y))
        net(*inputs_of(net))
    assert len(seen[0]) == len(layers_of(model))
    close(seen[1], seen[0], 0.0)


@pytest.mark.parametrize("kind", ["nflows", "mlp"])
def test_weights_that_are_computed_are_computed(kind: str) -> None:
    model = randomize(mlp(4, 8, 8, 6) if kind == "mlp" else residual_net("nflows"))
    fast = strictly_accelerated(model, 1)
    for net in (model, fast):
        parametrizations.weight_norm(layers_of(net)[1])
        prune.ln_structured(layers_of(net)[0], "weight", 0.5, n=2, dim=0)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
    close([fast(*inputs_of(fast))], [model(*inputs_of(model))], 0.0)


def test_what_stays() -> None:
    hooked, other = residual_net("nflows"), residual_net("normflows")
    hooked.final_layer.register_forward_pre_hook(lambda *_: None)
    other.blocks[0] = nn.Identity()
    assert "hooks on its layers" in report(hooked)
    assert "not those that it was made with" in report(other)
    assert "batch norm" in report(residual_net("nflows", use_batch_norm=True))
    sequence = mlp(4, 6)
    sequence.net = nn.Linear(4, 6)
    assert "no Sequential" in report(sequence)
