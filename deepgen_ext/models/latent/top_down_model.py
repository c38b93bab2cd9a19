"""What models with several grids of latents share: the ladder between image and latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder_distributions import DecoderDistribution
from .grid_prior import Grid
from .latent_model import LatentModel
from .posteriors import log_normal
from .terms import LevelTerms
from .top_down_networks import Coarser, Finer, Level


class TopDownModel(LatentModel):
    """p(x, z) = p(x|z) product over levels of p(z_l | z_above), encoded in the order of sampling.

    From the image up, maps d_l of falling resolution; then from the top level down, as in sampling,
    q(z|x) = product of q(z_l | x, z_above), each from d_l and the map h_l of the levels above. Each
    p(z_l | z_above) is autoregressive over the cells of its grid: `GridPrior`. All latents of an
    image, one behind the other from the top level down, are its z (n, D).

    Sonderby et al., "Ladder Variational Autoencoders", 2016, arXiv:1602.02282; Kingma et al.,
    "Improved Variational Inference with Inverse Autoregressive Flow", 2016, arXiv:1606.04934.

    Args:
        image_shape: (C, H, W).
        distribution: of the pixels given the latents.
        grids: (channels, H, W) of each level, the top one first.
        channels: of all maps.
        prior_channels, prior_layers, prior_kernel_size: of the priors over the grids.
        free_bits: the KL of each channel of each level costs nothing in `loss` below so many bits,
            as a mean over the batch (Kingma et al. 2016).
        kl_warmup: steps over which the weight of the KL in `loss` rises from 0 to 1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        distribution: DecoderDistribution,
        grids: Sequence[Grid],
        *,
        channels: int,
        prior_channels: int,
        prior_layers: int,
        prior_kernel_size: int,
        free_bits: float,
        kl_warmup: int,
    ) -> None:
        for name, value in (
            ("channels", channels),
            ("prior_channels", prior_channels),
            ("prior_layers", prior_layers),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if not 0 <= free_bits < math.inf:
            raise ValueError(f"free_bits: expected 0 or more, got {free_bits}")
        if kl_warmup < 0:
            raise ValueError(f"kl_warmup: expected 0 or more steps, got {kl_warmup}")
        super().__init__(image_shape, distribution, sum(math.prod(grid) for grid in grids))
        self.grids = tuple(grids)
        self.free_bits = free_bits
        self.kl_warmup = kl_warmup
        size = self.image_shape[1:]
        sizes = [grid[1:] for grid in grids]
        up = [size, *reversed(sizes)]
        self.coarser = nn.ModuleList(
            Coarser(channels if index else self.image_shape[0], channels, fine, coarse)
            for index, (fine, coarse) in enumerate(pairwise(up))
        )
        self.top = nn.Parameter(torch.zeros(channels, *sizes[0]))  # h of the top level
        self.levels = nn.ModuleList(
            Level(
                grid,
                channels,
                is_top=index == 0,
                prior_channels=prior_channels,
                prior_layers=prior_layers,
                prior_kernel_size=prior_kernel_size,
            )
            for index, grid in enumerate(self.grids)
        )
        self.finer = nn.ModuleList(
            Finer(channels, coarse, fine) for coarse, fine in pairwise([*sizes, size])
        )
        self.output = nn.Conv2d(channels, distribution.parameters, 3, padding=1)

    def encode(self, target: Tensor) -> list[Tensor]:
        """The maps d of each level, the top one first."""
        d, maps = self.embed(target), []
        for coarser in self.coarser:
            d = coarser(d)
            maps.append(d)
        return maps[::-1]

    def log_weights(self, h: list[Tensor], target: Tensor, eps: Tensor) -> Tensor:
        n, k = eps.shape[:2]
        ratios = []

        def draw(index: int, level: Level, above: Tensor, noise: Tensor) -> Tensor:
            mean, log_scale = level.posterior_of(above, h[index].repeat_interleave(k, 0))
            z = mean + log_scale.exp() * noise
            log_q = _log_density(noise) - log_scale.flatten(1).sum(1)
            prior_mean, prior_log_scale = level.prior_of(z, above)
            prior_noise = (z - prior_mean) * torch.exp(-prior_log_scale)
            log_p = _log_density(prior_noise) - prior_log_scale.flatten(1).sum(1)
            ratios.append((log_p - log_q).view(n, k))
            return z

        parameters = self._down(eps.flatten(0, 1), draw).unflatten(0, (n, k))
        return self.distribution.log_prob(parameters, target) + sum(ratios)

    def evidence(self, h: list[Tensor], target: Tensor, eps: Tensor) -> LevelTerms:
        reconstruction, channels = self._evidence(h, target, eps)
        return LevelTerms(reconstruction, tuple(kl.sum(1) for kl in channels))

    def loss(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        kl_weight: float = 1.0,
    ) -> Tensor:
        """-(E_q[ln p(x|z)] - kl_weight * sum over levels and channels of max(free bits, KL)) in the
        model's unit, means over the batch: that of -`bound` where nothing is free and the weight 1.
        """
        target = self.target(levels, noise, generator)
        eps = self.draw_eps(target.shape[0], self.k, eps, generator)
        reconstruction, channels = self._evidence(self.encode(target), target, eps)
        free = self.free_bits * math.log(2)
        kl = sum(each.mean(0).clamp(min=free).sum() for each in channels)
        return self.in_units(reconstruction.mean() - kl_weight * kl)

    def kl_weight(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.kl_warmup))

    def mode(self, h: list[Tensor]) -> Tensor:
        chosen = []

        def choose(index: int, level: Level, above: Tensor, _: Tensor) -> Tensor:
            chosen.append(level.posterior_of(above, h[index])[0])
            return chosen[-1]

        self._down(h[0].new_zeros(h[0].shape[0], self.noise_features), choose)
        return torch.cat([z.flatten(1) for z in chosen], 1)

    def latents_of_noise(self, eps: Tensor) -> Tensor:
        return self.redrawn(eps, eps, 0)

    def redrawn(self, z: Tensor, eps: Tensor, keep: int) -> Tensor:
        """Latents (n, D) whose first `keep` levels are those of z (n, D), the others drawn from the
        prior given them by the normal noise eps (n, D).
        """
        kept, drawn = self._split(z), []

        def choose(index: int, level: Level, above: Tensor, noise: Tensor) -> Tensor:
            drawn.append(kept[index] if index < keep else level.draw(noise, above))
            return drawn[-1]

        self._down(eps, choose)
        return torch.cat([z.flatten(1) for z in drawn], 1)

    def decode(self, z: Tensor) -> Tensor:
        return self._down(z, lambda index, level, above, given: given)

    def parameters_of_noise(self, eps: Tensor) -> Tensor:
        return self._down(eps, lambda index, level, above, noise: level.draw(noise, above))

    def _evidence(
        self, h: list[Tensor], target: Tensor, eps: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """E_q[ln p(x|z)] (n,), and of each level the KL of each of its channels (n, channels).

        q is a diagonal Gaussian given the levels above, and p one given the cells before too: so
        the KL of a cell is in closed form, in expectation over the draws of the cells before it.
        """
        n, k = eps.shape[:2]
        channels = []

        def draw(index: int, level: Level, above: Tensor, noise: Tensor) -> Tensor:
            mean, log_scale = level.posterior_of(above, h[index].repeat_interleave(k, 0))
            z = mean + log_scale.exp() * noise
            prior_mean, prior_log_scale = level.prior_of(z, above)
            variance = (2 * log_scale).exp() + (mean - prior_mean).square()
            kl = 0.5 * variance * (-2 * prior_log_scale).exp() - 0.5 + prior_log_scale - log_scale
            channels.append(kl.flatten(2).sum(2).unflatten(0, (n, k)).mean(1))
            return z

        parameters = self._down(eps.flatten(0, 1), draw).unflatten(0, (n, k))
        return self.distribution.log_prob(parameters, target).mean(1), channels

    def _down(
        self, given: Tensor, choose: Callable[[int, Level, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The decoder's parameters (rows, P, H, W): from the top, the latents of each level are what
        `choose` makes of its index, itself, the map above and its part of `given` (rows, D).
        """
        h = self.top.expand(given.shape[0], *self.top.shape)
        parts = self._split(given)
        for index, (level, finer) in enumerate(zip(self.levels, self.finer, strict=True)):
            h = finer(level(h, choose(index, level, h, parts[index])))
        return self.output(F.elu(h))

    def _split(self, z: Tensor) -> list[Tensor]:
        sizes = [math.prod(grid) for grid in self.grids]
        parts = z.split(sizes, 1)
        return [part.unflatten(1, grid) for part, grid in zip(parts, self.grids, strict=True)]


def _log_density(noise: Tensor) -> Tensor:
    return log_normal(noise.flatten(1).unsqueeze(1)).squeeze(1)
