"""masked_conv2d against what it replaces: conv2d with the mask multiplied into the weight."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from deepgen_ext.compat.functional import convolution, masked_conv2d
from deepgen_ext.nn.masked_conv2d import Raster


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def raster(shape, mask_type="A", groups=1) -> torch.Tensor:
    return Raster(mask_type, groups).mask(shape).double()


@pytest.mark.parametrize("batch", [(2,), ()])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("size", "padding", "dilation"),
    [
        ((3, 3), 1, 1),
        ((5, 3), (2, 1), 1),
        ((3, 3), "same", 2),
        ((7, 7), [6, 6], (2, 2)),
        ((1, 1), 0, 1),
    ],
)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_equals_conv2d(mask_type, groups, size, padding, dilation, biased, batch) -> None:
    x, weight, bias = normal(*batch, 3, 6, 7), normal(6, 3, *size, seed=1), normal(6, seed=2)
    mask = raster(weight.shape, mask_type, groups)
    bias = bias if biased else None
    leaves = [t for t in (x, weight, bias) if t is not None]
    results = []
    for y in (
        masked_conv2d(x, weight, mask, bias, padding=padding, dilation=dilation),
        F.conv2d(x, weight * mask, bias, 1, padding, dilation),
    ):
        results.append([y, *torch.autograd.grad((y * y.detach().cos()).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cast", [torch.bool, torch.float32, torch.int64])
def test_a_mask_of_another_type_that_broadcasts(cast) -> None:
    x, weight = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    mask = raster((1, 1, 3, 3), "B")
    expected = F.conv2d(x, weight * mask, padding=1)
    for given in (mask.to(cast), mask.to(cast)[0, 0]):
        torch.testing.assert_close(masked_conv2d(x, weight, given, padding=1), expected)


def test_hidden_weights_are_not_read_and_have_no_gradient() -> None:
    x, weight = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    mask = raster(weight.shape)
    expected = masked_conv2d(x, weight, mask, padding=1)
    with torch.no_grad():
        weight[mask == 0] = torch.nan
    y = masked_conv2d(x, weight, mask, padding=1)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert not weight.grad[mask == 0].any()


def test_a_mask_is_looked_at_again_where_it_was_written_to(monkeypatch) -> None:
    looks = []
    monkeypatch.setattr(
        convolution, "raster_of", lambda *a, f=convolution.raster_of: looks.append(1) or f(*a)
    )
    x, weight, mask = normal(2, 4, 5, 5), normal(4, 4, 3, 3), raster((4, 4, 3, 3), "A")
    for change, count in ((None, 1), (None, 1), ("B", 2), (None, 2)):
        if change:
            mask.copy_(raster(mask.shape, change))
        y = masked_conv2d(x, weight, mask, padding=1)
        torch.testing.assert_close(y, F.conv2d(x, weight * mask, padding=1))
        assert len(looks) == count
    # The same mask with a weight of another shape.
    wide = normal(8, 2, 3, 3)
    shared = raster((1, 1, 3, 3), "B")
    for w, image in ((weight, x), (wide, x[:, :2])):
        y = masked_conv2d(image, w, shared, padding=1)
        torch.testing.assert_close(y, F.conv2d(image, w * shared, padding=1))


def test_nothing_is_kept_of_a_mask_that_is_gone() -> None:
    gc.collect()
    before = len(convolution._known)
    mask = raster((4, 3, 3, 3))
    masked_conv2d(normal(1, 3, 4, 4), normal(4, 3, 3, 3), mask, padding=1)
    assert len(convolution._known) == before + 1
    del mask
    gc.collect()
    assert len(convolution._known) == before


def test_inference_and_compilation() -> None:
    x, weight, mask = normal(2, 3, 5, 5), normal(4, 3, 3, 3), raster((4, 3, 3, 3))
    expected = F.conv2d(x, weight * mask, padding=1)
    compiled = torch.compile(lambda *t: masked_conv2d(*t, padding=1).square().sqrt())
    torch.testing.assert_close(compiled(x, weight, mask), expected.abs())
    with torch.inference_mode():
        torch.testing.assert_close(masked_conv2d(x, weight, mask.clone(), padding=1), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"padding 0: only \(1, 1\)"),
        ({"padding": "valid"}, r"padding 'valid'"),
        ({"padding": 1, "stride": 2}, "stride 2"),
        ({"padding": 1, "groups": 3}, "groups 3"),
        ({"padding": 1, "dilation": 2}, r"only \(2, 2\)"),
        ({"padding": "same", "dilation": (1, 2)}, r"dilation \(1, 2\)"),
        ({"padding": 1, "mask": torch.ones(3, 3, 3, 3)}, "not a raster mask"),
        ({"padding": 1, "mask": 2 * raster((3, 3, 3, 3))}, "not a raster mask"),
        ({"padding": 1, "mask": torch.ones(2, 3, 3, 3)}, "not a raster mask"),
        ({"padding": 1, "mask": raster((3, 3, 3, 3)).requires_grad_()}, "requires a gradient"),
        ({"padding": 1, "weight": normal(3, 3, 2, 3)}, "odd"),
    ],
)  # fmt: skip
def test_what_the_kernel_has_not_is_named_with_the_slow_call(options, words) -> None:
    given = {"weight": normal(3, 3, 3, 3), "mask": raster((3, 3, 3, 3))} | options
    with pytest.raises(ValueError, match=words) as raised:
        masked_conv2d(normal(2, 3, 5, 5), **given)
    assert "F.conv2d(input, weight * mask, bias, stride, padding" in str(raised.value)
