"""rational_quadratic_spline with an interval: K + 1 derivatives, no tails."""

import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

UNIT = (0.0, 1.0, 0.0, 1.0)
OTHER = (-1.3, 0.7, 0.5, 3.1)
MINIMA = (1e-3, 1e-3, 1e-3)
BINS = (1, 2, 8, 17)
op = torch.ops.deepgen_ext.rational_quadratic_spline.default
intervals = pytest.mark.parametrize("interval", [UNIT, OTHER], ids=["unit", "other"])
both_ways = pytest.mark.parametrize("inverse", [False, True])


def inputs_of(shape, bins, interval, inverse, seed=0, scale=0.5):
    """x all over the interval, its ends too, and moderate parameters."""
    generator = torch.Generator().manual_seed(seed)
    least, largest = interval[2:] if inverse else interval[:2]
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    sizes = (bins, bins, bins + 1)
    parameters = (
        scale * torch.randn(*shape, size, generator=generator, dtype=torch.float64)
        for size in sizes
    )
    return least + (largest - least) * x, *parameters


def pair(**options):
    return (
        lambda *tensors: ops.rational_quadratic_spline(*tensors, **options),
        lambda *tensors: reference.rational_quadratic_spline(*tensors, **options),
    )


@intervals
@both_ways
@pytest.mark.parametrize(("shape", "bins"), [((3, 4), 3), ((2, 2, 2, 2), 1)], ids=str)
def test_contract(shape, bins, inverse, interval):
    inputs = inputs_of(shape, bins, interval, inverse)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    functions = pair(inverse=inverse, interval=interval)
    check_op(*functions, inputs, op, (*leaves, inverse, 3.0, *MINIMA, list(interval)))


@intervals
@both_ways
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize(
    "shape", [(0, 5), (1, 1), (7,), (5, 3), (130, 9), (2, 1025), (1, 4100), (2, 3, 5, 7)], ids=str
)
def test_shapes(shape, bins, inverse, interval):
    inputs = inputs_of(shape, bins, interval, inverse)
    functions = pair(inverse=inverse, interval=interval)
    check_values(*functions, inputs, dtypes=(torch.float64,))


