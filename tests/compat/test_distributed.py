"""Accelerated models under DistributedDataParallel: the gradients of the original."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hook

from tests.checks import randomize
from tests.compat.accelerated_models import strictly_accelerated

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hook}


# Layers of peers, each with the peer that it needs and how many of its parts are replaced.
PEERS = {"nflows coupling": ("nflows", 2), "normflows GlowBlock": ("normflows", 4)}


class Density(nn.Module):
    """Of a flow's layer, by the call that DistributedDataParallel sees."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        z, log_det = self.layer(x)
        return z.square().flatten(1).sum(1) + log_det


def _layer(name: str) -> nn.Module:
    if name == "nflows coupling":
        from nflows.nn.nets import ResidualNet
        from nflows.transforms import AffineCouplingTransform

        net = AffineCouplingTransform(
            torch.arange(32) % 2, lambda a, b: ResidualNet(a, b, hidden_features=8)
        )
        return nn.Sequential(nn.Flatten(), net)
    from normflows.flows import GlowBlock

    block = GlowBlock(2, 4)
    block(_images().float())  # its normalisation takes the first batch
    return block


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in PEERS:
        return randomize(Density(_layer(name)).double(), 0.1)
    norm = NORMS[name]
    layers = (norm(nn.Conv2d(2, 4, 3)), nn.Tanh(), nn.Flatten(), norm(nn.Linear(16, 3)))
    return nn.Sequential(*layers).double()


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the second step, so that u and v have moved, and what they have become."""
    for _ in range(2):
        model.zero_grad()
        model(x).square().mean().backward()
    return [*(p.grad for p in model.parameters()), *model.buffers()]


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=generator)


def _run(rank: int, port: int, path, names: list[str]) -> None:
    """Every other image, as one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found = {}
    for name in names:
        count = PEERS[name][1] if name in PEERS else 2
        wrapped = nn.parallel.DistributedDataParallel(strictly_accelerated(_model(name), count))
        found[name] = _gradients(wrapped, _images()[rank::2])
    torch.save(found, path)
    # The group waits for its threads, with the GIL held that they need: without a destructor.
    os._exit(0)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
@pytest.mark.parametrize("names", [list(NORMS), *([name] for name in PEERS)], ids=str)
def test_two_processes_have_the_originals_gradients(names: list[str], tmp_path) -> None:
    for name in names:
        if name in PEERS:
            pytest.importorskip(PEERS[name][0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [tmp_path / "first.pt", tmp_path / "second.pt"]
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, port, path, names))
        for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    for path in paths:
        found = torch.load(path)
        for name in names:
            expected = _gradients(_model(name), _images())
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-11)
