"""Normalising flows: exact likelihoods through invertible maps."""

from .conditional import ConditionalFlow
from .flow import Flow
from .glow import Glow
from .iaf import IAF
from .iresnet import IResNet
from .maf import MAF
from .planar_flow import PlanarFlow, RadialFlow
from .realnvp import RealNVP
from .residual_flow import ResidualFlow
from .spline_flow import NeuralSplineFlow

__all__ = [
    "IAF",
    "MAF",
    "ConditionalFlow",
    "Flow",
    "Glow",
    "IResNet",
    "NeuralSplineFlow",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
]
