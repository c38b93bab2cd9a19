"""Layers that own parameters: conditioner networks here, invertible layers in `nn.transforms`."""

from . import transforms
from .convolutional import GlowConvNet, ResidualConvNet, ZeroConv2d
from .mlp import MLP

__all__ = ["MLP", "GlowConvNet", "ResidualConvNet", "ZeroConv2d", "transforms"]
