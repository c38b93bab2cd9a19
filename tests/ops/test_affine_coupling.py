"""affine_coupling against its definition, and the properties that only a coupling has."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated
from tests.ops.scale_maps import SCALE_MAPS

# Rows shorter, equal to and longer than a tile or a piece of the kernels, and edges off every vector width.
SHAPES = [
    (0, 5),
    (1, 1),
    (3, 1),
    (2, 7),
    (5, 8),
    (130, 9),
    (3, 1024),
    (2, 1025),
    (2, 4097),
    (2, 3, 5, 7),
]
LONG = [(2, 16385), (1, 96, 33, 31), (300, 16)]
forward_op = torch.ops.deepgen_ext.affine_coupling.default


def inputs_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, raw, shift = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, raw, shift


def pair(**options):
    return (
        lambda x, raw, shift: ops.affine_coupling(x, raw, shift, **options),
        lambda x, raw, shift: reference.affine_coupling(x, raw, shift, **options),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_contract(scale_map, inverse, masked):
    x, raw, shift = inputs_of((3, 4, 3, 2))
    mask = torch.tensor([[True, False], [False, True], [True, True]]) if masked else None
    op, specification = pair(scale_map=scale_map, inverse=inverse, mask=mask, clamp=1.5)
    leaves = tuple(t.clone().requires_grad_() for t in (x, raw, shift))
    check_op(
        op, specification, (x, raw, shift), forward_op, (*leaves, mask, scale_map, 1.5, inverse)
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, scale_map, inverse):
    check_values(*pair(scale_map=scale_map, inverse=inverse), inputs_of(shape))


@pytest.mark.parametrize("shape", LONG, ids=str)
def test_long_rows(shape):
    # Tighter than pair by pair would need: a naive float32 sum of 98,208 terms is off by 2e-4.
    check_values(*pair(scale_map="tanh"), inputs_of(shape))


@pytest.mark.parametrize("columns", [15, 16, 17, 31, 32, 33, 48, 64, 100, 1000, 1008])
@pytest.mark.parametrize("inverse", [False, True])
def test_rows_that_are_mapped_where_they_are(columns, inverse):
    """Halves of wider tensors in several tiles, the last one partial: each operand with a stride of its own."""
    rows = 2 * (1024 // columns) + 3
    generator = torch.Generator().manual_seed(columns)
    wide, parameters = (
        torch.randn(rows, k * columns + 1, generator=generator, dtype=torch.float64) for k in (1, 2)
    )
    strided = (wide[:, 1:], *parameters[:, 1:].chunk(2, 1))
    op, specification = pair(inverse=inverse)
    for dtype in (torch.float32, torch.float64):
        x, raw, shift = (t.to(dtype) for t in strided)
        halves = torch.cat((raw, shift), 1).chunk(2, 1)
        wider = torch.cat((x, x), 1)[:, columns:]
        exact_y, exact_log_det = specification(*(t.double() for t in (x, raw, shift)))
        tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
        for operands in ((x, raw, shift), (x, *halves), (wider, *halves), (wider, raw, shift)):
            y, log_det = op(*operands)
            assert ((y - exact_y).abs() / (1 + exact_y.abs())).max() < tolerance
            assert (log_det - exact_log_det).abs().max() < tolerance * (1 + columns**0.5)
        # What moves by half_coupling lies in a wider y.
        visible = torch.zeros_like(x)
        y, log_det = ops.half_coupling(visible, x, torch.cat((raw, shift), 1), inverse=inverse)
        assert torch.equal(y[:, :columns], visible)
        assert ((y[:, columns:] - exact_y).abs() / (1 + exact_y.abs())).max() < tolerance


@given(
    batch=st.integers(0, 40),
    sample=st.lists(st.integers(1, 9), max_size=4),
    scale_map=st.sampled_from(SCALE_MAPS),
    inverse=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(batch, sample, scale_map, inverse, masked, seed):
    x, raw, shift = inputs_of((batch, *sample), seed)
    mask = (
        torch.rand(sample, generator=torch.Generator().manual_seed(seed)) < 0.5 if masked else None
    )
    options = {"scale_map": scale_map, "inverse": inverse, "mask": mask}
    check_values(*pair(**options), (x, raw, shift), dtypes=(torch.float32, torch.float64))


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_log_det_is_that_of_the_jacobian(scale_map):
    x, raw, shift = inputs_of((1, 6))
    for inverse in (False, True):
        y, log_det = ops.affine_coupling(x, raw, shift, scale_map=scale_map, inverse=inverse)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=inverse: ops.affine_coupling(
                v[None], raw, shift, scale_map=scale_map, inverse=i
            )[0][0],
            x[0],
        )
        torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_inverse_undoes_forward(scale_map):
    x, raw, shift = (t.float() for t in inputs_of((4, 3, 5, 5)))
    y, log_det = ops.affine_coupling(x, raw, shift, scale_map=scale_map)
    back, back_log_det = ops.affine_coupling(y, raw, shift, scale_map=scale_map, inverse=True)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(back_log_det, -log_det)


@pytest.mark.parametrize(("scale_map", "bound"), [("tanh", 1.0), ("atan", 0.7), ("softclip", 0.7)])
def test_bounded_maps_hold_their_bounds(scale_map, bound):
    raw = torch.tensor([[-1e30, -50.0, 0.0, 50.0, 1e30]])
    one, zero = torch.ones_like(raw), torch.zeros_like(raw)
    for inverse in (False, True):
        y, _ = ops.affine_coupling(one, raw, zero, scale_map=scale_map, clamp=0.7, inverse=inverse)
        assert y.min() >= math.exp(-bound) * (1 - 1e-6)
        assert y.max() <= math.exp(bound) * (1 + 1e-6)
        assert y[0, 2] == 1


def test_sigmoid_does_not_overflow_far_out():
    raw = torch.tensor([[-80.0, -30.0, 30.0, 80.0, 1e30]])
    zero = torch.zeros_like(raw)
    y, log_det = ops.affine_coupling(zero + 1, raw, zero, scale_map="sigmoid")
    assert log_det.isfinite().all()
    torch.testing.assert_close(y[0, 2:], torch.ones(3))
    torch.testing.assert_close(log_det, (raw + 2).clamp(max=0).sum(1))


@pytest.mark.parametrize("columns", [96, 128, 4096 + 256])
def test_log_det_of_a_saturated_row_is_relatively_exact(columns):
    """Where all s are next to 1, ln s must not be lost in 1 + e, however many share a logarithm."""
    for low, high in ((12, 40), (60, 80), (-3, -1), (-80, 80)):
        raw = torch.linspace(low, high, columns)[None].repeat(2, 1)
        zero = torch.zeros_like(raw)
        for inverse in (False, True):
            options = {"scale_map": "sigmoid", "inverse": inverse}
            _, log_det = ops.affine_coupling(zero, raw, zero, **options)
            exact = reference.affine_coupling(*(t.double() for t in (zero, raw, zero)), **options)[
                1
            ]
            assert ((log_det - exact) / exact).abs().max() < 5e-6
    raw[0, 17] = torch.nan
    raw[1, 5] = -math.inf
    _, log_det = ops.affine_coupling(zero, raw, zero, scale_map="sigmoid")
    assert log_det[0].isnan()
    assert log_det[1] == -math.inf


def test_elementary_functions_over_the_whole_range():
    """The kernels' own float polynomials, element by element, against float64."""
    raw = torch.cat([torch.linspace(-86.5, 88.5, 20001), torch.linspace(-2, 2, 20001)])[:, None]
    one, zero = torch.ones_like(raw), torch.zeros_like(raw)
    for scale_map in SCALE_MAPS:
        y, log_det = ops.affine_coupling(one, raw, zero, scale_map=scale_map)
        exact_y, exact_log_det = reference.affine_coupling(
            one.double(), raw.double(), zero.double(), scale_map=scale_map
        )
        assert ((y - exact_y) / exact_y).abs().max() < 4e-7, scale_map
        # Far out, ln(1 + e^-v) has |v| times the relative error that rounding v = raw + 2 leaves in v.
        by_sigmoid = scale_map in ("sigmoid", "reciprocal_sigmoid")  # the same logarithm
        condition = 1 + raw[:, 0].abs() if by_sigmoid else 1
        size = exact_log_det.abs()
        if scale_map in ("softplus", "floored_sigmoid"):  # ln s of a rounded s crosses 0 at s = 1
            size = size.clamp_min(1.0)
        relative = ((log_det - exact_log_det) / size).abs().nan_to_num()
        relative[exact_log_det.abs() < 1e-37] = 0  # below float's normal numbers exp is 0
        assert (relative / condition).max() < 4e-7, scale_map
    extremes = torch.tensor([[-math.inf], [-1e4], [-103.0], [88.7], [89.0], [1e4], [math.inf]])
    y, _ = ops.affine_coupling(torch.ones(7, 1), extremes, torch.zeros(7, 1))
    torch.testing.assert_close(y, extremes.exp())


