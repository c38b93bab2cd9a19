"""Scores of held-out data, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext.objectives import dequantize
from deepgen_ext.recipes.metrics import evaluate, reconstruct


class _Shifted(nn.Module):
    """x = z + shift with z standard normal: everything about it is known."""

    def __init__(self, n_levels: int = 4) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.25))
        self.n_levels = n_levels
        self.modes: list[bool] = []

    def log_prob(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        z = (x - self.shift).flatten(1)
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)

    def bits_per_dim(self, levels: Tensor, *, noise: Tensor) -> Tensor:
        x = dequantize(levels, self.n_levels, noise=noise)
        nats = -self.log_prob(x) + x[0].numel() * math.log(self.n_levels)
        return nats / (x[0].numel() * math.log(2))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        return [x - self.shift], x.new_zeros(len(x))

    def inverse(self, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
        return latents[0] + self.shift + 1e-3, latents[0].new_zeros(len(latents[0]))


def test_mean_and_standard_error_of_vectors() -> None:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    model = _Shifted()
    result = evaluate(model, x, n_levels=None, batch_size=300)
    nats = -model.log_prob(x).detach().double()
    assert (result.n, result.unit) == (1000, "nats")
    assert result.mean == pytest.approx(nats.mean().item(), rel=1e-6)
    assert result.standard_error == pytest.approx(nats.std().item() / math.sqrt(1000), rel=1e-5)
    assert "none" in result.dequantisation


def test_bits_per_dim_of_levels_depend_on_the_seed_only_through_the_noise() -> None:
    levels = torch.randint(0, 4, (500, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    model = _Shifted()
    first, again, other = (evaluate(model, levels, n_levels=4, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.mean != other.mean
    assert abs(first.mean - other.mean) < 3 * first.standard_error
    # by hand: E[-log N((l + u)/4 - 0.25)] over u by the midpoint rule
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    z = (levels.flatten()[:, None] + u) / 4 - 0.25
    nats = 0.5 * z.square().mean() + 0.5 * math.log(2 * math.pi) + math.log(4)
    assert first.mean == pytest.approx(nats.item() / math.log(2), abs=4 * first.standard_error)
    assert "uniform" in first.dequantisation
    assert "/ 4" in first.dequantisation


def test_every_sample_counts_once_whatever_the_batch() -> None:
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    results = [
        evaluate(_Shifted(), x, n_levels=None, batch_size=size).mean for size in (1, 3, 10, 100)
    ]
    assert results == pytest.approx([results[0]] * 4, rel=1e-6)


def test_the_models_mode_is_left_as_it_was() -> None:
    model = _Shifted().train()
    evaluate(model, torch.zeros(2, 2), n_levels=None)
    assert model.training
    assert model.modes == [False]


def test_reconstruction_is_of_inverse_after_forward() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    before, after = reconstruct(_Shifted(), x, n_levels=None)
    assert torch.equal(before, x)
    assert torch.allclose(after - before, torch.full((5, 2), 1e-3), atol=1e-6)
    levels = torch.tensor([[[[0, 3]]]])
    before, _ = reconstruct(_Shifted(), levels, n_levels=4)
    assert torch.equal((before * 4).floor().long(), levels)
