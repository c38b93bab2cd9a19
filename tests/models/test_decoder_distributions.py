"""Decoders' distributions of pixels: probabilities, gradients, draws, what they take."""

from __future__ import annotations

import math

import pytest
import torch

from deepgen_ext.models.latent import DECODERS, Bernoulli, DiscretizedLogistic, Gaussian

N, K = 3, 4


def case(name: str, channels: int = 3, n_levels: int = 5):
    distribution = DECODERS[name](channels, n_levels)
    parameters = torch.randn(N, K, distribution.parameters, 2, 3, dtype=torch.float64)
    levels = torch.randint(0, n_levels, (N, channels, 2, 3))
    noise = torch.rand(levels.shape, dtype=torch.float64)
    return distribution, parameters, distribution.target(levels, noise, None)


def by_definition(distribution, parameters, target):
    """ln p of one draw's parameters (P, H, W) and one image (C, H, W)."""
    if distribution.name == "bernoulli":
        bits = torch.distributions.Bernoulli(logits=parameters)
        return bits.log_prob(target.double()).sum()
    means, log_scales = parameters.chunk(2)
    if distribution.name == "gaussian":
        return torch.distributions.Normal(means, log_scales.exp()).log_prob(target).sum()
    top = distribution.n_levels - 1
    x = 2 * target.double() / top - 1
    above = torch.sigmoid((x + 1 / top - means) / log_scales.exp())
    below = torch.sigmoid((x - 1 / top - means) / log_scales.exp())
    above = torch.where(target == top, 1.0, above)
    below = torch.where(target == 0, 0.0, below)
    return (above - below).log().sum()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_draw_is_scored_against_its_own_image(name: str, channels: int) -> None:
    distribution, parameters, target = case(name, channels)
    expected = torch.stack(
        [
            torch.stack([by_definition(distribution, p, target[i]) for p in parameters[i]])
            for i in range(N)
        ]
    )
    torch.testing.assert_close(distribution.log_prob(parameters, target), expected)


@pytest.mark.parametrize("name", ["bernoulli", "discretized_logistic"])
def test_probabilities_of_all_levels_add_up_to_one(name: str) -> None:
    n_levels = 2 if name == "bernoulli" else 6
    distribution = DECODERS[name](1, n_levels)
    parameters = 2 * torch.randn(1, 5, distribution.parameters, 1, 1, dtype=torch.float64)
    images = torch.arange(n_levels).view(-1, 1, 1, 1)
    log_prob = distribution.log_prob(parameters.expand(n_levels, -1, -1, -1, -1), images)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(5, dtype=torch.float64))


