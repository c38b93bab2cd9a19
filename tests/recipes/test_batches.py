"""Batches and noise are functions of (seed, step): nothing is kept, nothing is seen twice in an
epoch.
"""

from __future__ import annotations

import torch

from deepgen_ext.recipes.batches import batch_indices, batch_noise


def test_every_sample_once_an_epoch_across_batch_borders() -> None:
    n, batch_size = 10, 4  # 5 steps are two epochs, and the third batch straddles them
    seen = torch.cat([batch_indices(0, step, batch_size, n) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_batch_larger_than_the_data() -> None:
    seen = batch_indices(0, 1, 25, 10)
    assert len(seen) == 25
    assert seen.bincount(minlength=10).min() >= 2  # positions 25 ... 49 hold two whole epochs


def test_step_and_seed_decide_alone() -> None:
    assert torch.equal(batch_indices(3, 7, 16, 100), batch_indices(3, 7, 16, 100))
    assert not torch.equal(batch_indices(3, 7, 16, 100), batch_indices(4, 7, 16, 100))
    assert torch.equal(batch_noise(3, 7, (4, 2)), batch_noise(3, 7, (4, 2)))
    assert not torch.equal(batch_noise(3, 7, (4, 2)), batch_noise(3, 8, (4, 2)))
    assert not torch.equal(batch_noise(3, 7, (4, 2)), batch_noise(4, 7, (4, 2)))


def test_noise_is_uniform_on_the_unit_interval() -> None:
    noise = batch_noise(0, 0, (20_000,))
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.01
    assert abs(noise.var() - 1 / 12) < 0.003


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    batch_indices(5, 5, 8, 50)
    batch_noise(5, 5, (8,))
    assert torch.equal(before, torch.get_rng_state())
