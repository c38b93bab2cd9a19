"""Families of posteriors: densities of their draws, closed forms, one image apart from another."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from deepgen_ext.models.latent import POSTERIORS
from deepgen_ext.models.latent.posteriors import log_normal, make_posterior
from tests.checks import randomize

FLOWS = [name for name in POSTERIORS if name != "gaussian"]


def build(name: str, features: int = 3, std: float = 0.2):
    torch.manual_seed(0)
    posterior = make_posterior(name, 5, features, flow_steps=2, flow_hidden=8)
    return randomize(posterior, std).double()


@pytest.mark.parametrize("name", POSTERIORS)
def test_draws_come_with_their_density(name: str) -> None:
    posterior = build(name)
    h, eps = torch.randn(4, 5).double(), torch.randn(4, 6, 3).double()
    z, log_q, *_ = posterior.draw(h, eps)
    assert z.shape == (4, 6, 3)
    torch.testing.assert_close(posterior(z, h), log_q, rtol=1e-8, atol=1e-8)
    if name == "gaussian":
        mean, log_scale = posterior.base(h)
        expected = Normal(mean[:, None], log_scale.exp()[:, None]).log_prob(z).sum(2)
        torch.testing.assert_close(log_q, expected)


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_integrates_to_one(name: str) -> None:
    posterior = build(name, features=2)
    axis = torch.linspace(-12, 12, 301).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = posterior(grid.expand(2, -1, 2), torch.randn(2, 5).double()).exp().sum(1)
    torch.testing.assert_close(
        mass * (axis[1] - axis[0]) ** 2, torch.ones(2).double(), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize("name", POSTERIORS)
def test_images_do_not_mix(name: str) -> None:
    posterior = build(name)
    h, eps = torch.randn(3, 5).double(), torch.randn(3, 4, 3).double()
    moved = h.clone()
    moved[1] += 1
    for before, after in zip(posterior.draw(h, eps)[:2], posterior.draw(moved, eps)[:2]):
        changed = (before != after).flatten(2).any(2) if before.ndim == 3 else before != after
        assert changed[1].all()
        assert not changed[[0, 2]].any()
    alone = posterior.draw(h[2:], eps[2:, 1:2]).z
    torch.testing.assert_close(posterior.draw(h, eps).z[2:, 1:2], alone)


def test_kl_of_gaussians() -> None:
    posterior, h = build("gaussian"), torch.randn(4, 5).double()
    mean, log_scale = posterior.base(h)
    expected = kl_divergence(Normal(mean, log_scale.exp()), Normal(0.0, 1.0)).sum(1)
    draws = posterior.draw(h, torch.randn(4, 2, 3).double())
    torch.testing.assert_close(posterior.kl(h, draws), expected)


@pytest.mark.parametrize("name", FLOWS)
def test_kl_of_flows(name: str) -> None:
    """That of the plain average in expectation, and at the identity without any noise."""
    posterior, h = build(name, std=0.05), torch.randn(4, 5).double()
    draws = posterior.draw(h, torch.randn(4, 20_000, 3).double())
    plain = draws.log_q - log_normal(draws.z)
    error = plain.std(1) / 20_000**0.5
    assert ((posterior.kl(h, draws) - plain.mean(1)).abs() < 5 * error).all()
    if name in ("iaf", "realnvp"):
        fresh = make_posterior(name, 5, 3).double()
        kls = [fresh.kl(h, fresh.draw(h, torch.randn(4, 1, 3).double())) for _ in range(2)]
        torch.testing.assert_close(kls[0], kls[1])


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_of_fixed_parameters(name: str) -> None:
    """The same density and the same gradient in z, none in anything else."""
    posterior = build(name)
    h = torch.randn(2, 5).double().requires_grad_()
    z = torch.randn(2, 3, 3).double().requires_grad_()
    expected, actual = posterior(z, h), posterior.log_prob_of_fixed(z, h)
    torch.testing.assert_close(actual, expected)
    (by_z,) = torch.autograd.grad(expected.sum(), z, retain_graph=True)
    others = [h, *posterior.parameters()]
    gradients = torch.autograd.grad(actual.sum(), [z, *others], allow_unused=True)
    torch.testing.assert_close(gradients[0], by_z)
    assert all(gradient is None for gradient in gradients[1:])
    assert all(p.requires_grad for p in posterior.parameters())


@pytest.mark.parametrize("name", POSTERIORS)
def test_mode_is_the_draw_without_noise(name: str) -> None:
    posterior, h = build(name), torch.randn(4, 5).double()
    expected = posterior.draw(h, torch.zeros(4, 1, 3).double()).z[:, 0]
    torch.testing.assert_close(posterior.mode(h), expected)


def test_scales_are_bounded() -> None:
    posterior = build("gaussian")
    z, log_q, *_ = posterior.draw(1e4 * torch.randn(4, 5).double(), torch.randn(4, 2, 3).double())
    assert z.isfinite().all()
    assert log_q.abs().max() < 3 * (7 + 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"posterior": "normal"},
            "posterior: expected one of gaussian, planar, radial, iaf, realnvp",
        ),
        ({"latent_features": 0}, "latent_features: .*0"),
        ({"posterior": "iaf", "flow_steps": 0}, "flow_steps: .*0"),
        ({"posterior": "iaf", "flow_hidden": 0}, "flow_hidden: .*0"),
        ({"posterior": "realnvp", "latent_features": 1}, "latent_features: .*2 or more, got 1"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    given = {"posterior": "gaussian", "in_features": 4, "latent_features": 3} | arguments
    with pytest.raises(ValueError, match=message):
        make_posterior(**given)
