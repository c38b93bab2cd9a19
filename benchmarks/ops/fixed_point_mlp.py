"""fixed_point_mlp: the inverse of x + g(x), counted in evaluations of g."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.fixed_point_peers import loosest, picard, solvers, true_error
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.nn import fixed_point_inverse

GOAL = 1e-5  # of every sample's true error, in the 2-norm
FEATURES, HIDDEN, BATCH = 64, (128, 128, 128), 1024
TINY = 6, (8, 8), 5


def hard_mlp(features: int, hidden: tuple[int, ...], sign: int) -> tuple[nn.Sequential, float]:
    """An MLP that contracts by about 0.55 everywhere, and its Lipschitz constant: random weights that are
    divided by their norms contract by 0.07, as hardly any direction is the longest of each.

    Weights are 0.9 times a random orthogonal matrix near the identity. With sign 1 the eigenvalues of
    the Jacobian lie around 0.5, with -1 around -0.5, towards where x + g(x) stops being invertible.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise((features, *hidden, features)):
        layer = nn.Linear(a, b)
        u, _, v = torch.linalg.svd(
            torch.eye(b, a) + 0.5 * torch.randn(b, a) / max(a, b) ** 0.5, full_matrices=False
        )
        layer.weight.data = 0.9 * (u @ v)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ELU()]
    with torch.no_grad():
        layers[-2].weight.mul_(sign)
    return nn.Sequential(*layers[:-1]), 0.9 ** (len(hidden) + 1)


def inverse_case(g: nn.Module, lipschitz: float, x: Tensor, setting: Setting) -> Case:
    """Ours and the rivals to a true error of GOAL, each with the loosest tolerance that gives it; the
    floor is one evaluation of g.
    """
    g = g.to(setting.device, setting.dtype).requires_grad_(False)
    double = copy.deepcopy(g).double()
    y = (x.double() + double(x.double())).to(setting.dtype)
    exact = fixed_point_inverse(double, y.double(), lipschitz=lipschitz, tol=1e-12).x

    @torch.no_grad()
    def ours(tol: float) -> Tensor:
        return fixed_point_inverse(g, y, lipschitz=lipschitz, tol=tol).x

    @torch.no_grad()
    def certified() -> Results:
        return [ours(GOAL)]

    tol, error = loosest(ours, exact, GOAL)
    found = fixed_point_inverse(g, y, lipschitz=lipschitz, tol=tol)
    sure = fixed_point_inverse(g, y, lipschitz=lipschitz, tol=GOAL)
    ratio = found.expansion.median().item()
    notes = [
        f"evaluation: of g, for all samples; it contracts by {ratio:.2f}, and is said to by {lipschitz:.2f}",
        f"to a true error of {GOAL:.0e}; ours: {found.method}, {_mean(found)} evaluations, error "
        f"{error:.0e}",
        f"ours, bound: with a bound of {sure.error_bound.max():.0e}, {_mean(sure)} evaluations, error "
        f"{true_error(sure.x, exact):.0e}",
    ]
    rivals = [Rival("ours, bound", certified), _rival("eager Picard", picard, g, y, exact, notes)]
    for peer in solvers():
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
        else:
            rivals.append(_rival(peer.name, peer.solve, g, y, exact, notes))
    return Case(
        tuple(y.shape),
        lambda: [ours(tol)],
        lambda: [exact],
        rivals,
        [Rival("evaluation", lambda: [g(y)])],
        tolerance=GOAL / exact.abs().max().item(),
        notes=notes,
    )


def _mean(result) -> str:
    return f"{result.iterations.double().mean():.1f}"


def _rival(name: str, solve, g: nn.Module, y: Tensor, exact: Tensor, notes: list[str]) -> Rival:
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return g(x)

    with torch.no_grad():
        tol, error = loosest(partial(solve, counted, y), exact, GOAL)
        if not error <= GOAL:
            return Rival(name, missing=f"ends at a true error of {error:.0e}")
        calls = 0
        solve(counted, y, tol)
    notes.append(f"{name}: {calls} evaluations, error {error:.0e}")

    @torch.no_grad()
    def run() -> Results:
        return [solve(g, y, tol)]

    return Rival(name, run)


def _case(sign: int, setting: Setting) -> Case:
    features, hidden, batch = TINY if setting.tiny else (FEATURES, HIDDEN, BATCH)
    g, lipschitz = hard_mlp(features, hidden, sign)
    return inverse_case(g, lipschitz, setting.random(batch, features, seed=1), setting)


ENTRIES = [
    Entry("fixed_point_mlp hard MLP 64-128x3", partial(_case, 1)),
    Entry("fixed_point_mlp hard MLP 64-128x3, eigenvalues below 0", partial(_case, -1)),
]
