"""y = x + g(x): the contract of a transform, inverses to a true error, the sign of the log-det."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepgen_ext.nn import FixedPointError, LipschitzConvNet, LipschitzMLP, LogDetEstimator
from deepgen_ext.nn.transforms import ActNorm, InvertibleResidual, Sequential
from tests.checks import check_transform, randomize

LAYERS = {
    "mlp": (lambda: LipschitzMLP(3, (8, 8)), (3, 3), 0),
    "mlp-image": (lambda: LipschitzMLP((1, 2, 2), (8,), activation="tanh"), (3, 1, 2, 2), 0),
    "mlp-context": (lambda: LipschitzMLP(3, (8,), context_features=2), (3, 3), 2),
    "conv": (lambda: LipschitzConvNet((2, 3, 2), 5), (3, 2, 3, 2), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    make, shape, context = LAYERS[name]
    # Finite differences of the weights write past the normalised weights kept for evaluation.
    layer = InvertibleResidual(make(), "exact").eval().requires_grad_(False)
    given = torch.randn(shape[0], context) if context else None
    check_transform(layer, torch.randn(shape), given)


class Plain(nn.Module):
    """tanh(x W + c) V, its weights small as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3))
        self.out = nn.Parameter(0.3 * torch.randn(3, 3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight + context) @ self.out


def test_contract_with_gradients_of_the_weights() -> None:
    torch.manual_seed(0)
    layer = InvertibleResidual(Plain(), "exact", lipschitz=0.9)
    check_transform(layer, torch.randn(3, 3), torch.randn(3, 3))


class Linear(nn.Module):
    """g(x) = scale x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


@pytest.mark.parametrize("log_det", ["exact", LogDetEstimator("series", n_terms=200)])
@pytest.mark.parametrize("scale", [0.8, -0.8])
def test_sign_of_the_log_det(scale: float, log_det: str | LogDetEstimator) -> None:
    """y = (1 + s) x has the log-det 3 ln(1 + s), its inverse the negative."""
    layer = InvertibleResidual(Linear(scale), log_det, lipschitz=0.8).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    y, forward = layer(x)
    again, backward = layer.inverse(y)
    expected = torch.full((4,), 1 + scale, dtype=torch.float64).log() * 3
    torch.testing.assert_close(y, (1 + scale) * x)
    torch.testing.assert_close(forward, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(backward, -expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(again, x)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_inverse_is_within_the_tolerance(tol: float) -> None:
    torch.manual_seed(0)
    g = randomize(LipschitzMLP(8, (32, 32), coefficient=0.97), 0.3)
    for _ in range(20):
        g(torch.zeros(1, 8))  # power iterations
    layer = InvertibleResidual(g, "exact", tol=tol).double().eval()
    x = torch.randn(64, 8, dtype=torch.float64)
    again, _ = layer.inverse(layer(x)[0])
    assert (again - x).norm(dim=1).max() <= tol


def test_estimates_follow_the_mode_and_the_generator() -> None:
    torch.manual_seed(0)
    layer = InvertibleResidual(
        LipschitzMLP(3, (8,)),
        "series",
        eval_log_det=LogDetEstimator("unbiased", n_terms=2, n_probes=4),
    )
    assert layer.estimator.method == "series"
    assert layer.eval().estimator.n_probes == 4
    x = torch.randn(5, 3)
    layer.generator = torch.Generator().manual_seed(0)
    first = layer(x)[1]
    layer.generator.manual_seed(0)
    assert torch.equal(layer(x)[1], first)
    assert not torch.equal(layer(x)[1], first)
    layer.wants_log_det = False
    y, log_det = layer(x)
    assert torch.equal(log_det, torch.zeros(5))
    back, log_det = layer.inverse(y)
    assert torch.equal(log_det, torch.zeros(5))
    torch.testing.assert_close(back, x, rtol=0, atol=2e-6)


def test_a_reversible_chain_rebuilds_its_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    layers = [ActNorm(4), InvertibleResidual(LipschitzMLP(4, (16,)), "exact")]
    chain = Sequential(*layers).double().eval()
    gradients = []
    for reversible in (False, True):
        chain.reversible = reversible
        leaf = x.clone().requires_grad_()
        y, log_det = chain(leaf)
        gradients.append(torch.autograd.grad(y.square().sum() + log_det.sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_bad_input() -> None:
    g = LipschitzMLP(3, (8,))
    for lipschitz in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="lipschitz: expected a number in"):
            InvertibleResidual(g, lipschitz=lipschitz)
    with pytest.raises(ValueError, match="lipschitz: Linear has no attribute lipschitz"):
        InvertibleResidual(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="log_det: expected one of"):
        InvertibleResidual(g, "neumann")
    for tol in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tol: expected a positive number"):
            InvertibleResidual(g, tol=tol)
    with pytest.raises(ValueError, match="max_iterations"):
        InvertibleResidual(g, max_iterations=0)


def test_an_inverse_that_does_not_converge_says_so() -> None:
    layer = InvertibleResidual(Linear(0.99), "exact", lipschitz=0.99, max_iterations=1)
    with pytest.raises(FixedPointError, match="did not reach the tolerance"):
        layer.inverse(torch.randn(2, 3))
