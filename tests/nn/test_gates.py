"""Gates by their formulas."""

import pytest
import torch
import torch.nn.functional as F

from deepgen_ext.nn import AppendOnes, ConcatELU, Gate, GatedSigmoid


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gate_halves_each_group(groups):
    x = torch.randn(2, 12, 3, 4)
    y = Gate(groups)(x)
    assert y.shape == (2, 6, 3, 4)
    for mine, own in zip(y.chunk(groups, 1), x.chunk(groups, 1), strict=True):
        a, b = own.chunk(2, 1)
        torch.testing.assert_close(mine, torch.tanh(a) * torch.sigmoid(b))


def test_gated_sigmoid():
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(GatedSigmoid()(x), x[:, :3] * torch.sigmoid(x[:, 3:]))


def test_concat_elu():
    x = torch.randn(2, 3, 3, 4)
    torch.testing.assert_close(ConcatELU()(x), torch.cat([F.elu(x), F.elu(-x)], 1))


def test_append_ones():
    x = torch.randn(2, 3, 1, 4)
    y = AppendOnes()(x)
    assert torch.equal(y, torch.cat([x, torch.ones(2, 1, 1, 4)], 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gate(0), "groups_in_order: .*0"),
        (lambda: Gate(3)(torch.zeros(1, 8, 2, 2)), r"multiple of 6 channels, got \(1, 8, 2, 2\)"),
        (lambda: GatedSigmoid()(torch.zeros(1, 3, 2, 2)), r"even number.*\(1, 3, 2, 2\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
