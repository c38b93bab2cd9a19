"""Which half of its input a coupling layer sees, and which half it transforms."""

from __future__ import annotations

import torch
from torch import Tensor

PARTITIONS = ("channel", "checkerboard")


def check_partition(partition: str) -> None:
    if partition not in PARTITIONS:
        raise ValueError(f"partition: expected one of {', '.join(PARTITIONS)}, got {partition!r}")


def partition_sizes(
    channels: int, partition: str = "channel", swap: bool = False
) -> tuple[int, int]:
    """(channels that a coupling's conditioner sees, channels that the coupling transforms).

    "channel": the first half is seen and the second transformed, or the reverse with `swap`; of an
    odd number the first half is the larger one. "checkerboard": the conditioner sees and answers
    for every channel.

    Raises:
        ValueError: "channel" with fewer than two channels: one half would be empty.
    """
    check_partition(partition)
    if partition == "checkerboard":
        return channels, channels
    if channels < 2:
        raise ValueError(f"partition='channel' needs at least 2 channels, got {channels}")
    first = (channels + 1) // 2
    return (channels - first, first) if swap else (first, channels - first)


def checkerboard(x: Tensor, swap: bool = False) -> Tensor:
    """The mask, x.shape[2:] (vectors: x.shape[1:]), of the elements that a coupling transforms.

    True where the sum of the coordinates is odd; where it is even with `swap`.
    """
    sides = x.shape[2:] if x.ndim > 2 else x.shape[1:]
    coordinates = torch.zeros((), dtype=torch.int64, device=x.device)
    for side in sides:
        coordinates = coordinates.unsqueeze(-1) + torch.arange(side, device=x.device)
    return coordinates % 2 == (0 if swap else 1)
