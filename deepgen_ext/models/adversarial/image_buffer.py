"""A buffer of past samples: the critic of a CycleGAN must not forget what it has refuted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ImageBuffer(nn.Module):
    """Keeps `size` images. It fills up first; then each new image is, with probability 1/2, given
    back as it is, or kept in exchange for an old one. Shrivastava et al. 2017, arXiv:1612.07828.

    Its contents are in the state_dict: a resumed run finds them.
    """

    def __init__(self, shape: Sequence[int], size: int) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"size: expected 0 or more, got {size}")
        self.size, self.count = size, 0
        self.register_buffer("images", torch.zeros(size, *shape))

    @torch.no_grad()
    def exchange(self, images: Tensor, order: Tensor, swap: Tensor) -> Tensor:
        """As many images as are given, (n, ...), some of them older.

        Args:
            order: numbers (size,) whose ranks choose the places.
            swap: (n,) in [0, 1]: below 1/2 an old one comes.
        """
        n = images.shape[0]
        if self.size == 0:
            return images
        if n > self.size:
            raise ValueError(f"images: at most size={self.size} at a time, got {n}")
        images = images.detach().to(self.images.dtype)
        if self.count < self.size:
            k = min(n, self.size - self.count)
            self.images[self.count : self.count + k] = images[:k]
            self.count += k
            return images
        places = order.argsort()[:n]
        old, swaps = self.images[places], (swap < 0.5).view(-1, *[1] * (images.ndim - 1))
        self.images[places] = torch.where(swaps, images, old)
        return torch.where(swaps, old, images)

    def get_extra_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
