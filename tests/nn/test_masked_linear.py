"""Masked linear layers: products that leave out the zeros, and what is kept of the weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_ext.nn import MaskedLinear

ROWS, COLUMNS = 420, 300  # large enough for groups


def staircase(rows: int = ROWS, columns: int = COLUMNS, shift: int = 0) -> Tensor:
    """Steps that end neither at a group's end nor at the matrix's."""
    ends = (torch.arange(rows) * columns // rows - shift).clamp(0, columns)
    return torch.arange(columns) < ends[:, None]


MASKS = {
    "staircase": staircase(),
    "never the last columns": staircase(shift=37),
    "first rows see nothing": staircase(shift=120),
    "all": torch.ones(ROWS, COLUMNS, dtype=torch.bool),
    "no staircase": staircase().flip(0),
    "checkered": (torch.arange(ROWS)[:, None] + torch.arange(COLUMNS)) % 2 == 0,
    "small": staircase(20, 10),
}


def layer_of(mask: Tensor, bias: bool = True) -> MaskedLinear:
    torch.manual_seed(0)
    layer = MaskedLinear(mask.shape[1], mask.shape[0], mask, bias=bias).double()
    with torch.no_grad():  # junk outside of the mask counts as zero
        layer.weight.normal_()
    return layer


def formula(layer: MaskedLinear, x: Tensor, addend: Tensor | None = None) -> Tensor:
    y = F.linear(x, layer.weight * layer.mask, layer.bias)
    return y if addend is None else y + addend


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_addend", [True, False])
def test_values_and_gradients(name: str, bias: bool, with_addend: bool) -> None:
    mask = MASKS[name]
    layer = layer_of(mask, bias)
    assert (layer._visible is not None) == (name not in ("no staircase", "checkered", "small"))
    x = torch.randn(6, mask.shape[1], dtype=torch.float64, requires_grad=True)
    addend = torch.randn(6, mask.shape[0], dtype=torch.float64, requires_grad=True)
    given = (x, addend) if with_addend else (x,)
    leaves = (*given, *layer.parameters())
    weights = torch.randn(6, mask.shape[0], dtype=torch.float64)
    expected = formula(layer, *given)
    actual = layer(*given)
    torch.testing.assert_close(actual, expected)
    ours = torch.autograd.grad((actual.sin() * weights).sum(), leaves, create_graph=True)
    theirs = torch.autograd.grad((expected.sin() * weights).sum(), leaves, create_graph=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    # and the gradients of the gradients
    ours = torch.autograd.grad(sum(g.square().sum() for g in ours), leaves)
    theirs = torch.autograd.grad(sum(g.square().sum() for g in theirs), leaves)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    plain = torch.autograd.grad((layer(*given).sin() * weights).sum(), leaves)
    theirs = torch.autograd.grad((formula(layer, *given).sin() * weights).sum(), leaves)
    for a, b in zip(plain, theirs):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(layer(*given), expected)


def test_frozen_weights_pass_gradients_on() -> None:
    layer = layer_of(staircase()).requires_grad_(False)
    x = torch.randn(3, COLUMNS, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad(layer(x).sin().sum(), x)
    (expected,) = torch.autograd.grad(formula(layer, x).sin().sum(), x)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    layer = layer_of(staircase())
    x = torch.randn(*shape, COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(layer(x), formula(layer, x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), formula(layer, x))


def test_the_masked_weight_is_computed_once_for_each_change() -> None:
    layer = layer_of(staircase())
    first = layer.masked_weight()
    assert layer.masked_weight() is first
    x = torch.randn(4, COLUMNS, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
    assert layer.masked_weight() is first
    assert not first.requires_grad
    assert first.grad_fn is None
    with torch.no_grad():
        layer.weight.add_(1)
    assert layer.masked_weight() is not first


@pytest.mark.parametrize("size", ["groups", "small"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_it_follows_the_weight(size: str, optimizer: type) -> None:
    layer = layer_of(staircase() if size == "groups" else MASKS["small"])
    other = layer_of(layer.mask)
    x = torch.randn(4, layer.in_features, dtype=torch.float64)

    def agrees(layer: MaskedLinear) -> None:
        torch.testing.assert_close(layer(x), formula(layer, x))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), formula(layer, x))
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), formula(layer, x))
        torch.testing.assert_close(layer(x), formula(layer, x))

    agrees(layer)
    steps = optimizer(layer.parameters(), lr=0.1)
    for _ in range(2):
        steps.zero_grad()
        layer(x).square().mean().backward()
        steps.step()
        agrees(layer)
    with torch.no_grad():
        other.weight.normal_()
    agrees(other)
    for assign in (False, True):
        other.load_state_dict(copy.deepcopy(layer.state_dict()), assign=assign)
        agrees(other)
    twins = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for twin in twins:
        agrees(twin)
        with torch.no_grad():
            twin.weight.normal_()
        agrees(twin)
    agrees(layer)
    single = layer.float()
    expected = formula(single, x.float())
    largest = expected.abs().max().item()  # of sums of hundreds of terms, some of which cancel
    torch.testing.assert_close(single(x.float()), expected, rtol=1.3e-6, atol=1e-6 * largest)
    layer.double()
    layer.weight.data.normal_()  # the one change that no version counter tells
    layer.eval()
    agrees(layer)


def test_replaced_parameters_are_used() -> None:
    layer = layer_of(staircase())
    x = torch.randn(4, COLUMNS, dtype=torch.float64)
    layer(x)
    weight = torch.randn_like(layer.weight)
    swapped = torch.func.functional_call(layer, {"weight": weight}, (x,))
    torch.testing.assert_close(swapped, F.linear(x, weight * layer.mask, layer.bias))
    torch.testing.assert_close(layer(x), formula(layer, x))


def test_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    layer = layer_of(staircase())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, COLUMNS, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(*(
        (y, *torch.autograd.grad(y.sin().sum(), (x, *layer.parameters())))
        for y in (compiled(x), formula(layer, x))
    )):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


def test_works_in_torch_func() -> None:
    layer = layer_of(staircase())
    x = torch.randn(4, COLUMNS, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(x)
    torch.testing.assert_close(jacobian[0], layer.weight * layer.mask)


def test_weights_outside_the_mask_stay_zero_in_training() -> None:
    layer = MaskedLinear(COLUMNS, ROWS, staircase())
    assert not layer.weight[~layer.mask].any()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, COLUMNS)).square().mean().backward()
        optimizer.step()
    assert not layer.weight[~layer.mask].any()


def test_degrees_make_the_mask() -> None:
    layer = MaskedLinear(3, 2, in_degrees=torch.tensor([1, 2, 3]), out_degrees=torch.tensor([2, 0]))
    assert layer.mask.tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedLinear(3, 2), "mask: "),
        (lambda: MaskedLinear(3, 2, in_degrees=torch.arange(3)), "both in_degrees and out_degrees"),
        (
            lambda: MaskedLinear(3, 2, torch.ones(2, 3), in_degrees=torch.arange(3)),
            "either a mask, or both",
        ),
        (lambda: MaskedLinear(3, 2, torch.ones(3, 2)), r"mask: expected shape \(2, 3\), got"),
        (
            lambda: MaskedLinear(3, 2, in_degrees=torch.arange(4), out_degrees=torch.arange(2)),
            r"mask: expected shape \(2, 3\), got \(2, 4\)",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
