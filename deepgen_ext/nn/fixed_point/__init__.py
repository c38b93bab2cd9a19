"""x of y = x + g(x), Lip(g) < 1, to a bound that holds."""

from .inverse import fixed_point_inverse
from .result import FixedPointError, FixedPointResult

__all__ = ["FixedPointError", "FixedPointResult", "fixed_point_inverse"]
