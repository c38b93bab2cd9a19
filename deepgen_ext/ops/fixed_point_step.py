"""One step of a fixed-point iteration, for each sample that still runs."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library


def fixed_point_step(
    x: Tensor,
    g_x: Tensor,
    y: Tensor,
    images: Tensor,
    residuals: Tensor,
    gram: Tensor,
    record: Tensor,
    state: Tensor,
    *,
    lipschitz: float,
    rounding: float,
) -> None:
    r"""Takes x of x + g(x) = y to the next iterate, in place, and bounds its error.

    Norms are 2-norms over a row. With p = y - g(x), r = p - x, L the larger of `lipschitz` and the
    measured expansion:

        |p - x*| <= bound = (L |r| + e) / (1 - L),    e = rounding (|x| + |y|).

    A row stops where bound <= max(tolerance, 2 e / (1 - L)), and x is p then. Else x becomes p
    (Picard, memory 0) or sum alpha_j p_j with sum alpha_j = 1 and |sum alpha_j r_j| least over the
    last `memory` pairs (Anderson 1965), unless |r| has grown since that was last done: then x goes
    back to the p before, and all older pairs are forgotten. They are forgotten too, and x becomes p,
    where a Picard step made |r| ten times smaller. Rows that have stopped are not touched.

    `nn.fixed_point_inverse` is the loop around it, and what you want to call.

    Args:
        x: (n, D), float32 or float64; written. All of these contiguous, g_x and y excepted.
        g_x, y: like x.
        images, residuals: (n, memory, D), the pairs (p_j, r_j); written. memory 0, or 2 to 12.
        gram: (n, memory, memory) float64, the products r_i'r_j; written.
        record: (n, 4) float64: tolerance, bound, |r|, and the largest |g(a) - g(b)| / |a - b|
            measured, rounding taken off. Start with the tolerances asked for, inf, inf, 0.
        state: (n, 5) int32: status (0 runs, 1 converged, 2 expands, 3 not finite), evaluations, a
            bit for each pair in use, the newest pair, whether x is a mixture. Start with 0.
        lipschitz: L < 1.
        rounding: by how much p is off, in units of |x| + |y|.

    No gradient: nn.fixed_point_inverse has it. Sums are in double and in a fixed order.

    Raises:
        ValueError, TypeError: tensors that do not fit one another.
    """
    library.fixed_point_step(x, g_x, y, images, residuals, gram, record, state, lipschitz, rounding)


@torch.library.register_fake("deepgen_ext::fixed_point_step")
def _(x, g_x, y, images, residuals, gram, record, state, lipschitz, rounding):
    return None
