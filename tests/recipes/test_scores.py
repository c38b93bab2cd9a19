"""Scores of samples against closed forms, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance as of_line
from torch import Tensor

pytest.importorskip("torchmetrics", reason='needs pip install "deepgen_ext[metrics]"')
pytest.importorskip("ot", reason='needs pip install "deepgen_ext[metrics]"')

from deepgen_ext.recipes import RecipeError, scores
from deepgen_ext.recipes.feature_network import Features
from deepgen_ext.recipes.scores import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
    score,
)
from deepgen_ext.recipes.transport import wasserstein_distance


def _normal(n: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator, dtype=torch.float64)


def test_frechet_distance_of_gaussians() -> None:
    """Samples standardised to have the moments exactly, so that the closed form is exact too."""
    x = _normal(500, 4)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 499)).T
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item())
    a, b = _normal(4, 4, 1), _normal(4, 4, 2)
    first, second = a @ a.T, b @ b.T
    expected = torch.trace(first + second) - 2 * sqrtm((first @ second).numpy()).real.trace()
    assert frechet_distance(x @ a.T, x @ b.T) == pytest.approx(expected.item())
    assert frechet_distance(x @ b.T, x @ a.T) == pytest.approx(expected.item())


@pytest.mark.parametrize("sizes", [(4, 100), (100, 4), (3, 3)])
def test_frechet_distance_needs_more_samples_than_features(sizes: tuple[int, int]) -> None:
    real, generated = (_normal(n, 4) for n in sizes)
    with pytest.raises(
        RecipeError, match="4 features needs 5 samples or more of each.*are 4 real|100 real|3 real"
    ):
        frechet_distance(real, generated)
    frechet_distance(_normal(5, 4), _normal(5, 4, 1))


def test_kernel_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbiased: zero on average for equal distributions, and the formula for one subset of all."""
    monkeypatch.setattr(scores, "KERNEL_SUBSETS", 10)
    x, y = _normal(300, 3), _normal(300, 3, 1) + 1
    mean, deviation = kernel_distance(x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 3 + 1) ** 3

    def without_itself(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (300 * 299)

    expected = without_itself(x) + without_itself(y) - 2 * kernel(x, y).mean()
    assert mean == pytest.approx(expected.item())
    assert deviation == pytest.approx(0, abs=1e-9)  # every subset is the whole
    many = [kernel_distance(_normal(200, 3, i), _normal(200, 3, 1000 + i))[0] for i in range(40)]
    values = torch.tensor(many)
    assert values.mean().abs() < 4 * values.std() / math.sqrt(40)
    assert values.min() < 0 < values.max()
    monkeypatch.setattr(scores, "KERNEL_SUBSET_SIZE", 50)
    before = torch.random.get_rng_state()
    assert kernel_distance(x, y) == kernel_distance(x, y)
    assert kernel_distance(x, y, seed=1) != kernel_distance(x, y)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_inception_score_of_known_probabilities() -> None:
    sure = 50 * torch.eye(5, dtype=torch.float64).repeat(8, 1)
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(torch.zeros(40, 5)) == pytest.approx(1)
    # Half of the samples are of class 0 with probability 0.9, the others with 0.3.
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert inception_score(p.log().repeat(30, 1) + 3) == pytest.approx(expected.item())


def test_precision_and_recall() -> None:
    """Four clusters of the data: the generator finds two of them, and makes up a third of its own."""
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]]).double()
    square = torch.cartesian_prod(*[torch.arange(5.0)] * 2).double()
    real = (centres[:, None] + square).flatten(0, 1)
    invented = torch.tensor([-80.0, 0.0]).double() + square
    generated = torch.cat([real[:50] + 0.3, invented])
    assert precision_and_recall(real, generated) == pytest.approx((2 / 3, 1 / 2))
    assert precision_and_recall(real, real) == (1, 1)
    # on a line of whole numbers the last one, 9, reaches as far as its k-th neighbour: 10, 11 or 12
    line = torch.arange(10.0, dtype=torch.float64)[:, None]
    beyond = torch.tensor([[9.5], [10.5], [11.5], [12.5], [13.5]], dtype=torch.float64)
    for k in (1, 2, 3):
        precision, _ = precision_and_recall(line, beyond, neighbours=k)
        assert precision == pytest.approx(k / 5)
    with pytest.raises(RecipeError, match="3 neighbours need more samples.*100 real and 3 gen"):
        precision_and_recall(real, generated[:3])


def test_wasserstein_distance_is_exact() -> None:
    x, y = _normal(60, 2), 2 * _normal(90, 2, 1) + 1
    shift = torch.tensor([3.0, 4.0]).double()
    for order in (1, 2):
        assert wasserstein_distance(x, x, order) == pytest.approx(0, abs=1e-7)
        assert wasserstein_distance(x, x[torch.randperm(60)] + shift, order) == pytest.approx(5)
    flat = torch.tensor([1.0, 0.0]).double()
    expected = of_line((x * flat)[:, 0], (y * flat)[:, 0])
    assert wasserstein_distance(x * flat, y * flat) == pytest.approx(expected)
    assert wasserstein_distance(x, y, 2) > wasserstein_distance(x, y, 1)


def test_score_holds_the_numbers() -> None:
    real = Features(_normal(30, 3), None)
    generated = Features(_normal(40, 3, 1), _normal(40, 7, 2))
    found = score(real, generated)
    assert (found.n_real, found.n_generated, found.num_features) == (30, 40, 3)
    assert found.inception == inception_score(generated.logits)
    assert found.frechet == frechet_distance(real.features, generated.features)
    assert (found.precision, found.recall) == precision_and_recall(
        real.features, generated.features
    )
    assert math.isnan(score(generated, real).inception)


def test_precision_and_recall_of_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """By chance: data may lie in the order of their classes."""
    monkeypatch.setattr(scores, "MANIFOLD_SAMPLES", 50)
    seen = []

    def watched(real: Tensor, generated: Tensor) -> tuple[float, float]:
        seen.append((real, generated))
        return 0.0, 0.0

    monkeypatch.setattr(scores, "precision_and_recall", watched)
    ordered = torch.linspace(0, 1, 200).double()[:, None].expand(-1, 3) + 0.01 * _normal(200, 3)
    score(Features(ordered, None), Features(ordered[:40], None))
    ((real, generated),) = seen
    assert len(real) == 50
    assert torch.equal(generated, ordered[:40])
    assert real.mean() == pytest.approx(0.5, abs=0.2)
