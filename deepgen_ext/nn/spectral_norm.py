"""Weights of bounded norm: spectral normalisation as torch has it, true norms of convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepgen_ext.ops import power_iteration, spectral_normalize
from deepgen_ext.ops.power_iteration import known_scaled_weight

from .convolution_norm import ConvolutionNorm
from .induced_norm import InducedNorm, LearnedExponent
from .normalized_weight import WARM_UP, NormalizedWeight, in_backward, is_transformed
from .pickled_parametrization import make_picklable

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    kind: str = "matrix",
    coefficient: float | None = None,
    input_shape: int | tuple[int, ...] | None = None,
    domain: float | LearnedExponent = 2,
    codomain: float | LearnedExponent = 2,
    rtol: float | None = None,
    atol: float | None = None,
) -> nn.Module:
    r"""Divides a weight by its operator norm whenever it is used; returns the module.

    W / sigma(W), or with a coefficient c, W min(1, c / sigma(W)): i-ResNets want a bound, not a
    norm of 1. With the defaults it does what `torch.nn.utils.parametrizations.spectral_norm` does:
    the same u, v and weights step by step (a weight of zeros aside), the same keys and shapes in
    state_dict, taken off by `torch.nn.utils.parametrize.remove_parametrizations`. It reads a weight
    half as often, costs nothing in eval mode, and its modules can be pickled.

    sigma = u'Wv never exceeds the norm: too few iterations leave the weight too large. 15 are made
    at registration, each use in training makes n_power_iterations; `rtol`, `atol` instead iterate in
    each use until sigma changes by less than atol + rtol sigma (one wait for the GPU a step). With a
    coefficient, what eval mode uses is iterated to convergence, on copies: a bound that holds, also
    after load_state_dict; under torch.compile, 15 iterations. u and v do not move in eval mode.
    Nor do they in a backward: a checkpoint's second forward finds the weight of the first, unless
    the layer was used again in between.

    A weight of zeros has sigma = 0 and stays as it is; u and v stay too. A vector is divided by its
    length.

    Args:
        module: Linear, Conv1-3d, ConvTranspose1-3d, Embedding, or any with such a weight.
        name: of the weight.
        n_power_iterations: in each use in training.
        eps: the least norm to divide u and v by.
        dim: of the outputs; 0, and 1 for ConvTranspose1-3d. For kind="matrix".
        kind: "matrix", the norm of the weight reshaped to (out, rest), or "conv", that of the
            convolution as a map of inputs of `input_shape`: Conv1-3d, any stride, padding of zeros,
            dilation and groups. The two differ by up to the root of the number of taps.
        coefficient: above 0; None divides always.
        input_shape: for kind="conv", the spatial size of the inputs; an int counts for each
            dimension. The norm at a smaller input is not larger.
        domain, codomain: p and q of the norm max |Wx|_q / |x|_p, for kind="matrix"; 1, inf or any
            between, or a `LearnedExponent`. See `InducedNorm` for where it is exact. A flow inverts,
            and bounds its errors, in the 2-norm: its networks have no other.
        rtol, atol: see above.

    Raises:
        ValueError: no such weight, n_power_iterations of 0 or less, another kind, kind="conv"
            without input_shape or for another layer, a coefficient, tolerance or exponent that makes
            no sense, a weight without elements.
        IndexError: dim out of range.
        TypeError: a weight that is not floating-point.

    Miyato et al. 2018, arXiv:1802.05957; Gouk et al. 2018, arXiv:1804.04368; Behrmann et al. 2019,
    arXiv:1811.00995; Chen et al. 2019, arXiv:1906.02735.
    """
    weight = _weight_of(module, name)
    if n_power_iterations <= 0:
        raise ValueError(
            "Expected n_power_iterations to be positive, but got "
            f"n_power_iterations={n_power_iterations}"
        )
    if coefficient is not None and not 0 < coefficient < math.inf:
        raise ValueError(f"coefficient must be a finite number above 0, got {coefficient}")
    for option, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{option} must be a finite number above 0, got {value}")
    for option, value in (("domain", domain), ("codomain", codomain)):
        if not isinstance(value, LearnedExponent) and not value >= 1:
            raise ValueError(f"{option} must be 1 or more, up to inf, got {value}")
    learned = [e for e in (domain, codomain) if isinstance(e, LearnedExponent)]
    if learned and any(e in (1, math.inf) for e in (domain, codomain)):
        raise ValueError("domain, codomain: beside a LearnedExponent, expected one in (1, inf)")
    options = {
        "n_iterations": n_power_iterations,
        "eps": eps,
        "coefficient": coefficient,
        "rtol": rtol,
        "atol": atol,
    }
    if kind == "conv":
        if (domain, codomain) != (2, 2):
            raise ValueError("domain, codomain: kind='conv' has the norm from 2 to 2 alone")
        shape = _input_shape(module, input_shape)
        constraint = ConvolutionNorm(module, weight, shape, **options)
    elif kind == "matrix":
        if dim is None:
            dim = 1 if isinstance(module, _TRANSPOSED) else 0
        if not -weight.ndim <= dim < weight.ndim:
            raise IndexError(
                "Dimension out of range (expected to be in range of "
                f"[-{weight.ndim}, {weight.ndim - 1}] but got {dim})"
            )
        if weight.ndim == 1:
            constraint = UnitVector(options["eps"], coefficient)
        elif (domain, codomain) == (2, 2):
            constraint = SpectralNorm(weight, dim, **options)
        elif dim % weight.ndim != 0:
            raise ValueError("domain, codomain: norms other than 2 need dim=0")
        else:
            constraint = InducedNorm(weight, domain, codomain, **options)
    else:
        raise ValueError(f"kind must be 'matrix' or 'conv', got {kind!r}")
    parametrize.register_parametrization(module, name, constraint)
    make_picklable(module)
    return module


class SpectralNorm(NormalizedWeight):
    """The spectral norm of a weight as a matrix, `dim` first and the rest flattened."""

    def __init__(self, weight: Tensor, dim: int, **options: Any) -> None:
        super().__init__(**options)
        self.dim = dim % weight.ndim
        self.grouped = False  # whether `spectral_norm_all` steps it
        matrix = self.matrix(weight.detach())
        rows, columns = matrix.shape[0], matrix[0].numel()
        # u first, then v, as torch draws them: the same seed gives the same vectors.
        u, v = (weight.new_empty(size).normal_() for size in (rows, columns))
        self.register_buffer("_u", F.normalize(u, dim=0, eps=self.eps))
        self.register_buffer("_v", F.normalize(v, dim=0, eps=self.eps))
        self.move(*self.iterate(weight.detach(), self._u, self._v, WARM_UP)[:2])

    def matrix(self, weight: Tensor) -> Tensor:
        """A view of the weight with the outputs first."""
        return weight if self.dim == 0 else weight.movedim(self.dim, 0)

    def weight(self, matrix: Tensor) -> Tensor:
        """Back from `matrix`."""
        return matrix if self.dim == 0 else matrix.movedim(0, self.dim)

    def given(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[list[Tensor], ...]:
        """Lists of one, as the ops take them: u and v of half weights in float32."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return [self.matrix(weight)], [u.to(dtype)], [v.to(dtype)]

    def iterate(self, weight, u, v, n_iterations):
        us, vs, sigmas = power_iteration(*self.given(weight, u, v), n_iterations, self.eps)
        return us[0], vs[0], sigmas[0]

    def scaled(self, weight, u, v, n_iterations):
        scaled, us, vs, _ = spectral_normalize(
            *self.given(weight, u, v), n_iterations, self.eps, self.coefficient
        )
        return self.weight(scaled[0]), us[0], vs[0]

    def step(self, weight: Tensor) -> Tensor:
        if not self.grouped or is_transformed():
            return super().step(weight)
        # By the node of a group's step, whoever makes it: a checkpoint compares what nodes save.
        n_iterations = 0 if in_backward() else self.n_power_iterations
        scaled, us, vs, sigmas = spectral_normalize(
            *self.given(weight.detach(), self._u, self._v),
            n_iterations,
            self.eps,
            self.coefficient,
        )
        if n_iterations:
            self.move(us[0], vs[0])
        return self.attach(weight, scaled[0], us[0], vs[0], sigmas)

    def attach(
        self, weight: Tensor, scaled: Tensor, u: Tensor, v: Tensor, sigmas: Tensor
    ) -> Tensor:
        """What was computed of a weight, with a node of its own for its gradient."""
        matrix = known_scaled_weight(self.matrix(weight), scaled, u, v, sigmas, self.coefficient)
        return self.weight(matrix)


