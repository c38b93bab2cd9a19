"""half_coupling against its definition: both halves of y, and gradients in the layout of what is read."""

import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated
from tests.ops.scale_maps import SCALE_MAPS

ORDERS = ("scale_shift", "shift_scale", "shift_scale_pairs")
half_op = torch.ops.deepgen_ext.half_coupling.default


def halves_of(shape, visible_channels, seed=0):
    """visible, moved and parameters as a coupling layer has them: views of one tensor."""
    n, channels, *sides = shape
    generator = torch.Generator().manual_seed(seed)
    x, parameters = (
        torch.randn(n, size, *sides, generator=generator, dtype=torch.float64)
        for size in (visible_channels + channels, 2 * channels)
    )
    return *x.split((visible_channels, channels), 1), parameters


def half_pair(**options):
    return (
        lambda *halves: ops.half_coupling(*halves, **options),
        lambda *halves: reference.half_coupling(*halves, **options),
    )


@pytest.mark.parametrize("moved_first", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("visible_channels", [2, 3])
def test_half_coupling(visible_channels, inverse, moved_first):
    halves = halves_of((3, 2, 3, 2), visible_channels)
    op, specification = half_pair(
        scale_map="atan", inverse=inverse, moved_first=moved_first, clamp=1.5
    )
    leaves = tuple(t.clone().requires_grad_() for t in halves)
    check_op(op, specification, halves, half_op, (*leaves, moved_first, "atan", 1.5, inverse))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("moved_first", [False, True])
@pytest.mark.parametrize("alternating", [False, True])
def test_where_parameters_and_channels_lie(alternating, moved_first, inverse, order):
    halves = halves_of((3, 2, 3, 2), 2)
    options = {"inverse": inverse, "order": order, "moved_first": moved_first}
    op, specification = half_pair(scale_map="tanh", alternating=alternating, **options)
    leaves = tuple(t.clone().requires_grad_() for t in halves)
    given = (*leaves, moved_first, "tanh", 2.0, inverse, order, alternating)
    check_op(op, specification, halves, half_op, given)


def test_alternating_channels_read_from_alternating_ones():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    parameters = torch.randn(4, 6, dtype=torch.float64)
    visible, moved = x.unflatten(1, (-1, 2)).unbind(2)
    y, _ = ops.half_coupling(visible, moved, parameters, scale_map="tanh", alternating=True)
    torch.testing.assert_close(y[:, ::2], x[:, ::2], rtol=0, atol=0)
    expected, _ = ops.affine_coupling(
        x[:, 1::2], parameters[:, :3], parameters[:, 3:], scale_map="tanh"
    )
    torch.testing.assert_close(y[:, 1::2], expected)


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (5, 8), (130, 9), (2, 4, 70, 61)], ids=str)
def test_shapes_of_half_coupling(shape, inverse, scale_map):
    check_values(*half_pair(scale_map=scale_map, inverse=inverse), halves_of(shape, shape[1]))


def test_half_coupling_writes_in_the_layout_it_reads():
    visible, moved, parameters = (t.float() for t in halves_of((2, 4, 5, 3), 4))
    parameters = parameters.contiguous(memory_format=torch.channels_last).requires_grad_()
    y, log_det = ops.half_coupling(visible, moved, parameters)
    (grad,) = torch.autograd.grad((y.square().sum(), log_det.sum()), parameters)
    assert y.is_contiguous()
    assert grad.is_contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y, log_det = ops.half_coupling(visible, moved, parameters)
        torch.autograd.grad((y, log_det), parameters, (y.detach(), log_det.detach()))
    called = {event.key for event in profile.key_averages()}
    assert not called & {"aten::copy_", "aten::clone", "aten::cat", "aten::contiguous"}


def test_autocast_keeps_half_coupling_in_float32():
    halves = tuple(t.bfloat16() for t in halves_of((2, 3), 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = ops.half_coupling(*halves)
    assert y.dtype == log_det.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"parameters": torch.ones(2, 4)}, ValueError, r"parameters must have the shape \[2, 6\], two for"),
        ({"visible": torch.ones(3, 2)}, ValueError, r"visible must have the shape of moved but for its channels"),
        ({"visible": torch.ones(2, 2, 1)}, ValueError, r"visible must have the shape of moved"),
        ({"visible": torch.ones(2, 2).double()}, TypeError, "visible must have the dtype of moved, Float, got Double"),
        ({"parameters": torch.ones(2, 6).half()}, TypeError, "parameters must have the dtype of moved"),
        ({"moved": torch.ones(2)}, ValueError, r"moved must have the shape \(batch, channels, ...\), got \[2\]"),
        ({"moved": torch.ones(2, 3).long()}, TypeError, "moved must be a float32, .* got Long"),
        ({"scale_map": "cube"}, ValueError, "scale_map must be one of .* got 'cube'"),
        ({"order": "scale"}, ValueError, "order must be one of 'scale_shift', .* got 'scale'"),
        ({"alternating": True}, ValueError, "as many, got 2 and 3"),
        ({"clamp": -1.0}, ValueError, "clamp must be a finite number above 0, got -1"),
    ],
)  # fmt: skip
def test_bad_input_of_half_coupling(change, error, words):
    good = {"visible": torch.ones(2, 2), "moved": torch.ones(2, 3), "parameters": torch.ones(2, 6)}
    with pytest.raises(error, match=words):
        ops.half_coupling(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
def test_cuda_kernels_of_half_coupling_in_emulation(emulated, dtype, layout):
    shapes = [((3, 4, 5, 6), 4), ((2, 4, 24, 24), 4), ((70, 4, 1, 1), 5), ((0, 3, 2, 2), 3)]
    for shape, visible_channels in shapes:
        visible, moved, parameters = (t.to(dtype) for t in halves_of(shape, visible_channels))
        if layout != "contiguous":
            parameters = parameters.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last":
            x = torch.cat((visible, moved), 1).contiguous(memory_format=torch.channels_last)
            visible, moved = x.split((visible_channels, shape[1]), 1)
        grad = torch.randn_like(moved)
        grad_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for inverse in (False, True):
            for first in (False, True):
                check_emulated(
                    "half_coupling", visible, moved, parameters, first, "sigmoid", 2.0, inverse
                )
            for order in ORDERS:
                options = ("reciprocal_sigmoid", 2.0, inverse, order)
                equal = moved.shape == visible.shape
                check_emulated("half_coupling", visible, moved, parameters, True, *options, equal)
                check_emulated(
                    "half_coupling_backward", grad, grad_log_det, moved, parameters, *options
                )
            check_emulated(
                "half_coupling_backward",
                grad,
                grad_log_det,
                moved,
                parameters,
                "tanh",
                2.0,
                inverse,
            )


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("visible_channels", [4, 5])
def test_half_coupling_on_gpu(visible_channels, inverse):
    halves = tuple(t.cuda() for t in halves_of((3, 4, 9, 8), visible_channels))
    check_values(*half_pair(scale_map="sigmoid", inverse=inverse), halves)
