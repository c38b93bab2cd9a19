"""glow_conv_net against its definition: taps, edges, masks, chunks of samples, strides."""

import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values

# (batch, in, hidden, out, height, width): no sample, one pixel, rows and columns, one channel,
# several chunks, the last not full, and groups of them, an image larger than a chunk.
SHAPES = [
    (0, 2, 3, 4, 4, 4),
    (1, 1, 1, 1, 1, 1),
    (3, 2, 5, 4, 1, 1),
    (2, 3, 4, 5, 1, 9),
    (2, 3, 4, 5, 9, 1),
    (3, 1, 3, 2, 2, 3),
    (50, 3, 7, 6, 4, 4),
    (150, 1, 2, 2, 6, 8),
    (2, 2, 4, 3, 19, 17),
]
NAMES = "input_weight input_bias hidden_weight hidden_bias output_weight output_bias log_scale"


def inputs_of(shape, context=False, seed=0):
    batch, inputs, hidden, outputs, *sides = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, scale=1.0):
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    given = (
        draw(batch, inputs, *sides),
        draw(hidden, inputs, 3, 3, scale=(9 * inputs) ** -0.5),
        draw(hidden, scale=0.5),
        draw(hidden, hidden, 1, 1, scale=hidden**-0.5),
        draw(hidden, scale=0.5),
        draw(outputs, hidden, 3, 3, scale=(9 * hidden) ** -0.5),
        draw(outputs),
        draw(outputs, scale=0.2),
    )
    return (*given, draw(batch, hidden, *sides)) if context else given


def ours(*tensors):
    return (ops.glow_conv_net(*tensors),)


def theirs(*tensors):
    return (reference.glow_conv_net(*tensors),)


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("context", [False, True])
def test_contract(context):
    inputs = inputs_of((2, 2, 3, 3, 3, 4), context)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    overload = torch.ops.deepgen_ext.glow_conv_net.default
    check_op(ours, theirs, inputs, overload, leaves if context else (*leaves, None))


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, context, threads):
    check_values(ours, theirs, inputs_of(shape, context), (torch.float64,))
    # Where float32 and float64 round to either side of a ReLU's edge, gradients differ.
    single = [t.float() for t in inputs_of(shape, context)]
    expected = theirs(*(t.double() for t in single))[0]
    torch.testing.assert_close(ours(*single)[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(50, 3, 7, 6, 4, 4), (150, 1, 2, 2, 6, 8)], ids=str)
def test_threads_and_neighbours_change_nothing(shape, dtype):
    """The same numbers on one and two threads, and of a sample whatever its batch and its chunk."""
    inputs = [t.to(dtype) for t in inputs_of(shape)]
    results = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(gradients_of(inputs))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    poisoned = inputs[0].clone()
    poisoned[1::2] = float("nan")
    y = ops.glow_conv_net(poisoned, *inputs[1:])
    torch.testing.assert_close(y[::2], results[0][0][::2], rtol=tolerance, atol=tolerance)
    assert y[1::2].isnan().any(1).all()


