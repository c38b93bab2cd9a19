"""MADE: what each output may see and does see, orders, contexts, equality with other libraries."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from deepgen_ext.nn import MADE
from deepgen_ext.nn.made import spread_degrees
from tests.checks import randomize

# (features, hidden_features, options); the last is large enough to be cut into groups of rows
NETS = [
    (1, (4,), {}),
    (1, (4, 4), {"context_features": 2, "residual": True}),
    (2, (5,), {"outputs_per_feature": 3}),
    (3, (8, 6), {"activation": "tanh", "order": "random"}),
    (5, (7, 7), {"residual": True, "activation": "elu", "order": "reverse"}),
    (6, (12, 9, 15), {"context_features": 3, "order": [3, 0, 5, 1, 4, 2]}),
    (17, (4, 3), {"order": "random"}),
    (260, (300, 270), {"order": "random", "activation": "tanh"}),
]
IDS = [f"{d}-{hidden}-{'-'.join(options) or 'plain'}" for d, hidden, options in NETS]


def build(features: int, hidden: tuple[int, ...], options: dict, seed: int = 0) -> MADE:
    torch.manual_seed(seed)
    return randomize(MADE(features, hidden, **options).double(), 0.1)


def inputs(made: MADE, n: int = 3) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(n, made.features, dtype=torch.float64)
    width = made.context_features
    return x, torch.randn(n, width, dtype=torch.float64) if width else None


def dependencies(made: MADE) -> Tensor:
    """[i, j]: whether an output of position i depends on the feature at position j."""
    x, context = inputs(made, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x, context), x)[0, :, :, 0]
    seen = jacobian.abs().amax(1) > 0
    return seen[made.order][:, made.order]


@pytest.mark.parametrize(("features", "hidden", "options"), NETS, ids=IDS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_see_earlier_features_alone(features, hidden, options, training: bool) -> None:
    made = build(features, hidden, options).train(training)
    seen = dependencies(made)
    assert not seen.triu().any()
    if made.activation == "relu":  # half of its units are off
        return
    units = min(min(hidden), features - 1)
    nearest = -(-(features - 1) // units)  # what the docstring says that an output may miss
    assert seen.tril(-nearest).sum() == torch.ones(features, features).tril(-nearest).sum()


@pytest.mark.parametrize("units", [1, 2, 3, 7, 12, 13, 512])
@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (1, 1), (1, 12), (0, 12), (1, 783)])
def test_degrees_are_spread_evenly(units: int, lowest: int, highest: int) -> None:
    degrees = spread_degrees(units, lowest, highest)
    count = highest - lowest + 1
    assert degrees.shape == (units,)
    assert degrees.min() >= lowest
    assert degrees[-1] == highest
    assert (degrees.diff() >= 0).all()
    if units >= count:  # each degree has as many units as any other, give or take one
        counts = torch.bincount(degrees - lowest, minlength=count)
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1
    else:
        gaps = torch.cat((degrees[:1] - lowest + 1, degrees.diff()))
        assert gaps.max() - gaps.min() <= 1


def test_order_renames_features() -> None:
    natural = build(5, (16, 16), {"activation": "tanh"})
    order = torch.tensor([3, 0, 4, 2, 1])
    renamed = MADE(5, (16, 16), activation="tanh", order=order).double()
    state = natural.state_dict() | {"order": order}
    renamed.load_state_dict(state)
    x, _ = inputs(natural)
    torch.testing.assert_close(renamed(x)[:, order], natural(x[:, order]))


def test_order_is_a_part_of_the_state() -> None:
    made, other = (MADE(9, (16,), order="random") for _ in range(2))
    assert not torch.equal(made.order, other.order)
    other.load_state_dict(made.state_dict())
    x = torch.randn(4, 9)
    for twin in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(x), made(x))
    natural = MADE(9, (16,))
    natural.load_state_dict(made.state_dict())
    assert torch.equal(natural(x), made(x))
    with pytest.raises(ValueError, match="order: expected a permutation"):
        natural.load_state_dict(made.state_dict() | {"order": torch.zeros(9, dtype=torch.int64)})


@pytest.mark.parametrize("residual", [False, True])
def test_context_reaches_every_layer(residual: bool) -> None:
    made = build(4, (8, 8), {"context_features": 2, "residual": residual, "activation": "tanh"})
    x, context = inputs(made)
    weight = made.context.weight.detach().clone()
    plain = made(x, context)
    assert ((made(x, context + 1) - plain).abs() > 1e-6).any(2).all(), "it reaches each feature"
    start = 0
    for layer in made.layers:
        rows = slice(start, start + layer.out_features)
        with torch.no_grad():  # through this layer alone
            made.context.weight.zero_()
            made.context.weight[rows] = weight[rows]
        assert (made(x, context + 1) - made(x, context)).abs().max() > 1e-6
        start = rows.stop
    assert start == made.context.out_features


def test_gradients_reach_every_parameter() -> None:
    made = build(6, (16, 16), {"context_features": 3, "activation": "tanh"})
    x, context = inputs(made, 8)
    made(x, context).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    for layer in made.layers:
        assert not layer.weight.grad[~layer.mask].any()


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"context_features": 2}])
def test_gradients_agree_with_finite_differences_twice(options: dict) -> None:
    made = build(3, (6, 6), {"activation": "tanh", **options})
    x, context = inputs(made, 2)
    leaves = [t.requires_grad_() for t in (x, context) if t is not None]
    assert torch.autograd.gradcheck(lambda *t: made(*t), (*leaves,))
    assert torch.autograd.gradgradcheck(lambda *t: made(*t), (*leaves,))


def test_compiles_into_one_graph_and_runs_under_autocast() -> None:
    torch._dynamo.reset()
    made = randomize(MADE(260, (300,), order="reverse"), 0.02)
    x = torch.randn(4, 260)
    for mode in (made.train, made.eval):
        mode()
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), made(x), rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = made(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), made(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_and_dtypes(dtype: torch.dtype) -> None:
    made = randomize(MADE(260, (300,)), 0.02).to(dtype)
    x = torch.randn(5, 260).to(dtype)
    whole = made(x)
    assert whole.dtype == dtype
    assert made(x[:0]).shape == (0, 260, 2)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(made(x[:1]), whole[:1], rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(made(x), whole, rtol=tolerance, atol=tolerance)
        strided = torch.stack((x, x), 2)[..., 0]
        torch.testing.assert_close(made(strided), whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MADE(0), "features: .*at least 1, got 0"),
        (lambda: MADE(3, ()), "hidden_features: .*got none"),
        (lambda: MADE(3, (4, 0)), r"hidden_features: .*\(4, 0\)"),
        (lambda: MADE(3, (4, 5), residual=True), r"equal widths, got \(4, 5\)"),
        (lambda: MADE(3, outputs_per_feature=0), "outputs_per_feature: .*0"),
        (lambda: MADE(3, context_features=-1), "context_features: .*-1"),
        (lambda: MADE(3, activation="softmax"), "activation: .*'softmax'"),
        (lambda: MADE(3, order=[0, 1, 1]), r"order: .*0 ... 2, got \[0, 1, 1\]"),
        (lambda: MADE(3, order=[0, 1]), r"order: .*\[0, 1\]"),
        (lambda: MADE(3, order=[1, 2, 3]), r"order: .*\[1, 2, 3\]"),
        (lambda: MADE(3, order=[0.0, 1.0, 2.0]), "order: "),
        (lambda: MADE(3, order="up"), "order: .*'up'"),
        (lambda: MADE(3)(torch.zeros(2, 4)), r"x: expected \(n, 3\), got \(2, 4\)"),
        (lambda: MADE(3)(torch.zeros(3)), r"x: expected \(n, 3\)"),
        (lambda: MADE(3, context_features=2)(torch.zeros(2, 3)), "context: .*None"),
        (lambda: MADE(3)(torch.zeros(2, 3), torch.zeros(2, 2)), "context: .*context_features=0"),
        (
            lambda: MADE(3, context_features=2)(torch.zeros(2, 3), torch.zeros(1, 2)),
            r"context: expected \(2, 2\), got \(1, 2\)",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
