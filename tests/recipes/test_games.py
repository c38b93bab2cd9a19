"""Experiments with small games: known values, and that each command leaves its picture and numbers."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import wasserstein_distance
from typer.testing import CliRunner

from deepgen_ext import cli
from deepgen_ext.models import GAN, SNGAN, WGAN, WGANGP
from deepgen_ext.recipes import lipschitz, mode_coverage, vanishing_gradient
from deepgen_ext.recipes.divergences import closed_forms, estimate
from deepgen_ext.recipes.games import slopes
from deepgen_ext.recipes.loss_and_quality import correlation, exact_wasserstein


def test_parallel_lines() -> None:
    """JS at its ceiling, W the distance; the one has no gradient, the other has 1."""
    assert closed_forms(0.0) == (0.0, 0.0, 0.0)
    assert closed_forms(-0.5) == (math.inf, math.log(2), 0.5)
    found = estimate(0.5, steps=150, seed=0)
    assert 0.6 < found.js <= math.log(2)
    assert found.wasserstein == pytest.approx(0.5, abs=0.1)
    assert found.wasserstein <= 0.5 + 1e-3  # a bound from below
    assert found.kl > 2
    assert abs(found.minimax_gradient) < 0.5 * found.wasserstein_gradient
    assert found.wasserstein_gradient == pytest.approx(1.0, abs=0.3)
    assert found.non_saturating_gradient > 1
    assert estimate(-0.5, steps=150, seed=0).wasserstein_gradient < -0.7


def test_the_same_line_has_no_divergence() -> None:
    found = estimate(0.0, steps=20, seed=0)
    assert abs(found.js) < 0.05
    assert abs(found.wasserstein) < 0.02


def test_minimax_vanishes_first() -> None:
    rows = {}
    for objective in ("minimax", "non-saturating"):
        torch.manual_seed(0)
        model = GAN((2,), objective=objective, width=64, ema=0)
        rows[objective] = vanishing_gradient.gradient_norms(model, steps=200, seed=0)
    first, last = rows["minimax"][0], rows["minimax"][-1]
    assert last[2] < 0.5 * max(row[2] for row in rows["minimax"])
    assert rows["non-saturating"][-1][2] > 5 * last[2]
    assert last[1] < first[1]  # as the critic learns


def test_coverage() -> None:
    ring = mode_coverage.centres("ring")
    assert len(mode_coverage.centres("grid")) == 25
    assert ring.norm(dim=1).allclose(torch.ones(8))
    samples = ring[:3].repeat_interleave(100, 0)
    found = mode_coverage.coverage_of(samples, ring)
    assert (found.modes, found.of, found.good) == (3, 8, 1.0)
    far = torch.cat((samples, torch.zeros(300, 2)))  # the middle is 1 away from all
    assert mode_coverage.coverage_of(far, ring).good == 0.5
    edge = ring[:2] + mode_coverage.DEVIATION * torch.tensor([[3.9, 0.0], [4.1, 0.0]])
    assert mode_coverage.coverage_of(edge, ring).good == 0.5
    few = torch.cat((samples, ring[3:4].repeat(4, 1)))  # 4 of 304: less than a fifth of 38
    assert mode_coverage.coverage_of(few, ring).modes == 3


def test_slopes() -> None:
    model = GAN((2,), width=4)
    model.critic.forward = lambda x: 3 * x[:, 0] + 4 * x[:, 1]
    assert slopes(model, torch.randn(5, 2)).allclose(torch.full((5,), 5.0))


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        # the product over layers of the largest Frobenius norm under the clip, 4 layers
        (lambda: WGAN((2,), width=8, clip=0.05, ema=0), 0.05**4 * math.sqrt(16 * 64 * 64 * 8)),
        (lambda: SNGAN((2,), width=8, objective="wasserstein", ema=0), 1.5),
        (lambda: WGANGP((2,), width=8, ema=0), 2.5),
    ],
)
def test_slopes_stay_bounded(make, bound: float) -> None:
    found, heat = lipschitz.follow(make(), steps=40, seed=0)
    assert heat.shape == (lipschitz.CELLS, lipschitz.CELLS)
    assert len(found) == 20
    assert 0 < found[-1].mean <= found[-1].largest + 0.1
    assert found[-1].largest <= bound


def test_the_exact_wasserstein_distance() -> None:
    x, y = torch.randn(50, 1), torch.randn(50, 1) + 2
    expected = wasserstein_distance(x.flatten(), y.flatten())
    assert exact_wasserstein(x, y) == pytest.approx(expected, rel=1e-5)
    points = torch.randn(30, 2)
    assert exact_wasserstein(points, points[torch.randperm(30)]) == pytest.approx(0, abs=1e-6)
    assert exact_wasserstein(points, points + torch.tensor([3.0, 4.0])) == pytest.approx(
        5, rel=1e-5
    )


def test_rank_correlation() -> None:
    rows = [(step, step**3, -step) for step in (1.0, 2.0, 5.0, 9.0)]
    assert correlation(rows) == pytest.approx(-1)
    assert correlation([(a, b, math.exp(b / 100)) for a, b, _ in rows]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        ("divergences", 9),
        ("vanishing-gradient", 3 * 2),
        ("mode-coverage", 2 * 5),
        ("lipschitz", 5 * 2),
        ("loss-and-quality", 2 * 2),
        ("cyclegan-failure", 2 * 10),
    ],
)
def test_every_command_leaves_a_picture_and_numbers(
    tmp_path: Path, command: str, rows: int
) -> None:
    out = tmp_path / "new" / "picture.png"
    result = CliRunner().invoke(cli.app, [command, "--steps", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    assert out.stat().st_size > 10_000
    with open(out.with_suffix(".csv"), newline="") as file:
        assert len(list(csv.DictReader(file))) == rows
    wrong = CliRunner().invoke(cli.app, [command, "--out", "a.txt"])
    assert wrong.exit_code == 2