class UnitVector(nn.Module):
    """x / |x|, or x min(1, coefficient / |x|): the spectral norm of a vector is its length."""

    def __init__(self, eps: float, coefficient: float | None) -> None:
        super().__init__()
        self.eps, self.coefficient = eps, coefficient

    def forward(self, x: Tensor) -> Tensor:
        if self.coefficient is None:
            return F.normalize(x, dim=0, eps=self.eps)
        length = torch.linalg.vector_norm(x).clamp_min(self.eps)
        return x * (self.coefficient / length).clamp_max(1.0)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def _weight_of(module: nn.Module, name: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"{name} must have elements, got the shape {tuple(weight.shape)}")
    return weight


def _input_shape(module: nn.Module, input_shape: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if not isinstance(module, _CONVOLUTIONS) or isinstance(module, _TRANSPOSED):
        raise ValueError(
            f"kind: 'conv' is for Conv1d, Conv2d and Conv3d, got {type(module).__name__}"
        )
    if module.padding_mode != "zeros":
        raise ValueError(f"kind: 'conv' knows padding_mode 'zeros', got {module.padding_mode!r}")
    if input_shape is None:
        raise ValueError("input_shape: kind='conv' needs the spatial size of the inputs")
    n = len(module.kernel_size)
    shape = (input_shape,) * n if isinstance(input_shape, int) else tuple(input_shape)
    if len(shape) != n or any(size < 1 for size in shape):
        raise ValueError(f"input_shape: expected {n} sizes of 1 or more, got {input_shape}")
    return shape
