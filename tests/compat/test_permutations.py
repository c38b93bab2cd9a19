"""Permutations of nflows and normflows: the same bits, forward and inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.compat.accelerated_models import accelerated_parts, close, strictly_accelerated


def nflows_permutation(kind: str, dim: int) -> nn.Module:
    peer = pytest.importorskip("nflows.transforms.permutations")
    torch.manual_seed(3)
    given = torch.randperm(5) if kind == "Permutation" else 5
    return getattr(peer, kind)(given, dim)


def all_results(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    results = [*model.forward(x), *model.inverse(x)]
    total = sum(
        (part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in results
    )
    return [*results, torch.autograd.grad(total, x)[0]]


@pytest.mark.parametrize("kind", ["Permutation", "RandomPermutation", "ReversePermutation"])
@pytest.mark.parametrize(("shape", "dim"), [((4, 5), 1), ((4, 5, 2, 3), 1), ((4, 2, 5), 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nflows(kind: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    model = nflows_permutation(kind, dim)
    fast, x = strictly_accelerated(model, 1), torch.randn(shape, dtype=dtype)
    close(all_results(fast, x), all_results(model, x), 0.0)
    for part in (model, fast):
        with pytest.raises(ValueError, match="must be of size 5"):
            part.inverse(torch.randn(4, 4, 4))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normflows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    nf = pytest.importorskip("normflows")
    model, other = nf.flows.Permute(5), nf.flows.Permute(5)
    fast, x = strictly_accelerated(model, 1), torch.randn(shape, dtype=dtype)
    close(all_results(fast, x), all_results(model, x), 0.0)
    for part in (model, fast):
        part.load_state_dict(other.state_dict())
    close(all_results(fast, x), all_results(model, x), 0.0)
    assert "two slices" in report(nf.flows.Permute(4, mode="swap"))


def test_what_is_no_permutation_stays_as_it_was() -> None:
    peer = pytest.importorskip("nflows.transforms.permutations")
    with pytest.warns(UserWarning, match="verification failed, the inverse is off"):
        left = accelerate(peer.Permutation(torch.tensor([0, 0, 1])))
    assert not accelerated_parts(left)
