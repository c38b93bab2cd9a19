"""Flows of one scale, with a context: what MAF, IAF and neural spline flows share."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import objectives
from ...nn.context import check_context
from ...nn.transforms import Sequential, Transform
from ...nn.transforms.actnorm import DataInitialized
from .flow import Flow


class ConditionalFlow(Flow):
    """A `Flow` of vectors (D,), or of images that it flattens, under p(x | context).

    Args:
        shape: D, (D,), or the shape of an image (C, H, W), flattened in this order.
        transforms: of (n, D), from x to z.
        context_features: length of the context vectors (n, context_features); 0: none is taken.
        n_levels: number of integer levels of the data (images).
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        transforms: Sequence[Transform],
        *,
        context_features: int,
        n_levels: int,
    ) -> None:
        shape = shape_of(shape)
        super().__init__(
            shape,
            [(Sequential(*transforms), None)],
            [(math.prod(shape),)],
            n_levels=n_levels,
            center=0.5 if len(shape) == 3 else 0.0,
        )
        self.context_features = context_features
        if len(shape) == 3:
            self.image_shape = self.shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Real x (n, *shape) -> ([z (n, D)], log_det (n,))."""
        self._check_real(x)
        self._check_context(context, x.shape[0])
        z, log_det = self.transforms[0]((x - self.center).flatten(1), context)
        return [z], log_det

    def inverse(
        self, latents: Sequence[Tensor], context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[z] -> (x, log_det (n,) of this direction)."""
        self._check_latents(latents)
        self._check_context(context, latents[0].shape[0])
        x, log_det = self.transforms[0].inverse(latents[0], context)
        return x.view(-1, *self.shape) + self.center, log_det

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """ln p(x | context) in nats, (n,), of real x (n, *shape)."""
        (z,), log_det = self(x, context)
        return objectives.standard_normal_log_prob(z) + log_det

    def bits_per_dim(
        self,
        levels: Tensor,
        context: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `Flow.bits_per_dim`, given a context."""
        x = self._dequantize(levels, noise, generator)
        return objectives.bits_per_dim(self.log_prob(x, context), self.dims, self.n_levels)

    def loss(
        self,
        batch: Tensor,
        context: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean bits per dimension of integer levels, or mean -ln p(x | context) in nats of real x."""
        if batch.is_floating_point():
            return -self.log_prob(batch, context).mean()
        return self.bits_per_dim(batch, context, noise=noise, generator=generator).mean()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n samples x = f(temperature * z; context), z ~ N(0, I): real, (n, *shape).

        `context` has one row for each sample, or a single one for all.
        """
        z = self._draw(n, temperature, generator)
        return self.inverse([z], self._context_rows(context, n))[0]

    def sample_and_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples as of `sample`, and their ln p(x | context) under the model (temperature 1).

        Differentiable in the parameters through the samples (the reparametrisation that fits a flow
        to an energy); call it under torch.no_grad() where no gradient is wanted.
        """
        z = self._draw(n, temperature, generator)
        x, log_det = self.inverse([z], self._context_rows(context, n))
        return x, objectives.standard_normal_log_prob(z) - log_det

    @torch.no_grad()
    def initialize(
        self, batch: Tensor, context: Tensor | None = None, *, noise: Tensor | None = None
    ) -> None:
        """As `Flow.initialize`; where no context is given, under a context of zeros."""
        if not batch.is_floating_point():
            batch = self._dequantize(batch, noise, None)
        if context is None and self.context_features:
            context = batch.new_zeros(batch.shape[0], self.context_features)
        modes = [(module, module.training) for module in self.modules()]
        # Only the layers that initialise themselves: batch normalisation keeps its averages.
        for module in self.modules():
            if isinstance(module, DataInitialized):
                module.training = True
        try:
            self(batch, context)
        finally:
            for module, mode in modes:
                module.training = mode

    def _draw(self, n: int, temperature: float, generator: torch.Generator | None) -> Tensor:
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if not temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        like = next(self.parameters())
        z = torch.randn((n, self.dims), generator=generator, device=like.device, dtype=like.dtype)
        return temperature * z

    def _context_rows(self, context: Tensor | None, n: int) -> Tensor | None:
        if context is not None and context.dim() == 2 and context.shape[0] == 1:
            return context.expand(n, -1)
        return context

    def _check_context(self, context: Tensor | None, n: int) -> None:
        check_context(context, self.context_features)
        if context is not None and context.shape != (n, self.context_features):
            raise ValueError(
                f"context: expected ({n}, {self.context_features}), got {tuple(context.shape)}"
            )


def shape_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Of one sample: (D,) or (C, H, W)."""
    sizes = (shape,) if isinstance(shape, int) else tuple(operator.index(size) for size in shape)
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise ValueError(f"features: expected D >= 1, (D,) or (C, H, W), got {shape}")
    return sizes