def gradients_of(inputs, cotangent=None):
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = ops.glow_conv_net(*leaves)
    if cotangent is None:
        cotangent = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return y, *torch.autograd.grad(y, leaves, cotangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_formats(dtype):
    """Any strides of x, of the context and of y's gradient: what a model passes is a view."""
    inputs = [t.to(dtype) for t in inputs_of((3, 4, 6, 8, 6, 5), context=True)]
    grad = torch.randn(3, 8, 6, 5).to(dtype)
    expected = gradients_of(inputs, grad)
    x, context = inputs[0], inputs[-1]
    stepped = torch.zeros(3, 4, 12, 10, dtype=dtype)
    stepped[:, :, ::2, ::2] = x
    last = torch.channels_last
    layouts = [
        (torch.cat([x, x], 1)[:, :4], context.contiguous(memory_format=last), grad),
        (x.contiguous(memory_format=last), context, torch.cat([grad, grad], 1)[:, 8:]),
        (stepped[:, :, ::2, ::2], context, grad.contiguous(memory_format=last)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), context, torch.cat([grad, grad], 2)[:, :, 6:]),
    ]  # fmt: skip
    for other_x, other_context, other_grad in layouts:
        views = [other_x, *inputs[1:-1], other_context]
        for a, b in zip(gradients_of(views, other_grad), expected, strict=True):
            torch.testing.assert_close(a, b)
    constant = grad[:1, :1, :1, :1].expand_as(grad)
    flat = context[..., :1, :1].expand_as(context)
    for a, b in zip(
        gradients_of([*inputs[:-1], flat], constant),
        gradients_of([*inputs[:-1], flat.contiguous()], constant.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [(0,), (3,), (7,), (8,), (0, 8), (1, 2)], ids=str)
def test_what_is_not_wanted_changes_nothing(wanted):
    inputs = inputs_of((5, 2, 4, 3, 3, 4), context=True)
    everything = gradients_of(inputs)[1:]
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    y = ops.glow_conv_net(*leaves)
    some = torch.autograd.grad(
        y, [leaves[i] for i in wanted], torch.sin(torch.arange(y.numel()).double()).view_as(y)
    )
    for i, gradient in zip(wanted, some, strict=True):
        torch.testing.assert_close(gradient, everything[i], rtol=1e-13, atol=1e-13)


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    kept = []
    inputs = [t.requires_grad_() for t in inputs_of((5, 2, 40, 3, 6, 6))]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.glow_conv_net(*inputs)
        assert max(t.numel() for t in kept) == 2 * 40 * 5 * 36
        kept.clear()
        with torch.no_grad():
            ops.glow_conv_net(*inputs)
    assert not kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_inf_stay_within_reach(dtype):
    """Two 3x3 convolutions see two pixels far: what is further away does not change, however masked."""
    inputs = [t.to(dtype) for t in inputs_of((2, 1, 3, 2, 7, 8))]
    y = ops.glow_conv_net(*inputs)
    for value in (float("nan"), float("inf")):
        x = inputs[0].clone()
        x[1, 0, 0, 7] = value
        other = ops.glow_conv_net(x, *inputs[1:])
        changed = ~((other == y).all(1))
        assert changed[1, :3, 5:].all()
        changed[1, :3, 5:] = False
        assert not changed.any()


def test_third_derivatives_are_those_of_the_definition():
    inputs = inputs_of((1, 1, 2, 1, 2, 2))
    results = []
    for function in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in inputs]
        value = function(*leaves)[0].tanh().sum()
        for _ in range(2):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.square().sum() for g in gradients)
        results.append(torch.autograd.grad(value, leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_autocast_is_that_of_conv2d():
    inputs = [t.float() for t in inputs_of((2, 2, 4, 3, 3, 3))]
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.glow_conv_net(*inputs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), ops.glow_conv_net(*inputs), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(3, 2, 4)}, ValueError, "x must have the shape"),
        ({"x": torch.zeros(2, 3, 4, 4)}, ValueError, r"input_weight must have the shape \[4, 3, 3, 3\]"),
        ({"x": torch.zeros(2, 2, 4, 4, dtype=torch.int64)}, TypeError, "floating|float32"),
        ({"input_weight": torch.zeros(4, 2, 5, 5)}, ValueError, r"input_weight .*\[4, 2, 3, 3\]"),
        ({"input_weight": torch.zeros(0, 2, 3, 3)}, ValueError, "input_weight must have"),
        ({"input_bias": torch.zeros(3)}, ValueError, "input_bias must have"),
        ({"hidden_weight": torch.zeros(4, 4)}, ValueError, "hidden_weight must have"),
        ({"hidden_bias": torch.zeros(4).double()}, TypeError, "hidden_bias must have the dtype"),
        ({"output_weight": torch.zeros(6, 5, 3, 3)}, ValueError, "output_weight must have"),
        ({"output_bias": torch.zeros(5)}, ValueError, "output_bias must have"),
        ({"log_scale": torch.zeros(1)}, ValueError, "log_scale must have"),
        ({"context_map": torch.zeros(2, 4, 1, 1)}, ValueError, r"context_map .*\[2, 4, 4, 4\]"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    shapes = ((4, 2, 3, 3), (4,), (4, 4, 1, 1), (4,), (6, 4, 3, 3), (6,), (6,))
    good = {"x": torch.zeros(2, 2, 4, 4)}
    good |= {name: torch.zeros(shape) for name, shape in zip(NAMES.split(), shapes, strict=True)}
    ops.glow_conv_net(**good)
    with pytest.raises(error, match=words):
        ops.glow_conv_net(**(good | change))


@pytest.mark.gpu
@pytest.mark.parametrize("context", [False, True])
def test_on_gpu(context):
    inputs = [t.cuda() for t in inputs_of((4, 3, 8, 6, 5, 6), context)]
    check_values(ours, theirs, inputs, (torch.float64,))
