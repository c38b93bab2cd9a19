"""One network that classifies and has a density: L = lambda ln p(x) + ln p(y|x)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_ext import objectives
from deepgen_ext.models import Glow, ResidualFlow
from deepgen_ext.models.flow import Flow
from deepgen_ext.nn import GlowConvNet, LogDetEstimator
from deepgen_ext.nn.transforms import (
    ActNorm,
    AffineCoupling,
    Sequential,
    Squeeze,
    Transform,
    partition_sizes,
)

__all__ = ["BODIES", "Hybrid", "body"]

BODIES = ("coupling", "coupling+1x1", "residual")
_LEVELS = 2


class Hybrid(nn.Module):
    """p(x) of a flow and p(y|x) = softmax(W z + b) of its latents z: all but W can be inverted.

    R. Chen et al., "Residual Flows for Invertible Generative Modeling", 2019, section 5.3.

    Args:
        flow: of images.
        n_classes: of the labels 0 ... n_classes - 1.
    """

    def __init__(self, flow: Flow, n_classes: int) -> None:
        super().__init__()
        self.flow = flow
        self.classifier = nn.Linear(flow.dims, n_classes)

    def forward(
        self, levels: Tensor, noise: Tensor, *, with_density: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(ln p(x) (n,) in nats, logits (n, classes)) of x = (levels + noise) / n_levels.

        Without the density, the first is zeros where its log-det would have to be estimated.
        """
        x = objectives.dequantize(levels, self.flow.n_levels, noise=noise)
        skipping = isinstance(self.flow, ResidualFlow) and not with_density
        with self.flow.without_log_det() if skipping else nullcontext():
            latents, log_det = self.flow(x)
        z = torch.cat([latent.flatten(1) for latent in latents], 1)
        log_prob = objectives.standard_normal_log_prob(z) + log_det
        return log_prob if not skipping else torch.zeros_like(log_det), self.classifier(z)

    def loss(self, levels: Tensor, labels: Tensor, noise: Tensor, weight: float) -> Tensor:
        """-(weight ln p(x) + ln p(y|x)), the mean over the batch, in nats."""
        log_prob, logits = self(levels, noise, with_density=weight > 0)
        loss = F.cross_entropy(logits, labels)
        return loss - weight * log_prob.mean() if weight > 0 else loss


def body(name: str, shape: tuple[int, ...], n_levels: int) -> Flow:
    """The flow under a classifier, of two scales.

    "coupling": ActNorm and affine couplings whose halves take turns. "coupling+1x1": `Glow`, a 1x1
    convolution before each. "residual": `ResidualFlow` with the paper's coefficient of 0.98 and its
    2 exact terms and 1 more on average in training (stop = 1/2); the estimator's own choice, whose
    variance is finite for every g of that bound, draws 16, and a fit took about twice as long.
    """
    if name == "coupling":
        return _coupling(shape, n_levels)
    if name == "coupling+1x1":
        return Glow(shape, levels=_LEVELS, steps=4, hidden_channels=64, n_levels=n_levels)
    return ResidualFlow(
        shape,
        levels=_LEVELS,
        blocks=4,
        hidden=64,
        coefficient=0.98,
        log_det=LogDetEstimator("unbiased", n_terms=2, stop=0.5),
        eval_log_det=LogDetEstimator("unbiased", n_terms=10),
        n_levels=n_levels,
    )


def _coupling(shape: tuple[int, ...], n_levels: int) -> Flow:
    channels, height, width = shape
    layers: list[Transform] = []
    for _ in range(_LEVELS):
        layers.append(Squeeze())
        channels, height, width = 4 * channels, height // 2, width // 2
        for index in range(4):
            swap = index % 2 == 1
            seen, moved = partition_sizes(channels, swap=swap)
            net = GlowConvNet(seen, 2 * moved, 64)
            layers += [ActNorm(channels), AffineCoupling(net, swap=swap, scale_map="sigmoid")]
    return Flow(
        shape,
        [(Sequential(*layers), None)],
        [(channels, height, width)],
        n_levels=n_levels,
        center=0.5,
    )
