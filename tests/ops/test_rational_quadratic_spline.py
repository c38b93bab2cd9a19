"""rational_quadratic_spline against its definition and nflows, and the properties that only a spline has."""

import itertools

import hypothesis
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

BOUND = 3.0
BINS = (1, 2, 8, 17)
# Rows off every vector width, rows of several pieces, chunks that span rows.
SHAPES = [(0, 5), (1, 1), (7,), (5, 3), (130, 9), (2, 1025), (1, 4100), (2, 3, 5, 7)]
OPTIONS = (BOUND, 1e-3, 1e-3, 1e-3)
op = torch.ops.deepgen_ext.rational_quadratic_spline.default


def inputs_of(shape, bins, seed=0, scale=0.5):
    """x on both sides of the bounds, and moderate parameters: slopes of about 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    sizes = (bins, bins, bins - 1)
    parameters = (
        scale * torch.randn(*shape, size, generator=generator, dtype=torch.float64)
        for size in sizes
    )
    return x, *parameters


def pair(**options):
    return (
        lambda *tensors: ops.rational_quadratic_spline(*tensors, **options),
        lambda *tensors: reference.rational_quadratic_spline(*tensors, **options),
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "bins"), [((3, 4), 3), ((2, 2, 2, 2), 2)], ids=str)
def test_contract(shape, bins, inverse):
    inputs = inputs_of(shape, bins)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    check_op(*pair(inverse=inverse), inputs, op, (*leaves, inverse, *OPTIONS))


@pytest.mark.parametrize("inverse", [False, True])
def test_one_bin(inverse):
    """No derivatives: between the bounds too, it is the identity."""
    inputs = inputs_of((4, 3), 1)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    torch.library.opcheck(op, (*leaves, inverse, *OPTIONS))
    y, log_det = ops.rational_quadratic_spline(*inputs, inverse=inverse)
    torch.testing.assert_close(y, inputs[0])
    torch.testing.assert_close(log_det, torch.zeros_like(log_det))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, bins, inverse):
    inputs = inputs_of(shape, bins)
    check_values(*pair(inverse=inverse), inputs, dtypes=(torch.float64,))
    # float32 knows the edges to 2e-7; slopes between the knots turn that into more, sums into most.
    limit = 2e-5 * max(1, inputs[0][:1].numel()) ** 0.5
    for ours, exact in zip(
        ops.rational_quadratic_spline(*(t.float() for t in inputs), inverse=inverse),
        ops.rational_quadratic_spline(*(t.float().double() for t in inputs), inverse=inverse),
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=limit)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_types_compute_in_float32(dtype, limit, inverse):
    inputs = tuple(t.to(dtype) for t in inputs_of((40, 9), 8))
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    singles = tuple(t.float().requires_grad_() for t in inputs)
    y, log_det = ops.rational_quadratic_spline(*leaves, inverse=inverse)
    exact, exact_log_det = ops.rational_quadratic_spline(*singles, inverse=inverse)
    assert log_det.dtype == torch.float32
    assert torch.equal(log_det, exact_log_det)
    assert torch.equal(y, exact.to(dtype))
    ones = torch.ones_like(log_det)
    ours = torch.autograd.grad((y, log_det), leaves, (torch.ones_like(y), ones))
    theirs = torch.autograd.grad((exact, exact_log_det), singles, (torch.ones_like(exact), ones))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.float(), b, rtol=limit, atol=limit)


@hypothesis.given(
    batch=st.integers(0, 20),
    sample=st.lists(st.integers(1, 6), max_size=3),
    bins=st.integers(2, 12),
    inverse=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(batch, sample, bins, inverse, seed):
    inputs = inputs_of((batch, *sample), bins, seed)
    check_values(*pair(inverse=inverse), inputs, dtypes=(torch.float64,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 3, 8])
def test_slices_of_a_conditioner_are_not_copied(bins, inverse, dtype):
    """Slices of one output of a linear layer, and of a convolution, give what their copies give."""
    sizes = (bins, bins, bins - 1)
    vectors = torch.randn(21, 5, 3 * bins - 1, dtype=dtype)
    images = torch.randn(3, 4 * (3 * bins - 1), 5, 6, dtype=dtype)
    images = images.view(3, 4, 3 * bins - 1, 5, 6).movedim(2, -1)
    for output in (vectors, images, images.to(memory_format=torch.channels_last_3d)):
        x = torch.randn(output.shape[:-1], dtype=dtype)
        slices = output.split(sizes, -1)
        leaves = [t.detach().requires_grad_() for t in (x, *slices)]
        dense = [t.detach().contiguous().requires_grad_() for t in (x, *slices)]
        results = []
        for tensors in (leaves, dense):
            y, log_det = ops.rational_quadratic_spline(*tensors, inverse=inverse)
            gradients = torch.autograd.grad(y.square().sum() + log_det.square().sum(), tensors)
            results.append((y, log_det, *gradients))
        for ours, theirs in zip(*results):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", BINS)
def test_equals_nflows(bins, inverse):
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    x, *parameters = inputs_of((50, 7), bins, scale=1.5)
    options = {"min_bin_width": 2e-3, "min_bin_height": 3e-3, "min_derivative": 4e-3}
    y, log_det = ops.rational_quadratic_spline(
        x, *parameters, inverse=inverse, bound=2.5, **options
    )
    theirs, logs = splines.unconstrained_rational_quadratic_spline(
        x, *parameters, inverse=inverse, tail_bound=2.5, **options
    )
    torch.testing.assert_close(y, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(log_det, logs.sum(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bins", BINS)
def test_log_det_is_that_of_the_jacobian(bins):
    x, *parameters = inputs_of((1, 6), bins)
    for inverse in (False, True):
        _, log_det = ops.rational_quadratic_spline(x, *parameters, inverse=inverse)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=inverse: ops.rational_quadratic_spline(v[None], *parameters, inverse=i)[0][
                0
            ],
            x[0],
        )
        torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def wide_and_narrow(bins, dtype, count):
    """Bins as narrow and as wide, slopes as flat and as steep, as the parameters allow."""
    generator = torch.Generator().manual_seed(3)
    sizes = (bins, bins, bins - 1)
    return [20 * torch.randn(count, size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", BINS)
def test_increases_and_stays_within_the_bounds(bins, inverse, dtype):
    one = [t.expand(4001, -1) for t in wide_and_narrow(bins, dtype, 1)]
    x = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, 4001, dtype=dtype)
    y, log_det = ops.rational_quadratic_spline(x, *one, inverse=inverse)
    assert log_det.isfinite().all()
    rounding = 8 * torch.finfo(dtype).eps * BOUND
    assert (y.diff() >= -rounding).all()
    inside = x.abs() <= BOUND
    assert (y[inside].abs() <= BOUND).all()
    assert torch.equal(y[~inside], x[~inside])
    assert not log_det[~inside].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bins", BINS)
def test_inverse_undoes_forward(bins, dtype, tolerance):
    x, *parameters = (t.to(dtype) for t in inputs_of((500, 7), bins))
    for first in (False, True):
        y, log_det = ops.rational_quadratic_spline(x, *parameters, inverse=first)
        back, back_log_det = ops.rational_quadratic_spline(y, *parameters, inverse=not first)
        torch.testing.assert_close(back, x, rtol=0, atol=tolerance)
        torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", BINS)
def test_edges(bins, dtype):
    """Exactly at the knots, at the bounds and one step beside them, whatever the bins."""
    widths, heights, derivatives = wide_and_narrow(bins, dtype, 40)
    edge = torch.tensor([BOUND], dtype=dtype)
    limits = torch.cat([edge, edge.nextafter(2 * edge), edge.nextafter(0 * edge)])
    for raw, inverse in ((widths, False), (heights, True)):
        shares = 1e-3 + (1 - 1e-3 * bins) * raw.softmax(-1)
        knots = (2 * BOUND * shares.cumsum(-1) - BOUND)[:, :-1]
        knots = torch.cat([knots, knots.nextafter(knots + 1), knots.nextafter(knots - 1)], 1)
        x = torch.cat([knots, limits.expand(40, 3), -limits.expand(40, 3)], 1)
        parameters = [t[:, None].expand(-1, x.shape[1], -1) for t in (widths, heights, derivatives)]
        y, log_det = ops.rational_quadratic_spline(x, *parameters, inverse=inverse)
        expected, _ = reference.rational_quadratic_spline(
            *(t.double() for t in (x, *parameters)), inverse=inverse
        )
        assert log_det.isfinite().all()
        assert (y.abs() <= x.abs().clamp_min(BOUND)).all()
        # At a knot x is rounded, which the steepest bin magnifies: compare where it is not steep.
        back, _ = ops.rational_quadratic_spline(y, *parameters, inverse=not inverse)
        eps = torch.finfo(dtype).eps
        near = torch.minimum((back - x).abs(), (y - expected).abs().to(dtype))
        assert near.max() <= 200 * eps * BOUND
        assert torch.equal(y[:, -6:].sign(), x[:, -6:].sign())
        torch.testing.assert_close(y[:, -6:].abs(), x[:, -6:].abs(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("inverse", [False, True])
def test_all_in_the_tails(inverse):
    """nflows#23: no element between the bounds."""
    _, *parameters = inputs_of((6, 5), 8)
    x = (torch.rand(6, 5, dtype=torch.float64) + 1 + BOUND) * torch.tensor([1, -1, 1, -1, 1])
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    y, log_det = ops.rational_quadratic_spline(*leaves, inverse=inverse)
    assert torch.equal(y, x)
    assert not log_det.any()
    by_x, *rest = torch.autograd.grad((y, log_det), leaves, (2 * x, torch.ones(6).double()))
    assert torch.equal(by_x, 2 * x)
    assert not any(by.any() for by in rest)


