"""Latent-variable models: bounds of the likelihood through approximate posteriors."""

from .decoder_distributions import (
    DECODERS,
    Bernoulli,
    DecoderDistribution,
    DiscretizedLogistic,
    Gaussian,
)
from .flow_vae import FlowVAE
from .hierarchical_vae import HierarchicalVAE
from .iwae import IWAE
from .latent_model import LatentModel
from .pixel_decoder import PixelDecoder
from .pixelvae import PixelVAE
from .posteriors import POSTERIORS, Posterior
from .terms import LevelTerms, Terms
from .top_down_model import TopDownModel
from .vae import VAE
from .vlae import VLAE

__all__ = [
    "DECODERS",
    "IWAE",
    "POSTERIORS",
    "VAE",
    "VLAE",
    "Bernoulli",
    "DecoderDistribution",
    "DiscretizedLogistic",
    "FlowVAE",
    "Gaussian",
    "HierarchicalVAE",
    "LatentModel",
    "LevelTerms",
    "PixelDecoder",
    "PixelVAE",
    "Posterior",
    "Terms",
    "TopDownModel",
]
