"""One step of a fixed-point iteration for all samples that still run, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE, BOUND, RESIDUAL, EXPANSION = range(4)  # columns of `record`
STATUS, EVALUATIONS, COUNT, NEWEST, PROPOSED = range(5)  # columns of `state`
REGULARISATION = 1e-10  # of the Gram matrix with unit diagonal


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
    eps: float,
) -> None:
    memory = images.shape[1]
    running = state[:, STATUS] == 0
    p = y - g_x
    r = p - x
    norm = r.double().norm(dim=1)
    size = x.double().norm(dim=1) + y.double().norm(dim=1)
    rounding = eps * size
    finite = norm.isfinite() & size.isfinite()
    proposed = state[:, PROPOSED] != 0
    rejected = proposed & ~(finite & (norm <= record[:, RESIDUAL]))
    rows = torch.arange(len(x), device=x.device)
    newest = state[:, NEWEST].long()

    # The largest measured |g(a) - g(b)| / |a - b|.
    moved = record[:, RESIDUAL]
    of_g = norm
    if memory:
        last = images[rows, newest]
        moved = torch.where(
            proposed, (x - (last - residuals[rows, newest])).double().norm(dim=1), moved
        )
        of_g = torch.where(proposed, (p - last).double().norm(dim=1), norm)
    ratio = (of_g - 2 * rounding) / moved
    ratio = torch.where(finite & (state[:, EVALUATIONS] > 0) & (moved > 0), ratio, 0.0)
    expansion = torch.maximum(record[:, EXPANSION], ratio)
    factor = expansion.clamp_min(lipschitz)

    bound = (factor * norm + rounding) / (1 - factor)
    reachable = 2 * rounding / (1 - factor)
    tolerance = torch.maximum(record[:, TOLERANCE], reachable)
    status = torch.where(expansion >= 1, 2, torch.where(bound <= tolerance, 1, 0))
    status = torch.where(finite, status, torch.where(rejected, 0, 3))
    status = torch.where(rejected & (status == 1), 0, status)

    record[running, EXPANSION] = expansion[running]
    state[running, EVALUATIONS] += 1
    state[running, STATUS] = status[running].to(state.dtype)
    accepted = running & ~rejected & finite & (status != 2)
    record[accepted, BOUND] = bound[accepted]
    record[accepted, RESIDUAL] = norm[accepted]
    done = running & (status == 1)
    record[done, TOLERANCE] = tolerance[done]
    lost = running & (status >= 2)
    record[lost, BOUND] = torch.inf

    again = running & rejected & (status == 0)
    if not memory:
        x[accepted] = p[accepted]
        return
    # A proposal that did not help: a Picard step from the newest iterate instead, the rest forgotten.
    x[again] = images[rows, newest][again]
    state[again, COUNT] = 1
    state[again, PROPOSED] = 0
    gram[again, 0, 0] = gram[rows, newest, newest][again]
    images[again, 0], residuals[again, 0] = (
        images[rows, newest][again],
        residuals[rows, newest][again],
    )
    state[again, NEWEST] = 0

    a = accepted.nonzero().flatten()
    if not len(a):
        return
    slot = torch.where(state[a, COUNT] == 0, 0, (state[a, NEWEST] + 1) % memory).long()
    images[a, slot], residuals[a, slot] = p[a], r[a]
    state[a, NEWEST] = slot.to(state.dtype)
    state[a, COUNT] = (state[a, COUNT] + 1).clamp_max(memory)
    filled = torch.arange(memory, device=x.device) < state[a, COUNT, None]
    row = torch.einsum("njd,nd->nj", residuals[a].double(), r[a].double())
    row = torch.where(filled, row, 0.0)
    gram[a, slot] = row
    gram[a, :, slot] = row

    weights = anderson_weights(gram[a], slot, filled)
    mixed = torch.einsum(
        "nj,njd->nd", weights.to(images.dtype), torch.where(filled[..., None], images[a], 0)
    )
    several = state[a, COUNT] > 1
    stop = status[a] == 1
    x[a] = torch.where((several & ~stop)[:, None], mixed, p[a])
    state[a, PROPOSED] = (several & ~stop).to(state.dtype)


def anderson_weights(gram: Tensor, newest: Tensor, filled: Tensor) -> Tensor:
    """alpha, sum 1, with |sum of alpha_j r_j| least: gram (n, m, m) of the r_j, 0 outside `filled`."""
    m = gram.shape[-1]
    column = gram.take_along_dim(newest[:, None, None], 2)[..., 0]
    corner = column.take_along_dim(newest[:, None], 1)
    others = filled & (torch.arange(m, device=gram.device) != newest[:, None])
    a = gram - column[:, :, None] - column[:, None, :] + corner[..., None]
    b = corner - column
    diagonal = a.diagonal(dim1=1, dim2=2)
    used = others & (diagonal > 0)
    scale = torch.where(used, diagonal, 1.0).rsqrt() * used
    a = a * scale[:, :, None] * scale[:, None, :]
    a = a + torch.diag_embed(torch.where(used, REGULARISATION, 1.0).to(a))
    factor, info = torch.linalg.cholesky_ex(a)
    solved = torch.cholesky_solve((scale * b)[..., None], factor)[..., 0] * scale
    solved = torch.where((info == 0)[:, None] & solved.isfinite().all(1, True), solved, 0.0)
    return solved.scatter_add(1, newest[:, None], 1 - solved.sum(1, True))
