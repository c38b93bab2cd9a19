"""nflows' splines of single elements: the same arguments, the same results."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext.compat import functional

OTHER = {"min_bin_width": 0.02, "min_bin_height": 0.03, "min_derivative": 0.1}


def given(shape: tuple[int, ...], n_bins: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(), (n_bins,), (n_bins,), (n_bins - 1,)]
    return [
        (
            1.5 * torch.randn((*shape, *size), generator=generator, dtype=torch.float64)
        ).requires_grad_()
        for size in sizes
    ]


@pytest.mark.parametrize("options", [{}, {"tail_bound": 2.0, **OTHER}], ids=["usual", "other"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 3, 4)])
def test_spline_of_nflows(shape, inverse, options) -> None:
    peer = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    results = []
    for function in (functional, peer):
        tensors = given(shape)
        y, log_det = function.unconstrained_rational_quadratic_spline(
            *tensors, inverse=inverse, **options
        )
        assert y.shape == log_det.shape == shape
        gradients = torch.autograd.grad((y * y).sum() + (log_det * y.detach()).sum(), tensors)
        results.append([y, log_det, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_no_elements() -> None:
    y, log_det = functional.unconstrained_rational_quadratic_spline(*given((0, 3)))
    assert y.shape == log_det.shape == (0, 3)


def test_what_does_not_fit_is_named() -> None:
    spline = functional.unconstrained_rational_quadratic_spline
    x, widths, heights, derivatives = given((4, 3))
    with pytest.raises(ValueError, match="tails must be 'linear', got 'circular'"):
        spline(x, widths, heights, derivatives, tails="circular")
    with pytest.raises(ValueError, match="unnormalized_heights must be"):
        spline(x, widths, heights[:2], derivatives)
    with pytest.raises(ValueError, match="derivatives"):
        spline(x, widths, heights, heights)
