"""Distributions of pixels: scores that add up, draws that follow them, parameters in their layout."""

import copy
import itertools
import pickle

import pytest
import torch

from deepgen_ext import nn, ops

DISTRIBUTIONS = [
    nn.Categorical(1, 4),
    nn.Categorical(2, 3, groups_in_order=2),
    nn.Categorical(3, 3),
    nn.DiscretizedLogisticMixture(1, 4, 2),
    nn.DiscretizedLogisticMixture(2, 3, 3),
    nn.DiscretizedLogisticMixture(3, 3, 2),
]
every = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)


def parameters_of(distribution, *shape):
    generator = torch.Generator().manual_seed(2)
    n, height, width = shape
    return torch.randn(
        n, distribution.parameters, height, width, generator=generator, dtype=torch.double
    )


def colours_of(distribution):
    pixel = itertools.product(range(distribution.n_levels), repeat=distribution.channels)
    return torch.tensor(list(pixel)).view(-1, distribution.channels, 1, 1)


@every
def test_probabilities_of_all_colours_sum_to_one(distribution):
    colours = colours_of(distribution)
    parameters = parameters_of(distribution, 1, 1, 1).expand(len(colours), -1, -1, -1)
    total = distribution.log_prob(parameters, colours).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


@every
def test_log_prob_sums_pixels(distribution):
    parameters = parameters_of(distribution, 3, 2, 5)
    levels = torch.randint(0, distribution.n_levels, (3, distribution.channels, 2, 5))
    whole = distribution.log_prob(parameters, levels)
    assert whole.shape == (3,)
    pixels = [
        distribution.log_prob(
            parameters[..., i : i + 1, j : j + 1], levels[..., i : i + 1, j : j + 1]
        )
        for i in range(2)
        for j in range(5)
    ]
    torch.testing.assert_close(torch.stack(pixels).sum(0), whole)
    torch.testing.assert_close(distribution.log_prob(parameters, levels.byte()), whole)
    last = parameters.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(distribution.log_prob(last, levels), whole)
    assert distribution.log_prob(parameters[:0], levels[:0]).shape == (0,)


@every
def test_draws_follow_log_prob(distribution):
    count = 100_000
    colours = colours_of(distribution)
    parameters = parameters_of(distribution, 1, 1, 1)
    expected = distribution.log_prob(parameters.expand(len(colours), -1, -1, -1), colours).exp()
    uniforms = torch.rand(
        1, distribution.channels, 1, count, generator=torch.Generator().manual_seed(1)
    )
    drawn = distribution.draw(parameters.expand(-1, -1, 1, count), uniforms)
    assert drawn.dtype == torch.int64
    assert drawn.shape == uniforms.shape
    powers = distribution.n_levels ** torch.arange(distribution.channels - 1, -1, -1)
    index = (drawn[0, :, 0] * powers[:, None]).sum(0)
    frequencies = index.bincount(minlength=len(colours)) / count
    assert ((frequencies - expected).abs() < 5 * (expected / count).sqrt()).all()


@every
def test_cold_draws_do_not_depend_on_the_uniforms(distribution):
    parameters = parameters_of(distribution, 1, 20, 20).expand(10, -1, -1, -1)
    uniforms = 0.05 + 0.9 * torch.rand(10, distribution.channels, 20, 20, dtype=torch.double)
    warm, cold = (distribution.draw(parameters, uniforms, t) for t in (1.0, 1e-6))
    assert (cold == cold[0]).all()
    assert (warm != warm[0]).any()


@every
def test_half_types_are_scored_in_float32(distribution):
    parameters = parameters_of(distribution, 2, 4, 4).bfloat16()
    levels = torch.randint(0, distribution.n_levels, (2, distribution.channels, 4, 4))
    ours = distribution.log_prob(parameters, levels)
    assert ours.dtype == torch.float32
    exact = distribution.log_prob(parameters.double(), levels)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)


@every
def test_gradients(distribution):
    parameters = parameters_of(distribution, 2, 1, 2).requires_grad_()
    levels = torch.randint(0, distribution.n_levels, (2, distribution.channels, 1, 2))
    assert torch.autograd.gradcheck(lambda p: distribution.log_prob(p, levels), parameters)


@every
def test_copies(distribution):
    for twin in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution))):
        assert repr(twin) == repr(distribution)
        assert twin.parameters == distribution.parameters


