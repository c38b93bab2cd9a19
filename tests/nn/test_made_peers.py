"""The same weights give what other libraries give, where they are installed: pip install
"deepgen_ext[peers]".
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext.nn import MADE
from deepgen_ext.nn.transforms import MaskedAutoregressive
from tests.checks import randomize


def take_layers(made: MADE, layers: list[nn.Linear], degrees: list[Tensor]) -> None:
    """Copy a peer's weights, its hidden units brought into the order of ours: by degree."""
    columns: Tensor | slice = slice(None)
    with torch.no_grad():
        for ours, theirs, degree in zip(made.layers, layers, [*degrees, None], strict=True):
            rows: Tensor | slice = slice(None)
            if degree is not None:
                rows = degree.argsort(stable=True)
                assert torch.equal(degree[rows], made.degrees[0])
            ours.weight.copy_(theirs.weight[rows][:, columns])
            ours.bias.copy_(theirs.bias[rows])
            columns = rows


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("features", [1, 2, 7])
def test_equals_nflows(features: int, residual: bool) -> None:
    peer = pytest.importorskip("nflows.transforms.made")
    torch.manual_seed(0)
    units = 12 if features == 7 else 6  # as many units of each degree in both
    theirs = peer.MADE(
        features, units, num_blocks=2, output_multiplier=3, use_residual_blocks=residual
    ).double()
    randomize(theirs, 0.2)
    widths = (units, units) if residual else (units, units, units)
    ours = MADE(features, widths, outputs_per_feature=3, residual=residual).double()
    layers = [theirs.initial_layer]
    for block in theirs.blocks:
        layers += block.linear_layers if residual else [block.linear]
    take_layers(ours, [*layers, theirs.final_layer], [layer.degrees for layer in layers])
    x = torch.randn(5, features, dtype=torch.float64)
    torch.testing.assert_close(ours(x).flatten(1), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_equals_zuko(order: list[int] | None) -> None:
    zuko = pytest.importorskip("zuko.flows.autoregressive")
    torch.manual_seed(0)
    # zuko gives each feature its rank in the order
    ranks = None if order is None else torch.tensor(order).argsort()
    theirs = zuko.MaskedAutoregressiveTransform(4, order=ranks, hidden_features=(12, 12)).double()
    randomize(theirs, 0.2)
    layers = [layer for layer in theirs.hyper if isinstance(layer, nn.Linear)]
    ours = MADE(4, (12, 12), order=order).double()
    # The degree of a unit of the first layer is the number of features that it sees; the units of
    # the layers above repeat the same pattern.
    degree = layers[0].mask.sum(1)
    permuted = [copy.deepcopy(layer) for layer in layers]
    permuted[0].weight.data = layers[0].weight.data[:, ours.order]
    last = permuted[-1]
    last.weight.data = last.weight.data.unflatten(0, (4, 2))[ours.order].flatten(0, 1)
    last.bias.data = last.bias.data.unflatten(0, (4, 2))[ours.order].flatten()
    take_layers(ours, permuted, [degree, degree])
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x).flatten(1), theirs.hyper(x), rtol=1e-12, atol=1e-12)


def test_spline_layers_equal_nflows_in_both_directions() -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    torch.manual_seed(0)
    theirs = peer.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        7, 12, num_bins=4, tails="linear", tail_bound=3.0, num_blocks=2, use_residual_blocks=False
    ).double()
    net = randomize(theirs, 0.2).autoregressive_net
    ours = MaskedAutoregressive(7, (12, 12, 12), "spline", n_bins=4).double()
    layers = [net.initial_layer, *(block.linear for block in net.blocks)]
    take_layers(ours.made, [*layers, net.final_layer], [layer.degrees for layer in layers])
    x = 2 * torch.randn(9, 7, dtype=torch.float64)
    for our_way, their_way in ((ours, theirs), (ours.inverse, theirs.inverse)):
        for a, b in zip(our_way(x), their_way(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
