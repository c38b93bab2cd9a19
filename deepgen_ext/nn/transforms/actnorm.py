"""Activation normalisation, and what a layer initialised from its first batch needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import ops
from .transform import Transform


class DataInitialized(Transform):
    """A transform over (batch, channels, ...) whose first parameters come from the first batch.

    A subclass calls `prepare(x)` first thing in its forward and implements `normalize_output`. The
    buffer `initialized` records that it has happened: neither a second batch nor a loaded
    checkpoint is initialised again. An empty batch initialises nothing. In evaluation mode, and in
    the inverse, the parameters are used as they are.

    With several processes, initialise before DistributedDataParallel wraps the model: it then sends
    one copy to all.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        self.channels = channels
        self.register_buffer("initialized", torch.tensor(False))
        # What the buffer says, readable without waiting for the device.
        self._is_initialized = False

    @property
    def needs_initialization(self) -> bool:
        """Whether the next forward would initialise."""
        return self.training and not self._is_initialized

    def normalize_output(self, log_scale: Tensor, shift: Tensor) -> None:
        """Set the parameters, given x * exp(log_scale) + shift of zero mean and unit variance."""
        raise NotImplementedError

    def prepare(self, x: Tensor) -> None:
        """Check x, and initialise from it where that is still to be done."""
        check_channels(x, self.channels)
        if not self.needs_initialization:
            return
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{type(self).__name__} is not initialised: run one training batch through it "
                "before torch.compile"
            )
        if x.numel():
            with torch.no_grad():
                self.normalize_output(*_normalizing_affine(x))
                self.initialized.fill_(True)
            self._is_initialized = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_initialized = not self.initialized.is_meta and bool(self.initialized)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class ActNorm(DataInitialized):
    """y = x * exp(log_scale) + shift, per channel; log_det = (its positions) * sum log_scale.

    Kingma & Dhariwal, "Glow", 2018. x is (batch, C, ...). The first forward in training mode sets
    log_scale and shift so that its own output has zero mean and unit variance per channel (a
    constant channel keeps its scale); see `DataInitialized`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.prepare(x)
        return ops.channel_affine(x, self.log_scale, self.shift)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(y, self.channels)
        return ops.channel_affine(y, self.log_scale, self.shift, inverse=True)

    def normalize_output(self, log_scale: Tensor, shift: Tensor) -> None:
        self.log_scale.copy_(log_scale)
        self.shift.copy_(shift)


def check_channels(x: Tensor, channels: int) -> None:
    """Raise a ValueError unless x is (batch, channels, ...)."""
    if x.ndim < 2 or x.shape[1] != channels:
        raise ValueError(f"x: expected (batch, {channels}, ...), got {tuple(x.shape)}")


def _normalizing_affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """(log_scale, shift), each (channels,), that give x zero mean and unit variance."""
    values = x.detach().transpose(0, 1).flatten(1)
    values = values if values.dtype == torch.float64 else values.float()
    std, mean = torch.std_mean(values, dim=1, correction=0)
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise ValueError("x: the batch that initialises ActNorm has values that are not finite")
    constant = std <= 1e-6 * (1 + mean.abs())
    scale = torch.where(constant, 1.0, std.reciprocal())
    return scale.log(), -mean * scale
