"""A snapshot of the random generators that a layer may draw from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RandomState(NamedTuple):
    """State of the default generators of the CPU and one CUDA device; reading it does not block."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    def equals(self, other: RandomState) -> bool:
        """Whether no number was drawn between the two snapshots."""
        if not torch.equal(self.cpu, other.cpu):
            return False
        return self.cuda is None or torch.equal(self.cuda, other.cuda)
