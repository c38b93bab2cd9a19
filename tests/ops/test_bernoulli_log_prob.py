"""bernoulli_log_prob against its definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

LIBRARY = torch.ops.deepgen_ext
# The shapes of x and of the logits, batch_dims.
CASES = [
    ((0, 3, 2), (0, 3, 2), 1),
    ((1, 1), (1, 1), 1),
    ((3, 0), (3, 0), 1),
    ((5, 7), (5, 7), 1),
    ((300, 8), (300, 8), 1),
    ((2, 3, 4), (2, 3, 4), 3),  # nothing is summed
    ((4, 1, 3, 5, 3), (4, 6, 3, 5, 3), 2),  # k draws of each image
    ((7, 33), (5, 7, 33), 2),  # the same, draws first
    ((784,), (3, 784), 1),
    ((2, 1, 1), (2, 3, 784), 1),
    ((2, 40_001), (2, 40_001), 1),
    ((2, 1, 17_000), (2, 3, 17_000), 2),
    ((2, 1, 3, 1, 2, 4), (2, 2, 3, 3, 2, 4), 5),  # more than three batch dimensions that differ
]


def inputs_of(x_shape, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(x_shape, generator=generator, dtype=torch.float64)
    x.view(-1)[::3] = 0
    x.view(-1)[1::5] = 1
    return x, 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def pair(batch_dims):
    return (
        lambda x, logits: (ops.bernoulli_log_prob(x, logits, batch_dims=batch_dims),),
        lambda x, logits: (reference.bernoulli_log_prob(x, logits, batch_dims=batch_dims),),
    )


@pytest.mark.parametrize(
    ("x_shape", "shape", "batch_dims"),
    [((3, 4), (3, 4), 1), ((3, 1, 2, 2), (3, 2, 2, 2), 2), ((2, 3), (4, 2, 3), 2)],
    ids=str,
)
def test_contract(x_shape, shape, batch_dims):
    inputs = inputs_of(x_shape, shape)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    overload = LIBRARY.bernoulli_log_prob.default
    check_op(*pair(batch_dims), inputs, overload, (*leaves, batch_dims))


@pytest.mark.parametrize(("x_shape", "shape", "batch_dims"), CASES, ids=str)
def test_shapes(x_shape, shape, batch_dims):
    check_values(*pair(batch_dims), inputs_of(x_shape, shape))


def test_it_is_the_cross_entropy():
    x, logits = inputs_of((6, 50), (6, 50))
    nats = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    torch.testing.assert_close(ops.bernoulli_log_prob(x, logits), -nats)


def test_probabilities_of_all_images_add_up_to_one():
    images = torch.tensor([[bool(i >> b & 1) for b in range(6)] for i in range(64)])
    logits = 2 * torch.randn(3, 1, 6, dtype=torch.float64)
    log_prob = ops.bernoulli_log_prob(images, logits.expand(3, 64, 6), batch_dims=2)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("logits_type", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "x_type",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.double],
    ids=str,
)  # fmt: skip
def test_x_of_another_type(x_type, logits_type):
    """Soft targets in any floating type keep the precision that they come with."""
    x, logits = inputs_of((9, 1, 75), (9, 4, 75))
    x = x.round().to(x_type) if not x_type.is_floating_point else x.to(x_type)
    logits = logits.to(logits_type).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    ours = ops.bernoulli_log_prob(x, logits, batch_dims=2)
    theirs = reference.bernoulli_log_prob(x.double(), exact, batch_dims=2)
    rtol = 1e-12 if logits_type == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=0)
    cotangent = torch.randn(9, 4).to(ours.dtype)
    (gradient,) = torch.autograd.grad(ours, logits, cotangent)
    (expected,) = torch.autograd.grad(theirs, exact, cotangent.double())
    assert gradient.dtype == logits_type
    tolerance = (
        {"rtol": 8e-3, "atol": 1e-6}
        if logits_type == torch.bfloat16
        else {"rtol": 2e-6, "atol": 1e-6}
    )
    torch.testing.assert_close(gradient.double(), expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_keep_their_relative_precision(dtype):
    """However certain: log p = log sigmoid(+-l), of which x l - softplus(l) loses everything."""
    logits = torch.cat([torch.logspace(-4, 4, 81), -torch.logspace(-4, 4, 81)]).to(dtype)
    logits = logits.view(-1, 1).requires_grad_()
    for bit in (0, 1):
        x = torch.full(logits.shape, bit, dtype=torch.uint8)
        towards = (2 * bit - 1) * logits.detach().double()
        log_prob = ops.bernoulli_log_prob(x, logits)
        rtol = 1e-14 if dtype == torch.float64 else 5e-7
        # Below e^-87 float has subnormal numbers alone.
        atol = 1e-300 if dtype == torch.float64 else 1.2e-38
        expected = F.logsigmoid(towards).squeeze(1)
        torch.testing.assert_close(log_prob.double(), expected, rtol=rtol, atol=atol)
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        expected = (2 * bit - 1) * torch.sigmoid(-towards)
        torch.testing.assert_close(gradient.double(), expected, rtol=rtol, atol=atol)


def test_nan_is_not_lost():
    logits = torch.zeros(3, 40)
    logits[1, 17] = torch.nan
    log_prob = ops.bernoulli_log_prob(torch.ones(3, 40), logits)
    assert log_prob.isnan().tolist() == [False, True, False]


@given(
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    order=st.permutations(range(5)),
    batch_dims=st.integers(1, 3),
    shared=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_any_order_of_dimensions_in_memory(shape, order, batch_dims, shared):
    """Of the logits and of their gradient, against x in the usual order and shared by some."""
    x_shape = [1 if d == shared else size for d, size in enumerate(shape)]
    x, logits = inputs_of(x_shape, shape)
    order = [d for d in order if d < len(shape)]
    logits = logits.permute(order).contiguous().permute([order.index(d) for d in range(len(shape))])
    leaf = logits.detach().requires_grad_()
    op, specification = pair(batch_dims)
    ours, theirs = op(x, leaf)[0], specification(x, leaf)[0]
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype)
    gradients = [torch.autograd.grad(result, leaf, cotangent)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].stride() == torch.empty_like(logits).stride()


def allocated(call):
    """Bytes that a call allocates in all, freed again or not."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call()
    events = profile.profiler.kineto_results.events()
    return result, sum(e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0)


