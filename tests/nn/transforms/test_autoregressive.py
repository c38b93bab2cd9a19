"""Autoregressive layers in both directions, permutations and batch normalisation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from deepgen_ext.nn import MLP
from deepgen_ext.nn.transforms import (
    BatchNorm,
    InverseAutoregressive,
    MaskedAutoregressive,
    Permutation,
    Reverse,
    Sequential,
    SplineCoupling,
)
from tests.checks import check_compiles, check_transform, randomize

LAYERS = {
    "affine": lambda layer: layer(5, (12, 12)),
    "affine-order": lambda layer: layer(5, (12, 9), order=[3, 0, 4, 2, 1], scale_map="exp"),
    "affine-context": lambda layer: layer(4, (12, 12), context_features=3, scale_map="sigmoid"),
    "affine-residual": lambda layer: layer(4, (8, 8), residual=True, activation="tanh"),
    "affine-one": lambda layer: layer(1, (4,), context_features=2, scale_map="atan"),
    "few-units": lambda layer: layer(9, (3, 4), order="random", activation="elu"),
    "spline": lambda layer: layer(4, (12, 12), "spline", order="reverse", n_bins=5),
    "spline-context": lambda layer: layer(3, (8, 8), "spline", 2, activation="tanh", bound=2.0),
}
DIRECTIONS = [MaskedAutoregressive, InverseAutoregressive]


def build(name: str, layer: type, std: float = 0.2):
    torch.manual_seed(0)
    return randomize(LAYERS[name](layer), std)


def inputs(layer, n: int = 4) -> tuple[Tensor, Tensor | None]:
    width = layer.made.context_features
    return 1.3 * torch.randn(n, layer.features), torch.randn(n, width) if width else None


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layer", DIRECTIONS)
def test_contract(layer: type, name: str) -> None:
    transform = build(name, layer)
    check_transform(transform, *inputs(transform))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_jacobian_is_triangular_in_the_order(name: str, direction: str) -> None:
    transform = build(name, MaskedAutoregressive, 0.3).double()
    x, context = (t if t is None else t[:1].double() for t in inputs(transform))
    function = getattr(transform, direction)
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x, context)[0], x)[0, :, 0]
    order = transform.made.order
    jacobian = jacobian[order][:, order]
    assert not jacobian.triu(1).any()
    assert (jacobian.diag() > 0).all()


@pytest.mark.parametrize("element", ["affine", "spline"])
@pytest.mark.parametrize("features", [1, 2, 3, 17, 64])
def test_round_trip(features: int, element: str) -> None:
    torch.manual_seed(0)
    layer = MaskedAutoregressive(features, (64, 64), element, order="random")
    randomize(layer, 0.05)
    x = torch.randn(8, features)
    _check_round_trip(layer, x)


@pytest.mark.parametrize("element", ["affine", "spline"])
def test_round_trip_of_784(element: str) -> None:
    torch.manual_seed(0)
    layer = MaskedAutoregressive(784, (512, 512), element, order="random")
    with torch.no_grad():  # about what a trained net has: parameters of size 0.3
        layer.made.layers[-1].weight.normal_(0, 0.05)
    _check_round_trip(layer, torch.randn(3, 784))


@torch.no_grad()
def _check_round_trip(layer: MaskedAutoregressive, x: Tensor) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        layer, x = layer.to(dtype), x.to(dtype)
        y, log_det = layer(x)
        assert (y - x).abs().max() > 0.01
        again, inverse_log_det = layer.inverse(y)
        assert (again - x).abs().max() < tolerance * x.abs().max()
        bound = tolerance * max(1.0, float(log_det.abs().max())) * math.sqrt(x.shape[1])
        assert (inverse_log_det + log_det).abs().max() < bound


@pytest.mark.parametrize("element", ["affine", "spline"])
@pytest.mark.parametrize("layer", DIRECTIONS)
def test_starts_as_the_identity(layer: type, element: str) -> None:
    x = torch.randn(4, 6)
    for y, log_det in ((t := layer(6, (16,), element))(x), t.inverse(x)):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(log_det, torch.zeros(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("element", ["affine", "spline"])
def test_each_direction_is_the_others_inverse(element: str) -> None:
    torch.manual_seed(0)
    maf = randomize(MaskedAutoregressive(5, (16,), element, order="random"), 0.2)
    iaf = InverseAutoregressive(5, (16,), element)
    iaf.load_state_dict(maf.state_dict())
    x = torch.randn(4, 5)
    for ours, theirs in ((maf, iaf.inverse), (maf.inverse, iaf)):
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert torch.equal(a, b)


def test_reversible_sequential_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    layers = [MaskedAutoregressive(6, (16,), order=o) for o in ("natural", "reverse")]
    stored = randomize(Sequential(layers[0], Reverse(6), layers[1]), 0.2).double()
    rebuilt = copy.deepcopy(stored)
    rebuilt.reversible = True
    x = torch.randn(4, 6, dtype=torch.float64)
    gradients = []
    for flow in (stored, rebuilt):
        y, log_det = flow(x)
        loss = y.square().sum() - log_det.sum()
        gradients.append(torch.autograd.grad(loss, list(flow.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_compiles() -> None:
    check_compiles(build("affine-order", MaskedAutoregressive), torch.randn(4, 5))


@pytest.mark.parametrize("element", ["affine", "spline"])
@pytest.mark.parametrize("features", [6, 300])
def test_nan_spoils_later_features_of_its_sample_alone(features: int, element: str) -> None:
    torch.manual_seed(0)
    layer = randomize(MaskedAutoregressive(features, (300,), element), 0.02)
    z = torch.randn(3, features)
    z[1, 2] = float("nan")
    x, log_det = layer.inverse(z)
    assert x[[0, 2]].isfinite().all()
    assert log_det.isnan().tolist() == [False, True, False]
    assert x[1, :2].isfinite().all()
    assert x[1, 2:].isnan().all()
    y, log_det = layer(z)
    assert y[[0, 2]].isfinite().all()
    assert log_det.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedAutoregressive(3, element="cubic"), "element: .*'cubic'"),
        (lambda: MaskedAutoregressive(3, scale_map="relu"), "scale_map: .*'relu'"),
        (lambda: MaskedAutoregressive(3, clamp=0.0), "clamp: .*0"),
        (lambda: MaskedAutoregressive(3, n_bins=0), "n_bins: .*0"),
        (lambda: InverseAutoregressive(3, bound=-1.0), "bound: .*-1"),
        (lambda: InverseAutoregressive(0), "features: .*0"),
        (lambda: MaskedAutoregressive(3, (), order=[0, 1, 2]), "hidden_features: "),
        (lambda: MaskedAutoregressive(3, order=[0, 1, 3]), "order: "),
        (lambda: MaskedAutoregressive(3)(torch.zeros(2, 4)), r"x: expected \(n, 3\)"),
        (lambda: MaskedAutoregressive(3).inverse(torch.zeros(2, 4)), r"x: expected \(n, 3\)"),
        (lambda: MaskedAutoregressive(3, (4,), "affine", 2)(torch.zeros(2, 3)), "context: "),
        (lambda: InverseAutoregressive(3, (4,), "affine", 2)(torch.zeros(2, 3)), "context: "),
        (lambda: Permutation([0, 0, 1]), r"permutation: .*\[0, 0, 1\]"),
        (lambda: Permutation(0), "permutation: .*0"),
        (lambda: Reverse(0), "at least one feature, got 0"),
        (lambda: Permutation(3)(torch.zeros(2, 4)), r"x: expected \(batch, 3"),
        (lambda: BatchNorm(0), "features: .*0"),
        (lambda: BatchNorm(2, eps=0), "eps: .*0"),
        (lambda: BatchNorm(2, momentum=2), "momentum: .*2"),
        (lambda: BatchNorm(2)(torch.zeros(1, 2)), r"at least 2 values .*\(1, 2\)"),
        (lambda: BatchNorm(2)(torch.zeros(2, 3)), r"x: expected \(batch, 2"),
        (lambda: SplineCoupling(MLP(2, 3), n_bins=0), "n_bins: .*0"),
        (lambda: SplineCoupling(MLP(2, 3))(torch.zeros(2, 4)), "conditioner: expected output"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- coupling, permutations, batch norm


@pytest.mark.parametrize("swap", [False, True])
def test_spline_coupling(swap: bool) -> None:
    torch.manual_seed(0)
    net = MLP(2 if swap else 3, (3 if swap else 2) * 14, 8, context_features=2)
    coupling = SplineCoupling(net, swap=swap, n_bins=5)
    x, context = torch.randn(4, 5), torch.randn(4, 2)
    y, _ = coupling(x, context)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)
    check_transform(randomize(coupling, 0.2), x, context)
    seen, moved = (1, 2) if swap else (2, 1)
    images = SplineCoupling(torch.nn.Conv2d(seen, moved * 14, 1), n_bins=5, swap=swap)
    check_transform(images, torch.randn(2, 3, 2, 2))


def test_permutations() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(Permutation([2, 0, 3, 1])(x)[0], x[:, [2, 0, 3, 1]])
    assert torch.equal(Reverse(4)(x)[0], x.flip(1))
    for layer in (Permutation(4), Permutation(torch.tensor([2, 0, 3, 1])), Reverse(4)):
        check_transform(layer, x)
        check_transform(layer, torch.randn(2, 4, 2, 3))
    other = Permutation(4)
    other.load_state_dict(Permutation([2, 0, 3, 1]).state_dict())
    torch.testing.assert_close(other.inverse(other(x)[0])[0], x)


def test_batch_norm_in_evaluation() -> None:
    layer = randomize(BatchNorm(3), 0.3)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    layer.eval()
    for x in (torch.randn(4, 3), torch.randn(4, 3, 2, 2)):
        check_transform(layer, x)
        check_compiles(layer, x)


def test_batch_norm_in_training_is_torchs() -> None:
    torch.manual_seed(0)
    layer, theirs = BatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    for _ in range(3):
        x = (2 + 3 * torch.randn(16, 3, dtype=torch.float64)).requires_grad_()
        y, log_det = layer(x)
        expected_y = theirs(x)
        torch.testing.assert_close(y, expected_y)
        torch.testing.assert_close(layer.running_mean, theirs.running_mean)
        torch.testing.assert_close(layer.running_var, theirs.running_var)
        weights = torch.randn_like(y)
        slopes = [
            torch.autograd.grad((f * weights).sum(), x, retain_graph=True)[0]
            for f in (y, expected_y)
        ]
        torch.testing.assert_close(*slopes)
        expected = -0.5 * (x.var(0, correction=0) + layer.eps).log().sum()
        torch.testing.assert_close(log_det, expected.expand(16))
        (slope,) = torch.autograd.grad(log_det.sum(), x)
        assert slope.abs().sum() > 0  # what spreads the batch out is rewarded
    layer(x[:0])
    with pytest.raises(RuntimeError, match="cannot be rebuilt"):
        layer.rebuild(y)
