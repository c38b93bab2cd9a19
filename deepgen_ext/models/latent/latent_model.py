"""What every latent-variable model of images shares: data, draws, the books of its bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import objectives
from .decoder_distributions import DecoderDistribution
from .importance import RunningLogMeanExp
from .terms import LevelTerms, Terms


class LatentModel(nn.Module):
    """p(x) = int p(z) p(x|z) dz, approached from below by draws of q(z|x).

    A model says how an image is encoded, how latents are drawn and weighted, and how they are
    decoded; what follows from these is here. k draws for each of n images take (n, k,
    noise_features) standard normal numbers, `eps`.

    Args:
        image_shape: (C, H, W).
        distribution: of the pixels given the latents.
        noise_features: standard normal numbers that one draw of all latents takes.
    """

    k = 1  # draws of the latents for each image in training

    def __init__(
        self, image_shape: Sequence[int], distribution: DecoderDistribution, noise_features: int
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.dims = math.prod(self.image_shape)
        self.distribution = distribution
        self.n_levels = distribution.n_levels
        self.noise_features = noise_features

    def encode(self, target: Tensor) -> Any:
        """What the posterior needs to know of `target` (n, C, H, W), one row an image."""
        raise NotImplementedError

    def log_weights(self, h: Any, target: Tensor, eps: Tensor) -> Tensor:
        """ln p(x, z) - ln q(z|x) of each draw, (n, k), given h of `encode`."""
        raise NotImplementedError

    def evidence(self, h: Any, target: Tensor, eps: Tensor) -> Terms | LevelTerms:
        """The parts of the ELBO, means over the k draws, given h of `encode`."""
        raise NotImplementedError

    def mode(self, h: Any) -> Tensor:
        """The latents, (n, D), where the posterior's noise is zero, given h of `encode`."""
        raise NotImplementedError

    def latents_of_noise(self, eps: Tensor) -> Tensor:
        """Draws of the prior, (n, D), of standard normal numbers (n, noise_features)."""
        return eps

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's parameters, (n, P, H, W), of latents (n, D)."""
        raise NotImplementedError

    def parameters_of_noise(self, eps: Tensor) -> Tensor:
        """The decoder's parameters, (n, P, H, W), of latents drawn from the prior."""
        return self.decode(self.latents_of_noise(eps))

    def kl_weight(self, step: int) -> float:
        """Of the KL in the loss of a training step: below 1 in a model that warms up."""
        return 1.0

    @property
    def unit(self) -> str:
        """Of `loss`: "nats" an image, or "bits/dim"."""
        return self.distribution.unit

    def in_units(self, nats: Tensor) -> Tensor:
        """-nats an image, or bits per dimension, as `unit` says: smaller is better."""
        return -nats if self.unit == "nats" else self._bits(nats)

    def terms(
        self,
        levels: Tensor,
        k: int = 1,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms | LevelTerms:
        """The parts of the ELBO, (n,) each; arguments as of `elbo`."""
        target = self.target(levels, noise, generator)
        eps = self.draw_eps(target.shape[0], k, eps, generator)
        return self.evidence(self.encode(target), target, eps)

    def elbo(
        self,
        levels: Tensor,
        k: int = 1,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The evidence lower bound in nats, (n,): the mean over k draws, the same for every k in
        expectation (what rises with k is `IWAE.bound`).

        Args:
            levels: (n, C, H, W), integers in [0, n_levels).
            k: draws of the latents for each image.
            noise: uniform, of the shape of levels: of the binarisation or the dequantisation.
            eps: standard normal, (n, k, noise_features): of the draws of z.
            generator: of noise and eps where they are None, on the model's device.

        Raises:
            TypeError, ValueError: levels outside of the decoder's domain or of another shape, k < 1,
                noise or eps of another shape.
        """
        return self.terms(levels, k, noise=noise, eps=eps, generator=generator).elbo

    def bound(
        self,
        levels: Tensor,
        k: int | None = None,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An estimate in nats, (n,), whose expectation is at most ln p(levels): here `elbo`, with the
        model's own k when None.
        """
        k = self.k if k is None else k
        return self.elbo(levels, k, noise=noise, eps=eps, generator=generator)

    def loss(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of -`bound` in the model's unit."""
        return self.in_units(self.bound(levels, noise=noise, eps=eps, generator=generator)).mean()

    def bits_per_dim(
        self,
        levels: Tensor,
        k: int | None = None,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`bound` in bits per dimension, (n,): in expectation an upper bound of -log2 p / dims.

        Of levels; under a Bernoulli decoder of the bits, and not to be compared with the levels'.
        """
        return self._bits(self.bound(levels, k, noise=noise, eps=eps, generator=generator))

    @torch.no_grad()
    def log_likelihood(
        self,
        levels: Tensor,
        k: int = 5000,
        *,
        chunk: int = 1000,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """ln 1/k sum_i p(x, z_i) / q(z_i|x), (n,) in nats and float64: in expectation a lower bound
        of ln p(levels) that tends to it as k grows (Burda et al. 2016).

        At most `chunk` latents, of all images together, are decoded at a time, and nothing is kept
        of them but their weights' running sum: memory depends on neither n nor k. `noise` is of the
        binarisation or dequantisation, one draw for each image.

        Raises:
            ValueError: k < 1, chunk < 1, and what `elbo` refuses.
        """
        _check_positive("k", k)
        _check_positive("chunk", chunk)
        target = self.target(levels, noise, generator)
        images = max(1, chunk // k)  # whole images at a time where they fit, else parts of one
        parts = [target.new_zeros(0, dtype=torch.float64)]
        for first in range(0, target.shape[0], images):
            some = target[first : first + images]
            h, running = self.encode(some), RunningLogMeanExp(some.shape[0], some.device)
            for start in range(0, k, chunk):
                eps = self.draw_eps(some.shape[0], min(chunk, k - start), None, generator)
                running.add(self.log_weights(h, some, eps))
            parts.append(running.value)
        return torch.cat(parts)

    @torch.no_grad()
    def infer(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The latents (n, D) where the posterior's noise is zero: its mean, of a Gaussian."""
        return self.mode(self.encode(self.target(levels, noise, generator)))

    @torch.no_grad()
    def reconstruct(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What is `shown` of the latents of `infer`, (n, C, H, W)."""
        z = self.infer(levels, noise=noise, generator=generator)
        return self.shown(self.decode(z), generator)

    def shown(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The expected image, real in [0, 1], of the decoder's parameters; a draw of it where the
        decoder is autoregressive and has no expectation in closed form.
        """
        if self.distribution.has_mean:
            return self.distribution.mean(parameters)
        drawn = self.distribution.draw(parameters, generator)
        return drawn.to(parameters.dtype) / (self.n_levels - 1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        mean: bool = False,
    ) -> Tensor:
        """n images of latents drawn from the prior, whose deviation `temperature` scales.

        int64 levels (n, C, H, W), real x of a Gaussian decoder; bits of a Bernoulli decoder are the
        first and the last level. With mean=True pixels are not drawn: their expectation, real in
        [0, 1], is what papers show.

        Raises:
            ValueError: n < 0, temperature < 0, mean=True of an autoregressive decoder.
        """
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if not temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        if mean and not self.distribution.has_mean:
            raise ValueError("mean: an autoregressive decoder draws pixels, it has no mean of them")
        like = next(self.parameters())
        eps = torch.randn(
            (n, self.noise_features), generator=generator, device=like.device, dtype=like.dtype
        )
        parameters = self.parameters_of_noise(eps * temperature)
        if mean:
            return self.distribution.mean(parameters)
        return self.distribution.draw(parameters, generator)

    def target(
        self,
        levels: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What is scored of levels (n, C, H, W): see the decoder's distribution.

        Raises:
            TypeError, ValueError: a shape that is not the model's, levels outside of the decoder's
                domain.
        """
        if levels.ndim != 4 or tuple(levels.shape[1:]) != self.image_shape:
            raise ValueError(
                f"levels: expected (n, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(levels.shape)}"
            )
        return self.distribution.target(levels, noise, generator)

    def embed(self, target: Tensor) -> Tensor:
        """What the encoder sees of `target`, about in [-1, 1], in the parameters' dtype."""
        return self.distribution.embed(target, next(self.parameters()).dtype)

    def draw_eps(
        self, n: int, k: int, eps: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The given eps, checked, or standard normal numbers, (n, k, noise_features)."""
        _check_positive("k", k)
        like = next(self.parameters())
        shape = (n, k, self.noise_features)
        if eps is None:
            return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        if tuple(eps.shape) != shape:
            raise ValueError(f"eps: expected {shape}, got {tuple(eps.shape)}")
        return eps.to(like)

    def _bits(self, nats: Tensor) -> Tensor:
        return objectives.bits_per_dim(nats, self.dims, self.distribution.counted_levels)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")
