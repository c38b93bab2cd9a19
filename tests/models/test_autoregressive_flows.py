"""MAF, IAF and neural spline flows: likelihood, sampling, contexts, training."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from deepgen_ext.models import IAF, MAF, NeuralSplineFlow
from deepgen_ext.nn.transforms import ActNorm, BatchNorm, Permutation, SplineCoupling
from tests.checks import check_model, randomize

MODELS = {
    "maf": lambda d, c=0: MAF(d, 3, (16, 16), context_features=c),
    "maf-spline": lambda d, c=0: MAF(d, 2, (16,), "spline", context_features=c, order="random"),
    "maf-batch-norm": lambda d, c=0: MAF(d, 2, (16, 16), context_features=c, batch_norm=True),
    "iaf": lambda d, c=0: IAF(d, 3, (16, 16), context_features=c, residual=True),
    "nsf": lambda d, c=0: NeuralSplineFlow(d, 3, 16, context_features=c),
}


def build(name: str, features, context_features: int = 0, std: float = 0.05):
    torch.manual_seed(0)
    model = MODELS[name](features, context_features)
    model.initialize(torch.randn(16, *model.shape))
    return randomize(model, std).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("features", [5, (1, 2, 3)])
def test_likelihood_inverse_and_sampling(name: str, features) -> None:
    model = build(name, features)
    check_model(model, torch.rand(8, *model.shape))


@pytest.mark.parametrize("name", ["maf", "maf-batch-norm", "iaf"])
def test_one_feature(name: str) -> None:
    model = build(name, 1)
    check_model(model, torch.rand(8, 1))


@pytest.mark.parametrize("name", MODELS)
def test_density_integrates_to_one_and_is_that_of_the_samples(name: str) -> None:
    model = build(name, 2, std=0.2).double()
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = model.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    assert abs(mass.sum() - 1) < 2e-3
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    mean = (mass[:, None] * grid).sum(0)
    std = ((mass[:, None] * grid.square()).sum(0) - mean**2).sqrt()
    assert ((samples.mean(0) - mean).abs() < 5 * std / 20_000**0.5 + 2e-3).all()
    assert ((samples.std(0) / std - 1).abs() < 0.05).all()


@pytest.mark.parametrize("name", MODELS)
def test_samples_come_with_their_log_prob(name: str) -> None:
    model = build(name, 4, 2).double()
    context = torch.randn(6, 2, dtype=torch.float64)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    x, log_prob = model.sample_and_log_prob(6, context, generator=seeds[0])
    torch.testing.assert_close(model.sample(6, context, generator=seeds[1]), x)
    torch.testing.assert_close(log_prob, model.log_prob(x, context))
    (x.sum() - log_prob.sum()).backward()  # the fit to an energy
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_context(name: str) -> None:
    model = build(name, 3, 2)
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    assert ((model.log_prob(x, context) - model.log_prob(x, context + 1)).abs() > 1e-6).all()
    first = [
        model.sample(4, c, generator=torch.Generator().manual_seed(0))
        for c in (context, context + 1, context[:1], context[:1].expand(4, 2))
    ]
    assert not torch.allclose(first[0], first[1])
    assert torch.equal(first[2], first[3])  # one row for all
    one = torch.stack([model.log_prob(x[i : i + 1], context[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(model.log_prob(x, context), one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.loss(x, context), -model.log_prob(x, context).mean())
    (again,) = (model.inverse(model(x, context)[0], context)[0],)
    torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_learns_a_parabola(name: str) -> None:
    """A curve that no Gaussian follows: x_2 = x_1^2 / 2 + noise, far from the origin."""
    torch.manual_seed(0)
    model = MODELS[name](2).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(120):
        x1 = torch.randn(128, 1)
        x = torch.cat((x1, x1.square() / 2 + 0.3 * torch.randn(128, 1)), 1) + 5
        if step == 0:
            model.initialize(x)
        loss = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        losses.append(loss.detach())
    entropy = 0.5 * math.log(2 * math.pi * math.e) * 2 + math.log(0.3)
    assert torch.stack(losses[-20:]).mean() < entropy + 0.25  # the best Gaussian is 0.55 above
    assert model.eval().loss(x) < entropy + 0.4


def test_images_count_their_dequantisation() -> None:
    model = build("maf", (1, 2, 3))
    levels, noise = torch.randint(0, 256, (4, 1, 2, 3)), torch.rand(4, 1, 2, 3)
    nats = -model.log_prob((levels + noise) / 256) + 6 * math.log(256)
    bits = model.bits_per_dim(levels, noise=noise)
    torch.testing.assert_close(bits, nats / (6 * math.log(2)))
    torch.testing.assert_close(model.loss(levels, noise=noise), bits.mean())
    assert model.sample(2).shape == (2, 1, 2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_states(name: str) -> None:
    model = build(name, 4)
    x = torch.randn(3, 4)
    other = randomize(MODELS[name](4), seed=1).eval()
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.log_prob(x), model.log_prob(x))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialize(3 * x)  # is initialised already
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_orders_take_turns() -> None:
    orders = [t.made.order.tolist() for t in MAF(3, 3, (4,)).transforms[0][1::2]]
    assert orders == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    torch.manual_seed(0)
    orders = [t.made.order.tolist() for t in IAF(9, 2, (4,), order="random").transforms[0][1::2]]
    assert [sorted(order) for order in orders] == [list(range(9))] * 2
    assert orders[0] != orders[1]
    assert list(range(9)) not in orders


def test_halves_take_turns_and_pairs_are_permuted() -> None:
    for features, permutations in ((2, 0), (5, 2)):
        layers = NeuralSplineFlow(features, 6, 4).transforms[0]
        swaps = [layer.swap for layer in layers if isinstance(layer, SplineCoupling)]
        assert swaps == [False, True] * 3
        assert sum(isinstance(layer, Permutation) for layer in layers) == permutations


@pytest.mark.parametrize("model", [MAF, IAF])
def test_each_layer_stands_behind_a_normalisation(model) -> None:
    for batch_norm, kind in ((False, ActNorm), (True, BatchNorm)):
        layers = model(3, 2, (4,), batch_norm=batch_norm).transforms[0]
        assert [type(layer) for layer in layers[::2]] == [kind] * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MAF(0), ValueError, "features: .*0"),
        (lambda: MAF((2, 3)), ValueError, r"features: .*\(2, 3\)"),
        (lambda: MAF(3, 0), ValueError, "transforms: .*0"),
        (lambda: MAF(3, order="up"), ValueError, "order: .*'up'"),
        (lambda: IAF(3, hidden_features=()), ValueError, "hidden_features: "),
        (lambda: NeuralSplineFlow(1), ValueError, "features: .*at least 2, got 1"),
        (lambda: NeuralSplineFlow(3, n_bins=0), ValueError, "n_bins: .*0"),
        (lambda: NeuralSplineFlow(3, depth=0), ValueError, "depth: .*0"),
        (lambda: build("maf", 3).log_prob(torch.zeros(2, 4)), ValueError, r"\(n, 3\)"),
        (lambda: build("maf", 3).log_prob(torch.zeros(2, 3).long()), TypeError, "real values"),
        (lambda: build("maf", 3, 2).log_prob(torch.zeros(2, 3)), ValueError, "context: "),
        (lambda: build("maf", 3).sample(2, torch.zeros(2, 2)), ValueError, "context: "),
        (
            lambda: build("iaf", 3, 2).sample(2, torch.zeros(3, 2)),
            ValueError,
            r"context: expected \(2, 2\), got \(3, 2\)",
        ),
        (lambda: build("maf", 3).sample(-1), ValueError, "n: .*-1"),
        (lambda: build("maf", 3).sample(1, temperature=-1.0), ValueError, "temperature: .*-1"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
