"""Planar flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ... import ops
from ...ops.flow_chain import check_chain
from ...ops.planar_chain import invertible
from ..context import check_context
from .transform import Transform

_NEWTON_STEPS = 24


class Planar(Transform):
    """z <- z + u_hat tanh(w'z + b), `length` times; see `deepgen_ext.ops.planar_chain`.

    Rezende & Mohamed, "Variational Inference with Normalizing Flows", 2015. z is (n, features).
    u_hat = u + (m(w'u) - w'u) w / |w|^2, m(x) = -1 + log(1 + e^x), keeps every step invertible
    whatever w and u are. The inverse has no closed form, but one unknown a step, a = w'z + b, the
    root of a monotone function: it is found in float64 to the last digits, in a fixed number of
    steps without waiting for a GPU, and differentiated as an implicit function.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: 0: the steps are the same for every sample. Otherwise w, u and b are
            those plus a linear map of the context (n, context_features), as in the posterior of a
            variational autoencoder, whose encoder gives the context.

    Raises:
        ValueError: features or length below 1; on use, a shape or a context that does not fit.
    """

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__()
        check_sizes(features, length, context_features)
        self.features, self.length, self.context_features = features, length, context_features
        # |w| near 1, whatever D: as w tends to 0, u_hat grows without bound.
        w = torch.randn(length, features) / math.sqrt(features)
        self.w = nn.Parameter(w)
        # log(1 + e^(w'u)) = 1 makes u_hat'w = 0: close to the identity, where u alone would not be.
        along = math.log(math.e - 1) * w / w.square().sum(-1, keepdim=True)
        self.u = nn.Parameter(along + torch.randn(length, features) * (0.1 / math.sqrt(features)))
        self.b = nn.Parameter(torch.zeros(length))
        self.projection = context_projection(context_features, length * (2 * features + 1))

    def parameters_of(self, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """w, u (K, D) and b (K,); with a context (n, K, D) and (n, K)."""
        check_context(context, self.context_features)
        if context is None:
            return self.w, self.u, self.b
        sizes = (self.features, self.features, 1)
        moved = self.projection(context).unflatten(1, (self.length, -1)).split(sizes, -1)
        return self.w + moved[0], self.u + moved[1], self.b + moved[2].squeeze(-1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return ops.planar_chain(x, *self.parameters_of(context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return planar_inverse(y, *self.parameters_of(context))

    def extra_repr(self) -> str:
        return described(self)


def planar_inverse(y: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `deepgen_ext.ops.planar_chain`, of the same arguments: (z, log_det).

    Computed in float64 and rounded to y's dtype at the end. Differentiable in all four, twice.
    log_det is that of the inverse.
    """
    y, given = check_chain(y, {"w": w, "u": u}, {"b": b})
    w, u, b = (given[name].double() for name in ("w", "u", "b"))
    u_hat, slope = invertible(w, u)
    z = y.double()
    log_det = z.new_zeros(z.shape[0])
    for k in reversed(range(b.shape[-1])):
        normal, p = w[..., k, :], slope[..., k]
        target = (normal * z).sum(-1) + b[..., k]
        a = _root(target, p.expand_as(target))
        t = torch.tanh(a)
        z = z - u_hat[..., k, :] * t[:, None]
        log_det = log_det - _stretch(a, t, p).log()
    return z.to(y.dtype), log_det.to(given["w"].dtype)


def _stretch(a: Tensor, t: Tensor, p: Tensor) -> Tensor:
    """1 + (p - 1) (1 - t^2), t = tanh a, as a sum of positive terms."""
    decay = torch.exp(-2 * a.abs())
    return t * t + p * (4 * decay / (1 + decay) ** 2)


def _root(target: Tensor, p: Tensor) -> Tensor:
    """The a with a + c tanh a = target, c = p - 1 > -1: increasing in a and odd.

    For target > 0 the function is concave (c > 0) or convex (c < 0), so that Newton's method from
    below (above) the root approaches it from that side, without ever passing it.
    """
    with torch.no_grad():
        y, c = target.abs(), p - 1
        a = torch.where(c > 0, _start_below(y, c), _start_above(y, c, p))
        # tanh lies in [0, 1]: the root lies between y - c and y, in whichever order.
        low, high = torch.minimum(y, y - c).clamp_min(0.0), torch.maximum(y, y - c)
        for _ in range(_NEWTON_STEPS):
            t = torch.tanh(a)
            a = a - (a + c * t - y) / _stretch(a, t, p)
            a = torch.minimum(torch.maximum(a, low), high)
        a = torch.copysign(a, target)
    # Two steps more, of which the graph is kept: they leave a where it is, and their derivative and
    # its derivative are those of the implicit function.
    for _ in range(2):
        t = torch.tanh(a)
        a = a - (a + (p - 1) * t - target) / _stretch(a, t, p)
    return a


def _start_below(y: Tensor, c: Tensor) -> Tensor:
    """For c > 0, at most the root: from tanh a <= min(a, 1), and from tanh a = (y - a) / c with a
    replaced by something larger, where tanh is close to 1 and Newton's steps would be short.
    """
    c = c.clamp_min(0.0)
    start = torch.maximum(y - c, y / (1 + c))
    divisor = c.clamp_min(1e-300)
    largest = (1 - 1 / (2 + c)).clamp_max(1 - 1e-15)
    ratio = torch.minimum(y / divisor, largest)
    above = torch.atanh(ratio)
    return torch.maximum(start, torch.atanh(((ratio * c - above) / divisor).clamp_min(0.0)))


def _start_above(y: Tensor, c: Tensor, p: Tensor) -> Tensor:
    """For -1 < c <= 0, at least the root: from tanh a <= min(a, 1), and for a <= 1 from a - tanh a
    >= a^3 / 5, without which p near 0 would cost dozens of steps.
    """
    start = torch.minimum(y - c, y / p)
    cubic = (5 * y / (-c).clamp_min(1e-300)).pow(1 / 3)
    return torch.where(cubic <= 1, torch.minimum(start, cubic), start)


def check_sizes(features: int, length: int, context_features: int) -> None:
    """Raise a ValueError unless a chain of this size can be made."""
    for name, value, least in (
        ("features", features, 1),
        ("length", length, 1),
        ("context_features", context_features, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")


def context_projection(context_features: int, outputs: int) -> nn.Linear | None:
    """From a context to what it adds to the parameters; small at the start, but not 0."""
    if not context_features:
        return None
    projection = nn.Linear(context_features, outputs)
    nn.init.normal_(projection.weight, std=0.01)
    nn.init.zeros_(projection.bias)
    return projection


def described(layer: nn.Module) -> str:
    context = f", context_features={layer.context_features}" if layer.context_features else ""
    return f"features={layer.features}, length={layer.length}{context}"
