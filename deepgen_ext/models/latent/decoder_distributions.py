"""What a decoder puts out: the distribution of all pixels of an image, independent given the latents.

As in `nn.pixel_distributions`: plain objects without parameters of their own, that say how many
channels the network must have. Here the parameters have one dimension more: k draws of the latents
for each image, (n, k, P, H, W), are scored against the image (n, C, H, W) without copies of it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import objectives, ops

MIN_LOG_SCALE = -7.0
_LOGISTIC_STD = math.pi / math.sqrt(3)  # of a logistic of scale 1


class DecoderDistribution:
    """What all of them share.

    Args:
        channels: C, of the image.
        n_levels: number of integer levels of the data.

    Attributes:
        parameters: P, the channels that the network must put out.
        unit: in which losses are told, "nats" an image or "bits/dim".
        counted_levels: by which a density is divided to count it per level: see
            `objectives.bits_per_dim`.
    """

    name: str
    per_channel = 2
    unit = "bits/dim"
    max_levels = 2**16
    has_mean = True  # of pixels that are independent given the latents

    def __init__(self, channels: int, n_levels: int = 256) -> None:
        if channels < 1:
            raise ValueError(f"channels: expected 1 or more, got {channels}")
        if not 2 <= n_levels <= self.max_levels:
            raise ValueError(f"n_levels: expected 2 to {self.max_levels}, got {n_levels}")
        self.channels = channels
        self.n_levels = n_levels
        self.parameters = self.per_channel * channels

    @property
    def counted_levels(self) -> int:
        return 1

    @property
    def domain(self) -> str:
        """In words, what `target` takes."""
        return f"integer levels 0 to {self.n_levels - 1}"

    def target(
        self, levels: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """What is scored, (n, C, H, W), of levels and one uniform number in [0, 1) a level.

        Raises:
            TypeError, ValueError: levels that this decoder has no probability for.
        """
        if levels.is_floating_point() or levels.dtype == torch.bool:
            raise TypeError(
                f"levels: a {self.name} decoder takes {self.domain}, got {levels.dtype}"
            )
        objectives.check_levels(levels, self.n_levels)
        return levels if levels.dtype == torch.uint8 else levels.long()

    def embed(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """What the encoder sees of it, about in [-1, 1]."""
        return target.to(dtype) * (2 / (self.n_levels - 1)) - 1

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """ln p(target | latents) in nats, (n, k), of parameters (n, k, P, H, W)."""
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image, (n, C, H, W), real in [0, 1], of parameters (n, P, H, W)."""
        raise NotImplementedError

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images (n, C, H, W) of parameters (n, P, H, W): int64 levels, or real x of a density."""
        raise NotImplementedError

    def start(self, target: Tensor) -> Tensor:
        """Parameters (P, H, W) that fit the images pixel by pixel, where a decoder starts well."""
        raise NotImplementedError


class Bernoulli(DecoderDistribution):
    """Each pixel is on with the probability sigmoid(logit).

    Of more than two levels, each pixel is first drawn on with the probability level / (n_levels -
    1), anew each time an image is seen: dynamic binarisation, as in Burda et al. 2016. Likelihoods
    are those of the binarised images.
    """

    name = "bernoulli"
    per_channel = 1
    unit = "nats"

    @property
    def domain(self) -> str:
        if self.n_levels == 2:
            return "bits 0 and 1 as integers"
        return f"{super().domain}, each the probability of a bit"

    def target(
        self, levels: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        levels = super().target(levels, noise, generator)
        if self.n_levels == 2:
            return levels
        if noise is None:
            noise = torch.rand(levels.shape, generator=generator, device=levels.device)
        _check_noise(noise, levels)
        return (noise * (self.n_levels - 1) < levels).to(torch.uint8)

    def embed(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        return 2 * target.to(dtype) - 1

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        return ops.bernoulli_log_prob(target.unsqueeze(1), parameters, batch_dims=2)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.sigmoid(parameters)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        uniforms = _uniforms(parameters, generator)
        return (uniforms < torch.sigmoid(parameters)).long() * (self.n_levels - 1)

    def start(self, target: Tensor) -> Tensor:
        on = (target.double().sum(0) + 0.5) / (target.shape[0] + 1)
        return torch.logit(on)


class Gaussian(DecoderDistribution):
    """x = (level + u) / n_levels, normal in each pixel, with a mean and a scale from the network.

    A density of real x; of levels, dequantised by uniform noise u, its expectation bounds the
    log-probability. The scale is exp(max(log_scale, -7)).
    """

    name = "gaussian"

    @property
    def counted_levels(self) -> int:
        return self.n_levels

    @property
    def domain(self) -> str:
        return f"{super().domain}, or finite real x"

    def target(
        self, levels: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if levels.is_floating_point():
            return levels
        levels = super().target(levels, noise, generator)
        return objectives.dequantize(levels, self.n_levels, noise=noise, generator=generator)

    def embed(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        return 2 * target.to(dtype) - 1

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        means, log_scales = _at_least_float32(parameters).chunk(2, 2)
        log_scales = log_scales.clamp(min=MIN_LOG_SCALE)
        z = (target.to(means.dtype).unsqueeze(1) - means) * torch.exp(-log_scales)
        nats = (0.5 * z.square() + log_scales).flatten(2).sum(2)
        return -nats - 0.5 * math.log(2 * math.pi) * math.prod(target.shape[1:])

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, 1)[0].clamp(0, 1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        means, log_scales = parameters.chunk(2, 1)
        normals = torch.empty_like(means).normal_(generator=generator)
        return means + log_scales.clamp(min=MIN_LOG_SCALE).exp() * normals

    def start(self, target: Tensor) -> Tensor:
        target = target.double()
        deviation = target.std(0, correction=0).clamp(min=0.02)
        return torch.cat((target.mean(0), deviation.log()))


class DiscretizedLogistic(DecoderDistribution):
    """A logistic in each pixel and channel, discretised to levels: see
    `ops.discretized_logistic_mixture`, of which this is one component without coefficients.

    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016. Means
    are in units of x = 2 level / (n_levels - 1) - 1.
    """

    name = "discretized_logistic"

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        n, k = parameters.shape[:2]
        rows = self._as_mixture(_at_least_float32(parameters).flatten(0, 1))
        levels = target.unsqueeze(1).expand(n, k, *target.shape[1:]).flatten(0, 1)
        nats = ops.discretized_logistic_mixture(rows, levels, n_levels=self.n_levels, mixtures=1)
        return nats.flatten(1).sum(1).view(n, k)

    def mean(self, parameters: Tensor) -> Tensor:
        return ((parameters.chunk(2, 1)[0] + 1) / 2).clamp(0, 1)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        uniforms = _uniforms(parameters[:, : self.channels], generator)
        rows = self._as_mixture(parameters)
        return ops.discretized_logistic_mixture_draw(
            rows, uniforms, n_levels=self.n_levels, mixtures=1
        )

    def start(self, target: Tensor) -> Tensor:
        x = self.embed(target, torch.float64)
        deviation = x.std(0, correction=0).clamp(min=0.04)
        return torch.cat((x.mean(0), (deviation / _LOGISTIC_STD).log()))

    def _as_mixture(self, parameters: Tensor) -> Tensor:
        """[logit 1][means C][log scales C][coefficients C(C-1)/2], the new ones zero."""
        zeros = self.channels * (self.channels - 1) // 2
        return F.pad(parameters, (0, 0, 0, 0, 1, zeros))


DECODERS = {kind.name: kind for kind in (Bernoulli, Gaussian, DiscretizedLogistic)}


def decoder_distribution(
    decoder: str | DecoderDistribution, channels: int, n_levels: int
) -> DecoderDistribution:
    """The decoder of this name, or the given one; a ValueError lists the known names."""
    if isinstance(decoder, DecoderDistribution):
        return decoder
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}; got {decoder!r}")
    return DECODERS[decoder](channels, n_levels)


def _at_least_float32(parameters: Tensor) -> Tensor:
    """Sums over a thousand pixels do not belong into half precision."""
    return parameters.to(torch.promote_types(parameters.dtype, torch.float32))


def _uniforms(like: Tensor, generator: torch.Generator | None) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=dtype)


def _check_noise(noise: Tensor, levels: Tensor) -> None:
    if noise.shape != levels.shape:
        raise ValueError(
            f"noise: expected the shape of levels {tuple(levels.shape)}, got {tuple(noise.shape)}"
        )
