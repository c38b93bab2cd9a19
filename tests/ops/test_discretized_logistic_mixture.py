"""discretized_logistic_mixture against its definition."""

import itertools

import mpmath
import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

LIBRARY = torch.ops.deepgen_ext
# (n, C, H, W), mixtures, n_levels
CASES = [
    ((0, 3, 2, 2), 10, 256),
    ((1, 1, 1, 1), 1, 2),
    ((2, 1, 5, 7), 5, 4),
    ((3, 2, 1, 9), 3, 16),
    ((33, 3, 1, 1), 10, 256),
    ((2, 3, 13, 11), 10, 256),
    ((1, 6, 4, 3), 2, 3),
    ((2, 3, 8, 8), 20, 65536),
]


def parameter_count(channels, mixtures):
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def inputs_of(shape, mixtures, n_levels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n, channels, height, width = shape
    p = torch.randn(
        n,
        parameter_count(channels, mixtures),
        height,
        width,
        generator=generator,
        dtype=torch.double,
    )
    p[:, mixtures * (1 + channels) : mixtures * (1 + 2 * channels)] -= 1
    levels = torch.randint(0, n_levels, shape, generator=generator)
    levels.view(-1)[::3] = 0
    levels.view(-1)[1::5] = n_levels - 1
    return p, levels


def pair(levels, n_levels, mixtures):
    options = {"n_levels": n_levels, "mixtures": mixtures}
    return (
        lambda p: (ops.discretized_logistic_mixture(p, levels, **options),),
        lambda p: (reference.discretized_logistic_mixture(p, levels, **options),),
    )


@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (2, 3, 2, 2)], ids=str)
def test_contract(shape):
    p, levels = inputs_of(shape, 2, 5)
    leaf = p.clone().requires_grad_()
    overload = LIBRARY.discretized_logistic_mixture.default
    check_op(*pair(levels, 5, 2), (p,), overload, (leaf, levels, 5, 2))


