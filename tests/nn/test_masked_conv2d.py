"""MaskedConv2d: nn.Conv2d with a mask."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from deepgen_ext.nn import MaskedConv2d
from deepgen_ext.reference.masked_conv2d import causal_mask

VARIANTS = [
    {"mask_type": "A"},
    {"mask_type": "B", "dilation": 2},
    {"mask_type": "A", "groups_in_order": 3},
    {"mask_type": "B", "groups_in_order": 3, "bias": False},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, (3, 5), (1, 5)], ids=str)
def test_is_a_conv2d_with_its_mask(options, kernel_size):
    layer = MaskedConv2d(6, 9, kernel_size, **options)
    dense = nn.Conv2d(
        6, 9, kernel_size, padding="same", dilation=layer.dilation, bias=options.get("bias", True)
    )
    assert list(layer.state_dict()) == list(dense.state_dict())
    dense.load_state_dict(layer.state_dict())
    assert dense.kernel_size == layer.kernel_size
    assert torch.equal(
        layer.mask(), causal_mask(layer.weight, layer.mask_type, layer.groups_in_order)
    )
    with torch.no_grad():
        dense.weight.mul_(layer.mask())
    x = torch.randn(2, 6, 7, 5)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_copies(options):
    layer = MaskedConv2d(3, 6, 3, **options)
    x = torch.randn(2, 3, 4, 4)
    other = MaskedConv2d(3, 6, 3, **options)
    other.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        assert torch.equal(twin(x), layer(x))
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_group_starts_with_the_same_variance(mask_type, groups):
    """1/3 of the input's, as nn.Conv2d's: the mask takes taps from a group, not variance."""
    torch.manual_seed(0)
    layer = MaskedConv2d(48, 384, (1, 3), mask_type=mask_type, groups_in_order=groups, bias=False)
    y = layer(torch.randn(32, 48, 16, 16))[..., 1:].unflatten(1, (groups, -1))
    variances = y.square().mean((0, 2, 3, 4))
    torch.testing.assert_close(variances, torch.full((groups,), 1 / 3), rtol=0.05, atol=0)


def test_causal_network():
    """Mask A, then B: an output depends on all earlier pixels but the blind spot of a 3x3 kernel."""
    torch.manual_seed(0)
    network = nn.Sequential(
        MaskedConv2d(1, 4, 3, mask_type="A"), nn.Tanh(), *(MaskedConv2d(4, 4, 3) for _ in range(6))
    ).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: network(x.view(1, 1, 4, 4)).sum(1).flatten(), torch.randn(16).double()
    )
    for i, j, row, column in itertools.product(range(4), repeat=4):
        # A row up, at most one to the right: what lies further right is blind (the paper's figure 1
        # of "Conditional Image Generation with PixelCNN Decoders").
        seen = (row == i and column < j) or (row < i and column - j <= i - row)
        assert (jacobian[4 * i + j, 4 * row + column] != 0) == seen, (i, j, row, column)


def test_compiles():
    layer = MaskedConv2d(3, 6, 3, groups_in_order=3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    results = []
    for function in (layer, compiled):
        y = function(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_repr_says_what_it_is():
    layer = MaskedConv2d(3, 6, (1, 3), mask_type="A", groups_in_order=3, dilation=2, bias=False)
    assert repr(layer) == (
        "MaskedConv2d(3, 6, kernel_size=(1, 3), mask_type='A', groups_in_order=3, dilation=2, "
        "bias=False)"
    )
    assert repr(MaskedConv2d(3, 6, 5)) == "MaskedConv2d(3, 6, kernel_size=(5, 5), mask_type='B')"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": (3, 2)}, r"kernel_size must be odd, got \(3, 2\)"),
        ({"mask_type": "C"}, "mask_type must be .* got 'C'"),
        ({"groups_in_order": 2}, "groups_in_order must divide the channels, 3 in and 6 out, got 2"),
        ({"groups_in_order": 0}, "groups_in_order must be positive, got 0"),
        ({"dilation": 0}, "dilation must be positive, got 0"),
        ({"in_channels": 0}, "in_channels must be positive, got 0"),
    ],
)
def test_bad_input(change, words):
    good = {"in_channels": 3, "out_channels": 6, "kernel_size": 3}
    with pytest.raises(ValueError, match=words):
        MaskedConv2d(**(good | change))
