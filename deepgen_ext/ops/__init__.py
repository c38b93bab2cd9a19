"""Stateless, differentiable, compile-safe operations on tensors; each is one C++ and one CUDA kernel."""

from deepgen_ext.ops.affine_coupling import affine_coupling, half_coupling
from deepgen_ext.ops.ancestral_sample import ancestral_sample
from deepgen_ext.ops.autoregressive_inverse import autoregressive_inverse
from deepgen_ext.ops.bernoulli_log_prob import bernoulli_log_prob
from deepgen_ext.ops.block_triangular_linear import block_triangular_linear
from deepgen_ext.ops.categorical_draw import categorical_draw
from deepgen_ext.ops.channel_affine import channel_affine
from deepgen_ext.ops.discretized_logistic_mixture import (
    discretized_logistic_mixture,
    discretized_logistic_mixture_draw,
)
from deepgen_ext.ops.fixed_point_mlp import fixed_point_mlp
from deepgen_ext.ops.fixed_point_step import fixed_point_step
from deepgen_ext.ops.glow_conv_net import glow_conv_net
from deepgen_ext.ops.masked_conv2d import masked_conv2d
from deepgen_ext.ops.planar_chain import planar_chain
from deepgen_ext.ops.power_iteration import (
    power_iteration,
    scaled_weight_gradients,
    spectral_normalize,
)
from deepgen_ext.ops.radial_chain import radial_chain
from deepgen_ext.ops.rational_quadratic_spline import rational_quadratic_spline

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
    "scaled_weight_gradients",
    "spectral_normalize",
]
