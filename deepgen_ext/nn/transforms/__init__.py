"""Invertible layers: `forward` and `inverse`, each with the log-det of the map that it applied."""

from .actnorm import ActNorm
from .autoregressive import InverseAutoregressive, MaskedAutoregressive
from .batch_norm import BatchNorm
from .conv1x1 import ActNormConv1x1, InvertibleConv1x1, RotationLU
from .coupling import AdditiveCoupling, AffineCoupling
from .glow_steps import GlowSteps
from .multiscale import Split, Squeeze
from .partition import checkerboard, partition_sizes
from .permutation import Permutation, Reverse
from .planar import Planar
from .radial import Radial
from .residual import InvertibleResidual
from .sequential import Sequential
from .spline_coupling import SplineCoupling
from .transform import Inverse, Transform

__all__ = [
    "ActNorm",
    "ActNormConv1x1",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchNorm",
    "GlowSteps",
    "Inverse",
    "InverseAutoregressive",
    "InvertibleConv1x1",
    "InvertibleResidual",
    "MaskedAutoregressive",
    "Permutation",
    "Planar",
    "Radial",
    "Reverse",
    "RotationLU",
    "Sequential",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "Transform",
    "checkerboard",
    "partition_sizes",
]
