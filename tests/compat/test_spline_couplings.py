"""Rational-quadratic coupling layers of nflows and normflows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.checks import randomize
from tests.compat.accelerated_models import (
    accelerated_parts,
    check_accelerated,
    close,
    strictly_accelerated,
)

D = 5


def nflows_coupling(**options: Any) -> nn.Module:
    peer = pytest.importorskip("nflows.transforms.coupling")
    from nflows.nn.nets import ConvResidualNet, ResidualNet

    shape = options.get("img_shape")

    def net(inputs: int, outputs: int) -> nn.Module:
        if shape:
            return ConvResidualNet(inputs, outputs, hidden_channels=6, num_blocks=1)
        return ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)

    options = {"num_bins": 4, "tails": "linear", "tail_bound": 2.0, **options}
    mask = torch.arange(D) % 2
    return peer.PiecewiseRationalQuadraticCouplingTransform(mask, net, **options)


def both_ways(module: nn.Module, *rest: int, context: bool = False) -> list[Tensor]:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(5)
    x = 1.5 * torch.randn(4, D, *rest, generator=generator, dtype=torch.float64).to(weight)
    given = [torch.linspace(-1, 1, 12).view(4, 3).to(weight)] if context else []
    return [*module.forward(x, *given), *module.inverse(x, *given)]


@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_nflows(rest: tuple[int, ...], unconditional: bool) -> None:
    module = nflows_coupling(
        apply_unconditional_transform=unconditional,
        img_shape=list(rest),
        min_bin_width=1e-2,
        min_derivative=0.1,
    )
    dense_net = not rest
    check_accelerated(module, lambda m: both_ways(m, *rest), 1 + dense_net + unconditional)


@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_nflows_without_tails(rest: tuple[int, ...], unconditional: bool) -> None:
    """On [0, 1], with slopes at the ends; what lies outside is refused as before."""
    model = nflows_coupling(
        tails=None, apply_unconditional_transform=unconditional, img_shape=list(rest)
    )

    def inside(module: nn.Module) -> list[Tensor]:
        weight = next(module.parameters())
        generator = torch.Generator().manual_seed(5)
        x = torch.rand(4, D, *rest, generator=generator, dtype=torch.float64).to(weight)
        x.requires_grad_()
        results = [*module.forward(x), *module.inverse(x)]
        if torch.is_grad_enabled():
            total = sum(result.square().sum() for result in results)
            results.append(torch.autograd.grad(total, x, retain_graph=True)[0])
        return results

    count = 1 + unconditional + (not rest)  # a dense net is replaced too
    check_accelerated(model, inside, count)
    from nflows.transforms.base import InputOutsideDomain

    fast = strictly_accelerated(model, count)
    for part in (model, fast):
        for value in (-0.001, 1.001):
            x = torch.full((2, D, *rest), 0.5).to(next(part.parameters()))
            x[1, D - 2] = value  # a transformed feature
            for direction in (part.forward, part.inverse):
                with pytest.raises(InputOutsideDomain):
                    direction(x)


def test_normflows_without_tails() -> None:
    nf = pytest.importorskip("normflows")
    kind = nf.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling

    def net(inputs: int, outputs: int) -> nn.Module:
        return nf.nets.ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)

    model = kind(torch.arange(D) % 2, net, num_bins=4, tails=None)

    def inside(module: nn.Module) -> list[Tensor]:
        x = torch.linspace(0.01, 0.99, 4 * D).view(4, D).to(next(module.parameters()))
        return [*module.forward(x), *module.inverse(x)]

    check_accelerated(model, inside, 2)  # its net too


@pytest.mark.parametrize("context", [False, True])
def test_normflows(context: bool) -> None:
    nf = pytest.importorskip("normflows")
    flow = nf.flows.CoupledRationalQuadraticSpline(
        D, 1, 8, num_context_channels=3 if context else None, num_bins=5, tail_bound=2.0
    )
    check_accelerated(flow, lambda m: both_ways(m, context=context), 3)


def test_flow_of_nflows_samples_and_compiles() -> None:
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, RandomPermutation

    flow = Flow(
        CompositeTransform([nflows_coupling(), RandomPermutation(D), nflows_coupling()]),
        StandardNormal([D]),
    )
    fast = strictly_accelerated(randomize(flow), 5)
    draws = []
    for model in (flow, fast):
        torch.manual_seed(3)
        draws.append(model.sample(6))
    close(draws[:1], draws[1:], 1e-4)
    close([fast.log_prob(draws[0])], [flow.log_prob(draws[0])], 1e-4)

    # nflows' own indexes by masks, whose counts a graph cannot hold: it does not compile whole.
    x = torch.randn(4, D)
    torch._dynamo.reset()
    for direction in (fast._transform.forward, fast._transform.inverse):
        whole = torch.compile(direction, fullgraph=True, backend="aot_eager")
        close(whole(x), direction(x), 1e-5)


def test_a_net_of_unknown_width_is_not_scaled_and_normflows_says_so() -> None:
    nf = pytest.importorskip("normflows")
    kind = nf.flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling

    class Net(nn.Linear):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(x)

    mask = torch.arange(D) % 2
    model = kind(mask, Net, num_bins=4, tails="linear", tail_bound=2.0)
    fast = strictly_accelerated(model, 1)
    for part in (model, fast):
        with pytest.warns(UserWarning, match="not scaled down"):
            part(torch.randn(2, D))
    with pytest.warns(UserWarning, match="not scaled down"):
        close(both_ways(fast), both_ways(model), 1e-5)


def test_what_the_kernel_does_not_know_stays() -> None:
    nf = pytest.importorskip("normflows")
    circular = nf.flows.CircularCoupledRationalQuadraticSpline(4, 1, 8, [1])
    many = nflows_coupling(num_bins=101, min_bin_width=1e-4, min_bin_height=1e-4)
    for model, words in (
        (circular, "only linear ones"),
        (many, "101 bins"),
    ):
        assert words in report(model)
        fast = strictly_accelerated(model, 1)
        assert [type(part).__name__ for part in accelerated_parts(fast)] == ["ResidualNet"]


def test_a_wrong_scale_is_refused(monkeypatch) -> None:
    model = nflows_coupling()
    monkeypatch.setattr(type(accelerate(model)), "_softmax_scale", lambda self: 1.0)
    with pytest.warns(UserWarning, match=r"stays: verification failed, the spline is off"):
        assert type(accelerate(model)) is type(model)
