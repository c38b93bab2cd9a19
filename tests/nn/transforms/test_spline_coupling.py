"""The spline coupling against the contract of transforms, and what it does to its input's parts."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext import reference
from deepgen_ext.nn import MLP, GlowConvNet
from deepgen_ext.nn.transforms import SplineCoupling, partition_sizes
from tests.checks import check_compiles, check_transform, randomize

BINS = 4
IMAGE, VECTOR = (3, 4, 4, 2), (3, 5)


def coupling(shape, partition="channel", swap=False, context=0):
    seen, moved = partition_sizes(shape[1], partition, swap)
    outputs = (3 * BINS - 1) * moved
    vector = len(shape) == 2
    network, depth = (MLP, (1,)) if vector else (GlowConvNet, ())
    net = network(seen, outputs, 6, *depth, context)
    return randomize(SplineCoupling(net, n_bins=BINS, partition=partition, swap=swap))


@pytest.mark.parametrize("partition", ["channel", "checkerboard"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [IMAGE, VECTOR], ids=str)
def test_contract(shape, swap, partition):
    check_transform(coupling(shape, partition, swap), 1.5 * torch.randn(shape))


def test_context():
    check_transform(coupling(VECTOR, context=2), torch.randn(VECTOR), torch.randn(3, 2))


def test_compiles():
    check_compiles(coupling(VECTOR), torch.randn(VECTOR))


def test_parameters_lie_channel_by_channel():
    layer = coupling(IMAGE)
    x = torch.randn(IMAGE)
    visible, moved = x.chunk(2, 1)
    output = layer.conditioner(visible).view(3, 2, 3 * BINS - 1, 4, 2).movedim(2, -1)
    sizes = (BINS, BINS, BINS - 1)
    expected, expected_log_det = reference.rational_quadratic_spline(
        moved, *output.split(sizes, -1)
    )
    y, log_det = layer(x)
    torch.testing.assert_close(y, torch.cat((visible, expected), 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_the_spline_ends_at_the_bound(bound):
    """Beyond it an element is left as it is; just inside it is moved."""
    layer = SplineCoupling(randomize(MLP(1, 3 * BINS - 1, 6, 1)), n_bins=BINS, bound=bound)
    visible = torch.randn(64, 1)
    for factor, moves in ((1.01, False), (-1.01, False), (0.9, True), (-0.9, True)):
        x = torch.cat((visible, torch.full((64, 1), factor * bound)), 1)
        y, _ = layer(x)
        assert ((y - x)[:, 1].abs() > 1e-3 * bound).any() == moves, factor


def test_bad_input():
    with pytest.raises(ValueError, match="n_bins: expected 1 to 100, got 0"):
        SplineCoupling(torch.nn.Identity(), n_bins=0)
    with pytest.raises(ValueError, match="bound: expected a finite positive number, got -1"):
        SplineCoupling(torch.nn.Identity(), bound=-1)
    with pytest.raises(ValueError, match="conditioner: expected output of shape"):
        SplineCoupling(torch.nn.Identity())(torch.randn(2, 4))