@pytest.mark.parametrize(("shape", "mixtures", "n_levels"), CASES, ids=str)
def test_shapes(shape, mixtures, n_levels):
    p, levels = inputs_of(shape, mixtures, n_levels)
    check_values(*pair(levels, n_levels, mixtures), (p,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_all_levels_sum_to_one(dtype):
    """Also where most of the mass lies in the edges, in one level, or nearly everywhere."""
    scales, means = torch.meshgrid(
        torch.linspace(-9, 5, 15, dtype=dtype),
        torch.linspace(-3, 3, 13, dtype=dtype),
        indexing="ij",
    )
    logits = torch.sin(7 * scales + means)
    p = torch.stack([logits, -logits, means, -0.3 * means, scales, scales.flip(0)])
    for n_levels in (2, 3, 256):
        levels = torch.arange(n_levels).view(-1, 1, 1, 1).expand(n_levels, 1, *scales.shape)
        log_prob = ops.discretized_logistic_mixture(
            p.expand(n_levels, -1, -1, -1), levels, n_levels=n_levels, mixtures=2
        )
        tolerance = 1e-12 if dtype == torch.float64 else 3e-5
        total = log_prob.double().exp().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=tolerance, atol=0)


def test_probabilities_of_all_colours_sum_to_one():
    p, _ = inputs_of((1, 3, 2, 2), 4, 5, seed=3)
    colours = torch.tensor(list(itertools.product(range(5), repeat=3)))
    levels = colours.view(125, 3, 1, 1).expand(125, 3, 2, 2)
    log_prob = ops.discretized_logistic_mixture(
        p.expand(125, -1, -1, -1), levels, n_levels=5, mixtures=4
    )
    total = log_prob.exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


def exact_log_prob(level, mean, log_scale):
    """log(sigmoid(b) - sigmoid(a)) as it stands, with digits enough for all that cancels."""
    with mpmath.workdps(15_000):
        x, half = 2 * mpmath.mpf(level) / 255 - 1, mpmath.mpf(1) / 255
        above, below = (
            1 / (1 + mpmath.exp(-(x + d - mpmath.mpf(mean)) / mpmath.exp(log_scale)))
            for d in (half, -half)
        )
        probability = (1 if level == 255 else above) - (0 if level == 0 else below)
        return float(mpmath.log(probability))


def test_tails_against_enough_digits():
    cases = list(itertools.product((-40.0, -2.0, 0.25, 3.0), (-6.5, -2.0, 4.0), (0, 7, 128, 255)))
    p = torch.tensor([[0.5, mean, scale] for mean, scale, _ in cases], dtype=torch.float64)
    levels = torch.tensor([level for *_, level in cases]).view(-1, 1, 1, 1)
    exact = torch.tensor(
        [exact_log_prob(level, mean, scale) for mean, scale, level in cases], dtype=torch.float64
    )
    for dtype, rtol, rounding_of_x in ((torch.float64, 1e-12, 2e-16), (torch.float32, 2e-6, 6e-8)):
        ours = ops.discretized_logistic_mixture(p[..., None, None].to(dtype), levels, mixtures=1)
        bound = rtol * exact.abs() + 4 * rounding_of_x * torch.exp(-p[:, 2])
        assert ((ours.flatten().double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_parameters_stay_finite(dtype):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(4, 100, 8, 8, generator=generator, dtype=torch.double)
    p[:, :10] *= 1e4
    p[:, 10:40] *= 100
    p[:, 40:70] *= 60
    p[:, 70:] *= 30
    p = p.to(dtype)
    levels = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    leaf, exact = p.clone().requires_grad_(), p.double().requires_grad_()
    ours = ops.discretized_logistic_mixture(leaf, levels)
    theirs = reference.discretized_logistic_mixture(exact, levels.long())
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-3)
    (grad,) = torch.autograd.grad(ours.sum(), leaf)
    assert grad.isfinite().all()


def test_log_scales_are_clamped():
    p, levels = inputs_of((2, 3, 3, 3), 4, 256)
    p[:, 16:28] = -7 - torch.rand(2, 12, 3, 3)
    at_clamp = p.clone()
    at_clamp[:, 16:28] = -7
    p.requires_grad_()
    ours = ops.discretized_logistic_mixture(p, levels, mixtures=4)
    assert torch.equal(ours, ops.discretized_logistic_mixture(at_clamp, levels, mixtures=4))
    (grad,) = torch.autograd.grad(ours.sum(), p)
    assert (grad[:, 16:28] == 0).all()
    assert (grad[:, :16] != 0).any()


def test_levels_of_both_dtypes_and_out_of_range():
    p, levels = inputs_of((2, 3, 5, 5), 4, 256)
    expected = ops.discretized_logistic_mixture(p, levels, mixtures=4)
    assert torch.equal(ops.discretized_logistic_mixture(p, levels.byte(), mixtures=4), expected)
    beyond = torch.where(levels == 0, -5, torch.where(levels == 255, 2**40, levels))
    assert torch.equal(ops.discretized_logistic_mixture(p, beyond, mixtures=4), expected)


def test_positions_do_not_mix():
    """A pixel alone, in another tile of lanes, or in channels-last memory has the same value."""
    p, levels = inputs_of((3, 3, 9, 7), 5, 256)
    p = p.float()
    expected = ops.discretized_logistic_mixture(p, levels, mixtures=5)
    one = ops.discretized_logistic_mixture(
        p[1:2, :, 4:5, 3:4], levels[1:2, :, 4:5, 3:4], mixtures=5
    )
    torch.testing.assert_close(one[0, 0, 0], expected[1, 4, 3])
    last = p.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ops.discretized_logistic_mixture(last, levels, mixtures=5), expected)


def test_autocast_runs_in_float32():
    p, levels = inputs_of((2, 3, 4, 4), 4, 256)
    with torch.autocast("cpu", torch.bfloat16):
        result = ops.discretized_logistic_mixture(p.bfloat16(), levels, mixtures=4)
    assert result.dtype == torch.float32


# ---------------------------------------------------------------- draws


def chi_square(counts, probabilities):
    """Standard deviations above what chance gives, cells of fewer than 10 expected taken together."""
    expected = probabilities * counts.sum()
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None] + 1e-9])
    statistic = ((counts - expected) ** 2 / expected)[expected > 1].sum().item()
    degrees = len(counts) - 1
    return (statistic - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize(("channels", "n_levels"), [(1, 256), (2, 9), (3, 4)])
def test_draws_follow_the_likelihood(channels, n_levels):
    """Every colour, the edges among them, as often as exp(log-likelihood) says."""
    count = 400_000
    p, _ = inputs_of((1, channels, 1, 1), 3, n_levels, seed=channels)
    p[:, 3 * (1 + 2 * channels) :] *= 2  # channels that depend on one another
    colours = torch.tensor(list(itertools.product(range(n_levels), repeat=channels)))
    levels = colours.view(len(colours), channels, 1, 1)
    log_prob = ops.discretized_logistic_mixture(
        p.expand(len(colours), -1, -1, -1), levels, n_levels=n_levels, mixtures=3
    )
    generator = torch.Generator().manual_seed(11)
    uniforms = torch.rand(1, channels, 1, count, generator=generator)
    drawn = ops.discretized_logistic_mixture_draw(
        p.float().expand(1, -1, 1, count), uniforms, n_levels=n_levels, mixtures=3
    )
    index = torch.zeros(count, dtype=torch.long)
    for c in range(channels):
        index = index * n_levels + drawn[0, c, 0]
    counts = index.bincount(minlength=len(colours)).double()
    assert chi_square(counts, log_prob.flatten().exp()) < 5
    # And they would be told apart from a slightly different mixture.
    p[:, 3] += 0.1
    other = ops.discretized_logistic_mixture(
        p.expand(len(colours), -1, -1, -1), levels, n_levels=n_levels, mixtures=3
    )
    assert chi_square(counts, other.flatten().exp()) > 5


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1e-3])
@pytest.mark.parametrize(("shape", "mixtures", "n_levels"), CASES, ids=str)
def test_draws_equal_the_reference(shape, mixtures, n_levels, temperature):
    p, _ = inputs_of(shape, mixtures, n_levels)
    uniforms = torch.rand(shape, dtype=torch.float64)
    options = {"n_levels": n_levels, "mixtures": mixtures, "temperature": temperature}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = ops.discretized_logistic_mixture_draw(
            p.contiguous(memory_format=memory_format), uniforms, **options
        )
        assert ours.dtype == torch.int64
        expected = reference.discretized_logistic_mixture_draw(p, uniforms, **options)
        assert torch.equal(ours, expected)


