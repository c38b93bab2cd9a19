"""Planar and radial flows as models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...nn.transforms import ActNorm, Inverse, Planar, Radial
from .conditional import ConditionalFlow, shape_of


class _Chain(ConditionalFlow):
    """x = f_K(... f_1(z)) of steps that are cheap from z to x."""

    layer: type[Planar | Radial]

    def __init__(
        self,
        features: int | Sequence[int],
        length: int = 16,
        context_features: int = 0,
        act_norm: bool = False,
        n_levels: int = 256,
    ) -> None:
        shape = shape_of(features)
        dims = math.prod(shape)
        chain = Inverse(self.layer(dims, length, context_features))
        layers = [ActNorm(dims), chain] if act_norm else [chain]
        super().__init__(shape, layers, context_features=context_features, n_levels=n_levels)


class PlanarFlow(_Chain):
    """x = f_K(... f_1(z)), z ~ N(0, I), each f a planar flow: see `nn.transforms.Planar`.

    Rezende & Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv:1505.05770. Made
    for variational posteriors and for fits to an energy: `sample` and `sample_and_log_prob` are one
    fused pass. `log_prob` of given x solves one scalar equation a step, to the last digits, but at
    some hundred times the cost.

    Args:
        features: D, (D,), or the shape of an image, which is flattened.
        length: K, the number of planar steps.
        context_features: length of the context vectors (n, context_features); 0: none is taken.
        act_norm: an `ActNorm` between data and steps, for maximum likelihood of data that are not
            centred at 0 and of unit size: far out every tanh is flat.
        n_levels: number of integer levels of the data (images).

    Raises:
        ValueError: features, length or context_features that make no flow.
    """

    layer = Planar


class RadialFlow(_Chain):
    """x = f_K(... f_1(z)), z ~ N(0, I), each f a radial flow: see `nn.transforms.Radial`.

    Arguments, errors and source as of `PlanarFlow`; the inverse is in closed form.
    """

    layer = Radial
