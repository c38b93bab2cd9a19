"""Power iteration reads W once, solvers stop when they may, a reversible Glow keeps no layers."""

import math

import pytest
import torch
from torch import nn

from benchmarks import glow_memory
from deepgen_ext.nn import fixed_point_inverse
from tests.counts import counted
from tests.emulation.build import EmulationUnavailable


@pytest.fixture(autouse=True, scope="module")
def _built():
    try:
        counted.library()
    except EmulationUnavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(("rows", "columns"), [(256, 512), (97, 1031), (16, 2048)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_power_iteration_fetches_each_weight_once_a_step(rows, columns, iterations, scaled):
    """W v and W'u of a step by one fetch of W, into a cache that holds a tenth of it; W / sigma by
    one more."""
    work = counted.power_iteration(rows, columns, iterations, scaled)
    fetches = max(iterations, 1) + scaled
    assert fetches <= work.weights_fetched / work.visible <= 1.02 * fetches


@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_fused_solver_evaluates_as_often_as_it_says(memory, layers):
    work = counted.fixed_point_mlp(48, layers, memory)
    assert work.evaluations >= 2
    assert work.weights_read == work.evaluations * work.visible


@pytest.mark.parametrize("lipschitz", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("method", ["auto", "picard", "anderson"])
def test_no_solver_takes_more_evaluations_than_theory(method, lipschitz):
    """|x_k - x| <= L^k / (1 - L) |x_1 - x_0|, whatever g: so many steps of plain iteration do."""

    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            q, _ = torch.linalg.qr(
                torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).double()
            )
            self.q, self.calls = lipschitz * q, 0

        def forward(self, x):
            self.calls += 1
            return x @ self.q.T

    g, tol = Rotated(), 1e-6
    y = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = (y @ g.q.T).norm(dim=1).max().item()
    steps = math.ceil(math.log(tol * (1 - lipschitz) / first) / math.log(lipschitz))
    with torch.no_grad():
        result = fixed_point_inverse(
            g, y, lipschitz=lipschitz, tol=tol, method=method, max_iterations=2000
        )
    assert result.converged.all()
    assert g.calls <= steps + 2


def test_memory_of_a_reversible_glow_is_flat():
    """What autograd keeps at once: the same for two steps and for eight."""
    stored = [glow_memory.measure_memory("stored", depth, True)[0] for depth in (2, 8)]
    rebuilt = [glow_memory.measure_memory("reversible", depth, True)[0] for depth in (2, 8)]
    assert stored[1] > 3 * stored[0]
    assert rebuilt[1] < 1.5 * rebuilt[0]
