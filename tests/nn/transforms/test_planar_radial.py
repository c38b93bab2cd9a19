"""Planar and radial flows: the contract of a transform, and inverses that adversaries do not break."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext import ops
from deepgen_ext.nn.transforms import Planar, Radial, Sequential
from deepgen_ext.nn.transforms.planar import planar_inverse
from deepgen_ext.nn.transforms.radial import radial_inverse
from tests.checks import check_compiles, check_transform, randomize

LAYERS = [Planar, Radial]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("features", "length"), [(1, 1), (2, 6), (5, 3)])
def test_contract(layer, features: int, length: int) -> None:
    torch.manual_seed(0)
    check_transform(randomize(layer(features, length), 0.3), torch.randn(7, features))


@pytest.mark.parametrize("layer", LAYERS)
def test_contract_with_context(layer) -> None:
    torch.manual_seed(0)
    transform = randomize(layer(3, 2, context_features=4), 0.3)
    check_transform(transform, torch.randn(5, 3), torch.randn(5, 4))


@pytest.mark.parametrize("layer", LAYERS)
def test_compiles(layer) -> None:
    torch.manual_seed(0)
    check_compiles(randomize(layer(3, 2), 0.3), torch.randn(5, 3))


@pytest.mark.parametrize("layer", LAYERS)
def test_inverse_is_differentiable_twice(layer) -> None:
    torch.manual_seed(0)
    transform = randomize(layer(2, 2), 0.3).double()
    parameters = [p.detach().clone().requires_grad_() for p in transform.parameters()]
    inverse = planar_inverse if layer is Planar else radial_inverse
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(inverse, (y, *parameters))
    assert torch.autograd.gradgradcheck(inverse, (y, *parameters))


# Slopes 1 + u'w: that of a u against w is e^(w'u), of one along w it is 1 + w'u.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("w", "u", "bound"),
    [
        ([1.0, 1.0], [3.0, -2.0], 1e-5),
        ([1e-6, 0.0], [1.0, 1.0], 0.2),  # u_hat is 3e5
        ([0.0, 0.0], [3.0, -2.0], 1e-5),
        ([1.0, 0.5], [1e6, 1e6], 2.0),  # float32 resolves 1e6 to 0.06
        ([30.0, 0.0], [-0.1, 2.0], 1e-4),
        ([1.0, 1.0], [-4.0, -4.0], 0.1),  # slope e^-8: 1e-7 becomes 3e-4, and its root near z = 0
    ],
)
def test_planar_inverse_survives_adversarial_parameters(w, u, bound, dtype) -> None:
    z = torch.linspace(-4, 4, 101, dtype=dtype)[:, None] * torch.tensor([1.0, 0.3], dtype=dtype)
    parameters = [torch.tensor([v], dtype=dtype) for v in (w, u, 0.25)]
    y, log_det = ops.planar_chain(z, *parameters)
    again, inverse_log_det = planar_inverse(y, *parameters)
    assert again.isfinite().all()
    assert inverse_log_det.isfinite().all()
    bound = bound if dtype == torch.float32 else max(1e-7 * bound, 1e-12)
    torch.testing.assert_close(again, z, rtol=bound, atol=bound)


@pytest.mark.parametrize("slope", [1e-30, 1e-12, 1e-6, 0.01, 0.5, 1.0, 2.0, 1e3, 1e8, 1e15, 1e30])
def test_the_scalar_equation_is_solved_to_the_last_digits(slope: float) -> None:
    """a + (p - 1) tanh a = y: where Newton's steps are shortest are p near 0 and y near p large."""
    from deepgen_ext.nn.transforms.planar import _root

    factors = torch.tensor([0.0, 1e-9, 0.3, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0], dtype=torch.float64)
    y = torch.cat((torch.logspace(-30, 30, 241, dtype=torch.float64), factors * slope))
    y = torch.cat((y, -y))
    p = torch.full_like(y, slope)
    a = _root(y, p)
    c, t = p - 1, torch.tanh(a)
    stretch = t * t + p * (4 * torch.exp(-2 * a.abs()) / (1 + torch.exp(-2 * a.abs())) ** 2)
    # The step that Newton's method would still take, and what the rounding of its terms amounts to.
    step = ((a + c * t - y) / stretch).abs()
    rounding = 4e-16 * (a.abs() + (c * t).abs() + y.abs()) / stretch
    assert a.isfinite().all()
    assert (step <= 8 * rounding + 1e-300).all()
    assert (a.sign() == y.sign()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("raw_alpha", "raw_beta"), [(0.0, -8.0), (-8.0, 3.0), (5.0, 5.0)])
def test_radial_inverse_survives_adversarial_parameters(raw_alpha, raw_beta, dtype) -> None:
    z = torch.linspace(-4, 4, 101, dtype=dtype)[:, None] * torch.tensor([1.0, 0.3], dtype=dtype)
    parameters = [torch.tensor(v, dtype=dtype) for v in ([[0.4, 0.12]], [raw_alpha], [raw_beta])]
    y, log_det = ops.radial_chain(z, *parameters)
    again, inverse_log_det = radial_inverse(y, *parameters)
    bound = 2e-3 if dtype == torch.float32 else 1e-11  # contracted 3000 times near the center
    torch.testing.assert_close(again, z, rtol=bound, atol=bound)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=bound, atol=bound)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_chain_is_its_steps_one_after_another(layer) -> None:
    torch.manual_seed(0)
    chain = randomize(layer(3, 4), 0.3)
    steps = Sequential(*(layer(3) for _ in range(4)))
    for k, step in enumerate(steps):
        for own, whole in zip(step.parameters(), chain.parameters(), strict=True):
            own.data.copy_(whole.data[k : k + 1])
    z = torch.randn(9, 3)
    for value, expected in zip(chain(z), steps(z), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_starts_close_to_the_identity(layer) -> None:
    for features in (2, 64):
        torch.manual_seed(0)
        z = torch.randn(200, features)
        y, log_det = layer(features, 8)(z)
        assert (y - z).square().mean().sqrt() < 1.0
        assert log_det.abs().mean() < 1.5


@pytest.mark.parametrize("layer", LAYERS)
def test_bad_input(layer) -> None:
    with pytest.raises(ValueError, match="features: expected 1 or more, got 0"):
        layer(0)
    with pytest.raises(ValueError, match="length: expected 1 or more, got 0"):
        layer(2, 0)
    with pytest.raises(ValueError, match="context: expected"):
        layer(2, context_features=3)(torch.ones(4, 2))
    with pytest.raises(ValueError, match="built with context_features=0"):
        layer(2)(torch.ones(4, 2), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"must have the shape \(steps, 3\)"):
        layer(2)(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"must have the shape \(steps, 3\)"):
        layer(2).inverse(torch.ones(4, 3))