@pytest.mark.parametrize("x_type", [torch.uint8, torch.float32])
def test_a_shared_image_is_not_copied(x_type):
    x = torch.randint(0, 2, (8, 1, 3, 16, 16)).to(x_type)
    logits = torch.randn(8, 20, 3, 16, 16, requires_grad=True)
    log_prob, forward = allocated(lambda: ops.bernoulli_log_prob(x, logits, batch_dims=2))
    assert forward <= 8 * 20 * 4 + 256
    cotangent = torch.randn(8, 20)
    _, backward = allocated(lambda: torch.autograd.grad(log_prob, logits, cotangent))
    assert logits.nbytes <= backward <= logits.nbytes + 1024


def test_sums_do_not_depend_on_threads():
    x, logits = (t.float() for t in inputs_of((7, 40_000), (7, 40_000)))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.bernoulli_log_prob(x, logits))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, results[0]) for other in results[1:])


def test_second_derivatives_without_those_of_x():
    x, logits = inputs_of((3, 1, 4), (3, 2, 4))
    bits = x.round().to(torch.uint8)

    def op(logits):
        return ops.bernoulli_log_prob(bits, logits, batch_dims=2)

    assert torch.autograd.gradgradcheck(op, logits.requires_grad_())
    hessian = torch.autograd.functional.hessian(lambda v: op(v).sum(), logits.detach())
    on = torch.sigmoid(logits.detach())
    expected = torch.diag((-on * (1 - on)).flatten())
    torch.testing.assert_close(hessian.reshape(expected.shape), expected)


def test_the_gradient_of_x_alone():
    x, logits = inputs_of((2, 3), (4, 2, 3))
    x.requires_grad_()
    log_prob = ops.bernoulli_log_prob(x, logits, batch_dims=2)
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(gradient, logits.sum(0))


def test_autocast_changes_nothing():
    x, logits = inputs_of((5, 64), (5, 64))
    leaf = logits.bfloat16().requires_grad_()
    expected = ops.bernoulli_log_prob(x.bfloat16(), leaf)
    with torch.autocast("cpu", torch.bfloat16):
        result = ops.bernoulli_log_prob(x.bfloat16(), leaf)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert torch.autograd.grad(result.sum(), leaf)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(2, 4)}, ValueError, r"x must broadcast to the shape of logits, \[2, 3\], got \[2, 4\]"),
        ({"x": torch.ones(1, 2, 3)}, ValueError, "x must broadcast to the shape of logits"),
        ({"x": torch.ones(2, 3, dtype=torch.complex64)}, TypeError, "x must be a real tensor, got ComplexFloat"),
        ({"logits": torch.ones(2, 3).int()}, TypeError, "logits must be a float32, .* got Int"),
        ({"batch_dims": 0}, ValueError, "batch_dims must be 1 to 2, the dimensions of logits, got 0"),
        ({"batch_dims": 3}, ValueError, "batch_dims must be 1 to 2, .* got 3"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"x": torch.ones(2, 3), "logits": torch.ones(2, 3), "batch_dims": 1}
    with pytest.raises(error, match=words):
        ops.bernoulli_log_prob(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_type", ["bytes", "logits", "sums"])
def test_cuda_kernels_in_emulation(emulated, dtype, x_type):
    sums = torch.promote_types(dtype, torch.float32)
    x_dtype = {"bytes": torch.uint8, "logits": dtype, "sums": sums}[x_type]
    for x_shape, shape, batch_dims in [*CASES, ((16, 24), (2, 16, 24), 2), ((3, 784), (3, 784), 1)]:
        x, logits = inputs_of(x_shape, shape)
        x, logits = (x.round() if x_type == "bytes" else x).to(x_dtype), logits.to(dtype)
        grad = torch.randn(shape[:batch_dims], dtype=torch.double).to(sums)
        wanted = (x_type != "bytes", True)
        check_emulated("bernoulli_log_prob", x, logits, batch_dims, dtype=dtype)
        check_emulated("bernoulli_log_prob_backward", grad, x, logits, wanted, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("x_shape", "shape", "batch_dims"), CASES, ids=str)
def test_on_gpu(x_shape, shape, batch_dims):
    check_values(*pair(batch_dims), tuple(t.cuda() for t in inputs_of(x_shape, shape)))
