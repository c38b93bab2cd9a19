"""Stateless, differentiable, compile-safe operations on tensors; each is one C++ and one CUDA kernel."""

from deepgen_ext.ops.affine_coupling import affine_coupling
from deepgen_ext.ops.channel_affine import channel_affine

__all__ = ["affine_coupling", "channel_affine"]
