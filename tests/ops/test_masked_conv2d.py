"""masked_conv2d against its definition, and against what a mask means."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from deepgen_ext import ops, reference
from deepgen_ext.reference.masked_conv2d import causal_mask
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

# (batch, in, out, height, width), (kernel height, kernel width): one pixel, one row, one column, kernels
# larger than the image, blocks of channels that are not full, several bands of rows.
SHAPES = [
    ((0, 3, 6, 4, 4), (3, 3)),
    ((1, 3, 3, 1, 1), (3, 3)),
    ((2, 6, 6, 1, 9), (7, 7)),
    ((2, 3, 33, 9, 1), (5, 5)),
    ((2, 12, 21, 2, 3), (9, 9)),
    ((3, 3, 6, 5, 7), (3, 5)),
    ((2, 6, 18, 4, 5), (1, 5)),
    ((2, 6, 18, 4, 5), (5, 1)),
    ((2, 3, 3, 4, 4), (1, 1)),
    ((2, 24, 51, 9, 10), (7, 7)),
    ((1, 3, 6, 40, 60), (3, 3)),
]
OPTIONS = list(itertools.product("AB", (1, 3), (1, 2)))


def inputs_of(shape, kernel, seed=0):
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    scale = (inputs * kernel[0] * kernel[1]) ** -0.5
    return draw(batch, inputs, height, width), draw(outputs, inputs, *kernel) * scale, draw(outputs)


def options_of(mask_type="B", groups_in_order=1, dilation=1):
    return {"mask_type": mask_type, "groups_in_order": groups_in_order, "dilation": dilation}


def pair(*options):
    given = options_of(*options)
    return (
        lambda *tensors: (ops.masked_conv2d(*tensors, **given),),
        lambda *tensors: (reference.masked_conv2d(*tensors, **given),),
    )


@pytest.mark.parametrize("options", [("B", 1, 1), ("A", 1, 1), ("A", 3, 2), ("B", 3, 1)], ids=str)
def test_contract(options):
    inputs = inputs_of((2, 3, 3, 3, 4), (3, 3))
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    overload = torch.ops.deepgen_ext.masked_conv2d.default
    check_op(*pair(*options), inputs, overload, (*leaves, *options))


@pytest.mark.parametrize(("shape", "kernel"), SHAPES, ids=str)
def test_shapes(shape, kernel):
    for options in OPTIONS:
        inputs = inputs_of(shape, kernel)
        check_values(*pair(*options), inputs)
        check_values(*pair(*options), inputs[:2], [torch.float32, torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_formats(dtype):
    """Any strides of x and of y's gradient; the result keeps x's format."""
    x, weight, bias = (t.to(dtype) for t in inputs_of((3, 8, 20, 6, 5), (3, 3)))
    grad = torch.randn(3, 20, 6, 5).to(dtype)
    expected = _gradients(x, weight, bias, grad)
    stepped = torch.zeros(3, 8, 12, 10, dtype=dtype)
    stepped[:, :, ::2, ::2] = x
    layouts = [
        (x.contiguous(memory_format=torch.channels_last), grad.transpose(2, 3).contiguous().transpose(2, 3)),
        (stepped[:, :, ::2, ::2], grad.contiguous(memory_format=torch.channels_last)),
        (torch.cat([x, x], 1)[:, 8:], torch.cat([grad, grad], 2)[:, :, 6:]),
    ]  # fmt: skip
    for other_x, other_grad in layouts:
        for ours, theirs in zip(_gradients(other_x, weight, bias, other_grad), expected):
            torch.testing.assert_close(ours, theirs)
    assert ops.masked_conv2d(layouts[0][0], weight).is_contiguous(memory_format=torch.channels_last)
    constant = grad[:1, :1, :1, :1].expand_as(grad)
    for ours, theirs in zip(
        _gradients(x, weight, bias, constant), _gradients(x, weight, bias, constant.contiguous())
    ):
        torch.testing.assert_close(ours, theirs)


def _gradients(x, weight, bias, grad):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = ops.masked_conv2d(*leaves)
    return y, *torch.autograd.grad(y, leaves, grad)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_later_is_seen(options, dtype):
    """Each channel group of each pixel, changed to inf and nan, leaves everything before it as it was."""
    mask_type, groups, dilation = options
    x, weight, bias = (t.to(dtype) for t in inputs_of((1, 6, 6, 4, 5), (5, 5)))
    y = ops.masked_conv2d(x, weight, bias, **options_of(*options))
    width = 6 // groups
    for i, j, group in itertools.product(range(4), range(5), range(groups)):
        changed = x.clone()
        changed[:, group * width : (group + 1) * width, i, j] = float("inf" if j % 2 else "nan")
        other = ops.masked_conv2d(changed, weight, bias, **options_of(*options))
        same = (other == y)[0].view(groups, width, 20).all(1)  # groups, pixels
        for seen_by, pixel in itertools.product(range(groups), range(20)):
            earlier = pixel < i * 5 + j
            inside = pixel == i * 5 + j and (
                seen_by < group or (seen_by == group and mask_type == "A")
            )
            if earlier or inside:
                assert same[seen_by, pixel], (i, j, group, seen_by, pixel)
        own = slice((group if mask_type == "B" else group + 1) * width, None)
        assert not other[:, own, i, j].isfinite().any()  # and what comes later is seen


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masked_weights_are_never_read(options, dtype):
    x, weight, bias = (t.to(dtype) for t in inputs_of((2, 6, 18, 4, 5), (3, 5)))
    mask = causal_mask(weight, *options[:2]).bool()
    grad = torch.randn(2, 18, 4, 5).to(dtype)
    results = []
    for hidden in (0.0, float("nan"), float("inf")):
        leaves = [
            t.requires_grad_() for t in (x.clone(), weight.masked_fill(~mask, hidden), bias.clone())
        ]
        y = ops.masked_conv2d(*leaves, **options_of(*options))
        gradients = torch.autograd.grad(y, leaves, grad, create_graph=True)
        assert (gradients[1][~mask] == 0).all()
        twice = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves[:2])
        assert (twice[1][~mask] == 0).all()
        results.append([y, *gradients, *twice])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0]))


def test_a_mask_that_hides_everything_leaves_the_bias():
    x, weight, bias = (t.requires_grad_() for t in inputs_of((2, 3, 4, 3, 3), (1, 1)))
    y = ops.masked_conv2d(x, weight, bias, mask_type="A")
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
    assert not ops.masked_conv2d(x, weight, mask_type="A").any()
    by_x, by_weight, by_bias = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert not by_x.any()
    assert not by_weight.any()
    assert torch.equal(by_bias, torch.full_like(bias, 18))


def test_does_not_depend_on_threads():
    x, weight, bias = (t.float() for t in inputs_of((5, 9, 20, 33, 40), (5, 5)))
    grad = torch.randn(5, 20, 33, 40)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(_gradients(x, weight, bias, grad)[:3])  # the bias' is torch's own sum
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_autocast():
    x, weight, bias = (t.float() for t in inputs_of((2, 3, 4, 5, 5), (3, 3)))
    for function in (
        ops.masked_conv2d,
        torch.compile(ops.masked_conv2d, fullgraph=True, backend="aot_eager"),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, weight, bias)
            assert function(x.double(), weight.double()).dtype == torch.float64
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(
            y.float(), reference.masked_conv2d(x, weight, bias), rtol=0.03, atol=0.03
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.masked_conv2d(x, weight.bfloat16()).dtype == F.conv2d(x, weight).dtype


GOOD = {"x": torch.ones(2, 4, 5, 5), "weight": torch.ones(6, 4, 3, 3), "bias": torch.ones(6)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(4, 5, 5)}, ValueError, r"x must have the shape \(batch, .*, got \[4, 5, 5\]"),
        ({"x": torch.ones(2, 4, 5, 5).int()}, TypeError, "x must be a float32, .* got Int"),
        ({"weight": torch.ones(6, 3, 3, 3)}, ValueError, r"weight must have the shape \(out_channels, 4, .* got"),
        ({"weight": torch.ones(6, 4, 2, 3)}, ValueError, "weight must have a kernel of odd .* got 2x3"),
        ({"weight": torch.ones(6, 4, 3, 3).double()}, TypeError, "weight must have the dtype of x"),
        ({"bias": torch.ones(5)}, ValueError, r"bias must have the shape \[6\], got \[5\]"),
        ({"mask_type": "C"}, ValueError, 'mask_type must be "A" .* got "C"'),
        ({"groups_in_order": 4}, ValueError, "groups_in_order must divide the channels, 4 in and 6 out, got 4"),
        ({"groups_in_order": 0}, ValueError, "groups_in_order must be positive, got 0"),
        ({"dilation": 0}, ValueError, "dilation must be positive, got 0"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        ops.masked_conv2d(**(GOOD | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cuda_kernels_in_emulation(emulated, dtype, memory_format):
    shapes = [((2, 3, 6, 5, 7), (3, 5)), ((1, 6, 6, 1, 1), (3, 3)), ((3, 24, 69, 4, 5), (3, 3))]
    for (shape, kernel), options in itertools.product(shapes, OPTIONS):
        x, weight, bias = (t.to(dtype) for t in inputs_of(shape, kernel))
        x = x.contiguous(memory_format=memory_format)
        grad = torch.randn(shape[0], shape[2], *shape[3:]).to(dtype)
        check_emulated("masked_conv2d", x, weight, bias, *options)
        check_emulated("masked_conv2d_backward", grad, x, weight, *options, (True, True, True))


def test_cuda_weight_gradient_in_pieces(emulated):
    x, weight, _ = (t.float() for t in inputs_of((3, 3, 6, 30, 31), (3, 3)))
    grad = torch.randn(3, 6, 30, 31)
    check_emulated("masked_conv2d_backward", grad, x, weight, "A", 3, 1, (False, True, False))


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "kernel"), SHAPES, ids=str)
def test_on_gpu(shape, kernel):
    for options in OPTIONS:
        check_values(
            *pair(*options), tuple(t.cuda() for t in inputs_of(shape, kernel)), [torch.float64]
        )
