"""Log-dets of x + g(x): every estimator against slogdet, its gradient against the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext.nn import LogDetEstimator


class Tilted(nn.Module):
    """A contraction of norm below `scale`, not symmetric, whose powers have traces that matter."""

    def __init__(self, dims: int = 4, scale: float = 0.7) -> None:
        super().__init__()
        torch.manual_seed(0)
        rotation = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64))[0]
        weight = rotation + 0.2 * torch.randn(dims, dims, dtype=torch.float64)
        out = rotation.T + 0.2 * torch.randn(dims, dims, dtype=torch.float64)
        self.weight = nn.Parameter(weight / torch.linalg.matrix_norm(weight, 2))
        self.out = nn.Parameter(scale * out / torch.linalg.matrix_norm(out, 2))
        self.bias = nn.Parameter(0.1 * torch.randn(dims, dtype=torch.float64))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = x.flatten(1) @ self.weight + self.bias
        if context is not None:
            h = h + context
        return (torch.tanh(h) @ self.out).view(x.shape)


def slogdet(g: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
    """By the definition, a sample at a time."""
    values = []
    for index in range(len(x)):
        given = () if context is None else (context[index : index + 1],)
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, given=given: g(flat.view(1, *x.shape[1:]), *given).flatten(),
            x[index].flatten(),
            create_graph=True,
        )
        values.append(torch.linalg.slogdet(torch.eye(len(jacobian)).to(jacobian) + jacobian)[1])
    return torch.stack(values)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_exact_is_slogdet_and_twice_differentiable(x: Tensor) -> None:
    g = Tilted()
    estimate = LogDetEstimator("exact")(g, x, lipschitz=0.7)
    torch.testing.assert_close(estimate.log_det, slogdet(g, x))
    torch.testing.assert_close(estimate.output, g(x))
    assert torch.equal(estimate.draws, estimate.log_det[None])

    def log_det(x: Tensor, *_: Tensor) -> Tensor:
        return LogDetEstimator("exact")(g, x, lipschitz=0.7).log_det

    leaves = (x.clone().requires_grad_(), *g.parameters())
    assert torch.autograd.gradcheck(log_det, leaves)
    assert torch.autograd.gradgradcheck(log_det, leaves)


ESTIMATORS = {
    "roulette": LogDetEstimator("unbiased", n_terms=1, n_probes=20_000),
    "roulette-impatient": LogDetEstimator("unbiased", n_terms=2, n_probes=20_000, stop=0.5),
    "series": LogDetEstimator("series", n_terms=60, n_probes=20_000),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased_within_its_standard_error(name: str, x: Tensor) -> None:
    g, estimator = Tilted(scale=0.65), ESTIMATORS[name]
    estimate = estimator(g, x, lipschitz=0.65, generator=torch.Generator().manual_seed(0))
    error, spread = (estimate.log_det - slogdet(g, x)).detach(), estimate.standard_error
    assert estimate.draws.shape == (20_000, 3)
    assert (spread < 0.02).all()
    assert (error.abs() < 4 * spread).all()
    torch.testing.assert_close(estimate.output, g(x))


@pytest.mark.parametrize("in_forward", [False, True])
@pytest.mark.parametrize("method", ["unbiased", "series"])
def test_gradients_are_unbiased_too(method: str, in_forward: bool, x: Tensor) -> None:
    """Of x, the context and all weights, in 40 batches whose spread says how far off they may be."""
    g = Tilted(scale=0.65)
    leaf, context = x.clone().requires_grad_(), torch.randn_like(x).requires_grad_()
    inputs = [leaf, context, *g.parameters()]
    wanted = torch.autograd.grad(slogdet(g, leaf, context).mean(), inputs)
    terms = 1 if method == "unbiased" else 50
    estimator = LogDetEstimator(method, terms, n_probes=400, gradient_in_forward=in_forward)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(40):
        estimate = estimator(g, leaf, context, lipschitz=0.65, generator=generator)
        gradients = torch.autograd.grad(estimate.log_det.mean(), inputs)
        draws.append(torch.cat([gradient.flatten() for gradient in gradients]))
    draws = torch.stack(draws)
    exact = torch.cat([gradient.flatten() for gradient in wanted])
    spread = draws.std(0) / 40**0.5
    assert (draws.mean(0) - exact).abs().max() < 0.05 * exact.abs().max()
    assert ((draws.mean(0) - exact).abs() < 5 * spread + 1e-12).all()


def test_each_sample_has_its_own_cotangent(x: Tensor) -> None:
    """In one dimension a probe of signs is exact, and so is the gradient of a long series."""
    g = Tilted(dims=1, scale=0.5)
    leaf = x[:, :1].clone().requires_grad_()
    cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    inputs = [leaf, *g.parameters()]
    estimate = LogDetEstimator("series", n_terms=60)(g, leaf, lipschitz=0.5)
    exact = slogdet(g, leaf)
    torch.testing.assert_close(estimate.log_det, exact)
    for ours, theirs in zip(
        torch.autograd.grad(estimate.log_det, inputs, cotangent),
        torch.autograd.grad(exact, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_short_series_is_biased_as_documented(x: Tensor) -> None:
    g = Tilted(dims=1, scale=0.5)
    for terms in (1, 2, 3):
        estimate = LogDetEstimator("series", n_terms=terms)(g, x[:, :1], lipschitz=0.5)
        error = (estimate.log_det - slogdet(g, x[:, :1])).abs().max()
        assert 1e-9 < error < 0.5 ** (terms + 1) / ((terms + 1) * 0.5)


def test_gradient_in_forward_refuses_unequal_weights(x: Tensor) -> None:
    estimator = LogDetEstimator("series", gradient_in_forward=True)
    log_det = estimator(Tilted(), x, lipschitz=0.7).log_det
    with pytest.raises(RuntimeError, match="must weigh the log-dets of all samples alike"):
        (log_det * torch.tensor([1.0, 2.0, 1.0])).sum().backward()
    with pytest.raises(ValueError, match="g must be a module"):
        estimator(lambda x: 0.5 * x, x, lipschitz=0.7)


@pytest.mark.parametrize("in_forward", [False, True])
def test_second_derivatives_of_estimates_are_refused(in_forward: bool, x: Tensor) -> None:
    estimator = LogDetEstimator("unbiased", gradient_in_forward=in_forward)
    g = Tilted()
    log_det = estimator(g, x, lipschitz=0.7).log_det
    with pytest.raises(RuntimeError, match="can be taken once"):
        torch.autograd.grad(log_det.sum(), list(g.parameters()), create_graph=True)


def saved_bytes(estimator: LogDetEstimator) -> int:
    """Of all tensors that are kept for a backward pass, while it runs or after it."""
    g, x = Tilted(dims=64, scale=0.6), torch.randn(32, 64, dtype=torch.float64)
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[id(tensor)] = tensor  # alive from now on: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        estimate = estimator(g, x, lipschitz=0.6)
    assert estimate.log_det.requires_grad
    return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in kept.values()}.values())


class Shrinking(nn.Module):
    """x -> factor x, which counts its products."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.products = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def linearize(self, x: Tensor, context: Tensor | None = None):
        def product(v: Tensor) -> Tensor:
            self.products += 1
            return self.factor * v

        return self(x), product


