"""One step of a Picard or Anderson iteration for x + g(x) = y, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE, BOUND, RESIDUAL, EXPANSION = range(4)  # of record
STATUS, EVALUATIONS, VALID, NEWEST, PROPOSED = range(5)  # of state
RUNNING, CONVERGED, EXPANDING, NOT_FINITE = range(4)
PLAIN_CONTRACTION = 0.1


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
    for i in range(len(x)):
        if state[i, STATUS] == RUNNING:
            row = (t[i] for t in (x, g_x, y, images, residuals, gram, record, state))
            _step(*row, lipschitz, rounding)


def _step(x, g_x, y, images, residuals, gram, record, state, lipschitz, rounding) -> None:
    memory, newest = len(images), int(state[NEWEST])
    p = y - g_x
    r = p - x
    norm = r.double().norm()
    e = rounding * (x.double().norm() + y.double().norm())
    finite = bool(norm.isfinite() and e.isfinite())
    proposed = bool(state[PROPOSED])
    rejected = proposed and not (finite and norm <= record[RESIDUAL])

    if finite and state[EVALUATIONS] > 0:  # a lower bound of Lip(g), of the last two points
        if proposed:
            last = images[newest].double()
            moved = (x - (last - residuals[newest])).norm()
            of_g = (p - last).norm()
        else:  # p_old - p_new = r_new where x went to p
            moved, of_g = record[RESIDUAL], norm
        ratio = (of_g - 2 * e) / moved
        if ratio > record[EXPANSION]:
            record[EXPANSION] = ratio
    factor = max(lipschitz, float(record[EXPANSION]))
    state[EVALUATIONS] += 1
    slot = (newest + 1) % memory if memory and state[VALID] else 0
    state[VALID] &= ~(1 << slot)

    if factor >= 1 or not (finite or rejected):
        state[STATUS] = EXPANDING if finite else NOT_FINITE
        record[BOUND] = torch.inf
        return
    if rejected:
        state[VALID], state[PROPOSED] = 1 << newest, 0
        x.copy_(images[newest])
        return
    if memory:
        images[slot], residuals[slot] = p, r
    x.copy_(p)
    plain = not proposed and norm <= PLAIN_CONTRACTION * record[RESIDUAL]
    circle = (
        not proposed
        and state[EVALUATIONS] > 1
        and norm >= record[RESIDUAL]
        and norm * (1 - factor) <= 2 * e
    )
    record[RESIDUAL] = norm
    record[BOUND] = (factor * norm + e) / (1 - factor)
    reachable = 2 * e / (1 - factor)
    if circle:
        reachable = max(reachable, record[BOUND])
    if record[BOUND] <= max(record[TOLERANCE], reachable):
        state[STATUS] = CONVERGED
        record[TOLERANCE] = max(record[TOLERANCE], reachable)
        return
    if not memory:
        return
    if plain:
        state[VALID] = 0
    alone = state[VALID] == 0
    state[VALID] |= 1 << slot
    state[NEWEST], state[PROPOSED] = slot, not alone
    used = [j for j in range(memory) if state[VALID] >> j & 1]
    for j in used:
        gram[slot, j] = gram[j, slot] = residuals[j].double() @ r.double()
    if not alone:
        others = [j for j in used if j != slot]
        weights = _weights((residuals[others] - r).double(), r.double()).to(x.dtype)
        x.copy_(weights @ images[others] + (1 - weights.sum()) * p)


def _weights(differences: Tensor, r: Tensor) -> Tensor:
    """gamma with |r + sum gamma_j d_j| least, a little regularised."""
    lengths = differences.norm(dim=1)
    used = lengths > 0
    units = differences[used] / lengths[used, None]
    square = units @ units.T
    square.diagonal().mul_(1 + 1e-10)
    gamma = torch.zeros_like(lengths)
    gamma[used] = torch.linalg.solve(square, -(units @ r)) / lengths[used]
    return gamma