def test_inverse_of_extreme_bins():
    """nflows#87: a discriminant that rounding makes negative."""
    parameters = wide_and_narrow(10, torch.float32, 20000)
    y = torch.empty(20000).uniform_(-BOUND, BOUND)
    x, log_det = ops.rational_quadratic_spline(y, *parameters, inverse=True)
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    exact, _ = ops.rational_quadratic_spline(*(t.double() for t in (y, *parameters)), inverse=True)
    # As far off as an error of a few roundings in y makes it.
    again, _ = ops.rational_quadratic_spline(x.double(), *(t.double() for t in parameters))
    off = torch.minimum((again - y).abs(), (x - exact).abs())
    assert off.max() < 2e-5


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_infinity(dtype, inverse):
    inputs = [t.to(dtype) for t in inputs_of((9, 4), 5)]
    inputs[0].clamp_(-2, 2)
    clean, clean_log_det = ops.rational_quadratic_spline(*inputs, inverse=inverse)
    for which, bad in itertools.product(range(4), (torch.nan, torch.inf, -torch.inf)):
        spoilt = [t.clone() for t in inputs]
        row = spoilt[which][2]
        row[(1,) + (0,) * (row.dim() - 1)] = bad
        y, log_det = ops.rational_quadratic_spline(*spoilt, inverse=inverse)
        others = torch.ones_like(y, dtype=torch.bool)
        others[2, 1] = False
        assert torch.equal(y[others], clean[others])
        assert torch.equal(log_det[torch.arange(9) != 2], clean_log_det[torch.arange(9) != 2])
        if which == 0:
            assert torch.equal(y[2, 1].isnan(), spoilt[0][2, 1].isnan())
            assert log_det[2].isnan() == spoilt[0][2, 1].isnan()
        elif bad != -torch.inf and which < 3:
            assert y[2, 1].isnan()
            assert log_det[2].isnan()


