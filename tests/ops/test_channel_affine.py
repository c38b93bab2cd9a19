"""channel_affine against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

SHAPES = [
    (0, 3, 2),
    (1, 1),
    (5, 7),
    (300, 8),
    (2, 3, 1),
    (4, 6, 5, 3),
    (2, 3, 4, 3, 2),
    (2, 96, 33, 31),
]


def inputs_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    log_scale, shift = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    return x, 0.5 * log_scale, shift


def pair(inverse):
    return (
        lambda *tensors: ops.channel_affine(*tensors, inverse=inverse),
        lambda *tensors: reference.channel_affine(*tensors, inverse=inverse),
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (3, 4)], ids=str)
def test_contract(shape, inverse):
    inputs = inputs_of(shape)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    overload = torch.ops.deepgen_ext.channel_affine.default
    check_op(*pair(inverse), inputs, overload, (*leaves, inverse))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, inverse):
    check_values(*pair(inverse), inputs_of(shape))


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    order=st.permutations(range(5)),
    inverse=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_order_of_dimensions_in_memory(shape, order, inverse):
    x, log_scale, shift = inputs_of(shape)
    order = [d for d in order if d < len(shape)]
    x = x.permute(order).contiguous().permute([order.index(d) for d in range(len(shape))])
    op, specification = pair(inverse)
    for ours, theirs in zip(op(x, log_scale, shift), specification(x, log_scale, shift)):
        torch.testing.assert_close(ours, theirs)


def test_log_det_is_that_of_the_jacobian():
    x, log_scale, shift = inputs_of((1, 3, 2, 2))
    for inverse in (False, True):
        _, log_det = ops.channel_affine(x, log_scale, shift, inverse=inverse)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=inverse: ops.channel_affine(
                v.view(1, 3, 2, 2), log_scale, shift, inverse=i
            )[0].flatten(),
            x.flatten(),
        )
        torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_sums_do_not_depend_on_threads():
    x, log_scale, shift = (t.float().requires_grad_() for t in inputs_of((70, 5, 40, 40)))
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, _ = ops.channel_affine(x, log_scale, shift)
            gradients.append(torch.autograd.grad((y**2).sum(), (log_scale, shift)))
    finally:
        torch.set_num_threads(threads)
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, gradients[0]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(3)}, ValueError, r"x must have the shape \(batch, channels, ...\), got \[3\]"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "x must be a float32, .* got Int"),
        ({"log_scale": torch.ones(4)}, ValueError, r"log_scale must have the shape \[3\], .* got \[4\]"),
        ({"shift": torch.ones(1, 3)}, ValueError, r"shift must have the shape \[3\]"),
        ({"shift": torch.ones(3).half()}, TypeError, "shift must have the dtype of x"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"x": torch.ones(2, 3, 4), "log_scale": torch.ones(3), "shift": torch.ones(3)}
    with pytest.raises(error, match=words):
        ops.channel_affine(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cuda_kernels_in_emulation(emulated, dtype, memory_format):
    for shape in [(3, 4, 5, 6), (2, 40, 8, 8), (300, 8, 1, 1), (9, 2, 40, 24), (0, 3, 2, 2)]:
        x, log_scale, shift = (t.to(dtype) for t in inputs_of(shape))
        x = x.contiguous(memory_format=memory_format)
        grad = torch.randn_like(x)
        grad_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for inverse in (False, True):
            check_emulated("channel_affine", x, log_scale, shift, inverse)
            check_emulated("channel_affine_backward", grad, grad_log_det, x, log_scale, inverse)


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_gpu(shape, inverse):
    check_values(*pair(inverse), tuple(t.cuda() for t in inputs_of(shape)))
