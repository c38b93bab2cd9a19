"""The gradient of fixed_point_inverse: that of the solution, by the implicit function theorem."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext.nn import FixedPointError, fixed_point_inverse
from tests.nn.contractions import F64, METHODS, network


def functional(g: nn.Module, **options):
    """(y, *parameters) -> x, a function of its arguments alone."""
    names = [name for name, _ in g.named_parameters()]

    def solve(y: Tensor, *parameters: Tensor) -> Tensor:
        def call(x: Tensor) -> Tensor:
            return torch.func.functional_call(g, dict(zip(names, parameters)), (x,))

        return fixed_point_inverse(call, y, **options).x

    return solve


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method):
    g = network(3, (5,), activation=nn.Softplus)
    y = torch.randn(2, 3, dtype=F64, requires_grad=True)
    solve = functional(g, lipschitz=0.9, tol=1e-12, method=method)
    assert torch.autograd.gradcheck(solve, (y, *g.parameters()))


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_against_the_unrolled_iteration(fused):
    g = network(4, (7, 5))
    y = torch.randn(3, 4, dtype=F64)
    leaves = (y.requires_grad_(), *g.parameters())
    weight = torch.randn(3, 4, dtype=F64)
    x = y
    for _ in range(200):
        x = y - g(x)
    expected = torch.autograd.grad((weight * x).sum(), leaves)
    result = fixed_point_inverse(g, y, lipschitz=0.9**3, tol=1e-12, fused=fused)
    torch.testing.assert_close(result.x, x, rtol=1e-11, atol=1e-11)
    actual = torch.autograd.grad((weight * result.x).sum(), leaves)
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_of_parts():
    """Of y alone, of the parameters alone, of neither."""
    g = network(4, (5,))
    y = torch.randn(2, 4, dtype=F64)
    options = {"lipschitz": 0.9, "tol": 1e-10}
    assert fixed_point_inverse(g, y, **options).x.requires_grad
    with torch.no_grad():
        assert not fixed_point_inverse(g, y, **options).x.requires_grad
    frozen = copy.deepcopy(g).requires_grad_(False)
    assert not fixed_point_inverse(frozen, y, **options).x.requires_grad
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fixed_point_inverse(frozen, leaf, **options).x.sum(), leaf)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: x + g(x), fixed_point_inverse(frozen, y[0:1], **options).x
    )[0, :, 0]
    expected = torch.linalg.solve(jacobian.T, torch.ones(4, dtype=F64))
    torch.testing.assert_close(gradient[0], expected, rtol=1e-8, atol=1e-8)
    (ones,) = torch.autograd.grad(
        fixed_point_inverse(lambda x: torch.ones_like(x), leaf, lipschitz=0.5).x.sum(), leaf
    )
    assert torch.equal(ones, torch.ones_like(ones))


def test_a_second_derivative_is_refused():
    g = network(3, (4,))
    y = torch.randn(2, 3, dtype=F64, requires_grad=True)
    x = fixed_point_inverse(g, y, lipschitz=0.9).x
    for leaf in (y, g[0].weight):
        (gradient,) = torch.autograd.grad(x.sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            gradient.sum().backward(retain_graph=True)


def test_failed_samples_have_no_gradient():
    slope = torch.tensor([[-0.5], [-2.0]], dtype=F64, requires_grad=True)
    y = torch.randn(2, 3, dtype=F64, requires_grad=True)
    result = fixed_point_inverse(lambda x: slope * x, y, lipschitz=0.5, raise_on_failure=False)
    (gradient,) = torch.autograd.grad(result.x.sum(), y, retain_graph=True)
    torch.testing.assert_close(gradient[0], torch.full((3,), 2.0, dtype=F64))
    assert gradient[1].isnan().all()
    (gradient,) = torch.autograd.grad(result.x[0].sum(), y)
    assert (gradient[1] == 0).all()


def test_an_adjoint_that_does_not_converge_raises():
    g = network(3, (4,), norm=0.99)
    y = torch.randn(2, 3, dtype=F64, requires_grad=True)
    exact = fixed_point_inverse(g, y, lipschitz=0.99, tol=1e-13).x.detach()
    x = fixed_point_inverse(g, y, lipschitz=0.99, tol=1e-8, x0=exact, max_iterations=2).x
    with pytest.raises(FixedPointError, match="the gradient of fixed_point_inverse"):
        x.sum().backward()


def test_under_compile():
    g = network(4, (5,))

    def function(y):
        return fixed_point_inverse(g, 2 * y, lipschitz=0.9, tol=1e-9).x.square().sum()

    y = torch.randn(2, 4, dtype=F64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(y), function(y))
    ours, theirs = (torch.autograd.grad(f(y), y)[0] for f in (compiled, function))
    torch.testing.assert_close(ours, theirs)
