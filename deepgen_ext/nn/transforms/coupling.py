"""Coupling layers: one half of the input decides how the other half is shifted and scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops
from .partition import check_partition, checkerboard, partition_sizes
from .transform import Transform


class _Coupling(Transform):
    """What both coupling layers share: partition, conditioner, both directions and the rebuild."""

    outputs_per_channel: int  # of the conditioner, for each channel transformed

    def __init__(self, conditioner: nn.Module, partition: str, swap: bool) -> None:
        super().__init__()
        check_partition(partition)
        self.conditioner = conditioner
        self.partition = partition
        self.swap = swap

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, context, inverse=True)

    def rebuild(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # The visible half of x is that of y, so one run of the conditioner serves the inverse and
        # the new graph.
        x = y.detach().clone().requires_grad_()
        visible, moved, mask = self._halves(x)
        h = self._condition(visible, moved, context)
        with torch.no_grad():
            moved_of_x, _ = self._affine(moved, *self._split(h), inverse=True, mask=mask)
            # The conditioner's graph holds the other half of x, which this leaves alone; written
            # through `moved`, it would count as a change of both.
            moved.data.copy_(moved_of_x)
        return x, *self._map(visible, moved, h, inverse=False, mask=mask)

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        visible, moved, mask = self._halves(x)
        h = self._condition(visible, moved, context)
        return self._map(visible, moved, h, inverse=inverse, mask=mask)

    def _map(
        self, visible: Tensor, moved: Tensor, h: Tensor, *, inverse: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both halves of the result together, and the log-det."""
        moved, log_det = self._affine(moved, *self._split(h), inverse=inverse, mask=mask)
        return self._join(visible, moved), log_det

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the conditioner sees, what is transformed, and the mask of it ("checkerboard")."""
        if x.ndim < 2:
            raise ValueError(f"x: expected (batch, channels, ...), got {tuple(x.shape)}")
        if self.partition == "checkerboard":
            mask = checkerboard(x, self.swap)
            return x.masked_fill(mask, 0.0), x, mask
        seen, transformed = partition_sizes(x.shape[1], swap=self.swap)
        if self.swap:
            moved, visible = x.split((transformed, seen), dim=1)
        else:
            visible, moved = x.split((seen, transformed), dim=1)
        return visible, moved, None

    def _join(self, visible: Tensor, moved: Tensor) -> Tensor:
        if self.partition == "checkerboard":
            return moved
        return torch.cat((moved, visible) if self.swap else (visible, moved), dim=1)

    def _condition(self, visible: Tensor, moved: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of the half that moves, as the conditioner returns them."""
        h = self.conditioner(visible) if context is None else self.conditioner(visible, context)
        expected = (moved.shape[0], self.outputs_per_channel * moved.shape[1], *moved.shape[2:])
        if h.shape != expected:
            raise ValueError(
                f"conditioner: expected output of shape {expected} for an input of shape "
                f"{tuple(visible.shape)}, got {tuple(h.shape)}"
            )
        if h.dtype != moved.dtype:  # autocast runs the conditioner, not the flow, in half precision
            h = h.to(moved.dtype)
        return h

    def _split(self, h: Tensor) -> tuple[Tensor | None, ...]:
        """The conditioner's output in parts: (raw_scale, shift)."""
        if self.outputs_per_channel == 1:
            return None, h
        raw_scale, shift = h.chunk(2, dim=1)
        return raw_scale, shift

    def _affine(
        self,
        x: Tensor,
        raw_scale: Tensor | None,
        shift: Tensor,
        *,
        inverse: bool,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"partition={self.partition!r}, swap={self.swap}"


class AffineCoupling(_Coupling):
    """y_moved = x_moved * s(x_visible) + t(x_visible), y_visible = x_visible; log_det = sum log s.

    Dinh et al., "Density estimation using Real NVP", 2017. x is (batch, C, ...), images or vectors
    (batch, D).

    Args:
        conditioner: any module; called as conditioner(visible), or conditioner(visible, context)
            where a context is given. Returns raw scale and shift, concatenated along dim 1: twice
            the channels that move. With "checkerboard" it sees the whole input, zeros where x
            moves, and answers for every element. `partition_sizes` tells both channel counts.
        partition: "channel", the first half is visible and the second moves; "checkerboard", every
            second element moves. For vectors: halves, or alternate elements.
        swap: exchange the roles of the two halves.
        scale_map: how log s is made of the raw scale: "exp", "tanh", "sigmoid" or "atan", as in
            `deepgen_ext.ops.affine_coupling`. All but "exp" bound it: an unbounded scale overflows
            sooner or later.
        clamp: the bound of "atan": |log s| < clamp.

    Raises:
        ValueError: on use, when the conditioner's output has the wrong shape.
    """

    outputs_per_channel = 2

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        partition: str = "channel",
        swap: bool = False,
        scale_map: str = "tanh",
        clamp: float = 2.0,
    ) -> None:
        super().__init__(conditioner, partition, swap)
        if scale_map not in ("exp", "tanh", "sigmoid", "atan"):
            raise ValueError(
                f"scale_map: expected one of exp, tanh, sigmoid, atan, got {scale_map!r}"
            )
        if not clamp > 0:
            raise ValueError(f"clamp: expected a positive number, got {clamp}")
        self.scale_map = scale_map
        self.clamp = clamp

    def _map(
        self, visible: Tensor, moved: Tensor, h: Tensor, *, inverse: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if mask is not None:
            return super()._map(visible, moved, h, inverse=inverse, mask=mask)
        return ops.half_coupling(
            visible,
            moved,
            h,
            moved_first=self.swap,
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
        )

    def _affine(
        self,
        x: Tensor,
        raw_scale: Tensor | None,
        shift: Tensor,
        *,
        inverse: bool,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return ops.affine_coupling(
            x,
            raw_scale,
            shift,
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale_map={self.scale_map!r}, clamp={self.clamp}"


class AdditiveCoupling(_Coupling):
    """y_moved = x_moved + t(x_visible), y_visible = x_visible; volume is kept, log_det = 0.

    Dinh et al., "NICE: Non-linear Independent Components Estimation", 2015. As `AffineCoupling`,
    but for the conditioner, which returns the shift alone: as many channels as move.
    """

    outputs_per_channel = 1

    def __init__(
        self, conditioner: nn.Module, *, partition: str = "channel", swap: bool = False
    ) -> None:
        super().__init__(conditioner, partition, swap)

    def _affine(
        self,
        x: Tensor,
        raw_scale: Tensor | None,
        shift: Tensor,
        *,
        inverse: bool,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return ops.affine_coupling(x, raw_scale, shift, inverse=inverse, mask=mask)
