"""Where an image's pixels are independent given the latents: the feature space of a flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...nn.transforms import Squeeze, Transform
from ..flow import Flow, Glow, RealNVP
from .decoder_distributions import MIN_LOG_SCALE, Gaussian

FLOWS = ("realnvp", "glow")


class FeatureSpace(Transform):
    """y = f(x), (n, C, H, W) both, of a `Flow` whose latents leave at several resolutions.

    Latents are put together from the coarsest to the finest: as channels where they have the same
    sides, and four channels become a 2x2 square where the next one has sides twice as large. A
    rearrangement: the log-det is the flow's.

    Args:
        flow: of images.

    Raises:
        ValueError: a flow of vectors.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        if len(flow.shape) != 3:
            raise ValueError(f"flow: expected one of images (C, H, W), its shape is {flow.shape}")
        self.flow = flow
        self._squeeze = Squeeze()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents, log_det = self.flow(x)
        *finer, y = latents
        for latent in reversed(finer):
            y = torch.cat((self._enlarged(y, latent.shape[-1]), latent), 1)
        return self._enlarged(y, x.shape[-1]), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = []
        shapes = self.flow.latent_shapes
        for shape in shapes[:-1]:
            y = self._reduced(y, shape[-1])
            y, latent = y.split((y.shape[1] - shape[0], shape[0]), 1)
            latents.append(latent)
        return self.flow.inverse([*latents, self._reduced(y, shapes[-1][-1])])

    def _enlarged(self, y: Tensor, width: int) -> Tensor:
        while y.shape[-1] < width:
            y, _ = self._squeeze.inverse(y)
        return y

    def _reduced(self, y: Tensor, width: int) -> Tensor:
        while y.shape[-1] > width:
            y, _ = self._squeeze(y)
        return y


class SharedScale(nn.Module):
    """One scale for each element, whatever the latents: means (..., C, H, W) -> (means, log scales).

    It starts at a tenth of the range of x.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full(shape, math.log(0.1)))

    def forward(self, means: Tensor) -> Tensor:
        return torch.cat((means, self.log_scale.to(means.dtype).expand_as(means)), -3)


class GaussianOfFeatures(Gaussian):
    """y = f(x) normal in each element, x = (level + u) / n_levels: a density of x = f^-1(y).

    ln p(x) = ln N(f(x); mean, scale) + ln |det df/dx|; the expected image is taken as f^-1(mean).
    What the encoder sees, and what is drawn, is x.

    Args:
        channels, n_levels: as of `Gaussian`.
        flow: f, of images (n, C, H, W) to as large ones; None for the identity. The model owns it.
        shared_scale: where the network puts out means alone, the model's scales. Draws are then
            f^-1(mean), without noise, as a GAN's are.
    """

    def __init__(
        self,
        channels: int,
        n_levels: int,
        flow: Transform | None,
        shared_scale: SharedScale | None = None,
    ) -> None:
        self.flow, self.shared_scale = flow, shared_scale
        self.per_channel = 1 if shared_scale is not None else 2
        super().__init__(channels, n_levels)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        if self.shared_scale is not None:
            parameters = self.shared_scale(parameters)
        y, log_det = self.features(target)
        log_prob = super().log_prob(parameters, y)
        return log_prob if log_det is None else log_prob + log_det.unsqueeze(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return self._pixels(parameters[:, : self.channels]).clamp(0, 1)

    def draw(
        self,
        parameters: Tensor,
        generator: torch.Generator | None,
        *,
        normals: Tensor | None = None,
    ) -> Tensor:
        """Real x, differentiable: y = mean + scale * normals."""
        if self.shared_scale is not None:
            return self._pixels(parameters)
        means, log_scales = parameters.chunk(2, 1)
        if normals is None:
            normals = torch.empty_like(means).normal_(generator=generator)
        return self._pixels(means + log_scales.clamp(min=MIN_LOG_SCALE).exp() * normals)

    def start(self, y: Tensor) -> Tensor:
        """Of features y."""
        return super().start(y)[: self.parameters]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """y = f(x) and the log-det, which is None without a flow."""
        if self.flow is None:
            return x, None
        y, log_det = self.flow(x)
        if y.shape != x.shape:
            raise ValueError(f"flow: expected features {tuple(x.shape)}, got {tuple(y.shape)}")
        return y, log_det

    def _pixels(self, y: Tensor) -> Tensor:
        return y if self.flow is None else self.flow.inverse(y)[0]


def feature_flow(
    flow: str | Flow | Transform | None,
    image_shape: tuple[int, int, int],
    levels: int,
    depth: int,
    channels: int,
    n_levels: int,
) -> Transform | None:
    """The flow of this name, or the given one, from images to as large features; None as it is.

    Raises:
        ValueError: an unknown name, a flow of other images.
    """
    if flow == "realnvp":
        flow = RealNVP(image_shape, levels, depth, channels, blocks=1, n_levels=n_levels)
    elif flow == "glow":
        flow = Glow(image_shape, levels, depth, channels, n_levels=n_levels)
    if isinstance(flow, Flow):
        if flow.shape != image_shape:
            raise ValueError(f"flow: expected one of images {image_shape}, got {flow.shape}")
        return FeatureSpace(flow)
    if flow is None or isinstance(flow, Transform):
        return flow
    raise ValueError(
        f"flow: expected one of {', '.join(FLOWS)}, a Flow, a Transform or None; got {flow!r}"
    )
