"""Models, one paper a file."""

from .autoregressive import PixelCNN, PixelCNNPlusPlus, PixelModel
from .flow import IAF, MAF, Glow, NeuralSplineFlow, PlanarFlow, RadialFlow, RealNVP

__all__ = [
    "IAF",
    "MAF",
    "Glow",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelModel",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
]