def test_sums_do_not_depend_on_threads():
    inputs = [t.float() for t in inputs_of((3, 20000), 5)]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.rational_quadratic_spline(*inputs)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, results[0]) for other in results[1:])
    exact = ops.rational_quadratic_spline(*(t.double() for t in inputs))[1]
    torch.testing.assert_close(results[0].double(), exact, rtol=2e-6, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, "x must have a batch dimension"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "x must be a float32, .* got Int"),
        ({"widths": torch.ones(2, 3, 101)}, ValueError, "widths must have 1 to 100 bins .* got 101"),
        ({"widths": torch.ones(2, 4, 5)}, ValueError, r"widths must have the shape of x, \[2, 3\]"),
        ({"heights": torch.ones(2, 3, 4)}, ValueError, r"heights must .* of 5, got \[2, 3, 4\]"),
        ({"derivatives": torch.ones(2, 3, 5)}, ValueError, "derivatives must .* of 4, got"),
        ({"derivatives": torch.ones(2, 3, 4).half()}, TypeError, "derivatives must have the dtype"),
        ({"bound": 0.0}, ValueError, "bound must be a finite number above 0, got 0"),
        ({"bound": torch.inf}, ValueError, "bound must be a finite number above 0, got inf"),
        ({"min_bin_width": 0.21}, ValueError, r"min_bin_width must .* with 5 bins, got 0.21"),
        ({"min_bin_height": 0.0}, ValueError, "min_bin_height must lie in"),
        ({"min_derivative": 1.0}, ValueError, r"min_derivative must lie in \(0, 1\), got 1"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {
        "x": torch.ones(2, 3),
        "widths": torch.ones(2, 3, 5),
        "heights": torch.ones(2, 3, 5),
        "derivatives": torch.ones(2, 3, 4),
    }
    with pytest.raises(error, match=words):
        ops.rational_quadratic_spline(**(good | change))


def test_autocast_runs_in_float32():
    inputs = [t.bfloat16() for t in inputs_of((4, 3), 5)]
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = ops.rational_quadratic_spline(*inputs)
    assert y.dtype == log_det.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bins", [1, 3, 8, 40])
def test_cuda_kernels_in_emulation(emulated, dtype, bins):
    sizes = (bins, bins, bins - 1)
    for shape in [(0, 3), (3, 1), (70, 5), (5, 40), (2, 300), (1, 4500), (2, 3, 4, 5)]:
        if bins > 8 and len(shape) == 2 and shape[1] > 40:
            continue
        x, *parameters = (t.to(dtype) for t in inputs_of(shape, bins))
        grad = torch.randn(shape).to(dtype)
        dense = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        strided = torch.stack((dense, -dense), 1)[:, 0]
        packed = torch.cat(parameters, -1)
        if len(shape) == 4:
            packed = packed.movedim(-1, 2).contiguous().movedim(2, -1)
        slices = packed.split(sizes, -1)
        for each, inverse, grad_log_det in (
            (parameters, False, dense),
            (slices, True, strided),
        ):
            options = (inverse, *OPTIONS)
            given = (x, *each, *options)
            check_emulated("rational_quadratic_spline", *given, magnified=10)
            backward = "rational_quadratic_spline_backward"
            check_emulated(backward, grad, grad_log_det, *given, magnified=10)


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_gpu(shape, bins, inverse):
    inputs = tuple(t.cuda() for t in inputs_of(shape, bins))
    check_values(*pair(inverse=inverse), inputs, dtypes=(torch.float64,))
