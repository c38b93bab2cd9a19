"""Functions in the place of other libraries' functions have their arguments."""

from __future__ import annotations

import importlib
import inspect

import pytest

from deepgen_ext.compat import functional

REPLACED = {
    "spectral_norm": "torch.nn.utils.parametrizations",
    "rational_quadratic_spline": "nflows.transforms.splines.rational_quadratic",
    "unconstrained_rational_quadratic_spline": "nflows.transforms.splines.rational_quadratic",
    "fixed_point_iter": "torchdeq.solver.fp_iter",
    "anderson_solver": "torchdeq.solver.anderson",
    "MonotonicAffineTransform": "zuko.transforms",
}
WITHOUT_A_FUNCTION = {"masked_conv2d", "affine_coupling_transform", "InputOutsideDomain"}


def positional(function) -> list[tuple]:
    return [
        (p.name, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.KEYWORD_ONLY
    ]


@pytest.mark.parametrize("name", REPLACED)
def test_arguments_and_defaults(name) -> None:
    peer = importlib.import_module(REPLACED[name]) if "torch.nn" in REPLACED[name] else None
    peer = peer or pytest.importorskip(REPLACED[name])
    assert positional(getattr(functional, name)) == positional(getattr(peer, name))


def test_the_table_lists_all() -> None:
    assert set(functional.__all__) == set(REPLACED) | WITHOUT_A_FUNCTION
    assert all(f"`{name}" in functional.__doc__ for name in functional.__all__)


def test_conv2d_and_a_mask() -> None:
    names = [name for name, _ in positional(functional.masked_conv2d)]
    expected = ["input", "weight", "mask", "bias", "stride", "padding", "dilation", "groups"]
    assert names == expected


def test_a_method_of_nflows() -> None:
    peer = pytest.importorskip("nflows.transforms.coupling")
    _, *method = positional(peer.PiecewiseCouplingTransform._coupling_transform)
    assert positional(functional.affine_coupling_transform) == method
