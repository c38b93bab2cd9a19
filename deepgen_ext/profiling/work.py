"""What a call has to move and to compute at least, from the shapes of its tensors.

Bytes are those of the inputs, each distinct element once, of the outputs, and of what is written in
place once more. FORMULAS holds the ops of which that is not true. Operations: a multiply-add is two,
an elementary function one; of ops without products they are nominal, counted on the op's formula.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deepgen_ext._extension import _C

Tensor = _C.TensorFacts


@dataclass(frozen=True)
class Signature:
    """One way in which an op was called.

    Arguments by name: tensors as `TensorFacts` (dtype, device, bytes, shape, and the numbers of a
    vector of integers on the CPU), all else as it is. `choices` are pairs (what was chosen, why).
    """

    op: str
    arguments: dict[str, Any]
    written: tuple[str, ...]
    results: list[Any]
    choices: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Of the op, without what says that this is its gradient."""
        return self.op.removesuffix("_backward").removesuffix("_adjoint")

    @property
    def direction(self) -> str:
        """ "forward", "inverse", "backward" or "inverse backward"."""
        backward = self.op != self.name
        inverse = self.arguments.get("inverse", False) or self.name == "autoregressive_inverse"
        if not inverse:
            return "backward" if backward else "forward"
        return "inverse backward" if backward else "inverse"

    @property
    def device(self) -> str:
        devices = [tensor.device for tensor in _tensors([*self.arguments.values()])]
        return next((device for device in devices if device != "cpu"), "cpu")


@dataclass(frozen=True)
class Work:
    """The least that a call reads and writes, and what it computes; None where no shape says it."""

    bytes: int
    operations: int | None


def work_of(call: Signature) -> Work:
    moved = sum(tensor.bytes for tensor in _tensors([*call.arguments.values(), *call.results]))
    moved += sum(t.bytes for name in call.written for t in _tensors([call.arguments[name]]))
    bytes_beyond, operations = FORMULAS[call.op](call)
    return Work(moved + bytes_beyond, operations)


Formula = Callable[[Signature], tuple[int, int | None]]


