"""categorical_draw against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepgen_ext import ops, reference
from tests.emulation.compare import check_emulated

# (n, C, H, W), n_levels
CASES = [
    ((0, 3, 2, 2), 4),
    ((1, 1, 1, 1), 2),
    ((33, 2, 1, 1), 256),
    ((2, 3, 5, 7), 16),
    ((2, 1, 28, 28), 2),
    ((1, 3, 8, 9), 17),
    ((2, 2, 6, 8), 256),
    ((1, 1, 5, 7), 1500),  # more blocks than are kept
]


def inputs_of(shape, n_levels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n, channels, height, width = shape
    logits = torch.randn(
        n, channels * n_levels, height, width, generator=generator, dtype=torch.double
    )
    return 2 * logits, torch.rand(shape, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize(("shape", "n_levels"), CASES, ids=str)
def test_shapes(shape, n_levels, temperature):
    logits, uniforms = inputs_of(shape, n_levels)
    options = {"n_levels": n_levels, "temperature": temperature}
    expected = reference.categorical_draw(logits, uniforms, **options)
    for view in views_of(logits):
        ours = ops.categorical_draw(view, uniforms, **options)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, expected)
    # Coarser numbers draw another level only where the uniform lies next to a step of the cdf.
    for dtype, share in ((torch.float32, 1e-2), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)):
        rounded = logits.to(dtype)
        ours = ops.categorical_draw(rounded, uniforms, **options)
        exact = reference.categorical_draw(rounded.double(), uniforms, **options)
        assert (ours != exact).sum() <= share * exact.numel()
        single = ops.categorical_draw(rounded.float(), uniforms.float(), **options)
        assert torch.equal(ours, single)


def views_of(logits):
    yield logits
    yield logits.contiguous(memory_format=torch.channels_last)
    yield torch.cat([logits, logits], 1)[:, logits.shape[1] :]
    yield torch.cat([logits, logits], 3)[..., logits.shape[3] :]
    yield logits.transpose(2, 3).contiguous().transpose(2, 3)


@given(
    levels=st.integers(2, 70),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4, 1e30]),
    zeros=st.floats(0, 0.95),
)
@settings(max_examples=60, deadline=None)
def test_all_kernels_draw_the_same_and_never_a_level_of_probability_zero(
    levels, seed, scale, zeros
):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(1, levels, 5, 9, generator=generator)
    impossible = torch.rand(1, levels, 5, 9, generator=generator) < zeros
    impossible.scatter_(1, logits.argmin(1, keepdim=True), False)
    logits.masked_fill_(impossible, -torch.inf)
    uniforms = torch.rand(1, 1, 5, 9, generator=generator)
    uniforms.view(-1)[:4] = torch.tensor([0.0, 1 - 2.0**-24, 1.0, 2.0**-24])
    drawn = ops.categorical_draw(logits, uniforms, n_levels=levels)
    # Positions as lanes, weights as lanes, one by one.
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.categorical_draw(last, uniforms, n_levels=levels), drawn)
    alone = [
        ops.categorical_draw(
            logits[..., i : i + 1, j : j + 1], uniforms[..., i : i + 1, j : j + 1], n_levels=levels
        ).item()
        for i in range(5)
        for j in range(9)
    ]
    assert alone == drawn.flatten().tolist()
    assert not impossible.gather(1, drawn).any()
    assert torch.isfinite(logits.gather(1, drawn)).all()


def test_frequencies():
    count = 300_000
    logits = torch.tensor([0.5, -torch.inf, 2.0, -1.0, 0.0, 1.0]).view(1, 6, 1, 1)
    uniforms = torch.rand(1, 1, 1, count, generator=torch.Generator().manual_seed(5))
    for temperature in (1.0, 2.0):
        drawn = ops.categorical_draw(
            logits.expand(1, 6, 1, count), uniforms, n_levels=6, temperature=temperature
        )
        frequencies = drawn.flatten().bincount(minlength=6) / count
        expected = torch.softmax(logits.flatten() / temperature, 0)
        assert frequencies[1] == 0
        assert ((frequencies - expected).abs() < 5 * (expected / count).sqrt() + 1e-9).all()


def test_cold_is_the_largest_logit():
    logits, uniforms = inputs_of((2, 2, 5, 7), 16)
    for temperature in (1e-4, 1e-300):
        drawn = ops.categorical_draw(logits.float(), uniforms, n_levels=16, temperature=temperature)
        assert torch.equal(drawn, logits.unflatten(1, (2, 16)).argmax(2))


def test_nothing_possible_stays_in_range():
    for value in (torch.nan, -torch.inf, torch.inf):
        logits = torch.full((1, 7, 6, 6), value)
        drawn = ops.categorical_draw(logits, torch.rand(1, 1, 6, 6), n_levels=7)
        assert drawn.min() >= 0
        assert drawn.max() <= 6


def test_compiles_and_has_a_fake():
    logits, uniforms = inputs_of((2, 3, 4, 5), 16)
    torch.library.opcheck(
        torch.ops.deepgen_ext.categorical_draw.default, (logits.float(), uniforms, 16, 0.9)
    )
    compiled = torch.compile(
        lambda x, u: ops.categorical_draw(x, u, n_levels=16), fullgraph=True, backend="aot_eager"
    )
    expected = ops.categorical_draw(logits, uniforms, n_levels=16)
    assert torch.equal(compiled(logits, uniforms), expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.ones(2, 13, 4, 4)}, ValueError,
         r"logits must have the shape \(n, C \* 4, H, W\), got \[2, 13, 4, 4\]"),
        ({"logits": torch.ones(2, 12)}, ValueError, "logits must have the shape"),
        ({"logits": torch.ones(2, 12, 4, 4).int()}, TypeError, "logits must be a float32, .* got Int"),
        ({"uniforms": torch.rand(2, 2, 4, 4)}, ValueError,
         r"uniforms must have the shape \[2, 3, 4, 4\], .* got \[2, 2, 4, 4\]"),
        ({"uniforms": torch.zeros(2, 3, 4, 4).int()}, TypeError,
         "uniforms must be a float32 or float64 tensor, got Int"),
        ({"n_levels": 1}, ValueError, "n_levels must be 2 or more, got 1"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive and finite, got -1"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"logits": torch.ones(2, 12, 4, 4), "uniforms": torch.rand(2, 3, 4, 4), "n_levels": 4}
    with pytest.raises(error, match=words):
        ops.categorical_draw(**(good | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cuda_kernel_in_emulation(emulated, dtype, memory_format):
    for shape, n_levels in CASES:
        logits, uniforms = inputs_of(shape, n_levels)
        logits = logits.to(dtype).contiguous(memory_format=memory_format)
        check_emulated("categorical_draw", logits, uniforms, n_levels, 0.8)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "n_levels"), CASES, ids=str)
def test_on_gpu(shape, n_levels):
    logits, uniforms = inputs_of(shape, n_levels)
    expected = reference.categorical_draw(logits, uniforms, n_levels=n_levels)
    drawn = ops.categorical_draw(logits.cuda(), uniforms.cuda(), n_levels=n_levels)
    assert torch.equal(drawn.cpu(), expected)
