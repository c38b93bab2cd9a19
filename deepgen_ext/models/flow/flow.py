"""What every multi-scale normalising flow shares: likelihood, sampling, dequantisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import objectives
from ...nn.transforms import Split, Transform


class Flow(nn.Module):
    """x = f(z), z standard normal: ln p(x) = ln N(f^-1(x); 0, I) + ln |det df^-1/dx|, exact.

    The map from x to z is a list of scales. Each one transforms what the scale before it has kept;
    a `Split` at its end lets part of that leave as a latent. Every latent is standard normal under
    the model, conditional priors being part of the map, and `inverse` rebuilds x from the latents
    alone: nothing is drawn again.

    Images are real in [0, 1), their integer levels dequantised (`objectives.dequantize`).

    Args:
        shape: of one sample, (C, H, W) or (D,).
        scales: (transform, split) pairs, from x to z; the last split must be None.
        latent_shapes: of one sample's latents, in the order of `scales`.
        n_levels: number of integer levels of the data.
        center: subtracted from x before the first transform.
    """

    def __init__(
        self,
        shape: Sequence[int],
        scales: Sequence[tuple[Transform, Split | None]],
        latent_shapes: Sequence[tuple[int, ...]],
        *,
        n_levels: int,
        center: float,
    ) -> None:
        super().__init__()
        if n_levels < 2:
            raise ValueError(f"n_levels: expected at least 2, got {n_levels}")
        self.shape = tuple(shape)
        self.dims = math.prod(self.shape)
        self.latent_shapes = tuple(tuple(shape) for shape in latent_shapes)
        self.n_levels = n_levels
        self.center = center
        self.transforms = nn.ModuleList(transform for transform, _ in scales)
        self.splits = nn.ModuleList(split for _, split in scales if split is not None)
        if len(self.splits) != len(self.transforms) - 1 or scales[-1][1] is not None:
            raise ValueError("scales: every one but the last must end in a Split")

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Real x (n, *shape) -> (latents, log_det (n,)); latent i is (n, *latent_shapes[i])."""
        self._check_real(x)
        h, latents, log_dets = x - self.center, [], []
        for index, transform in enumerate(self.transforms):
            h, log_det = transform(h)
            log_dets.append(log_det)
            if index < len(self.splits):
                (h, z), log_det = self.splits[index](h)
                latents.append(z)
                log_dets.append(log_det)
        latents.append(h)
        return latents, torch.stack(log_dets).sum(0)

    def inverse(self, latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents -> (x, log_det (n,) of this direction)."""
        self._check_latents(latents)
        h, log_dets = latents[-1], []
        for index in reversed(range(len(self.transforms))):
            if index < len(self.splits):
                h, log_det = self.splits[index].inverse((h, latents[index]))
                log_dets.append(log_det)
            h, log_det = self.transforms[index].inverse(h)
            log_dets.append(log_det)
        return h + self.center, torch.stack(log_dets).sum(0)

    def log_prob(self, x: Tensor) -> Tensor:
        """ln p(x) in nats, (n,), of real x (n, *shape): a density with respect to x as given."""
        latents, log_det = self(x)
        base = [objectives.standard_normal_log_prob(z) for z in latents]
        return torch.stack([log_det, *base]).sum(0)

    def bits_per_dim(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bits per dimension, (n,), of integer levels (n, *shape): in expectation an upper bound.

        One draw of x = (levels + noise) / n_levels is scored, and the log of the scaling counted.
        """
        x = self._dequantize(levels, noise, generator)
        return objectives.bits_per_dim(self.log_prob(x), self.dims, self.n_levels)

    def loss(
        self,
        batch: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean bits per dimension of integer levels, or mean -ln p(x) in nats of real x."""
        if batch.is_floating_point():
            return -self.log_prob(batch).mean()
        return self.bits_per_dim(batch, noise=noise, generator=generator).mean()

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """n samples x = f(temperature * z), z ~ N(0, I): real, (n, *shape).

        A temperature T draws from p_T(x) ~ p(x)^(1 / T^2) exactly where log |det df/dz| is
        constant, that is for additive couplings and fixed linear layers. For affine couplings it is
        a heuristic.
        """
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if not temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        like = next(self.parameters())
        latents = [
            torch.randn((n, *shape), generator=generator, device=like.device, dtype=like.dtype)
            * temperature
            for shape in self.latent_shapes
        ]
        return self.inverse(latents)[0]

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """One pass in training mode: each `ActNorm` not yet initialised is initialised by it.

        Needed before torch.compile and before DistributedDataParallel; otherwise the first training
        step does it.
        """
        if not batch.is_floating_point():
            batch = self._dequantize(batch, noise, None)
        modes = [(module, module.training) for module in self.modules()]
        self.train()
        try:
            self(batch)
        finally:
            for module, mode in modes:
                module.training = mode

    def _dequantize(
        self, levels: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        x = objectives.dequantize(levels, self.n_levels, noise=noise, generator=generator)
        return x.to(next(self.parameters()).dtype)

    def _check_real(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"x: expected real values, got {x.dtype}; bits_per_dim and loss take integer levels"
            )
        if x.shape[1:] != self.shape:
            raise ValueError(f"x: expected (n, {_join(self.shape)}), got {tuple(x.shape)}")

    def _check_latents(self, latents: Sequence[Tensor]) -> None:
        if len(latents) != len(self.latent_shapes):
            raise ValueError(f"latents: expected {len(self.latent_shapes)}, got {len(latents)}")
        for index, (z, shape) in enumerate(zip(latents, self.latent_shapes, strict=True)):
            if z.shape[1:] != shape or z.shape[0] != latents[0].shape[0]:
                raise ValueError(
                    f"latents[{index}]: expected ({latents[0].shape[0]}, {_join(shape)}), "
                    f"got {tuple(z.shape)}"
                )


def check_image_shape(shape: Sequence[int], squeezes: int, levels: int) -> None:
    """Raise a ValueError unless `shape` is (C, H, W) whose sides can be halved `squeezes` times."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape: expected (C, H, W), got {tuple(shape)}")
    divisor = 2**squeezes
    if shape[1] % divisor or shape[2] % divisor:
        raise ValueError(
            f"image_shape: levels={levels} halves H and W {squeezes} times and needs "
            f"multiples of {divisor}, got {tuple(shape)}"
        )


def _join(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
