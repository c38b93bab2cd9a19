"""Fast C++/CUDA kernels and models for classical deep generative modelling in PyTorch."""

from deepgen_ext import models, nn, objectives, ops
from deepgen_ext._extension import build_info

__version__ = "0.1.0"
__all__ = ["build_info", "models", "nn", "objectives", "ops"]
