"""Autoregressive models of images."""

from .jacobi import JacobiResult, jacobi_sample
from .naive import naive_sample
from .pixel_model import PixelModel
from .pixelcnn import PixelCNN
from .pixelcnnpp import PixelCNNPlusPlus

__all__ = [
    "JacobiResult",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelModel",
    "jacobi_sample",
    "naive_sample",
]
