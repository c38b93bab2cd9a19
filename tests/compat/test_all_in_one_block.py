"""FrEIA's AllInOneBlock, alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from deepgen_ext import restore
from tests.compat.accelerated_models import (
    check_accelerated,
    close,
    strictly_accelerated,
)
from tests.compat.freia_blocks import SHAPES, D, block, both_ways, randomize_learned


@pytest.fixture(autouse=True)
def generator_of_numpy() -> None:
    """FrEIA draws its permutations from it."""
    pytest.importorskip("FrEIA")
    import numpy

    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"permute_soft": True},
        {"learned_householder_permutation": 3},
        {"learned_householder_permutation": 10},
        {"reverse_permutation": True},
        {"permute_soft": True, "reverse_permutation": True},
        {"learned_householder_permutation": 1, "reverse_permutation": True},
        {"global_affine_type": "SIGMOID", "global_affine_init": 1.7},
        {"global_affine_type": "EXP", "global_affine_init": 0.6, "affine_clamping": 0.7},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_all_in_one(options: dict[str, Any], shape: str) -> None:
    for condition in (False, True):
        module = block("AllInOneBlock", SHAPES[shape], condition, **options)
        for key in ("w_perm", "w_perm_inv", "w_0"):  # randomize would move what is not learned
            fixed = getattr(module, key, None)
            if isinstance(fixed, nn.Parameter):
                assert not fixed.requires_grad
        check_all_in_one(module)


def check_all_in_one(module: nn.Module) -> None:
    """The permutation is a parameter, which check_accelerated's randomize moves: it may be any matrix,
    and a hard one is looked at besides.
    """
    hard = randomize_learned(copy.deepcopy(module).double())
    fast = strictly_accelerated(hard, 1)
    for grad in (True, False, False):
        with torch.set_grad_enabled(grad):
            close(both_ways(fast), both_ways(hard), 1e-9)
    total = [sum(r.sin().sum() for r in both_ways(part)) for part in (fast, hard)]
    learned = [[p for p in part.parameters() if p.requires_grad] for part in (fast, hard)]
    gradients = [torch.autograd.grad(t, p) for t, p in zip(total, learned, strict=True)]
    close(*gradients, 1e-9)
    check_accelerated(module, both_ways, 1, pickles=False)


def test_a_checkpoint_brings_its_own_permutation() -> None:
    model = block("AllInOneBlock", (D,))
    other = block("AllInOneBlock", (D,))
    assert not torch.equal(model.w_perm, other.w_perm)
    fast = strictly_accelerated(model, 1)
    with torch.no_grad():
        both_ways(fast)
        fast.load_state_dict(other.state_dict())
        close(both_ways(fast), both_ways(other), 1e-5)
        fast.w_perm.copy_(model.w_perm)
        fast.w_perm_inv.copy_(model.w_perm_inv)
        fast.global_offset += 1.0
        other.load_state_dict(fast.state_dict())
        close(both_ways(fast), both_ways(other), 1e-5)


def test_hard_permutations_are_indices_and_others_matrices() -> None:
    for options, is_hard in (({}, True), ({"permute_soft": True}, False)):
        fast = strictly_accelerated(block("AllInOneBlock", (D,), **options), 1)
        assert (fast._hard_permutation() is not None) == is_hard


def test_copies_of_a_trained_learned_permutation_are_made() -> None:
    """FrEIA leaves a tensor with a graph in w_perm, which no copy can take."""
    model = block("AllInOneBlock", (D,), learned_householder_permutation=2)
    model((torch.randn(3, D),))
    assert model.w_perm.grad_fn is not None
    fast = strictly_accelerated(model, 1, inplace=True)
    expected = fast((torch.ones(3, D),))
    again = copy.deepcopy(fast)
    close(again((torch.ones(3, D),))[0], expected[0], 0.0)
    assert restore(again).w_perm.shape == (D, D)
