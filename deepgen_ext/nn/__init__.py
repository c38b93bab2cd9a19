"""Layers that own parameters: conditioner networks here, invertible layers in `nn.transforms`."""

from . import transforms
from .ancestral import AncestralSampler
from .condition import ConditionProjection
from .convolutional import GlowConvNet, ResidualConvNet, ZeroConv2d
from .fixed_point import FixedPointError, FixedPointResult, fixed_point_inverse
from .gated_masked_block import GatedMaskedBlock
from .gated_resnet import GatedResnet
from .gates import AppendOnes, ConcatELU, Gate, GatedSigmoid
from .induced_norm import LearnedExponent
from .lipschitz_activations import LipSwish, Sin, activation_lipschitz
from .lipschitz_nets import LipschitzConvNet, LipschitzMLP
from .made import MADE
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .mlp import MLP
from .pixel_distributions import Categorical, DiagonalGaussian, DiscretizedLogisticMixture
from .residual_log_det import LogDetEstimator
from .shifted_conv2d import Shift, ShiftedConv2d, ShiftedConvTranspose2d
from .spectral_layers import SpectralConv2d, SpectralLinear
from .spectral_norm import spectral_norm
from .spectral_norm_all import spectral_norm_all

__all__ = [
    "LearnedExponent",
    "LipSwish",
    "LipschitzConvNet",
    "LipschitzMLP",
    "LogDetEstimator",
    "MADE",
    "MLP",
    "AncestralSampler",
    "AppendOnes",
    "Categorical",
    "ConcatELU",
    "ConditionProjection",
    "DiagonalGaussian",
    "DiscretizedLogisticMixture",
    "FixedPointError",
    "FixedPointResult",
    "Gate",
    "GatedMaskedBlock",
    "GatedResnet",
    "GatedSigmoid",
    "GlowConvNet",
    "MaskedConv2d",
    "MaskedLinear",
    "ResidualConvNet",
    "Shift",
    "ShiftedConv2d",
    "ShiftedConvTranspose2d",
    "Sin",
    "ZeroConv2d",
    "spectral_norm",
    "fixed_point_inverse",
    "activation_lipschitz",
    "SpectralConv2d",
    "SpectralLinear",
    "ZeroConv2d",
    "spectral_norm",
    "spectral_norm_all",
    "transforms",
]
