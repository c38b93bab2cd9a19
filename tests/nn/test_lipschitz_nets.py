"""Networks with a bounded Lipschitz constant: the bounds of activations, and Lip(g) < 1 itself."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from deepgen_ext.nn import (
    LipschitzConvNet,
    LipschitzMLP,
    LipSwish,
    Sin,
    activation_lipschitz,
    fixed_point_inverse,
)
from tests.checks import randomize


@pytest.mark.parametrize(
    "activation",
    [LipSwish(), Sin(), nn.Tanh(), nn.ReLU(), nn.Softplus(), nn.Sigmoid(), nn.ELU(), nn.ELU(1.5)]
    + [nn.LeakyReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish()],
    ids=str,
)
def test_bounds_hold_and_are_tight(activation: nn.Module) -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation.double()(x).sum(), x)
    largest, bound = slope.abs().max().item(), activation_lipschitz(activation)
    assert largest <= bound
    assert largest > 0.999 * bound


@pytest.mark.parametrize("raw_beta", [-8.0, 0.0, 4.0])
def test_lipswish_is_bounded_for_every_beta(raw_beta: float) -> None:
    swish = LipSwish().double()
    nn.init.constant_(swish.raw_beta, raw_beta)
    beta = nn.functional.softplus(swish.raw_beta)
    x = (torch.linspace(-20, 20, 100_001, dtype=torch.float64) / beta.detach()).requires_grad_()
    y = swish(x)
    torch.testing.assert_close(y, x * torch.sigmoid(beta * x) / 1.1)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.abs().max() <= 1


def largest_slope(g: nn.Module, x: torch.Tensor) -> float:
    """The largest singular value of the Jacobians at x."""
    g = copy.deepcopy(g).double()
    slopes = []
    for sample in x.double():
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, shape=sample.shape: g(flat.view(1, *shape)).flatten(), sample.flatten()
        )
        slopes.append(torch.linalg.matrix_norm(jacobian, 2))
    return torch.stack(slopes).max().item()


def nets() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    return {
        "mlp": (LipschitzMLP(6, (32, 32)), torch.randn(64, 6)),
        "conv": (LipschitzConvNet((2, 6, 5), 16), torch.randn(12, 2, 6, 5)),
        "conv-elu": (LipschitzConvNet((2, 6, 5), 8, activation="elu"), torch.randn(12, 2, 6, 5)),
    }


@pytest.mark.parametrize("name", ["mlp", "conv", "conv-elu"])
def test_contraction_after_training_and_after_loading(name: str) -> None:
    """Trained to be as steep as it may: the bound is what holds it."""
    torch.manual_seed(0)
    net, x = nets()[name]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        move = 0.1 * torch.randn_like(x)
        loss = -(net(x + move) - net(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mode in (True, False):
        slope = largest_slope(net.train(mode), x)
        assert slope <= 1.001 * net.lipschitz < 1
        assert slope > 0.3 * net.lipschitz, "nothing was trained against the bound"
    net.eval()
    twin = randomize(nets()[name][0], 1.0, seed=1)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    torch.testing.assert_close(twin.eval()(x), net(x))
    assert largest_slope(twin.eval(), x) <= 1.001 * net.lipschitz


@pytest.mark.parametrize("name", ["mlp", "conv", "conv-elu", "mlp-context"])
def test_linearize_is_the_backward_pass(name: str) -> None:
    torch.manual_seed(0)
    if name == "mlp-context":
        net, x = LipschitzMLP((1, 3), (8,), context_features=2), torch.randn(4, 1, 3)
        given = (torch.randn(4, 2, dtype=torch.float64),)
    else:
        (net, x), given = nets()[name], ()
    net, x = randomize(net, 0.3).double().eval(), x.double().requires_grad_()
    y = net(x, *given)
    v = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, v)
    for quiet in (False, True):
        with torch.set_grad_enabled(not quiet):
            output, product = net.linearize(x, *given)
        torch.testing.assert_close(output, y)
        assert output.requires_grad != quiet
        for _ in range(2):
            torch.testing.assert_close(product(v), expected)
    assert not product(v).requires_grad


@pytest.mark.parametrize("shape", [5, (2, 3)], ids=str)
@pytest.mark.parametrize("activation", ["lipswish", "tanh"])
def test_the_kernel_of_the_inverse_iterates_the_mlp(shape, activation: str) -> None:
    g = randomize(LipschitzMLP(shape, (16, 8), activation=activation, coefficient=0.9).double())
    g.eval()
    y = torch.randn(7, *g.shape, dtype=torch.float64)
    inverse = partial(fixed_point_inverse, g, y, lipschitz=g.lipschitz, tol=1e-10)
    fused, called = inverse(), inverse(fused=False)
    assert "one kernel" in fused.method
    assert "one kernel" not in called.method
    torch.testing.assert_close(fused.x, called.x, rtol=0, atol=2e-10)
    torch.testing.assert_close(fused.x + g(fused.x), y, rtol=0, atol=1e-9)


def test_lipschitz_is_the_product_of_the_layers() -> None:
    assert LipschitzMLP(3, (4, 4, 4), coefficient=0.8).lipschitz == pytest.approx(0.8**4)
    assert LipschitzConvNet((1, 4, 4), 4, coefficient=0.8).lipschitz == pytest.approx(0.8**3)


def test_bad_input() -> None:
    for build in (lambda **k: LipschitzMLP(3, **k), lambda **k: LipschitzConvNet((1, 4, 4), **k)):
        for coefficient in (0.0, 1.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="coefficient: expected a number in"):
                build(coefficient=coefficient)
        for steep in ("silu", "gelu", "mish", nn.SiLU, lambda: nn.ELU(1.5)):
            with pytest.raises(ValueError, match=r"activation: the derivative of .* > 1"):
                build(activation=steep)
        with pytest.raises(ValueError, match="activation: expected one of lipswish"):
            build(activation="lipswis")
        with pytest.raises(ValueError, match="no bound of the derivative of Hardswish is known"):
            build(activation=nn.Hardswish)
    with pytest.raises(ValueError, match="kernel_sizes: expected odd"):
        LipschitzConvNet((1, 4, 4), kernel_sizes=(3, 2))
    with pytest.raises(ValueError, match="context"):
        LipschitzMLP(3, context_features=2)(torch.zeros(1, 3))
