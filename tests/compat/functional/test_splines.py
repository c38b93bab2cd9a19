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


INTERVAL = {"left": -1.0, "right": 0.5, "bottom": 2.0, "top": 2.5}


@pytest.mark.parametrize("options", [{}, {**INTERVAL, **OTHER}], ids=["usual", "other"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 3, 4)])
def test_spline_on_an_interval_of_nflows(shape, inverse, options) -> None:
    peer = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    if inverse and options:  # its look at the inverse's inputs is at left and right
        options = {**options, "bottom": -1.0, "top": 0.5, "left": -2.0, "right": 0.7}
    x, *sizes, _ = given(shape)
    derivatives = given(shape, 7)[3]
    ends = ("bottom", "top") if inverse else ("left", "right")
    least, largest = (options.get(name, float(i)) for i, name in enumerate(ends))
    x = (least + (largest - least) * x.detach().sigmoid()).requires_grad_()
    results = []
    for function in (functional, peer):
        tensors = x, *sizes, derivatives
        y, log_det = function.rational_quadratic_spline(*tensors, inverse=inverse, **options)
        assert y.shape == log_det.shape == shape
        gradients = torch.autograd.grad((y * y).sum() + (log_det * y.detach()).sum(), tensors)
        results.append([y, log_det, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_beyond_the_interval_is_refused_as_nflows_does() -> None:
    spline = functional.rational_quadratic_spline
    _, *sizes, _ = given((4, 3))
    parameters = [*sizes, given((4, 3), 7)[3]]
    good = torch.full((4, 3), 0.25, dtype=torch.float64)
    for inverse, least, largest in ((False, -1.0, 0.5), (True, 2.0, 2.5)):
        middle = (least + largest) / 2
        for value, is_inside in (
            (least, True),
            (largest, True),
            (least - 1e-6, False),
            (largest + 1e-6, False),
        ):
            x = torch.full_like(good, middle)
            x[2, 1] = value
            if is_inside:
                assert spline(x, *parameters, inverse=inverse, **INTERVAL)[0].isfinite().all()
            else:
                with pytest.raises(functional.InputOutsideDomain, match=f"between {least}"):
                    spline(x, *parameters, inverse=inverse, **INTERVAL)
    _, *sizes, _ = given((0, 3))
    assert spline(good[:0], *sizes, given((0, 3), 7)[3])[0].shape == (0, 3)


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
