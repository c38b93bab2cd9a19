"""The steps that draw a pixel from the network's output."""

from __future__ import annotations

from deepgen_ext.nn.pixel_distributions import (
    Categorical,
    DiagonalGaussian,
    DiscretizedLogisticMixture,
)

from .features import Feature
from .program import CannotCompile, Kind, Step

Distribution = Categorical | DiscretizedLogisticMixture | DiagonalGaussian


def draws_of(
    distribution: Distribution, parameters: Feature, image: Feature, groups: int
) -> list[tuple[int, Step]]:
    """The draws of a pixel's channels from `parameters`, each after the channel group whose turn it
    is to be drawn, of `groups`.
    """
    channels = image.channels
    if isinstance(distribution, Categorical):  # each channel from its own logits
        n_levels = distribution.n_levels
        _check(parameters, channels * n_levels)
        return [
            (
                channel * groups // channels,
                Step(
                    Kind.CATEGORICAL,
                    image.node,
                    channel,
                    1,
                    parameters.node,
                    parameters.channel + channel * n_levels,
                    dy=channel,
                ),
            )
            for channel in range(channels)
        ]
    if isinstance(distribution, DiagonalGaussian):  # all channels from [means][log scales]
        _check(parameters, 2 * channels)
        kind, mixtures = Kind.GAUSSIAN, 0
    else:  # all channels from one mixture
        kind, mixtures = Kind.MIXTURE, distribution.mixtures
        _check(parameters, mixtures * (1 + 2 * channels + channels * (channels - 1) // 2))
    step = Step(kind, image.node, 0, channels, parameters.node, parameters.channel, dy=mixtures)
    return [(0, step)]


def _check(parameters: Feature, expected: int) -> None:
    if parameters.channels != expected or parameters.stride != 1:
        raise CannotCompile(
            f"the network's output must have {expected} channels at the image's resolution, "
            f"got {parameters.channels} at stride {parameters.stride}"
        )
    if not parameters.reach.is_causal:
        raise CannotCompile("the network's output sees the pixel that it predicts")