@pytest.mark.parametrize(("factor", "products"), [(1e-3, 11), (0.5, 40), (0.0, 1)])
def test_a_series_ends_where_its_terms_are_spent(factor: float, products: int) -> None:
    """Before they are subnormal; what is left out is nothing beside the sum."""
    g = Shrinking(factor)
    estimate = LogDetEstimator("series", n_terms=40)
    with torch.no_grad():
        found = estimate(g, torch.ones(3, 4), lipschitz=0.9).log_det
    assert g.products == products
    exact = torch.full((3,), 4 * math.log1p(factor))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("in_forward", [False, True])
def test_memory_does_not_grow_with_the_number_of_terms(in_forward: bool) -> None:
    few, many = (
        saved_bytes(LogDetEstimator("series", n_terms=terms, gradient_in_forward=in_forward))
        for terms in (2, 40)
    )
    assert many == few


def test_a_generator_repeats_the_draws(x: Tensor) -> None:
    g, estimator = Tilted(), LogDetEstimator("unbiased", n_probes=3)
    one, same, other = (
        estimator(g, x, lipschitz=0.7, generator=torch.Generator().manual_seed(seed)).draws
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    state = torch.get_rng_state()
    estimator(g, x, lipschitz=0.7, generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", ["exact", "series", "unbiased"])
def test_modes_batches_and_dtypes(method: str, x: Tensor) -> None:
    g, estimator = Tilted(), LogDetEstimator(method, n_probes=2)

    def run(x: Tensor):
        return estimator(g, x, lipschitz=0.7, generator=torch.Generator().manual_seed(0))

    given = run(x)
    assert given.log_det.requires_grad
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            again = run(x.clone())
        assert not again.log_det.requires_grad
        assert not again.output.requires_grad
        torch.testing.assert_close(again.log_det, given.log_det.detach())
    assert run(x[:0]).log_det.shape == (0,)
    run(x[:0]).log_det.sum().backward()
    strided = x.t().contiguous().t()
    torch.testing.assert_close(run(strided).log_det, given.log_det)
    half = g.bfloat16()
    estimate = estimator(half, x.bfloat16(), lipschitz=0.7)
    assert estimate.output.dtype == torch.bfloat16
    assert estimate.log_det.dtype == torch.float32


def test_standard_error_of_one_draw_is_unknown(x: Tensor) -> None:
    assert LogDetEstimator("series")(Tilted(), x, lipschitz=0.7).standard_error.isnan().all()


def test_bad_input(x: Tensor) -> None:
    for wrong, words in (
        ({"method": "exactly"}, "log_det: expected one of exact, series, unbiased"),
        ({"n_terms": 0}, "n_terms: expected at least 1"),
        ({"n_probes": 0}, "n_probes: expected at least 1"),
        ({"stop": 1.0}, "stop: expected a probability"),
    ):
        with pytest.raises(ValueError, match=words):
            LogDetEstimator(**wrong)
    estimator = LogDetEstimator()
    for lipschitz in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="lipschitz: expected a number in"):
            estimator(Tilted(), x, lipschitz=lipschitz)
    with pytest.raises(ValueError, match=r"g: expected g\(x\) of the shape of x \(3, 4\)"):
        estimator(lambda x: x[:, :2], x, lipschitz=0.5)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        estimator(Tilted(), torch.zeros(3, 4, dtype=torch.int64), lipschitz=0.5)
    with pytest.raises(ValueError, match="x: expected"):
        estimator(Tilted(), x[0], lipschitz=0.5)
