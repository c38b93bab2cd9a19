"""Dequantisation, bits per dimension, the base density."""

from __future__ import annotations

import math

import pytest
import torch

from deepgen_ext import objectives


@pytest.mark.parametrize("n_levels", [2, 17, 49, 256, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2.0**-24, 1.0])
def test_quantize_undoes_dequantize(n_levels: int, noise: float) -> None:
    levels = torch.arange(n_levels)
    x = objectives.dequantize(levels, n_levels, noise=torch.full((n_levels,), noise))
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    assert torch.equal(objectives.quantize(x, n_levels).long(), levels)


def test_noise_is_uniform_and_reproducible() -> None:
    levels = torch.full((100_000,), 3, dtype=torch.uint8)
    draw = [
        objectives.dequantize(levels, 10, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    u = draw[0] * 10 - 3
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert abs(u.mean() - 0.5) < 5e-3
    assert abs(u.var() - 1 / 12) < 1e-3


def test_quantize_clamps() -> None:
    levels = objectives.quantize(torch.tensor([-1.0, 0.0, 0.999, 1.0, 7.0, math.inf]), 256)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [0, 0, 255, 255, 255, 255]
    assert objectives.quantize(torch.tensor([0.5]), 1000).dtype == torch.int64


def test_bits_per_dim_of_uniform_data() -> None:
    # Uniform on [0, 1)^D has log-density 0: every level costs log2 n bits.
    assert objectives.bits_per_dim(torch.zeros(2), 12, 256).tolist() == [8.0, 8.0]
    # Known of one bit less in every dimension.
    bits = objectives.bits_per_dim(torch.tensor([12 * math.log(2)]), 12, 256)
    torch.testing.assert_close(bits, torch.tensor([7.0]))


def test_standard_normal_log_prob() -> None:
    z = torch.randn(3, 2, 4, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2))
    torch.testing.assert_close(objectives.standard_normal_log_prob(z), expected)
    wide = torch.randn(2, 3072 * 8)
    exact = objectives.standard_normal_log_prob(wide.double())
    torch.testing.assert_close(
        objectives.standard_normal_log_prob(wide).double(), exact, rtol=1e-6, atol=0
    )
    assert objectives.standard_normal_log_prob(wide.bfloat16()).dtype == torch.float32
    assert objectives.standard_normal_log_prob(wide[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: objectives.dequantize(torch.zeros(2), 256),
            TypeError,
            "integer tensor, got torch.float32",
        ),
        (lambda: objectives.dequantize(torch.tensor([17]), 17), ValueError, r"\[0, 17\), got 17"),
        (lambda: objectives.dequantize(torch.tensor([-1]), 17), ValueError, "got -1"),
        (lambda: objectives.dequantize(torch.tensor([1]), 1), ValueError, "n_levels: .*got 1"),
        (
            lambda: objectives.dequantize(torch.tensor([1]), 4, noise=torch.zeros(2)),
            ValueError,
            r"noise: .*\(1,\), got \(2,\)",
        ),
        (lambda: objectives.quantize(torch.tensor([1]), 4), TypeError, "floating-point"),
        (lambda: objectives.bits_per_dim(torch.zeros(1), 0, 256), ValueError, "dims: .*0"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