def test_bits_under_extreme_logits() -> None:
    distribution = Bernoulli(1, 2)
    logits = torch.tensor([-1e4, -90.0, -1e-4, 1e-4, 90.0, 1e4]).view(1, 1, 1, 1, 6)
    logits.requires_grad_()
    for bit in (0, 1):
        target = torch.full((1, 1, 1, 6), bit)
        expected = by_definition(distribution, logits.detach()[0, 0].double(), target[0])
        log_prob = distribution.log_prob(logits, target)
        torch.testing.assert_close(log_prob.double().squeeze(), expected, rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        torch.testing.assert_close(gradient, bit - torch.sigmoid(logits.detach()))


@pytest.mark.parametrize("name", DECODERS)
def test_half_parameters_are_summed_in_float32(name: str) -> None:
    distribution, parameters, target = case(name)
    half = parameters.bfloat16()
    log_prob = distribution.log_prob(half, target)
    assert log_prob.dtype == torch.float32
    exact = distribution.log_prob(half.double(), target)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_draws_and_means_are_those_of_the_probabilities(name: str) -> None:
    n, n_levels = 20_000, 4
    distribution = DECODERS[name](1, n_levels)
    parameters = torch.tensor([0.3, -0.7]).double()[: distribution.parameters].view(1, -1, 1, 1)
    drawn = distribution.draw(parameters.expand(n, -1, 1, 1), torch.Generator().manual_seed(0))
    drawn = drawn.flatten().double()
    if name == "gaussian":
        assert drawn.mean().item() == pytest.approx(0.3, abs=5 * math.exp(-0.7) / n**0.5)
        assert drawn.std().item() == pytest.approx(math.exp(-0.7), rel=0.03)
        assert distribution.mean(parameters).item() == pytest.approx(0.3)
        return
    top = n_levels - 1
    levels = torch.arange(n_levels).view(-1, 1, 1, 1)
    if name == "bernoulli":
        assert set(drawn.tolist()) == {0.0, float(top)}
        p_on = torch.sigmoid(parameters).item()
        p = torch.tensor([1 - p_on, 0.0, 0.0, p_on]).double()
        assert distribution.mean(parameters).item() == pytest.approx(p_on)
    else:
        rows = parameters.expand(n_levels, 1, -1, 1, 1)
        p = distribution.log_prob(rows, levels).exp().flatten()
        assert distribution.mean(parameters).item() == pytest.approx(0.65)
    counts = torch.bincount(drawn.long(), minlength=n_levels) / n
    assert ((counts - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_dynamic_binarisation_draws_each_pixel_with_its_level() -> None:
    distribution = Bernoulli(1, 5)
    levels = torch.arange(5).view(1, 1, 1, 5).expand(20_000, 1, 1, 5)
    bits = distribution.target(levels, None, torch.Generator().manual_seed(0))
    frequency = bits.double().mean((0, 1, 2))
    assert frequency[0] == 0
    assert frequency[4] == 1
    expected = torch.arange(5) / 4
    assert ((frequency - expected).abs() < 5 * 0.5 / 20_000**0.5).all()
    two = torch.randint(0, 2, (3, 1, 2, 2))
    assert torch.equal(Bernoulli(1, 2).target(two, torch.zeros(two.shape), None), two)


@pytest.mark.parametrize("name", DECODERS)
def test_start_fits_the_pixels(name: str) -> None:
    """Better than neighbouring constants, on the images that it was made from."""
    torch.manual_seed(0)
    distribution = DECODERS[name](1, 9)
    levels = torch.randn(2000, 1, 2, 2).mul(1.5).add(4).round().clamp(0, 8).long()
    target = distribution.target(levels, torch.rand(levels.shape), None)
    start = distribution.start(target)

    def mean_log_prob(parameters):
        rows = parameters.expand(len(target), 1, *parameters.shape)
        return distribution.log_prob(rows, target).mean()

    best = mean_log_prob(start)
    for index in range(distribution.parameters):
        for step in (-0.4, 0.4):
            moved = start.clone()
            moved[index] += step
            assert mean_log_prob(moved) < best


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Bernoulli(1, 2), None, "bits 0 and 1"),
        (lambda: DiscretizedLogistic(1, 17), None, "0 to 16"),
        (lambda: Bernoulli(0), ValueError, "channels: .*0"),
        (lambda: Gaussian(1, 1), ValueError, "n_levels: expected 2 to"),
        (lambda: Gaussian(1, 2**17), ValueError, "n_levels: .*131072"),
    ],
)
def test_sizes_and_domains(call, error: type[Exception] | None, message: str) -> None:
    if error is None:
        assert message in call().domain
    else:
        with pytest.raises(error, match=message):
            call()


def test_levels_outside_of_the_domain_are_named() -> None:
    real, bools = torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2).bool()
    with pytest.raises(TypeError, match="bernoulli decoder takes bits 0 and 1 .*float32"):
        Bernoulli(1, 2).target(real, None, None)
    with pytest.raises(TypeError, match="discretized_logistic decoder takes integer levels 0 to 4"):
        DiscretizedLogistic(1, 5).target(real, None, None)
    with pytest.raises(TypeError, match="gaussian decoder takes .*bool"):
        Gaussian(1, 5).target(bools, None, None)
    for kind in DECODERS.values():
        with pytest.raises(ValueError, match=r"levels: expected values in \[0, 5\), got 0 to 7"):
            kind(1, 5).target(torch.tensor([0, 7]).view(2, 1, 1, 1), None, None)
    with pytest.raises(ValueError, match="noise: expected the shape of levels"):
        Bernoulli(1, 5).target(torch.zeros(2, 1, 2, 2).long(), torch.rand(2, 1, 2, 1), None)
    assert torch.equal(Gaussian(1, 5).target(real, None, None), real)
