"""Shifted convolutions against the sums in their docstrings, at all small sizes."""

import itertools

import pytest
import torch

from deepgen_ext.nn import Shift, ShiftedConv2d, ShiftedConvTranspose2d

SIZES = [(1, 1), (1, 5), (4, 1), (3, 4), (4, 5), (5, 3)]


def shifted(x, layer):
    """y[i, j] = bias + sum over taps w x[stride i + dy, stride j + dx], one number at a time."""
    n, _, height, width = x.shape
    stride, dilation = layer.stride, layer.dilation
    kh, kw = layer.kernel_size
    left = (kw - 1) // 2 if layer.shift == "down" else kw - 1
    y = x.new_zeros(n, layer.out_channels, -(-height // stride), -(-width // stride))
    y += layer.bias[:, None, None]
    for i, j, a, b in itertools.product(*map(range, (*y.shape[2:], kh, kw))):
        row = stride * i + (a - (kh - 1)) * dilation
        column = stride * j + (b - left) * dilation
        if 0 <= row < height and 0 <= column < width:
            y[:, :, i, j] += x[:, :, row, column] @ layer.weight[:, :, a, b].T
    return y


def transposed(x, layer):
    """full[2 q + a, 2 p + b] += w x[q, p], cut to the output's size."""
    n, _, rows, columns = x.shape
    kh, kw = layer.kernel_size
    full = x.new_zeros(n, layer.out_channels, 2 * rows + kh, 2 * columns + kw)
    for q, p, a, b in itertools.product(range(rows), range(columns), range(kh), range(kw)):
        full[:, :, 2 * q + a, 2 * p + b] += x[:, :, q, p] @ layer.weight[:, :, a, b]
    height, width = layer.output_size
    left = (kw - 1) // 2 if layer.shift == "down" else 0
    return full[:, :, :height, left : left + width] + layer.bias[:, None, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("shift", "kernel_size"),
    [
        ("down", (2, 3)),
        ("down", (1, 3)),
        ("down", (3, 5)),
        ("down", (1, 1)),
        ("down_right", (2, 2)),
        ("down_right", (2, 1)),
        ("down_right", (3, 2)),
    ],
)
def test_shifted_is_its_sum(size, shift, kernel_size):
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        layer = ShiftedConv2d(2, 3, kernel_size, shift=shift, stride=stride, dilation=dilation)
        layer.double()
        x = torch.randn(2, 2, *size, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), shifted(x, layer))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("shift", "kernel_size"),
    [
        ("down", (2, 3)),
        ("down", (1, 1)),
        ("down", (2, 5)),
        ("down_right", (2, 2)),
        ("down_right", (1, 1)),
        ("down_right", (2, 3)),
    ],
)
def test_transposed_is_its_sum(size, shift, kernel_size):
    layer = ShiftedConvTranspose2d(2, 3, kernel_size, shift=shift, output_size=size).double()
    x = torch.randn(2, 2, *(-(-side // 2) for side in size), dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, transposed(x, layer))
        # Cut to its first rows, the input gives the first rows of the output.
        for rows in range(1, x.shape[2] + 1):
            cut = layer(x[:, :, :rows])
            assert cut.shape[2] == min(size[0], 2 * rows)
            torch.testing.assert_close(cut, y[:, :, : cut.shape[2]])


@pytest.mark.parametrize("size", SIZES)
def test_shift_moves_and_lets_zeros_in(size):
    x = torch.randn(2, 3, *size)
    down, right = Shift("down")(x), Shift("right")(x)
    assert down.shape == right.shape == x.shape
    assert (down[:, :, 0] == 0).all()
    assert (right[..., 0] == 0).all()
    assert torch.equal(down[:, :, 1:], x[:, :, :-1])
    assert torch.equal(right[..., 1:], x[..., :-1])


def test_starts_like_torchs_convolution():
    torch.manual_seed(0)
    ours = ShiftedConv2d(20, 400, (2, 3), shift="down").weight
    theirs = torch.nn.Conv2d(20, 400, (2, 3)).weight
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.02, atol=0)
    torch.testing.assert_close(ours.abs().max(), theirs.abs().max(), rtol=0.02, atol=0)
    up = ShiftedConvTranspose2d(20, 400, (2, 3), shift="down", output_size=(4, 4)).weight
    assert up.shape == (20, 400, 2, 3)
    torch.testing.assert_close(up.std(), theirs.std(), rtol=0.02, atol=0)
    assert ShiftedConv2d(2, 3, 1, shift="down", bias=False).bias is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shift("up"), "direction: .*'up'"),
        (lambda: ShiftedConv2d(0, 3, (2, 3), shift="down"), "in_channels: .*0"),
        (lambda: ShiftedConv2d(2, 3, (2, 3), shift="right"), "shift: .*'right'"),
        (lambda: ShiftedConv2d(2, 3, (2, 2), shift="down"), r"kernel_size: .*odd width.*\(2, 2\)"),
        (lambda: ShiftedConv2d(2, 3, (0, 3), shift="down"), r"kernel_size: .*\(0, 3\)"),
        (lambda: ShiftedConv2d(2, 3, (2, 3, 4), shift="down"), r"kernel_size: .*\(2, 3, 4\)"),
        (lambda: ShiftedConv2d(2, 3, (2, 3), shift="down", stride=3), "stride: .*3"),
        (lambda: ShiftedConv2d(2, 3, (2, 3), shift="down", dilation=0), "dilation: .*0"),
        (lambda: ShiftedConv2d(2, 3, 3, shift="down", stride=2, dilation=2), "dilation: .*2"),
        (lambda: ShiftedConv2d(2, 3, 1, shift="down")(torch.zeros(2, 3, 4, 4)), r"\(n, 2, H, W\)"),
        (lambda: up((3, 3), (4, 4)), r"height of 1 or 2, got \(3, 3\)"),
        (lambda: up((2, 3), (0, 4)), r"output_size: .*\(0, 4\)"),
        (lambda: up((2, 3), (4, 5))(torch.zeros(1, 2, 2, 2)), r"\(2, 3\), got \(2, 2\)"),
        (lambda: up((2, 3), (4, 4))(torch.zeros(1, 2, 3, 2)), r"\(2, 2\), got \(3, 2\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def up(kernel_size, output_size):
    return ShiftedConvTranspose2d(2, 3, kernel_size, shift="down", output_size=output_size)