def _tensors(values: list[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _count(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


def _item(tensor: Tensor) -> int:
    return {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "BFloat16": 2, "Half": 2}[tensor.dtype]


def _each(argument: str, operations: int) -> Formula:
    """So many operations an element of the argument; the bytes of inputs and outputs."""
    return lambda call: (0, operations * _count(call.arguments[argument]))


def _spline(of_a_bin: int, of_an_element: int) -> Formula:
    def formula(call: Signature) -> tuple[int, int]:
        bins = call.arguments["widths"].shape[-1]
        return 0, _count(call.arguments["x"]) * (of_a_bin * bins + of_an_element)

    return formula


def _chain(of_a_feature: int, of_a_step: int) -> Formula:
    def formula(call: Signature) -> tuple[int, int]:
        n, features = call.arguments["z"].shape
        steps = call.arguments["parameters"].shape[0]
        return 0, n * steps * (of_a_feature * features + of_a_step)

    return formula


def _products(call: Signature, used: int, positions: int) -> tuple[int, int]:
    """Of `used` weights with what stands at each position, forward or backward.

    Masked weights are not read, though their gradient is written, as zeros. A gradient that is not
    wanted reads nothing.
    """
    x, weight = call.arguments["x"], call.arguments["weight"]
    of_x, of_weight, _ = call.arguments.get("wanted", (True, False, False))
    forward = "wanted" not in call.arguments
    beyond = (used if of_x else 0) * _item(weight) - weight.bytes
    if not (forward or of_weight):
        beyond -= x.bytes
    return beyond, 2 * positions * used * (of_x + of_weight)


def _masked_conv2d(call: Signature) -> tuple[int, int]:
    batch, _, height, width = call.arguments["x"].shape
    used = _seen_taps(call.arguments["weight"].shape, call.arguments)
    return _products(call, used, batch * height * width)


def _glow_conv_net(call: Signature) -> tuple[int, int]:
    """Of a gradient, the output layer's and the hidden layer's products by their input are always made.

    x is read for the gradient of the weights alone.
    """
    x = call.arguments["x"]
    hidden, inputs, _, _ = call.arguments["input_weight"].shape
    first, second, last = (
        9 * inputs * hidden,
        hidden**2,
        9 * hidden * call.arguments["log_scale"].shape[0],
    )
    positions = x.shape[0] * x.shape[2] * x.shape[3]
    if "wanted" not in call.arguments:
        return 0, 2 * positions * (first + second + last)
    of_x, of_weights, _ = call.arguments["wanted"]
    products = last + second + first * of_x + (first + second + last) * of_weights
    return 0 if of_weights else -x.bytes, 2 * positions * products


def _seen_taps(shape: list[int], options: dict[str, Any]) -> int:
    outputs, inputs, height, width = shape
    groups = options["groups_in_order"]
    before = (height // 2) * width + width // 2
    own = groups + 1 if options["mask_type"] == "B" else groups - 1  # of 2: half of the squares
    return outputs * inputs * before + outputs * inputs * own // (2 * groups)


def _block_triangular_linear(call: Signature) -> tuple[int, int]:
    used = sum(call.arguments["visible"].numbers)
    return _products(call, used, call.arguments["x"].shape[0])


def _autoregressive_inverse(call: Signature) -> tuple[int, int]:
    """The weights that the degrees leave over, once; the gradient multiplies by them both ways."""
    x = call.arguments["z"]
    weights = call.arguments["weights"]
    dimensions = x.shape[1]
    order = list(range(dimensions))
    parameters = weights[-1].shape[0] // dimensions
    degrees = [d.numbers for d in call.arguments["degrees"]]
    below = [[i + 1 for i in order], *degrees]
    above = [*degrees, [i for i in order for _ in range(parameters)]]
    used = sum(bisect_right(b, d) for a, b in zip(above, below, strict=True) for d in a)
    unused = sum(map(_count, weights)) - used
    passes = 2 if call.op.endswith("_adjoint") else 1
    return -unused * _item(x), 2 * x.shape[0] * used * passes


def _power_iteration(call: Signature) -> tuple[int, int]:
    """Each step reads W once; so does the scaling, which cannot begin before the norm is known."""
    weights = call.arguments["weights"]
    steps = call.arguments["n_iterations"]
    elements, size = sum(map(_count, weights)), sum(weight.bytes for weight in weights)
    scales = call.op == "spectral_normalize"
    reads = max(steps, 1) + scales
    return (reads - 1) * size, elements * (4 * steps if steps else 2) + elements * scales


def _spectral_normalize_backward(call: Signature) -> tuple[int, int]:
    """<G, W> before any element of f G - f <G, W> / sigma u v' is known: G is read twice."""
    grads = call.arguments["grads"]
    return sum(grad.bytes for grad in grads), 6 * sum(map(_count, grads))


def _ancestral_sample(call: Signature) -> tuple[int, int]:
    """Of the rows that are drawn; levels are read only where they are known.

    Every weight multiplies once at every pixel, those counted that meet the zeros beyond a border.
    """
    given = call.arguments
    n, _, height, width = given["uniforms"].shape
    share = (given["last_row"] - given["first_row"]) / height
    whole = [given["uniforms"], given["known"], given["conditions"], given["caches"]]
    of_rows = sum(tensor.bytes for tensor in _tensors(whole)) + given["caches"].bytes
    of_levels = given["levels"].bytes
    beyond = round((share - 1) * (of_rows + of_levels)) - of_levels
    return beyond, round(2 * _count(given["weights"]) * n * height * width * share)


def _fixed_point_step(call: Signature) -> tuple[int, int]:
    """Of the pairs (p_j, r_j) one is written and the rest are read."""
    x, images, residuals = (call.arguments[name] for name in ("x", "images", "residuals"))
    memory = images.shape[1]
    one = x.bytes if memory else 0
    return 2 * one - images.bytes - residuals.bytes, _count(x) * (4 * memory + 10)


FORMULAS: dict[str, Formula] = {
    # exp or another map, its log, product, sum, and the sum of log s; then twice the products.
    "affine_coupling": _each("x", 5),
    "affine_coupling_backward": _each("x", 7),
    "half_coupling": _each("moved", 5),
    "half_coupling_backward": _each("moved", 7),
    # Exponential, log1p or quotient, product, two differences, sum.
    "bernoulli_log_prob": _each("logits", 6),
    "bernoulli_log_prob_backward": _each("logits", 6),
    "channel_affine": _each("x", 2),
    "channel_affine_backward": _each("x", 5),
    # Widths and heights: largest, difference, exponential, sum, edge; then which bin, 40 in it.
    "rational_quadratic_spline": _spline(12, 40),
    "rational_quadratic_spline_backward": _spline(20, 100),
    "planar_chain": _chain(4, 8),
    "planar_chain_backward": _chain(10, 20),
    "radial_chain": _chain(5, 12),
    "radial_chain_backward": _chain(14, 30),
    # Largest, difference, exponential, sum, running sum.
    "categorical_draw": _each("logits", 5),
    # Two sigmoids, their difference and logarithm, over three parameters; softmax of the weights.
    "discretized_logistic_mixture": _each("parameters", 6),
    "discretized_logistic_mixture_backward": _each("parameters", 12),
    "discretized_logistic_mixture_draw": _each("parameters", 4),
    "masked_conv2d": _masked_conv2d,
    "masked_conv2d_backward": _masked_conv2d,
    "glow_conv_net": _glow_conv_net,
    "glow_conv_net_keeping": _glow_conv_net,
    "glow_conv_net_backward": _glow_conv_net,
    "block_triangular_linear": _block_triangular_linear,
    "block_triangular_linear_backward": _block_triangular_linear,
    "autoregressive_inverse": _autoregressive_inverse,
    "autoregressive_inverse_adjoint": _autoregressive_inverse,
    "power_iteration": _power_iteration,
    "spectral_normalize": _power_iteration,
    "spectral_normalize_backward": _spectral_normalize_backward,
    "ancestral_sample": _ancestral_sample,
    "fixed_point_step": _fixed_point_step,
    # How many evaluations it takes is in its result alone.
    "fixed_point_mlp": lambda call: (0, None),
}
