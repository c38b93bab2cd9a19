"""Neural spline flow with coupling layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...nn import MLP
from ...nn.transforms import ActNorm, Permutation, SplineCoupling, Transform, partition_sizes
from .conditional import ConditionalFlow, shape_of


class NeuralSplineFlow(ConditionalFlow):
    """Durkan et al., "Neural Spline Flows", 2019, arXiv:1906.04032: RQ-NSF (C), coupling layers
    whose element map is a monotonic rational-quadratic spline.

    Each layer is `ActNorm` and a `SplineCoupling` under an `MLP`; the halves take turns, and each
    pair of layers but the first begins with a permutation drawn at random. Scoring and sampling are
    one pass each. Scalings and permutations stand where the paper has LU-decomposed linear maps.

    Args:
        features: D >= 2 of vectors; or the shape of an image (C, H, W), flattened.
        transforms: number of couplings.
        hidden_features: width of the coupling networks.
        depth: hidden layers of a coupling network.
        n_bins, bound: of the splines: bins, and half the width of the range that they cover.
        context_features: length of the context vectors; 0: none is taken.
        n_levels: number of integer levels of the data, 256 for 8-bit images.

    Raises:
        ValueError: fewer than 2 features, a number < 1, n_bins above 100.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        transforms: int = 6,
        hidden_features: int = 128,
        depth: int = 2,
        n_bins: int = 8,
        bound: float = 3.0,
        context_features: int = 0,
        n_levels: int = 256,
    ) -> None:
        shape = shape_of(features)
        dims = math.prod(shape)
        if dims < 2:
            raise ValueError(f"features: a coupling needs at least 2, got {dims}")
        for name, value in (
            ("transforms", transforms),
            ("hidden_features", hidden_features),
            ("depth", depth),
            ("n_bins", n_bins),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        layers: list[Transform] = []
        for index in range(transforms):
            layers.append(ActNorm(dims))
            if index and index % 2 == 0 and dims > 2:
                layers.append(Permutation(dims))
            swap = index % 2 == 1
            seen, moved = partition_sizes(dims, swap=swap)
            net = MLP(seen, (3 * n_bins - 1) * moved, hidden_features, depth, context_features)
            layers.append(SplineCoupling(net, swap=swap, n_bins=n_bins, bound=bound))
        super().__init__(shape, layers, context_features=context_features, n_levels=n_levels)