def test_draws_at_the_ends_of_the_uniforms():
    p, _ = inputs_of((1, 3, 4, 4), 5, 256)
    # A mixture without weight is never chosen, whatever the uniform.
    p[:, 4], p[:, 5 + 4] = -torch.inf, torch.nan
    for dtype in (torch.float32, torch.float64):
        for u in (0.0, 1 - 2.0**-24, 1.0, 2.0, -1.0, torch.nan):
            uniforms = torch.full((1, 3, 4, 4), u, dtype=dtype)
            levels = ops.discretized_logistic_mixture_draw(p.to(dtype), uniforms, mixtures=5)
            assert levels.min() >= 0
            assert levels.max() <= 255
    # At a scale of 1 half a step from the end reaches the last level, from any of these means.
    p[:, 20:35] = 0
    high = torch.full((1, 3, 4, 4), 1 - 2.0**-24)
    assert (ops.discretized_logistic_mixture_draw(p.float(), high, mixtures=5) == 255).all()
    low = torch.zeros(1, 3, 4, 4)
    assert (ops.discretized_logistic_mixture_draw(p.float(), low, mixtures=5) == 0).all()


def test_draws_compile_and_have_fakes():
    p, _ = inputs_of((2, 3, 4, 5), 5, 256)
    uniforms = torch.rand(2, 3, 4, 5)
    torch.library.opcheck(
        LIBRARY.discretized_logistic_mixture_draw.default, (p.float(), uniforms, 256, 5, 0.9)
    )
    compiled = torch.compile(
        lambda p, u: ops.discretized_logistic_mixture_draw(p, u, mixtures=5),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = ops.discretized_logistic_mixture_draw(p, uniforms, mixtures=5)
    assert torch.equal(compiled(p, uniforms), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"parameters": torch.ones(2, 90, 4, 4)}, ValueError,
         r"parameters must have 100 channels for 10 mixtures of 3 channels, .* got \[2, 90, 4, 4\]"),
        ({"parameters": torch.ones(100)}, ValueError, "parameters must have 100 channels"),
        ({"parameters": torch.ones(2, 100, 4, 5)}, ValueError, "levels must have the batch and image size"),
        ({"parameters": torch.ones(2, 100, 4, 4).int()}, TypeError, "parameters must be a float32, .* got Int"),
        ({"levels": torch.zeros(2, 3, 4, 4)}, TypeError, "levels must be a uint8 or int64 tensor, got Float"),
        ({"levels": torch.zeros(2, 3, 4).long()}, ValueError,
         r"levels must have the shape \(n, C, H, W\), got \[2, 3, 4\]"),
        ({"mixtures": 0}, ValueError, "mixtures must be 1 or more, got 0"),
        ({"n_levels": 1}, ValueError, r"n_levels must be in \[2, 65536\], got 1"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"parameters": torch.ones(2, 100, 4, 4), "levels": torch.zeros(2, 3, 4, 4).long()}
    with pytest.raises(error, match=words):
        ops.discretized_logistic_mixture(**(good | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"uniforms": torch.rand(2, 3, 4, 5)}, ValueError, "uniforms must have the batch and image size of parameters"),
        ({"uniforms": torch.rand(2, 1, 4, 4)}, ValueError,
         "parameters must have 30 channels for 10 mixtures of 1 channels"),
        ({"uniforms": torch.zeros(2, 3, 4, 4).half()}, TypeError,
         "uniforms must be a float32 or float64 tensor, got Half"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive and finite, got nan"),
    ],
)  # fmt: skip
def test_bad_input_of_draws(change, error, words):
    good = {"parameters": torch.ones(2, 100, 4, 4), "uniforms": torch.rand(2, 3, 4, 4)}
    with pytest.raises(error, match=words):
        ops.discretized_logistic_mixture_draw(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cuda_kernels_in_emulation(emulated, dtype, memory_format):
    for shape, mixtures, n_levels in CASES:
        p, levels = inputs_of(shape, mixtures, n_levels)
        p = p.to(dtype).contiguous(memory_format=memory_format)
        if n_levels <= 256:
            levels = levels.byte()
        sum_type = torch.promote_types(dtype, torch.float32)
        grad = torch.randn(shape[0], *shape[2:], dtype=torch.double).to(dtype)
        uniforms = torch.rand(shape, dtype=sum_type)
        check_emulated("discretized_logistic_mixture", p, levels, n_levels, mixtures)
        check_emulated("discretized_logistic_mixture_backward", grad, p, levels, n_levels, mixtures)
        check_emulated("discretized_logistic_mixture_draw", p, uniforms, n_levels, mixtures, 0.8)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "mixtures", "n_levels"), CASES, ids=str)
def test_on_gpu(shape, mixtures, n_levels):
    p, levels = inputs_of(shape, mixtures, n_levels)
    check_values(*pair(levels.cuda(), n_levels, mixtures), (p.cuda(),))
