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
from .latent import IWAE, VAE, VLAE, FlowVAE, HierarchicalVAE, LatentModel, PixelVAE, TopDownModel

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
    "VLAE",
    "Glow",
    "HierarchicalVAE",
    "IResNet",
    "LatentModel",
    "NeuralSplineFlow",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelModel",
    "PixelVAE",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
    "TopDownModel",
]
