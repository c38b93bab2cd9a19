"""Inverse autoregressive flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...nn.transforms import InverseAutoregressive
from .conditional import ConditionalFlow, shape_of
from .maf import autoregressive_chain


class IAF(ConditionalFlow):
    """Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016,
    arXiv:1606.04934: a chain of `InverseAutoregressive` layers.

    From noise to samples each layer is z' = mu + sigma * z with (mu, log sigma) functions of the
    noise before: `sample` and `sample_and_log_prob` are one pass of each net, and differentiable
    without any solving, which is what a posterior or a fit to an energy wants. Scoring given data
    finds feature after feature, in about the time of one pass too; its gradient goes by the
    implicit function theorem and can be taken once.

    Arguments and errors as of `MAF`.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        transforms: int = 5,
        hidden_features: Sequence[int] = (512, 512),
        element: str = "affine",
        context_features: int = 0,
        batch_norm: bool = False,
        order: str = "reverse",
        scale_map: str = "tanh",
        clamp: float = 2.0,
        n_bins: int = 8,
        bound: float = 3.0,
        activation: str = "relu",
        residual: bool = False,
        n_levels: int = 256,
    ) -> None:
        shape = shape_of(features)
        layers = autoregressive_chain(
            InverseAutoregressive,
            math.prod(shape),
            transforms,
            batch_norm,
            order,
            hidden_features=hidden_features,
            element=element,
            context_features=context_features,
            scale_map=scale_map,
            clamp=clamp,
            n_bins=n_bins,
            bound=bound,
            activation=activation,
            residual=residual,
        )
        super().__init__(shape, layers, context_features=context_features, n_levels=n_levels)
