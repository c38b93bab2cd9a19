"""VLAE: its window, its prior, its bound against quadrature."""

import pytest
import torch

from deepgen_ext.models import VLAE
from tests.checks import randomize
from tests.latent_checks import build, elbo, grid, images, log_likelihood
from tests.top_down_checks import check_copies, check_gradients_reach, check_learns

SMALL = {"hidden_features": (8,), "channels": 4, "prior_steps": 2, "prior_hidden": 8}
SMALL |= {"pixel_layers": 2, "pixel_channels": 6, "condition_channels": 4}


def tiny():
    options = {"prior_hidden": 6, "prior_steps": 2, "pixel_channels": 6, "pixel_layers": 2}
    model = build(VLAE, receptive_field=1, channels=4, condition_channels=3, **options)
    randomize(model, 0.15, seed=3)
    with torch.no_grad():  # no further from the true posterior than the draws can reach
        model.posterior.moments.weight.mul_(0.3)
        model.posterior.moments.bias[2:] += 0.3
    return model


def test_bound_and_estimate_against_quadrature():
    model = tiny()
    levels, _ = images(2)
    exact = log_likelihood(model, levels)
    with torch.no_grad():
        expected = elbo(model, levels)
        draws = torch.stack([model.elbo(levels, 200) for _ in range(20)])
    error = draws.std(0) / 20**0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-6).all()
    assert (expected < exact - 5 * error).all()
    estimate = model.log_likelihood(levels, 10_000, chunk=10_000)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)


def test_prior_is_a_density_and_that_of_its_draws():
    model = tiny()
    z, log_area = grid()
    with torch.no_grad():
        log_p = model.log_prior(z.unsqueeze(0))[0]
    assert abs(torch.logsumexp(log_p, 0) + log_area) < 1e-3
    eps = torch.randn(3, 2).double()
    drawn = model.latents_of_noise(eps)
    assert (drawn - eps).abs().min() > 1e-4
    for index in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda e: model.latents_of_noise(e[None])[0], eps[index]
        )
        normal = torch.distributions.Normal(0, 1).log_prob(eps[index]).sum()
        expected = normal - torch.linalg.slogdet(jacobian)[1]
        found = model.log_prior(drawn[index].view(1, 1, 2))[0, 0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("radius", [1, 2])
def test_a_pixel_sees_its_window_and_the_code(radius):
    torch.manual_seed(0)
    model = randomize(
        VLAE((1, 6, 7), 2, receptive_field=radius, n_levels=3, **SMALL | {"pixel_channels": 16}),
        0.3,
    ).double()
    z = torch.randn(1, 2).double()
    x = torch.rand(1, 1, 6, 7).double()

    def logits(x, z):
        return model.pixels.network(x, model.decode(z))[0, :, 3, 3].sum()

    of_x, of_z = torch.autograd.functional.jacobian(logits, (x, z))
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    inside = ((rows - 3).abs() <= radius) & ((columns - 3).abs() <= radius)
    before = (rows < 3) | ((rows == 3) & (columns < 3))
    assert torch.equal(of_x[0, 0] != 0, inside & before)
    assert (of_z != 0).all()


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    for posterior in ("gaussian", "iaf"):
        options = SMALL | {"flow_hidden": 8, "pixel_channels": 12}
        check_gradients_reach(VLAE((3, 5, 6), 4, n_levels=4, posterior=posterior, **options))


def test_training_tells_two_images_apart():
    torch.manual_seed(0)
    check_learns(VLAE((1, 4, 4), 2, n_levels=5, receptive_field=1, **SMALL))


def test_batches_dtypes_and_copies():
    check_copies(tiny())


def test_samples():
    model = tiny()
    samples = model.sample(6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(samples, model.sample(6, generator=torch.Generator().manual_seed(0)))
    assert samples.shape == (6, 1, 2, 2)
    assert len(samples.unique()) == 3


@pytest.mark.parametrize("name", ["receptive_field", "prior_steps", "condition_channels"])
def test_what_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a positive number, got 0"):
        VLAE((1, 4, 4), **{name: 0})