def test_mask_shields_the_rest_from_what_the_conditioner_says_there():
    x, raw, shift = inputs_of((2, 4))
    mask = torch.tensor([True, False, True, False])
    raw[:, 1], shift[:, 3] = math.nan, math.inf
    for inverse in (False, True):
        y, log_det = ops.affine_coupling(x, raw, shift, mask=mask, inverse=inverse)
        assert torch.equal(y[:, ~mask], x[:, ~mask])
        assert log_det.isfinite().all()
        assert y.isfinite().all()


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_nan_stays_in_its_element_and_sample(scale_map):
    x, raw, shift = (t.float() for t in inputs_of((3, 40)))
    x[0, 3], raw[1, 5] = math.nan, math.nan
    y, log_det = ops.affine_coupling(x, raw, shift, scale_map=scale_map)
    assert y.isnan().nonzero().tolist() == [[0, 3], [1, 5]]
    assert log_det.isnan().tolist() == [False, True, False]


def test_additive():
    x, _, shift = inputs_of((3, 4))
    mask = torch.tensor([True, False, True, True])
    y, log_det = ops.affine_coupling(x, None, shift, mask=mask)
    torch.testing.assert_close(y, torch.where(mask, x + shift, x))
    torch.testing.assert_close(ops.affine_coupling(y, None, shift, mask=mask, inverse=True)[0], x)
    assert torch.equal(log_det, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 70001), (2000, 64)], ids=str)
