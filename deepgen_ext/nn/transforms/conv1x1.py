"""The invertible 1x1 convolution, alone and fused with the ActNorm before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .actnorm import DataInitialized, check_channels
from .transform import Transform

_Method = Callable[..., tuple[Tensor, Tensor]]


def _without_autocast(method: _Method) -> _Method:
    """The method in full precision: a W rounded to half has another inverse and log-det."""

    @wraps(method)
    def wrapped(self: Transform, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not torch.is_autocast_enabled(x.device.type):
            return method(self, x, context)
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x, context)

    return wrapped


class RotationLU(nn.Module):
    """An invertible matrix W = P L (U + diag(exp(log_diagonal))), at first a random rotation.

    Kingma & Dhariwal, "Glow", 2018, section 3.2. L is unit lower triangular, U strictly upper
    triangular, P a fixed permutation matrix whose entries carry the signs that the paper keeps
    beside the diagonal: W ranges over the same matrices. log |det W| = sum log_diagonal.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        # P L (S U') = (P S) (S L S) U', with S the signs of the diagonal: S L S is unit lower
        # triangular again.
        sign = upper.diagonal().sign()
        lower, upper = sign[:, None] * lower * sign, sign[:, None] * upper
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", (permutation * sign).to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_diagonal = nn.Parameter(upper.diagonal().log().to(dtype))

    def forward(self) -> Tensor:
        """W, (C, C)."""
        return lu_product(self.permutation, self.lower, self.upper, self.log_diagonal)

    def inverse(self) -> Tensor:
        """The inverse of W, in float64."""
        return inverse_in_double(self())


def lu_product(
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    log_scale: Tensor | None = None,
) -> Tensor:
    """P L (U + diag(exp(log_diagonal))), then diag(exp(log_scale)) on its right; (..., C, C)."""
    upper = upper.triu(1)
    if log_scale is not None:
        upper = upper * log_scale.exp().unsqueeze(-2)
        log_diagonal = log_diagonal + log_scale
    upper = upper + torch.diag_embed(log_diagonal.exp())
    return permutation @ (upper + lower.tril(-1) @ upper)


def inverse_in_double(weight: Tensor) -> Tensor:
    """The inverse of the matrix that the forward applied, rounding included; (..., C, C), float64.

    Solving the exact factors instead would invert a matrix that differs in the last float32 bits:
    after 64 steps, rebuilt gradients were then 25 times further off.
    """
    return torch.linalg.inv_ex(weight.double()).inverse  # inv would wait for the device to check


class InvertibleConv1x1(Transform):
    """y = W x at every position, W as in `RotationLU`; x is (batch, C, ...).

    log_det = (positions per channel) * sum log_diagonal: no determinant is computed. The small
    matrix is inverted in float64, so that a float32 model reconstructs its input after long
    training too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rotation = RotationLU(channels)
        self.channels = channels

    @_without_autocast
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(x, self.channels)
        return multiply(x, self.rotation()), _log_det(x, self.rotation.log_diagonal)

    @_without_autocast
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(y, self.channels)
        return multiply(y, self.rotation.inverse()), _log_det(y, -self.rotation.log_diagonal)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class ActNormConv1x1(DataInitialized):
    """Glow's ActNorm and 1x1 convolution as one map: y = W diag(exp(log_scale)) x + shift.

    The product is taken of the small matrices, and the image is read and written once. The shift
    comes after the rotation, where it is free: the maps are those of Sequential(ActNorm(channels),
    InvertibleConv1x1(channels)), whose shift b is W^-1 shift, and so is the initialisation from the
    first batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.rotation = RotationLU(channels)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @_without_autocast
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.prepare(x)
        weight = lu_product(*self.factors())
        return multiply(x, weight, self.shift), _log_det(x, self.log_diagonal())

    @_without_autocast
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(y, self.channels)
        weight = inverse_in_double(lu_product(*self.factors()))
        bias = -(weight @ self.shift.double())
        return multiply(y, weight, bias), _log_det(y, -self.log_diagonal())

    def rebuild(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # One W serves the inverse and the new graph.
        with torch.autocast(y.device.type, enabled=False):
            weight = lu_product(*self.factors())
            with torch.no_grad():
                inverse = inverse_in_double(weight)
                bias = -(inverse @ self.shift.double())
                x = multiply(y, inverse, bias)
            x.requires_grad_()
            y = multiply(x, weight, self.shift)
        return x, y, _log_det(x, self.log_diagonal())

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of `lu_product`."""
        lu = self.rotation
        return lu.permutation, lu.lower, lu.upper, lu.log_diagonal, self.log_scale

    def log_diagonal(self) -> Tensor:
        """The log-det at one position, as the C terms of its sum."""
        return self.rotation.log_diagonal + self.log_scale

    def normalize_output(self, log_scale: Tensor, shift: Tensor) -> None:
        self.log_scale.copy_(log_scale)
        self.shift.copy_(self.rotation() @ shift.to(self.shift.dtype))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight @ x + bias at every position, in x's own precision, under autocast too."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return multiply(x, weight, bias)
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if x.ndim == 2:
        return F.linear(x, weight, bias)
    # A product of small matrices: the libraries' convolutions take three times as long on so few
    # channels.
    columns = x.flatten(2)
    weights = weight.expand(x.shape[0], -1, -1)
    if bias is None:
        return torch.bmm(weights, columns).view(x.shape)
    return torch.baddbmm(bias.unsqueeze(1), weights, columns).view(x.shape)


def _log_det(x: Tensor, log_scale: Tensor) -> Tensor:
    """(positions per channel) * sum log_scale, once for every sample."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    total = log_scale.sum(dtype=torch.float32 if half else None)
    return (total * math.prod(x.shape[2:])).expand(x.shape[0])
