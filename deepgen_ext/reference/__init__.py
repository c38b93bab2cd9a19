"""The specification of every op: the same signatures as `deepgen_ext.ops`, in plain torch.

Tests and benchmarks compare with these functions. Nothing that ships calls them in place of a
kernel. They check no inputs and take no short cut: one line of mathematics is one line of code.
"""

from .affine_coupling import affine_coupling, half_coupling
from .ancestral_sample import ancestral_sample
from .autoregressive_inverse import autoregressive_inverse
from .bernoulli_log_prob import bernoulli_log_prob
from .block_triangular_linear import block_triangular_linear
from .categorical_draw import categorical_draw
from .channel_affine import channel_affine
from .discretized_logistic_mixture import (
    discretized_logistic_mixture,
    discretized_logistic_mixture_draw,
)
from .fixed_point_mlp import fixed_point_mlp
from .fixed_point_step import fixed_point_step
from .glow_conv_net import glow_conv_net
from .masked_conv2d import masked_conv2d
from .planar_chain import planar_chain
from .power_iteration import power_iteration, spectral_normalize
from .radial_chain import radial_chain
from .rational_quadratic_spline import rational_quadratic_spline

__all__ = [
    "affine_coupling",
    "ancestral_sample",
    "autoregressive_inverse",
    "bernoulli_log_prob",
    "block_triangular_linear",
    "categorical_draw",
    "channel_affine",
    "discretized_logistic_mixture",
    "discretized_logistic_mixture_draw",
    "fixed_point_mlp",
    "fixed_point_step",
    "glow_conv_net",
    "half_coupling",
    "masked_conv2d",
    "planar_chain",
    "power_iteration",
    "radial_chain",
    "rational_quadratic_spline",
    "spectral_normalize",
]
