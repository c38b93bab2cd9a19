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
from .latent import IWAE, VAE, LatentModel

__all__ = [
    "IAF",
    "IWAE",
    "MAF",
    "VAE",
    "Glow",
    "IResNet",
    "LatentModel",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelModel",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
]
