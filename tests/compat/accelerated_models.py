"""What must hold of every accelerated model, written once."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, restore
from deepgen_ext.compat.accelerated import Accelerated, named_parts
from tests.checks import randomize

Run = Callable[[nn.Module], Sequence[Tensor]]


def accelerated_parts(model: nn.Module) -> list[Any]:
    return [part for _, part in named_parts(model) if isinstance(part, Accelerated)]


def strictly_accelerated(model: nn.Module, count: int, **options: bool) -> nn.Module:
    """accelerate without a warning, after which `count` parts are accelerated."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = accelerate(model, **options)
    assert len(accelerated_parts(fast)) == count
    return fast


def check_accelerated(
    model: nn.Module,
    run: Run,
    count: int,
    *,
    std: float = 0.3,
    tolerance: float = 1e-9,
    pickles: bool = True,
) -> nn.Module:
    """`run` gives the same results before and after, draws its noise by itself, and all that users do
    with a model goes on working; returns the accelerated model.
    """
    model = randomize(model.double(), std)
    text, state = repr(model), copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    fast = strictly_accelerated(model, count)
    assert torch.equal(torch.get_rng_state(), generator), "the caller's generator moved"
    assert not accelerated_parts(model), "the caller's model was changed"
    _same(fast.state_dict(), state)
    assert repr(fast) == text
    assert [part.training for part in fast.modules()] == [p.training for p in model.modules()]
    assert all(isinstance(part, part.replaces) for part in accelerated_parts(fast))

    expected = _with_gradients(model, run)
    close(_with_gradients(fast, run), expected, tolerance)
    _same(fast.state_dict(), model.state_dict(), tolerance)
    with torch.no_grad():
        close(run(fast), run(model), tolerance)

    # An optimiser's step reaches what is kept between calls.
    for twin in (model, fast):
        torch.optim.SGD(twin.parameters(), lr=1e-2).step()
    with torch.no_grad():
        close(run(fast), run(model), tolerance)
        twins = [copy.deepcopy(fast)]
        if pickles:
            twins.append(pickle.loads(pickle.dumps(fast)))
        for twin in twins:
            assert len(accelerated_parts(twin)) == count
            close(run(twin), run(fast), 0.0)
            twin.load_state_dict(randomize(copy.deepcopy(model), seed=3).state_dict())
            model_again = restore(copy.deepcopy(twin))
            assert not accelerated_parts(model_again)
            assert type(model_again) is type(model)
            close(run(twin), run(model_again), tolerance)
            model_again.load_state_dict(twin.state_dict())
    single = copy.deepcopy(fast).float()
    assert all(result.dtype != torch.float64 for result in run(single))
    return fast


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _with_gradients(model: nn.Module, run: Run) -> list[Tensor]:
    model.zero_grad()
    results = run(model)
    total = sum(
        (result * torch.sin(torch.arange(result.numel(), dtype=result.dtype)).view_as(result)).sum()
        for result in results
    )
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    return [*results, *(torch.zeros(()) if g is None else g for g in gradients)]


def _same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert list(found) == list(expected)
    close(list(found.values()), list(expected.values()), tolerance)
