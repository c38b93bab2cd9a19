"""fixed_point_step: a step of Anderson's method, a convolutional block's inverse, and contraction near 1."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.fixed_point_peers import loosest, picard, solvers
from benchmarks.harness import Case, Curve, Entry, Results, Rival, Setting, copy_floors
from benchmarks.ops.fixed_point_mlp import inverse_case
from deepgen_ext import ops, reference
from deepgen_ext.nn import fixed_point_inverse

MEMORY = 5
VECTORS, IMAGES = (1024, 64), (64, 3072)
LIPSCHITZ, ROUNDING = 0.9, 1e-7


def eager(
    x: Tensor,
    g_x: Tensor,
    y: Tensor,
    images: Tensor,
    residuals: Tensor,
    gram: Tensor,
    record: Tensor,
    state: Tensor,
    slot: int,
) -> None:
    """The same step for a full history and samples that all run, with torch's batched kernels."""
    p = y - g_x
    r = p - x
    norm = r.norm(dim=1).double()
    e = ROUNDING * (x.norm(dim=1) + y.norm(dim=1)).double()
    record[:, 1] = (LIPSCHITZ * norm + e) / (1 - LIPSCHITZ)
    images[:, slot], residuals[:, slot] = p, r
    row = torch.bmm(residuals, r[:, :, None])[..., 0].double()
    gram[:, slot], gram[:, :, slot] = row, row
    others = [j for j in range(MEMORY) if j != slot]
    part = gram[:, others][:, :, others]
    cross = row[:, others]
    square = part - cross[:, :, None] - cross[:, None, :] + row[:, slot, None, None]
    square.diagonal(dim1=1, dim2=2).mul_(1 + 1e-10)
    gamma = torch.linalg.solve(square, row[:, slot, None] - cross)
    weights = torch.zeros_like(row)
    weights[:, others] = gamma
    weights[:, slot] = 1 - gamma.sum(1)
    mixed = torch.bmm(weights[:, None].to(x.dtype), images)[:, 0]
    x.copy_(torch.where((state[:, :1] == 0), mixed, x))


def _step(shape: tuple[int, int], setting: Setting) -> Case:
    n, features = (5, 7) if setting.tiny else shape
    x, y = setting.random(n, features, seed=0), setting.random(n, features, seed=1)
    images, residuals = (setting.random(n, MEMORY, features, seed=s) for s in (2, 3))
    gram = residuals.double() @ residuals.double().transpose(1, 2)
    # The residual before: a little larger than this step's, which contracts too little to be plain.
    before = 3 * features**0.5
    record = torch.tensor([[1e-9, torch.inf, before, 0.0]], dtype=torch.float64).repeat(n, 1)
    # A full history, of which slot 0 is written next.
    state = torch.tensor([[0, 9, 2**MEMORY - 1, MEMORY - 1, 0]], dtype=torch.int32).repeat(n, 1)
    given = [t.to(setting.device) for t in (x, y, images, residuals, gram, record, state)]

    def prepared(function, to=lambda t: t):
        x, y, images, residuals, gram, record, state = (to(t.clone()) for t in given)
        small = [(t, t.clone()) for t in (x, record, state)]

        def run() -> Results:
            for now, then in small:  # the next call takes the same step
                now.copy_(then)
            function(x, 0.5 * y, y, images, residuals, gram, record, state)
            return [x, record[:, 1]]

        return run

    options = {"lipschitz": LIPSCHITZ, "rounding": ROUNDING}
    compiled = setting.compiled(partial(eager, slot=0))
    item = torch.empty(0, dtype=setting.dtype).element_size()
    size = n * features * (2 * MEMORY + 6) * item

    def double(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    return Case(
        (n, features),
        prepared(partial(ops.fixed_point_step, **options)),
        prepared(partial(reference.fixed_point_step, **options), double),
        [
            Rival("eager", prepared(partial(eager, slot=0))),
            Rival("torch.compile", prepared(compiled)),
        ],
        copy_floors(size, setting),
        size,
        notes=[f"a step with {MEMORY} pairs of history, and the copies that make it the same step"],
    )


class ConvBlock(nn.Sequential):
    """3x3, 1x1, 3x3 with ELU, each of the operator norm 0.9 at this size: i-ResNet's block."""

    def __init__(self, channels: int, hidden: int, size: int) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ELU(),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )
        with torch.no_grad():
            for conv in list(self)[::2]:  # a slice would be a ConvBlock
                conv.bias.fill_(0.3)
                conv.weight.mul_(0.9 / _operator_norm(conv, size))


def _operator_norm(conv: nn.Conv2d, size: int) -> float:
    v = torch.randn(1, conv.in_channels, size, size)
    for _ in range(200):
        u = F.conv2d(v / v.norm(), conv.weight, padding=conv.padding)
        v = F.conv_transpose2d(u, conv.weight, padding=conv.padding)
    return u.norm().item()


def _conv(setting: Setting) -> Case:
    batch, channels, hidden, size = (2, 2, 4, 5) if setting.tiny else (32, 12, 64, 16)
    x = setting.random(batch, channels, size, size, seed=1)
    return inverse_case(ConvBlock(channels, hidden, size), 0.9**3, x, setting)


def _counts(setting: Setting) -> Curve:
    """Evaluations of g to a true error of 1e-6 in float64."""
    n, features = (2, 4) if setting.tiny else (100, 64)
    goal, generator = 1e-6, torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(features, features, generator=generator).double())[0]
    x = torch.randn(n, features, generator=generator).double()
    found = list(solvers())
    columns = ("g", "ours", "Picard", *(peer.name for peer in found))
    rows = []
    for sign in (1, -1):
        calls = 0

        def g(x: Tensor, sign: int = sign) -> Tensor:
            nonlocal calls
            calls += 1
            return sign * 0.98 * torch.tanh(x @ q.T) @ q

        y = x + g(x)

        def ours(g, y: Tensor, tol: float) -> Tensor:
            return fixed_point_inverse(g, y, lipschitz=0.98, tol=tol).x

        row = [f"{sign * 0.98:+} Q'tanh(Qx)"]
        for solve in (ours, picard, *found):
            if isinstance(solve, peers.NotInstalled):
                row.append("")
                continue
            solve = getattr(solve, "solve", solve)
            try:
                with torch.no_grad():
                    tol, error = (
                        (goal, 0) if solve is ours else loosest(partial(solve, g, y), x, goal)
                    )
                    calls = 0
                    solve(g, y, tol)
            except Exception as failed:  # a rival that breaks is an entry of the table
                row.append(type(failed).__name__)
                continue
            row.append(str(calls) if error <= goal else f"ends at {error:.0e}")
        rows.append(tuple(row))
    notes = [
        f"{n} samples, {features} features; ours: bound of {goal:.0e}; rivals: the loosest tolerance"
    ]
    return Curve(columns, rows, notes)


ENTRIES = [
    Entry("fixed_point_step (1024, 64)", partial(_step, VECTORS)),
    Entry("fixed_point_step (64, 3072)", partial(_step, IMAGES)),
    Entry("fixed_point_step conv block", _conv),
    Entry("fixed_point_step evaluations at 0.98", _counts),
]