@intervals
@both_ways
@pytest.mark.parametrize("bins", BINS)
def test_equals_nflows(bins, inverse, interval):
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    # nflows looks for the inverse's inputs, too, between left and right.
    if inverse:
        interval = interval[:2] * 2
    inputs = inputs_of((50, 7), bins, interval, inverse, scale=1.5)
    options = {"min_bin_width": 2e-3, "min_bin_height": 3e-3, "min_derivative": 4e-3}
    results = []
    for function, ends in (
        (ops.rational_quadratic_spline, {"interval": interval}),
        (
            splines.rational_quadratic_spline,
            dict(zip(("left", "right", "bottom", "top"), interval)),
        ),
    ):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y, log_det = function(*leaves, inverse=inverse, **ends, **options)
        log_det = log_det if log_det.dim() == 1 else log_det.sum(1)
        total = y.square().sum() + (log_det * log_det.detach()).sum()
        results.append((y, log_det, *torch.autograd.grad(total, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@both_ways
@pytest.mark.parametrize("bins", [2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_slopes_of_one_it_is_the_spline_with_tails(dtype, bins, inverse):
    """On [-bound, bound], with the end slopes that tails have, rounded."""
    x, *sizes, derivatives = inputs_of((40, 3), bins, (-3, 3, -3, 3), inverse)
    x, *sizes, derivatives = (t.to(dtype) for t in (x, *sizes, derivatives))
    inner = derivatives[..., 1:-1]
    # softplus(raw) + 1 / 2 is 1 exactly, but for a rounding.
    raw = torch.tensor(0.5, dtype=torch.float64).expm1().log().to(dtype)
    derivatives = torch.cat([raw.expand(40, 3, 1), inner, raw.expand(40, 3, 1)], -1)
    ours = ops.rational_quadratic_spline(
        x, *sizes, derivatives, inverse=inverse, interval=(-3, 3, -3, 3), min_derivative=0.5
    )
    with_tails = ops.rational_quadratic_spline(
        x, *sizes, inner, inverse=inverse, bound=3.0, min_derivative=0.5
    )
    eps = torch.finfo(dtype).eps
    for a, b in zip(ours, with_tails, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * eps)


@intervals
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bins", BINS)
def test_inverse_undoes_forward(bins, dtype, tolerance, interval):
    for first in (False, True):
        x, *parameters = (t.to(dtype) for t in inputs_of((500, 7), bins, interval, first))
        options = {"interval": interval}
        y, log_det = ops.rational_quadratic_spline(x, *parameters, inverse=first, **options)
        back, back_log_det = ops.rational_quadratic_spline(
            y, *parameters, inverse=not first, **options
        )
        torch.testing.assert_close(back, x, rtol=0, atol=tolerance)
        torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=20 * tolerance)


@intervals
@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ends(dtype, inverse, interval):
    """They are inside, however they round, and go to the ends."""
    given, wanted = (interval[2:], interval[:2]) if inverse else (interval[:2], interval[2:])
    _, *parameters = (t.to(dtype) for t in inputs_of((200, 2), 8, interval, inverse))
    x = torch.tensor([given], dtype=dtype).expand(200, 2)
    if dtype == torch.bfloat16:  # in which most ends are others
        interval = (0.0, 1.0, -2.0, 2.0)
        given, wanted = (interval[2:], interval[:2]) if inverse else (interval[:2], interval[2:])
        x = torch.tensor([given], dtype=dtype).expand(200, 2)
    y, log_det = ops.rational_quadratic_spline(x, *parameters, inverse=inverse, interval=interval)
    assert log_det.isfinite().all()
    expected = torch.tensor([wanted], dtype=dtype).expand(200, 2)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-6)
    assert (y >= expected[:, :1]).all()
    assert (y <= expected[:, 1:]).all()


def test_results_stay_within_however_the_ends_round():
    generator = torch.Generator().manual_seed(0)
    _, *parameters = (t.float() for t in inputs_of((1, 2), 3, UNIT, False))
    for least, length in torch.rand(300, 2, generator=generator, dtype=torch.float64).tolist():
        interval = (0.0, 1.0, least, least + length)
        y, log_det = ops.rational_quadratic_spline(
            torch.tensor([[0.0, 1.0]]), *parameters, interval=interval
        )
        ends = torch.tensor(interval[2:], dtype=torch.float32)
        assert y[0, 0] >= ends[0]
        assert y[0, 1] <= ends[1]
        back, _ = ops.rational_quadratic_spline(
            ends[None], *parameters, interval=interval, inverse=True
        )
        assert back.isfinite().all()


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_is_nan_and_so_are_the_gradients_of_it_alone(dtype, inverse):
    tensors = [t.to(dtype) for t in inputs_of((6, 4), 5, OTHER, inverse)]
    least, largest = OTHER[2:] if inverse else OTHER[:2]
    clean = [t.clone().requires_grad_() for t in tensors]
    bad = {(1, 2): least - 1e-3, (3, 0): largest + 1e-3, (4, 3): torch.inf, (5, 1): torch.nan}
    for where, value in bad.items():
        tensors[0][where] = value
    spoilt = [t.requires_grad_() for t in tensors]
    hit = torch.zeros(6, 4, dtype=torch.bool)
    hit[tuple(zip(*bad))] = True
    results = []
    for leaves in (spoilt, clean):
        y, log_det = ops.rational_quadratic_spline(*leaves, inverse=inverse, interval=OTHER)
        ones = torch.ones_like(y), torch.ones_like(log_det)
        results.append((y, log_det, *torch.autograd.grad((y, log_det), leaves, ones)))
    (y, log_det, *gradients), (good_y, good_log_det, *good) = results
    assert torch.equal(y.isnan(), hit)
    assert torch.equal(y[~hit], good_y[~hit])
    assert torch.equal(log_det.isnan(), hit.any(1))
    assert torch.equal(log_det[~hit.any(1)], good_log_det[~hit.any(1)])
    for found, expected in zip(gradients, good, strict=True):
        assert torch.equal(found[~hit], expected[~hit])
        assert found[hit].isnan().any(-1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interval": (0.0, 1.0, 0.0)}, "interval must be left, right, bottom, top"),
        ({"interval": (1.0, 0.0, 0.0, 1.0)}, "left below right"),
        ({"interval": (0.0, 1.0, 1.0, 1.0)}, "bottom below top"),
        ({"interval": (0.0, torch.inf, 0.0, 1.0)}, "finite"),
        ({"interval": (0.0, 1.0, torch.nan, 1.0)}, "finite"),
        ({"derivatives": torch.ones(2, 3, 4)}, "derivatives must .* of 6, got"),
    ],
)
def test_bad_input(change, words):
    good = {
        "x": torch.ones(2, 3),
        "widths": torch.ones(2, 3, 5),
        "heights": torch.ones(2, 3, 5),
        "derivatives": torch.ones(2, 3, 6),
        "interval": UNIT,
    }
    assert ops.rational_quadratic_spline(**good)[0].isfinite().all()
    with pytest.raises(ValueError, match=words):
        ops.rational_quadratic_spline(**(good | change))


def test_as_many_bins_as_there_may_be():
    inputs = inputs_of((3, 20), 100, UNIT, False)
    check_values(*pair(interval=UNIT), inputs, dtypes=(torch.float64,))


@pytest.mark.parametrize("packed", [False, True])
@both_ways
def test_slices_compile_and_keep_their_gradients(inverse, packed):
    x, *parameters = inputs_of((6, 3), 4, UNIT, inverse)
    sizes = (4, 4, 5)
    whole = torch.cat(parameters, -1)

    def function(x, whole):
        parts = whole.split(sizes, -1)
        parts = parts if packed else [part.contiguous() for part in parts]
        y, log_det = ops.rational_quadratic_spline(x, *parts, inverse=inverse, interval=UNIT)
        return y.square().sum() + log_det.sum()

    torch._dynamo.reset()
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = x.clone().requires_grad_(), whole.clone().requires_grad_()
        total = call(*leaves)
        results.append((total, *torch.autograd.grad(total, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bins", [1, 3, 40])
def test_cuda_kernels_in_emulation(emulated, dtype, bins):
    sizes = (bins, bins, bins + 1)
    for shape in [(0, 3), (3, 1), (70, 5), (5, 40), (2, 300), (1, 4500), (2, 3, 4, 5)]:
        if bins > 8 and len(shape) == 2 and shape[1] > 40:
            continue
        interval = (-2.0, 4.0, 1.0, 7.0)
        for inverse in (False, True):
            x, *parameters = (t.to(dtype) for t in inputs_of(shape, bins, interval, inverse))
            if len(shape) == 4:
                parameters = torch.cat(parameters, -1).split(sizes, -1)
            grad = torch.randn(shape).to(dtype)
            of_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
            given = (x, *parameters, inverse, 3.0, *MINIMA, list(interval))
            check_emulated("rational_quadratic_spline", *given, magnified=10)
            backward = "rational_quadratic_spline_backward"
            check_emulated(backward, grad, of_log_det, *given, magnified=10)


@pytest.mark.gpu
@both_ways
def test_on_gpu(inverse):
    inputs = tuple(t.cuda() for t in inputs_of((130, 9), 8, OTHER, inverse))
    check_values(*pair(inverse=inverse, interval=OTHER), inputs, dtypes=(torch.float64,))