def test_layouts():
    """Where the parameters of a channel lie, and how many there are."""
    assert nn.Categorical(3, 256).parameters == 768
    assert nn.DiscretizedLogisticMixture(1).parameters == 30
    assert nn.DiscretizedLogisticMixture(3).parameters == 100
    categorical = nn.Categorical(2, 3)
    logits = torch.zeros(1, 6, 1, 1)
    logits[0, 1], logits[0, 5] = 50, 50
    assert categorical.draw(logits, torch.rand(1, 2, 1, 1)).flatten().tolist() == [1, 2]
    mixture = nn.DiscretizedLogisticMixture(2, 5, 2)
    parameters = torch.zeros(1, mixture.parameters, 1, 1)
    parameters[0, 1] = 50  # the second component
    parameters[0, [3, 5]] = torch.tensor([-0.5, 0.0]).view(2, 1, 1)  # its means
    parameters[0, [7, 9]] = -7  # its log scales
    parameters[0, 11] = 50  # its coefficient: the second channel is the first
    uniforms = torch.full((1, 2, 1, 1), 0.5)
    assert mixture.draw(parameters, uniforms).flatten().tolist() == [1, 1]
    assert nn.Categorical(3, 8, 3).groups_in_order == 3
    assert mixture.groups_in_order == 1


def test_log_prob_is_the_op():
    mixture = nn.DiscretizedLogisticMixture(3, 256, 5)
    parameters = parameters_of(mixture, 2, 3, 3)
    levels = torch.randint(0, 256, (2, 3, 3, 3))
    expected = ops.discretized_logistic_mixture(parameters, levels, mixtures=5).sum((1, 2))
    torch.testing.assert_close(mixture.log_prob(parameters, levels), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.Categorical(0), "channels: expected 1 or more, got 0"),
        (lambda: nn.Categorical(1, 1), "n_levels: expected 2 or more, got 1"),
        (lambda: nn.Categorical(3, 4, 2), "groups_in_order: expected a divisor of channels, 3, got 2"),
        (lambda: nn.DiscretizedLogisticMixture(3, 256, 0), "mixtures: expected 1 or more, got 0"),
        (lambda: nn.Categorical(3, 4).log_prob(torch.ones(2, 8, 4, 4), torch.ones(2, 3, 4, 4).long()),
         r"parameters: expected the shape \(2, 12, 4, 4\) for Categorical\(.*, got \(2, 8, 4, 4\)"),
        (lambda: nn.Categorical(3, 4).draw(torch.ones(2, 12, 4, 4), torch.ones(2, 1, 4, 4)),
         r"uniforms: expected the shape \(n, 3, H, W\), got \(2, 1, 4, 4\)"),
        (lambda: nn.DiscretizedLogisticMixture(1).log_prob(torch.ones(2, 30, 4, 4), torch.ones(2, 4, 4)),
         r"levels: expected the shape \(n, 1, H, W\), got \(2, 4, 4\)"),
    ],
)  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_gaussian_is_torchs_and_its_scale_is_bounded():
    distribution = nn.DiagonalGaussian(2)
    assert distribution.parameters == 4
    parameters, noise = parameters_of(distribution, 3, 2, 5), torch.randn(3, 2, 2, 5).double()
    parameters[0, 2:, 0, 0] = torch.tensor([-20.0, 20.0])
    mean, log_scale = parameters[:, :2], parameters[:, 2:].clamp(-7, 7)
    drawn = distribution.draw(parameters, noise, temperature=0.5)
    torch.testing.assert_close(drawn, mean + 0.5 * log_scale.exp() * noise)
    exact = torch.distributions.Normal(mean, log_scale.exp()).log_prob(drawn).sum((1, 2, 3))
    torch.testing.assert_close(distribution.log_prob(parameters, drawn), exact)
    half = distribution.log_prob(parameters.bfloat16(), drawn.bfloat16())
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="channels: expected 1 or more, got 0"):
        nn.DiagonalGaussian(0)
    with pytest.raises(ValueError, match=r"values: expected the shape \(n, 2, H, W\)"):
        distribution.log_prob(parameters, drawn[:, :1])
    with pytest.raises(ValueError, match="parameters: expected the shape"):
        distribution.draw(parameters[:, :3], noise)
