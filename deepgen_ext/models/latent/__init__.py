"""Latent-variable models: bounds of the likelihood through approximate posteriors."""

from .decoder_distributions import (
    DECODERS,
    Bernoulli,
    DecoderDistribution,
    DiscretizedLogistic,
    Gaussian,
)
from .flow_vae import FlowVAE
from .iwae import IWAE
from .latent_model import LatentModel, Terms
from .posteriors import POSTERIORS, Posterior
from .vae import VAE

__all__ = [
    "DECODERS",
    "IWAE",
    "POSTERIORS",
    "VAE",
    "Bernoulli",
    "DecoderDistribution",
    "DiscretizedLogistic",
    "FlowVAE",
    "Gaussian",
    "LatentModel",
    "Posterior",
    "Terms",
]
