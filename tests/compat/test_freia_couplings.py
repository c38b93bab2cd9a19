"""FrEIA's coupling blocks, alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate
from tests.checks import randomize
from tests.compat.accelerated_models import (
    check_accelerated,
    close,
    strictly_accelerated,
)
from tests.compat.freia_blocks import SHAPES, D, block, both_ways

COUPLINGS = (
    "GLOWCouplingBlock",
    "RNVPCouplingBlock",
    "AffineCouplingOneSided",
    "ConditionalAffineTransform",
)


@pytest.fixture(autouse=True)
def generator_of_numpy() -> None:
    """FrEIA draws its permutations from it."""
    pytest.importorskip("FrEIA")
    import numpy

    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", ["ATAN", "TANH", "SIGMOID", torch.erf])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings(name: str, shape: str, activation: Any) -> None:
    conditions = (True,) if name == "ConditionalAffineTransform" else (False, True)
    for condition in conditions:
        module = block(name, SHAPES[shape], condition, clamp=1.3, clamp_activation=activation)
        is_function = activation is torch.erf or activation == "TANH"
        # FrEIA's blocks with a lambda cannot be pickled, before or after.
        check_accelerated(module, both_ways, 1, pickles=is_function)


@pytest.mark.parametrize("split", [1, 4, 0.2])
def test_splits(split: float) -> None:
    for name in COUPLINGS[:3]:
        module = block(name, (D,), True, split_len=split)
        check_accelerated(module, both_ways, 1, pickles=False)


def test_an_activation_is_known_by_what_it_computes() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size = nn.Parameter(torch.ones(()))

        def forward(self, u: Tensor) -> Tensor:
            return self.size * torch.atan(u)

    weight = torch.ones((), requires_grad=True)
    for function, slope in (
        (lambda u: 0.25 * u.atan(), 0.25),
        (lambda u: 0.636 * torch.atan(1.01 * u), None),
        (lambda u: -torch.atan(u), None),
        (lambda u: weight * torch.atan(u), None),
        (Learned(), None),
        (Learned().requires_grad_(False), None),  # until it is set free again
        (lambda u: u.cuda.nothing, None),
    ):
        module = block("GLOWCouplingBlock", (D,), clamp_activation=function)
        fast = accelerate(module, verify=False)
        assert fast._slope == (None if slope is None else pytest.approx(slope, rel=1e-12))
        if slope or isinstance(function, Learned):
            check_accelerated(module, both_ways, 1, pickles=False)


def test_a_clamp_that_is_changed_counts() -> None:
    model = block("GLOWCouplingBlock", (D,))
    fast = strictly_accelerated(randomize(model), 1)
    for clamp in (0.5, 0.0):
        model.clamp = fast.clamp = clamp
        with torch.no_grad():
            close(both_ways(fast), both_ways(model), 1e-5)
