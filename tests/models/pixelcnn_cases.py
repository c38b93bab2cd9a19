"""Small PixelCNNs, plain and gated, of grey and coloured images."""

import torch

from deepgen_ext.models import PixelCNN
from tests.pixel_checks import sharpen

GRAY = [
    {},
    {"residual": False},
    {"layers": 1},
    {"hidden_kernel_size": 1},
    {"kernel_size": 5, "dilations": (2, 1)},
    {"gated": True},
    {"gated": True, "residual": False},
    {"gated": True, "layers": 1},
    {"gated": True, "kernel_size": 5, "hidden_kernel_size": 3, "dilations": 2},
]
COLOR = [
    {},
    {"channels_in_order": False},
    {"gated": True},
    {"gated": True, "channels_in_order": False},
    {"gated": True, "layers": 2, "dilations": 2},
]


def build(image_shape, n_levels=4, **options):
    """A small model, far from flat."""
    options = {"layers": 3, "channels": 6, "kernel_size": 3, **options}
    torch.manual_seed(0)
    model = PixelCNN(image_shape, n_levels=n_levels, **options)
    return sharpen(model, model.network.output)


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def uniforms_of(model, n):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *model.image_shape, generator=generator, dtype=torch.float64)
