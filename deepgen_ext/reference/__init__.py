"""The specification of every op: the same signatures as `deepgen_ext.ops`, in plain torch.

Tests and benchmarks compare with these functions. Nothing that ships calls them in place of a
kernel. They check no inputs and take no short cut: one line of mathematics is one line of code.
"""

from .affine_coupling import affine_coupling
from .channel_affine import channel_affine

__all__ = ["affine_coupling", "channel_affine"]
