"""Invertible layers: `forward` and `inverse`, each with the log-det of the map that it applied."""

from .actnorm import ActNorm
from .conv1x1 import ActNormConv1x1, InvertibleConv1x1, RotationLU
from .coupling import AdditiveCoupling, AffineCoupling
from .glow_steps import GlowSteps
from .multiscale import Split, Squeeze
from .partition import checkerboard, partition_sizes
from .sequential import Sequential
from .transform import Inverse, Transform

__all__ = [
    "ActNorm",
    "ActNormConv1x1",
    "AdditiveCoupling",
    "AffineCoupling",
    "GlowSteps",
    "Inverse",
    "InvertibleConv1x1",
    "RotationLU",
    "Sequential",
    "Split",
    "Squeeze",
    "Transform",
    "checkerboard",
    "partition_sizes",
]
