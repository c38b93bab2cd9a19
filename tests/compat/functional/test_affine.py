"""The affine maps of nflows' and zuko's couplings: the same results and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from deepgen_ext.compat import functional


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_()


def check_same(found, expected, leaves) -> None:
    results = []
    for y, log_det in (found, expected):
        total = (y * y.detach().cos()).sum() + (log_det * log_det.detach().sin()).sum()
        results.append([y, log_det, *torch.autograd.grad(total, leaves, retain_graph=True)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_nflows(rest, inverse) -> None:
    peer = pytest.importorskip("nflows.transforms.coupling").AffineCouplingTransform
    layer = SimpleNamespace(num_transform_features=3)
    layer._scale_and_shift = lambda params: peer._scale_and_shift(layer, params)
    method = peer._coupling_transform_inverse if inverse else peer._coupling_transform_forward
    x, params = normal(5, 3, *rest), normal(5, 6, *rest, seed=1, scale=3.0)
    found = functional.affine_coupling_transform(x, params, inverse=inverse)
    assert found[1].shape == (5,)
    check_same(found, method(layer, x, params), (x, params))


def test_parameters_of_another_size_are_named() -> None:
    for shape in ((5, 5), (4, 6), (5, 6, 1)):
        with pytest.raises(ValueError, match="transform_params must have twice the features"):
            functional.affine_coupling_transform(normal(5, 3), normal(*shape))


@pytest.mark.parametrize("slope", [1e-3, 0.2])
@pytest.mark.parametrize(
    "shapes", [[(4, 3)] * 3, [(4, 3), (3,), (4, 1)], [(2, 4, 3), (), (3,)], [()] * 3]
)
def test_zuko(shapes, slope) -> None:
    peer = pytest.importorskip("zuko.transforms").MonotonicAffineTransform
    x, shift, scale = (normal(*shape, seed=i, scale=3.0) for i, shape in enumerate(shapes))
    ours, theirs = (c(shift, scale, slope) for c in (functional.MonotonicAffineTransform, peer))
    check_same(ours.call_and_ladj(x), theirs.call_and_ladj(x), (x, shift, scale))
    check_same(
        (ours(x), ours.log_abs_det_jacobian(x, ours(x))),
        (theirs(x), theirs.log_abs_det_jacobian(x, theirs(x))),
        (x, shift, scale),
    )
    torch.testing.assert_close(ours.inv(x), theirs.inv(x))
    torch.testing.assert_close(ours.inv(ours(x)), x)
    torch.testing.assert_close(ours.scale, theirs.scale)
    assert (ours.domain, ours.codomain, ours.sign, ours.bijective) == (
        theirs.domain, theirs.codomain, theirs.sign, theirs.bijective
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["MaskedAutoregressiveTransform", "GeneralCouplingTransform"])
def test_zukos_layers_take_it(kind) -> None:
    zuko = pytest.importorskip("zuko")
    results = []
    for univariate in (
        functional.MonotonicAffineTransform,
        zuko.transforms.MonotonicAffineTransform,
    ):
        torch.manual_seed(0)
        layer = getattr(zuko.flows, kind)(4, hidden_features=(8,), univariate=univariate)
        transform = layer.double()()
        x = normal(6, 4)
        y, ladj = transform.call_and_ladj(x)
        by = torch.autograd.grad(y.square().sum() + ladj.square().sum(), [x, *layer.parameters()])
        results.append([y, ladj, transform.inv(y), *by])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_least_slope_is_reached_and_not_passed() -> None:
    extremes = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    transform = functional.MonotonicAffineTransform(torch.zeros(2).double(), extremes, slope=0.1)
    _, ladj = transform.call_and_ladj(torch.ones(2).double())
    torch.testing.assert_close(ladj, extremes.sign() * math.log(10))
    for slope in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"slope must lie in \(0, 1\)"):
            functional.MonotonicAffineTransform(extremes, extremes, slope)
