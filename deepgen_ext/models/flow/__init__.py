"""Normalising flows: exact likelihoods through invertible maps."""

from .flow import Flow
from .glow import Glow
from .realnvp import RealNVP

__all__ = ["Flow", "Glow", "RealNVP"]
