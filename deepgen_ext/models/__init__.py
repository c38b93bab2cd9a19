"""Models, one paper a file."""

from .adversarial import GAN, SNGAN, WGAN, WGANGP, AdversarialModel, BiGAN, CycleGAN
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
from .latent import IWAE, VAE, FlowVAE, LatentModel

__all__ = [
    "GAN",
    "IAF",
    "IWAE",
    "MAF",
    "SNGAN",
    "VAE",
    "WGAN",
    "WGANGP",
    "AdversarialModel",
    "BiGAN",
    "CycleGAN",
    "FlowVAE",
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
