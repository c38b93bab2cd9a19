"""The energies of Rezende & Mohamed: formulas, log Z, exact draws, divergences."""

from __future__ import annotations

import math

import pytest
import torch

from deepgen_ext import models
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.energies import (
    ENERGIES,
    divergences,
    energy,
    inverse_temperature,
    leave_identity,
    log_density,
    log_normalizer,
    reverse_kl,
    sample_energy,
)
from tests.checks import randomize


def test_values_of_the_paper_s_table() -> None:
    """Worked out by hand at points where most terms vanish."""
    at = torch.tensor
    # |z| = 2 on the axis: the ring is 0, one of the Gaussians 1 and the other e^-22.
    assert energy("u1", at([2.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)
    assert energy("u1", at([0.0, 2.0])).item() == pytest.approx(0.5 * (2 / 0.6) ** 2 - math.log(2))
    # On the wave sin(pi / 2) = 1, and 0.4 off it.
    assert energy("u2", at([1.0, 1.0])).item() == pytest.approx(0.0, abs=1e-12)
    assert energy("u2", at([1.0, 1.4])).item() == pytest.approx(0.5)
    # The second branch lies w2 = 3 (at z1 = 1) below; far from there both branches are one.
    assert energy("u3", at([1.0, 1.0])).item() == pytest.approx(0.0, abs=1e-6)
    assert energy("u3", at([1.0, -2.0])).item() == pytest.approx(0.0, abs=1e-6)
    assert energy("u3", at([-3.0, 1.0])).item() == pytest.approx(-math.log(2), abs=1e-6)
    # The second branch lies w3 = 3 sigmoid(0) = 1.5 below at z1 = 1, and 3 below from z1 = 3 on.
    assert energy("u4", at([1.0, -0.5])).item() == pytest.approx(-8e-4, abs=2e-4)
    assert energy("u4", at([3.0, -4.0])).item() == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("name", ["u2", "u3", "u4"])
def test_the_wall_stands_beyond_four_alone(name: str) -> None:
    inside, beyond = torch.tensor([4.0, 0.3]), torch.tensor([4.8, 0.3])
    shift = torch.sin(0.5 * math.pi * (beyond - inside)[0])  # the wave there
    follows = beyond + torch.stack((torch.zeros(()), shift))
    assert (energy(name, follows) - energy(name, inside)).item() == pytest.approx(2.0, abs=0.02)


def test_log_z_is_known() -> None:
    """Along z2 every branch is a Gaussian; along z1 there are 8 and the two walls' halves."""
    length = 8 + math.sqrt(2 * math.pi) * 0.4
    widths = {"u2": 0.4, "u3": 0.35 + 0.35, "u4": 0.4 + 0.35}
    for name, width in widths.items():
        log_z, error = log_normalizer(name, 512)
        assert log_z == pytest.approx(math.log(math.sqrt(2 * math.pi) * width * length), abs=1e-8)
        assert error < 1e-8


def test_quadrature_of_u1_has_converged() -> None:
    log_z, error = log_normalizer("u1", 512)
    assert error < 1e-10
    assert log_z == pytest.approx(log_normalizer("u1", 300)[0], abs=1e-10)
    # Importance sampling from N(0, 2.2^2 I), an integral of another kind.
    z = 2.2 * torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0))
    weights = -energy("u1", z) + 0.5 * (z / 2.2).square().sum(1) + math.log(2 * math.pi * 2.2**2)
    assert (torch.logsumexp(weights, 0) - math.log(len(z))).item() == pytest.approx(log_z, abs=0.02)


@pytest.mark.parametrize("name", sorted(ENERGIES))
def test_draws_are_of_the_density(name: str) -> None:
    """E_p[log p] of the draws against its quadrature, and the mass of the right half plane."""
    draws = sample_energy(name, 40_000, torch.Generator().manual_seed(0))
    axis = (torch.arange(400, dtype=torch.float64) + 0.5) / 25 - 8
    grid = torch.cartesian_prod(axis, axis)
    p = (log_density(name, grid)).exp() / 25**2
    assert p.sum().item() == pytest.approx(1.0, abs=1e-4)
    values = log_density(name, draws)
    expected = (p * log_density(name, grid)).sum().item()
    assert values.mean().item() == pytest.approx(expected, abs=5 * values.std().item() / 200)
    right = (p * (grid[:, 0] > 1)).sum().item()
    assert (draws[:, 0] > 1).double().mean().item() == pytest.approx(right, abs=0.012)


def test_reverse_kl_is_a_divergence() -> None:
    """Against the definition on a grid, for a flow whose density is known there."""
    torch.manual_seed(0)
    model = randomize(models.PlanarFlow(2, 3), 0.5).double()
    latents = torch.randn(60_000, 2, dtype=torch.float64)
    with torch.no_grad():
        values = reverse_kl(model, "u1", latents)
        assert model.inverse([latents])[1].mean().abs() > 0.3  # a wrong sign of log_det would show
        axis = (torch.arange(300, dtype=torch.float64) + 0.5) / 25 - 6
        grid = torch.cartesian_prod(axis, axis)
        log_q = model.log_prob(grid)
        expected = (log_q.exp() * (log_q - log_density("u1", grid))).sum().item() / 25**2
    error = values.std().item() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(expected, abs=5 * error)
    tempered = reverse_kl(model, "u1", latents[:9], 0.5)
    z, _ = model.inverse([latents[:9]])
    torch.testing.assert_close(values[:9] - tempered, 0.5 * energy("u1", z))


def test_reverse_kl_wants_two_dimensions() -> None:
    with pytest.raises(RecipeError, match=r"u1 is of 2 dimensions, the model of \(3,\)"):
        reverse_kl(models.PlanarFlow(3, 1), "u1", torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"z: expected \(..., 2\)"):
        energy("u1", torch.ones(4, 3))


def test_the_temperature_falls_to_one() -> None:
    rises = [inverse_temperature(step, 100) for step in range(0, 121, 20)]
    assert rises[0] == 0.01
    assert rises == sorted(rises)
    assert rises[-2:] == [1.0, 1.0]
    assert inverse_temperature(1, 0) == 1.0


def test_both_divergences_of_a_known_pair() -> None:
    """q = N(0, I), by expectations on a grid."""
    q = models.RealNVP((2,), couplings=1).eval()  # as it is built, the identity
    grid = torch.cartesian_prod(*2 * [(torch.arange(400, dtype=torch.float64) + 0.5) / 25 - 8])
    log_p = log_density("u2", grid)
    log_q = -0.5 * grid.square().sum(1) - math.log(2 * math.pi)
    forward, reverse = divergences(q, "u2", sample_energy("u2", 40_000, torch.Generator()))
    expected = [
        (a.exp() * (a - b)).sum().item() / 25**2 for a, b in ((log_p, log_q), (log_q, log_p))
    ]
    assert [forward, reverse] == pytest.approx(expected, abs=0.05)


def test_leaving_the_identity_moves_what_is_zero() -> None:
    torch.manual_seed(0)
    model = models.IAF(2, 4, hidden_features=(400,))
    before = {name: p.clone() for name, p in model.named_parameters()}
    leave_identity(model)
    moved = {name: p for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) == 4
    for name, weight in moved.items():
        assert not before[name].any()
        assert weight.std().item() == pytest.approx(2 / math.sqrt(400 * 4), rel=0.15)
