"""Flow models: exact likelihood, exact inverse, sampling and temperature, bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch

from deepgen_ext import objectives
from deepgen_ext.models import Glow, RealNVP
from tests.checks import check_model, randomize

MODELS = {
    "glow": (lambda: Glow((2, 4, 4), levels=2, steps=2, hidden_channels=8), (2, 4, 4)),
    "glow-additive": (
        lambda: Glow((2, 4, 4), levels=2, steps=2, hidden_channels=8, coupling="additive"),
        (2, 4, 4),
    ),
    "glow-one-level": (lambda: Glow((3, 2, 2), levels=1, steps=2, hidden_channels=8), (3, 2, 2)),
    "glow-reversible": (
        lambda: Glow((1, 4, 4), levels=1, steps=3, hidden_channels=8, reversible=True),
        (1, 4, 4),
    ),
    "realnvp": (lambda: RealNVP((2, 4, 4), levels=2, couplings=2, hidden_channels=8), (2, 4, 4)),
    "realnvp-odd-sides": (lambda: RealNVP((1, 3, 5), levels=1, hidden_channels=8), (1, 3, 5)),
    "realnvp-vector": (lambda: RealNVP((5,), couplings=4, hidden_channels=8), (5,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_inverse_and_sampling(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    check_model(make(), torch.rand(8, *shape))


@pytest.mark.parametrize("name", MODELS)
def test_float32_reconstructs(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = randomize(make(), 0.05), torch.rand(16, *shape)
    model.initialize(x)
    with torch.no_grad():
        again, _ = model.inverse(model(x)[0])
    assert (again - x).abs().max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = randomize(make(), 0.05)
    levels = torch.randint(0, 256, (8, *shape))
    model.loss(levels).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    model = RealNVP((2,), couplings=6, hidden_channels=16).double()
    model.initialize(torch.randn(256, 2, dtype=torch.float64) * torch.tensor([1.5, 0.5]))
    randomize(model, 0.2)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = model.log_prob(grid).exp()
    mass = density.sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 1e-3
    assert density.max() > 0.05


def test_samples_follow_the_density() -> None:
    torch.manual_seed(0)
    model = RealNVP((2,), couplings=4, hidden_channels=16).double()
    model.initialize(3 + 2 * torch.randn(256, 2, dtype=torch.float64))
    randomize(model, 0.2)
    samples = model.sample(100_000, generator=torch.Generator().manual_seed(0))
    axis = torch.linspace(-20, 20, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = model.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    mean = (mass[:, None] * grid).sum(0)
    second = (mass[:, None] * grid.square()).sum(0)
    std = (second - mean**2).sqrt()
    assert ((samples.mean(0) - mean).abs() < 5 * std / 100_000**0.5).all()
    assert ((samples.std(0) / std - 1).abs() < 0.03).all()


def test_bits_per_dim_counts_the_dequantisation() -> None:
    torch.manual_seed(0)
    model = randomize(Glow((1, 4, 4), 1, 1, 8, n_levels=17), 0.05)
    levels, noise = torch.randint(0, 17, (4, 1, 4, 4)), torch.rand(4, 1, 4, 4)
    model.initialize(levels, noise=noise)
    nats = -model.log_prob((levels + noise) / 17) + 16 * math.log(17)
    bits = model.bits_per_dim(levels, noise=noise)
    torch.testing.assert_close(bits, nats / (16 * math.log(2)))
    torch.testing.assert_close(model.loss(levels, noise=noise), bits.mean())
    torch.testing.assert_close(
        model.loss(levels.to(torch.uint8), generator=torch.Generator().manual_seed(1)),
        model.loss(levels, generator=torch.Generator().manual_seed(1)),
    )
    x = (levels + noise) / 17
    torch.testing.assert_close(model.loss(x), -model.log_prob(x).mean())


def log_density_ratio(model: Glow, temperature: float) -> torch.Tensor:
    """ln p_T(x) - ln p(x) / T^2 at samples x: a constant where p_T ~ p^(1/T^2)."""
    generator = torch.Generator().manual_seed(0)
    x = model.sample(16, temperature, generator=generator)
    with torch.no_grad():
        latents, log_det = model(x)
        z = torch.cat([latent.flatten(1) for latent in latents], 1)
        # The density of the map pushed forward from N(0, T^2 I), in closed form.
        scale = torch.tensor(temperature, dtype=z.dtype)
        log_p_t = torch.distributions.Normal(0.0 * scale, scale).log_prob(z).sum(1) + log_det
        return log_p_t - model.log_prob(x) / temperature**2


def test_reduced_temperature_is_exact_for_additive_couplings_only() -> None:
    spreads = {}
    for coupling in ("additive", "affine"):
        torch.manual_seed(0)
        model = Glow((2, 4, 4), 2, 2, 8, coupling=coupling).double()
        model.initialize(torch.rand(16, 2, 4, 4).double())
        spreads[coupling] = log_density_ratio(randomize(model, 0.1), 0.7).std()
    assert spreads["additive"] < 1e-10
    assert spreads["affine"] > 1e-2


def test_temperature_scales_every_latent() -> None:
    torch.manual_seed(0)
    model = Glow((1, 4, 4), 2, 2, 8).double()
    model.initialize(torch.rand(16, 1, 4, 4).double())
    randomize(model, 0.1)
    warm, cool = (
        model(model.sample(4, t, generator=torch.Generator().manual_seed(0)))[0] for t in (1.0, 0.5)
    )
    for a, b in zip(warm, cool, strict=True):
        torch.testing.assert_close(b, 0.5 * a, rtol=1e-8, atol=1e-8)


def test_initialize_normalises_without_training_mode_and_once() -> None:
    torch.manual_seed(0)
    model = Glow((1, 4, 4), 1, 2, 8).eval()
    levels = torch.randint(0, 256, (32, 1, 4, 4))
    model.initialize(levels)
    assert not model.training
    (z,), _ = model((levels + 0.5) / 256)
    assert 0.5 < z.std() < 1.5
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialize(levels // 2)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_log_prob_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = randomize(Glow((1, 4, 4), 2, 1, 8), 0.05)
    x = torch.rand(4, 1, 4, 4)
    model.initialize(x)
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Glow((1, 6, 8), levels=2),
            ValueError,
            r"levels=2.*multiples of 4, got \(1, 6, 8\)",
        ),
        (lambda: Glow((8, 8)), ValueError, r"\(C, H, W\), got \(8, 8\)"),
        (lambda: Glow((1, 8, 8), coupling="both"), ValueError, "coupling: .*'both'"),
        (lambda: Glow((1, 8, 8), steps=0), ValueError, "steps: .*0"),
        (lambda: Glow((1, 8, 8), n_levels=1), ValueError, "n_levels: .*1"),
        (lambda: RealNVP((1, 6, 6), levels=3), ValueError, r"levels=3.*multiples of 4"),
        (lambda: RealNVP((1,)), ValueError, r"at least 2 elements, got \(1,\)"),
        (lambda: small().log_prob(torch.zeros(2, 1, 4, 2)), ValueError, r"\(n, 1, 4, 4\), got"),
        (lambda: small().log_prob(torch.zeros(2, 1, 4, 4).long()), TypeError, "real values"),
        (lambda: small().bits_per_dim(torch.zeros(2, 1, 4, 4)), TypeError, "integer tensor"),
        (lambda: small().loss(torch.full((1, 1, 4, 4), 300)), ValueError, r"\[0, 256\), got 300"),
        (lambda: small().sample(-1), ValueError, "n: .*-1"),
        (lambda: small().sample(1, temperature=-0.5), ValueError, "temperature: .*-0.5"),
        (lambda: small().inverse([]), ValueError, "expected 2, got 0"),
        (lambda: small().inverse(bad_latents()), ValueError, r"latents\[1\]: .*got \(1, 8, 1, 2\)"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def small() -> Glow:
    return Glow((1, 4, 4), levels=2, steps=1, hidden_channels=4)


def bad_latents() -> list[torch.Tensor]:
    return [torch.zeros(1, 2, 2, 2), torch.zeros(1, 8, 1, 2)]


def test_nan_propagates() -> None:
    model = small().eval()
    x = torch.rand(3, 1, 4, 4)
    x[1, 0, 0, 0] = float("nan")
    log_prob = model.log_prob(x)
    assert log_prob.isnan().tolist() == [False, True, False]
    levels = objectives.quantize(x, 256)
    assert levels.dtype == torch.uint8