def test_sums_do_not_depend_on_threads(shape):
    x, raw, shift = (t.float() for t in inputs_of(shape))
    raw, shift = torch.cat((raw, shift), 1).chunk(2, 1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.affine_coupling(x, raw, shift))
    finally:
        torch.set_num_threads(threads)
    for y, log_det in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(log_det, results[0][1])


def test_halves_of_a_conditioner_are_not_copied():
    x = torch.randn(4, 6, 8, 8, requires_grad=True)
    conditioned = torch.randn(4, 12, 8, 8, requires_grad=True)
    raw, shift = conditioned.chunk(2, dim=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.affine_coupling(x, raw, shift, scale_map="tanh")
    called = {event.key for event in profile.key_averages()}
    assert not called & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


def test_autocast_keeps_log_det_exact():
    x = torch.randn(2, 5000)
    raw, shift = torch.randn(2, 5000).bfloat16(), torch.randn(2, 5000).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = ops.affine_coupling(x, raw, shift, scale_map="tanh")
    assert y.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(log_det.double(), raw.double().tanh().sum(1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"raw_scale": torch.ones(2, 4)}, ValueError, r"raw_scale must have the shape of x, \[2, 3\]"),
        ({"shift": torch.ones(3, 3)}, ValueError, r"shift must have the shape of x"),
        ({"shift": torch.ones(2, 3).double()}, TypeError, "shift must have the dtype of x, Float, got Double"),
        ({"x": torch.ones(2, 3).long()}, TypeError, "x must be a float32, .* got Long"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must have a batch dimension"),
        ({"scale_map": "cube"}, ValueError, "scale_map must be one of .* got 'cube'"),
        ({"clamp": 0.0}, ValueError, "clamp must be a finite number above 0, got 0"),
        ({"clamp": math.nan}, ValueError, "clamp must be a finite number above 0"),
        ({"mask": torch.ones(3)}, TypeError, "mask must be a bool tensor"),
        ({"mask": torch.ones(4).bool()}, ValueError, r"mask must broadcast to one sample of x, \[3\], got \[4\]"),
        ({"raw_scale": None, "shift": torch.ones(2, 4)}, ValueError, "shift must have the shape of x"),
        ({"raw_scale": None, "x": torch.ones(2, 3).long()}, TypeError, "must be floating-point"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"x": torch.ones(2, 3), "raw_scale": torch.ones(2, 3), "shift": torch.ones(2, 3)}
    with pytest.raises(error, match=words):
        ops.affine_coupling(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "chunk"])
def test_cuda_kernels_in_emulation(emulated, dtype, layout):
    for shape in [(3, 4, 5, 6), (2, 8, 24, 24), (70, 8, 1, 1), (1, 1, 3, 1), (0, 3, 2, 2)]:
        x, raw, shift = (t.to(dtype) for t in inputs_of(shape))
        grad, grad_log_det = torch.randn_like(x), torch.randn(shape[0]).to(x.new_empty(0).float())
        grad_log_det = grad_log_det.double() if dtype == torch.float64 else grad_log_det
        if layout == "channels_last":
            x, raw = (t.contiguous(memory_format=torch.channels_last) for t in (x, raw))
        elif layout == "chunk":
            raw, shift = torch.cat([raw, shift], 1).chunk(2, 1)
        for scale_map in SCALE_MAPS:
            for inverse in (False, True):
                for mask in (None, torch.rand(shape[-2:]) < 0.5):
                    options = (mask, scale_map, 2.0, inverse)
                    check_emulated("affine_coupling", x, raw, shift, *options)
                    check_emulated("affine_coupling_backward", grad, grad_log_det, x, raw, *options)


@pytest.mark.gpu
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
def test_on_gpu(shape, scale_map, inverse):
    op, specification = pair(scale_map=scale_map, inverse=inverse)
    check_values(op, specification, tuple(t.cuda() for t in inputs_of(shape)))


@pytest.mark.gpu
def test_devices_must_agree():
    x = torch.ones(2, 3, device="cuda")
    with pytest.raises(ValueError, match="shift must be on the device of x, cuda:0, got cpu"):
        ops.affine_coupling(x, x, x.cpu())
