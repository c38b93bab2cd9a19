"""Adversarial models: a generator of samples, and a critic that tells them from data."""

from .adversarial_model import AdversarialModel, CriticTerms
from .bigan import BiGAN
from .cyclegan import CycleGAN
from .gan import GAN
from .networks import DCGANCritic, DCGANGenerator, MLPCritic, MLPGenerator
from .objectives import OBJECTIVES, Objective, clip_weights, gradient_penalty, objective, r1_penalty
from .residual_networks import ResNetCritic, ResNetGenerator
from .sngan import SNGAN
from .wgan import WGAN
from .wgan_gp import WGANGP

__all__ = [
    "GAN",
    "OBJECTIVES",
    "SNGAN",
    "WGAN",
    "WGANGP",
    "AdversarialModel",
    "BiGAN",
    "CriticTerms",
    "CycleGAN",
    "DCGANCritic",
    "DCGANGenerator",
    "MLPCritic",
    "MLPGenerator",
    "Objective",
    "ResNetCritic",
    "ResNetGenerator",
    "clip_weights",
    "gradient_penalty",
    "objective",
    "r1_penalty",
]
