"""Batches and noise as functions of (seed, step), the same for any number of processes.

Nothing here has a state, so a resumed run needs none, and each process computes the whole batch's
indices and noise and takes its slice: two processes train the same model as one.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

__all__ = ["batch_indices", "batch_noise", "generator_for"]


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by ``key``, e.g. (seed, "noise", step): different keys give unrelated
    streams.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@functools.lru_cache(
    maxsize=2
)  # a batch touches two epochs at most, unless it is larger than the data
def _epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "epoch", epoch))


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> Tensor:
    """Indices ``(batch_size,)`` of step ``step``: positions of an endless row of epochs, each a
    permutation of 0 ... n-1.
    """
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    parts = []
    for epoch in range(int(position[0]) // n, int(position[-1]) // n + 1):
        inside = position[position // n == epoch] % n
        parts.append(_epoch_order(seed, epoch, n)[inside])
    return torch.cat(parts)


def batch_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform noise on [0, 1) for the dequantisation of the whole batch of step ``step``."""
    return torch.rand(shape, generator=generator_for(seed, "noise", step))
