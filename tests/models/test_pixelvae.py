"""PixelVAE: its bound against quadrature, its three levels of stochasticity, its use."""

import math

import pytest
import torch

from deepgen_ext.models import PixelVAE
from tests.checks import randomize
from tests.latent_checks import grid
from tests.top_down_checks import check_copies, check_gradients_reach, check_learns, images

SMALL = {
    "channels": 6,
    "prior_channels": 12,
    "prior_layers": 2,
    "pixel_layers": 2,
    "pixel_channels": 6,
    "pixel_kernel_size": 3,
}


def build(shape=(1, 8, 8), latent_features=2, grid_channels=2, std=0.15, **options):
    torch.manual_seed(0)
    options = {"n_levels": 3} | SMALL | options
    return randomize(PixelVAE(shape, latent_features, grid_channels, **options), std).double()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("binarized", [False, True])
def test_bound_and_estimate_against_quadrature(binarized):
    """A vector of one latent and a grid of one cell, which hangs on it."""
    model = build((1, 4, 4), 1, 1, binarized=binarized, std=0.25)
    with torch.no_grad():  # no further from the true posterior than the draws can reach
        for level in model.levels:
            level.posterior.weight.mul_(0.3)
            level.posterior.bias[1] += 0.3
    levels, noise = images(model, 2)
    target = model.target(levels, noise)
    z, log_area = grid(cells=81)
    with torch.no_grad():
        above = model.finer[0](
            model.levels[0](model.top.expand(len(z), -1, -1, -1), z[:, :1, None, None])
        )
        log_prior = model.levels[1].prior.log_prob(z[:, 1:, None, None], above)
        log_prior = log_prior + torch.distributions.Normal(0, 1).log_prob(z[:, 0])
        log_likelihood = [
            model.pixels.log_prob(image.expand(len(z), -1, -1, -1), model.decode(z))
            for image in target.split(1)
        ]
        exact = torch.logsumexp(torch.stack(log_likelihood) + log_prior, 1) + log_area
        bound = model.elbo(levels, 2000, noise=noise)
    estimate = model.log_likelihood(levels, 4000, chunk=4000, noise=noise)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)
    assert (bound < exact - 0.1).all()
    assert (log_likelihood[0].max() - log_likelihood[0].min()) > 0.2, "the latents say nothing"


def test_units_and_bits():
    for binarized in (False, True):
        model = build(binarized=binarized)
        levels, noise = images(model, 3)
        eps = torch.randn(3, 1, model.noise_features).double()
        nats = model.elbo(levels, noise=noise, eps=eps)
        loss = model.loss(levels, noise=noise, eps=eps)
        bits = model.bits_per_dim(levels, noise=noise, eps=eps)
        torch.testing.assert_close(bits, -nats / (64 * math.log(2)))
        torch.testing.assert_close(loss, -nats.mean() if binarized else bits.mean())
        drawn = model.sample(40, generator=seeded(0)).unique().tolist()
        assert drawn == ([0, 2] if binarized else [0, 1, 2])
    target = model.target(levels, noise)
    assert torch.equal(target, (noise * 2 < levels).byte())


def test_samples_are_those_of_the_pixelcnn():
    """The map of the latents, then every pixel by a pass of the network."""
    model = build()
    eps = torch.randn(3, model.noise_features).double()
    with torch.no_grad():
        condition = model.parameters_of_noise(eps)
        ours = model.distribution.draw(condition, seeded(3))
        naive = model.pixels.sample(3, condition=condition, generator=seeded(3), method="naive")
    assert torch.equal(ours, naive)
    torch.testing.assert_close(model.decode(model.latents_of_noise(eps)), condition)
    samples = model.sample(5, generator=seeded(1))
    assert torch.equal(samples, model.sample(5, generator=seeded(1)))
    assert samples.shape == (5, 1, 8, 8)
    levels, noise = images(model, 5)
    rebuilt = model.reconstruct(levels, noise=noise, generator=seeded(2))
    assert set((rebuilt * 2).unique().tolist()) <= {0, 1, 2}
    assert torch.equal(rebuilt, model.reconstruct(levels, noise=noise, generator=seeded(2)))
    with pytest.raises(ValueError, match="an autoregressive decoder draws pixels"):
        model.sample(2, mean=True)


def test_three_levels_of_stochasticity():
    model = build()
    assert model.grids == ((2, 1, 1), (2, 2, 2))
    z, eps = torch.randn(2, 3, model.noise_features).double()
    again = model.redrawn(z, eps, 1)
    assert torch.equal(again[:, :2], z[:, :2])
    assert (again[:, 2:] != z[:, 2:]).all()
    other = z.clone()
    other[:, :2] += 1
    assert not torch.allclose(model.redrawn(other, eps, 1)[:, 2:], again[:, 2:])
    pixels = [model.distribution.draw(model.decode(z), seeded(seed)) for seed in (0, 1)]
    assert not torch.equal(*pixels)


@pytest.mark.parametrize("binarized", [False, True])
def test_every_parameter_gets_a_gradient(binarized):
    torch.manual_seed(0)
    options = SMALL | {"binarized": binarized, "channels": 8}
    check_gradients_reach(
        PixelVAE((3, 8, 12), 3, 2, n_levels=4, **options | {"pixel_channels": 12})
    )


def test_training_tells_two_images_apart():
    torch.manual_seed(0)
    check_learns(PixelVAE((1, 8, 8), 2, 1, n_levels=5, **SMALL), steps=40)


def test_batches_dtypes_and_copies():
    check_copies(build())


def test_the_start_knows_how_frequent_levels_are():
    model = PixelVAE((1, 8, 8), n_levels=4, **SMALL)
    levels = torch.tensor([0, 0, 0, 3]).repeat(50, 16).view(50, 1, 8, 8)
    model.initialize(levels)
    assert model.loss(levels) < 1.1  # 0.81 bits of entropy, 2 of uniform levels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"image_shape": (1, 8, 10)},
            "the grid halve the sides 2 times, and 8x10 is not divisible",
        ),
        ({"image_shape": (8, 8)}, r"image_shape: expected \(C, H, W\), got \(8, 8\)"),
        ({"latent_features": 0}, "latent_features: expected a positive number, got 0"),
        ({"grid_channels": 0}, "grid_channels: expected a positive number, got 0"),
        ({"free_bits": math.inf}, "free_bits: expected 0 or more, got inf"),
        ({"pixel_layers": 0}, "layers: expected a positive number, got 0"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PixelVAE(**{"image_shape": (1, 8, 8)} | arguments)
