"""Residual Flow and i-ResNet: exact where they say so, else estimates with an honest spread."""

from __future__ import annotations

import copy

import pytest
import torch

from deepgen_ext.models import IResNet, ResidualFlow
from deepgen_ext.nn import LogDetEstimator
from tests.checks import check_model, randomize

MODELS = {
    "vector": (lambda **k: ResidualFlow(3, blocks=2, hidden=8, **k), (3,)),
    "image": (lambda **k: ResidualFlow((1, 4, 4), 2, blocks=1, hidden=6, **k), (1, 4, 4)),
    "image-dense": (
        lambda **k: ResidualFlow((2, 2, 2), 1, blocks=1, hidden=6, dense_blocks=1, **k),
        (2, 2, 2),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_inverse_and_sampling(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    check_model(make(log_det="exact").eval(), torch.rand(8, *shape))


@pytest.mark.parametrize("kind", [ResidualFlow, IResNet])
@pytest.mark.parametrize("shape", [5, (1, 4, 4)])
def test_every_parameter_learns(kind: type[ResidualFlow], shape: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = kind(shape, blocks=2, hidden=8)
    batch = torch.randn(16, 5) if shape == 5 else torch.randint(0, 256, (16, *shape))
    model.initialize(batch)
    before = model.loss(batch).item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(30):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
    assert loss.item() < before - 0.1


def test_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    model = ResidualFlow(2, blocks=4, hidden=16).double()
    model.initialize(torch.randn(256, 2, dtype=torch.float64) * torch.tensor([1.5, 0.5]))
    randomize(model, 0.2)
    for _ in range(20):
        model(torch.zeros(1, 2, dtype=torch.float64))  # power iterations
    model.eval()
    assert model.estimator == "exact"
    axis = torch.linspace(-15, 15, 301, dtype=torch.float64)
    with torch.no_grad():
        density = model.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1) < 1e-3
    assert density.max() > 0.05


def image_model(log_det: str | LogDetEstimator) -> ResidualFlow:
    torch.manual_seed(0)
    model = randomize(ResidualFlow((1, 4, 4), 2, 2, 8, log_det=log_det), 0.2)
    levels = torch.randint(0, 17, (8, 1, 4, 4))
    for _ in range(10):
        model.loss(levels)
    return model.double().eval()


def test_estimates_are_right_within_their_spread() -> None:
    exact = image_model("exact")
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = exact.log_prob(x)
    model = image_model("unbiased")
    generator = torch.Generator().manual_seed(0)
    estimated = model.estimate_log_prob(x, 100, generator)
    assert (estimated.standard_error > 0).all()
    assert ((estimated.mean - expected).abs() < 4 * estimated.standard_error).all()
    error = (estimated.mean - expected).mean().abs()
    assert error < 4 * estimated.batch_standard_error
    assert "unbiased" in estimated.estimator
    again = model.estimate_log_prob(x, 100, generator.manual_seed(0))
    assert torch.equal(estimated.mean, again.mean)

    certain = exact.estimate_log_prob(x)
    torch.testing.assert_close(certain.mean, expected)
    assert (certain.standard_error == 0).all()


def test_spreads_by_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that all samples of a batch share do not average out over the batch."""
    model = image_model("unbiased")
    given = torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0], [5.0, 6.0, 10.0], [7.0, 8.0, 12.0]])
    draws = iter(given)
    monkeypatch.setattr(model, "log_prob", lambda x: next(draws))
    estimated = model.estimate_log_prob(torch.zeros(3, 1, 4, 4), 4)
    torch.testing.assert_close(estimated.mean, torch.tensor([4.0, 5.0, 9.0]))
    alone = (20 / 3) ** 0.5 / 2
    torch.testing.assert_close(estimated.standard_error, torch.full((3,), alone))
    torch.testing.assert_close(estimated.batch_standard_error, torch.tensor(alone))


def test_bits_per_dim_are_those_of_the_estimates() -> None:
    model = image_model("unbiased")
    levels, noise = torch.randint(0, 256, (6, 1, 4, 4)), torch.rand(6, 1, 4, 4).double()
    bits, nats = (
        estimate(given, 8, generator=torch.Generator().manual_seed(1), **more)
        for estimate, given, more in (
            (model.estimate_bits_per_dim, levels, {"noise": noise}),
            (model.estimate_log_prob, (levels + noise) / 256, {}),
        )
    )
    per_bit = 16 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(bits.mean, 8 - nats.mean / per_bit)
    torch.testing.assert_close(bits.standard_error, nats.standard_error / per_bit)
    torch.testing.assert_close(bits.batch_standard_error, nats.batch_standard_error / per_bit)
    with pytest.raises(ValueError, match="n_estimates"):
        model.estimate_bits_per_dim(levels, 1)


def test_samples_are_inverted_to_the_tolerance_and_without_a_log_det() -> None:
    model = image_model("unbiased")
    state = torch.get_rng_state()
    x = model.sample(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state()), "probes were drawn for nothing"
    z = torch.randn(
        16, *model.latent_shapes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0][0], z, rtol=1e-9, atol=1e-9)
    assert all(layer.wants_log_det for layer in model.residuals)


def test_a_loaded_model_is_the_same() -> None:
    model = image_model("exact")
    twin = randomize(ResidualFlow((1, 4, 4), 2, 2, 8, log_det="exact"), 1.0).double()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    x = torch.rand(4, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval().log_prob(x), model.log_prob(x), rtol=0, atol=0)


def test_names_of_the_estimators() -> None:
    assert ResidualFlow(2).estimator == "exact"
    assert "unbiased, 2 terms" in ResidualFlow(5).estimator
    assert "unbiased, 10 terms" in ResidualFlow(5).eval().estimator
    assert "biased" in IResNet(2, n_terms=7).estimator
    assert "7 terms" in IResNet(2, n_terms=7).eval().estimator


def test_bad_input() -> None:
    for wrong, words in (
        ({"shape": (1, 6, 6), "levels": 3}, "levels"),
        ({"shape": (4, 4)}, "features"),
        ({"shape": 3, "blocks": 0}, "blocks: expected a positive"),
        ({"shape": 3, "hidden": 0}, "hidden: expected a positive"),
        ({"shape": (1, 4, 4), "dense_blocks": -1}, "dense_blocks"),
        ({"shape": 3, "coefficient": 1.0}, "coefficient"),
        ({"shape": 3, "activation": "gelu"}, "activation"),
        ({"shape": 3, "log_det": "trace"}, "log_det"),
    ):
        with pytest.raises(ValueError, match=words):
            ResidualFlow(**wrong)
    with pytest.raises(ValueError, match="n_terms"):
        IResNet(3, n_terms=0)
