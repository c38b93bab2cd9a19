"""Accelerated models under torch.compile: the numbers of the model uncompiled, in one graph wherever
the peer itself compiles to one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.checks import randomize
from tests.compat.accelerated_models import close, strictly_accelerated


def nflows_coupling(mask: list[int]) -> nn.Module:
    peer = pytest.importorskip("nflows.transforms.coupling")
    from nflows.nn.nets import ResidualNet

    return peer.AffineCouplingTransform(mask, lambda a, b: ResidualNet(a, b, hidden_features=8))


def glow_block() -> nn.Module:
    nf = pytest.importorskip("normflows")
    torch.manual_seed(1)
    block = nf.flows.GlowBlock(4, 6)
    block(3 * torch.randn(5, 4, 3, 4))  # initialises the normalisation
    return block


def normflows_coupling() -> nn.Module:
    nf = pytest.importorskip("normflows")
    return nf.flows.AffineCouplingBlock(nf.nets.MLP([2, 7, 4]))


def convolution(use_lu: bool) -> nn.Module:
    nf = pytest.importorskip("normflows")
    torch.manual_seed(1)
    return nf.flows.Invertible1x1Conv(4, use_lu)


def residual() -> nn.Module:
    nf = pytest.importorskip("normflows")
    net = nf.nets.LipschitzMLP([4, 6, 4], 0.9, init_zeros=False)
    return nf.flows.Residual(net, reverse=False).eval()


def both_ways(model: nn.Module, x: Tensor) -> list[Tensor]:
    z, log_det = model.forward(x)
    return [z, log_det, *model.inverse(x)]


def graph_breaks(model: nn.Module, run: Callable, x: Tensor) -> int:
    torch._dynamo.reset()
    return torch._dynamo.explain(lambda given: run(model, given))(x).graph_break_count


def compiled(model: nn.Module, run: Callable, x: Tensor, fullgraph: bool) -> list[Tensor]:
    torch._dynamo.reset()
    whole = torch.compile(lambda given: run(model, given), fullgraph=fullgraph, backend="aot_eager")
    return whole(x)


VECTORS, PICTURES = (6, 4), (16, 4, 8, 8)
MODELS = {
    "nflows halves": (lambda: nflows_coupling([0, 0, 1, 1]), 2, VECTORS),
    "nflows alternate": (lambda: nflows_coupling([0, 1, 0, 1]), 2, VECTORS),
    "nflows scattered": (lambda: nflows_coupling([0, 1, 1, 0]), 2, VECTORS),
    "normflows coupling": (normflows_coupling, 2, VECTORS),
    "normflows GlowBlock": (glow_block, 4, PICTURES),
    "normflows Invertible1x1Conv with LU": (lambda: convolution(True), 1, PICTURES),
    "normflows Invertible1x1Conv": (lambda: convolution(False), 1, PICTURES),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers(name: str) -> None:
    make, count, shape = MODELS[name]
    model = randomize(make(), 0.05)
    fast = strictly_accelerated(model, count)
    x = torch.randn(shape)
    breaks = graph_breaks(model, both_ways, x)
    assert (breaks > 0) == (name == "normflows GlowBlock")  # which asks for its first batch
    assert graph_breaks(fast, both_ways, x) <= breaks
    close(compiled(fast, both_ways, x, fullgraph=breaks == 0), both_ways(model, x), 1e-4)


def test_gradients_of_a_compiled_coupling() -> None:
    model = randomize(nflows_coupling([0, 1, 0, 1]))
    fast, x = strictly_accelerated(model, 2), torch.randn(VECTORS)
    gradients = []
    for net, run in ((model, both_ways), (fast, None)):
        results = run(net, x) if run else compiled(net, both_ways, x, fullgraph=True)
        sum(result.square().sum() for result in results).backward()
        gradients.append([p.grad for p in net.parameters()])
    close(gradients[1], gradients[0], 1e-4)


def test_residual_flow() -> None:
    """Neither compiles to one graph: the inverse asks whether it has arrived. Dynamo draws NumPy's
    numbers of terms by itself, so that log-dets, which are estimates, are others in each run.
    """
    model = residual()
    fast, x = strictly_accelerated(model, 1), torch.randn(VECTORS)
    z, log_det, back, log_det_back = compiled(fast, both_ways, x, fullgraph=False)
    expected = both_ways(model, x)
    close([z, back], [expected[0], expected[2]], 1e-5)
    assert log_det.isfinite().all()
    assert log_det_back.isfinite().all()


def test_zuko() -> None:
    """Not in one graph: zuko makes a distribution object in each call."""
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(2)
    model = zuko.flows.MAF(5, transforms=2, hidden_features=(8, 8))
    fast, x = strictly_accelerated(model, 2), torch.randn(6, 5)

    def log_prob(flow: nn.Module, given: Tensor) -> list[Tensor]:
        return [flow().log_prob(given)]

    def back(flow: nn.Module, given: Tensor) -> list[Tensor]:
        """Sampling, but for the draw."""
        return [flow().transform.inv(given)]

    for run in (log_prob, back):
        with torch.no_grad():
            close(compiled(fast, run, x, fullgraph=False), run(model, x), 1e-4)
