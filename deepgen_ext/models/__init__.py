"""Models, one paper a file."""

from .autoregressive import PixelCNN, PixelCNNPlusPlus, PixelModel
from .flow import (
    IAF,
    MAF,
    Glow,
    IResNet,
    NeuralSplineFlow,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
)

__all__ = [
    "IAF",
    "MAF",
    "Glow",
    "IResNet",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelModel",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
]
