"""fixed_point_mlp against the same steps one by one, and that rows are strangers to one another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deepgen_ext import ops, reference
from deepgen_ext.reference.fixed_point_mlp import mlp
from tests.emulation.compare import check_emulated

ACTIVATIONS = (
    *("relu", "elu", "tanh", "lipswish", "silu"),
    *("sin", "softplus", "leaky_relu", "sigmoid"),
)
STATUS, EVALUATIONS = 0, 1


def problem(n: int, features: int, hidden: tuple[int, ...], seed: int = 0, factor: float = 0.9):
    """y, weights, biases, betas; each weight has the norm `factor`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = (features, *hidden, features)
    weights = [normal(b, a) for a, b in zip(sizes, sizes[1:])]
    weights = [factor * w / torch.linalg.matrix_norm(w, 2) for w in weights]
    biases = [0.5 * normal(b) for b in sizes[1:]]
    betas = 0.5 + 0.25 * torch.arange(len(hidden)).double()
    return normal(n, features), weights, biases, betas


def solve(op, y, weights, biases, betas, tolerance=1e-8, **options):
    options = {"lipschitz": 0.95, "rounding": 2 * torch.finfo(y.dtype).eps} | options
    tolerances = torch.full((len(y),), tolerance, dtype=torch.float64)
    return op(y, options.pop("x0", y), tolerances, weights, biases, betas, **options)


@pytest.mark.parametrize("memory", [0, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 16, 35])
@pytest.mark.parametrize("hidden", [(), (9,), (20, 3, 17)])
def test_against_the_reference(hidden, n, memory):
    given = problem(n, 6, hidden)
    x, record, state = solve(ops.fixed_point_mlp, *given, activation="tanh", memory=memory)
    their_x, their_record, their_state = solve(
        reference.fixed_point_mlp, *given, activation="tanh", memory=memory
    )
    assert torch.equal(state, their_state)
    torch.testing.assert_close(x, their_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(record, their_record, rtol=1e-3, atol=1e-10)
    assert (state[:, STATUS] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, dtype):
    given = [t.to(dtype) if isinstance(t, Tensor) else [u.to(dtype) for u in t]
             for t in problem(19, 5, (30, 12), factor=0.8)]  # fmt: skip
    y = given[0]
    y[0] *= 100  # far from where the activations bend
    for n in (1, len(y)):
        x, record, state = solve(
            ops.fixed_point_mlp, y[:n], *given[1:], activation=activation, lipschitz=0.8
        )
        assert (state[:, STATUS] == 1).all()
        doubles = [[t.double() for t in ts] for ts in given[1:3]]
        error = (
            x.double() + mlp(x.double(), *doubles, given[3].double(), activation) - y[:n].double()
        )
        # |x - x*| >= |x + g(x) - y| / (1 + L)
        assert (error.norm(dim=1) / 1.8 <= record[:, 1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_at_every_size_of_its_input(activation, dtype):
    """x = -act(x0) after one step of a network of one unit. From 2^22 on sin is 0 in float32."""
    largest = 2**21 if activation == "sin" else 1e4
    sizes = torch.logspace(-6, math.log10(largest), 200, dtype=torch.float64)
    v = torch.cat((-sizes, torch.linspace(-3, 3, 241, dtype=torch.float64), sizes)).to(dtype)
    one, zeros = torch.ones(1, 1, dtype=dtype), torch.zeros(len(v), 1, dtype=dtype)
    given = [one, one], [zeros[0], zeros[0]], torch.full((1,), 0.7, dtype=dtype)
    options = {"activation": activation, "max_iterations": 1, "memory": 0}
    x = solve(ops.fixed_point_mlp, zeros, *given, x0=v[:, None], **options)[0]
    doubles = [t.double() for t in (*given[0], *given[1], given[2])]
    expected = mlp(v[:, None].double(), doubles[:2], doubles[2:4], doubles[4], activation)
    tiny = torch.finfo(dtype).eps
    # An ulp of pi v changes the sine of a large v: in double the reference has that error.
    slack = tiny * (v[:, None].double().abs() if activation == "sin" else 1)
    assert ((x.double() + expected).abs() <= 4 * tiny * expected.abs() + slack).all()
    if activation == "sin":
        half_integers = torch.tensor([[0.5], [-0.5], [1.5], [1e6 + 0.5], [7.0]], dtype=dtype)
        x = solve(ops.fixed_point_mlp, zeros[:5], *given, x0=half_integers, **options)[0]
        signs = torch.tensor([[-1.0], [1.0], [1.0], [-1.0], [0.0]], dtype=dtype)
        torch.testing.assert_close(x, signs / math.pi, rtol=2 * tiny, atol=0)
    bad = torch.tensor([[torch.nan]], dtype=dtype)
    x = solve(ops.fixed_point_mlp, zeros[:1], *given, x0=bad, **options)[2]
    assert x[0, STATUS] == 3


def test_rows_do_not_depend_on_the_others():
    """Nor on the place among the lanes: bit for bit, in any batch of more than one."""
    given = problem(40, 7, (20,), factor=0.99)
    options = {"activation": "elu", "lipschitz": 0.985}
    y = given[0] * torch.logspace(-3, 2, 40, dtype=torch.float64)[:, None]
    x, record, state = solve(ops.fixed_point_mlp, y, *given[1:], **options)
    assert len(state[:, EVALUATIONS].unique()) > 2
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:2], order[:17], torch.tensor([3, 3, 3])):
        results = solve(ops.fixed_point_mlp, y[rows], *given[1:], **options)
        assert torch.equal(results[0], x[rows])
        assert torch.equal(results[1], record[rows])
        assert torch.equal(results[2], state[rows])


@pytest.mark.parametrize("memory", [0, 4])
def test_a_row_that_fails_leaves_the_others_alone(memory):
    given = problem(20, 5, (8,))
    options = {"activation": "relu", "memory": memory}
    x, record, state = solve(ops.fixed_point_mlp, *given, **options)
    y = given[0].clone()
    y[4, 1], y[11, 0] = torch.nan, torch.inf
    with_bad = solve(ops.fixed_point_mlp, y, *given[1:], **options)
    good = torch.ones(20, dtype=torch.bool)
    good[[4, 11]] = False
    for ours, theirs in zip(with_bad, (x, record, state)):
        assert torch.equal(ours[good], theirs[good])
    assert with_bad[2][~good][:, STATUS].tolist() == [3, 3]
    assert with_bad[1][~good][:, 1].isinf().all()


@pytest.mark.parametrize("memory", [0, 4])
def test_expansion_and_too_few_iterations(memory):
    given = problem(6, 4, (), factor=1.3)
    _, record, state = solve(ops.fixed_point_mlp, *given, memory=memory)
    assert (state[:, STATUS] == 2).all()
    assert (record[:, 3] >= 1).all()
    given = problem(6, 4, (5,))
    x, record, state = solve(ops.fixed_point_mlp, *given, memory=memory, max_iterations=3)
    assert (state[:, STATUS] == 0).all()
    assert (state[:, EVALUATIONS] == 3).all()
    exact = solve(ops.fixed_point_mlp, *given, tolerance=1e-12)[0]
    assert ((x - exact).norm(dim=1) <= record[:, 1]).all()


def test_where_it_starts_and_strides():
    given = problem(9, 6, (8,))
    x = solve(ops.fixed_point_mlp, *given)[0]
    _, _, state = solve(ops.fixed_point_mlp, *given, x0=x)
    assert (state[:, EVALUATIONS] == 1).all()
    y, weights, biases, betas = given
    wide = [torch.cat((w, w), 1)[:, : w.shape[1]] for w in weights]
    across = [w.t().contiguous().t() for w in weights]
    for other in (wide, across):
        again = solve(ops.fixed_point_mlp, y.t().contiguous().t(), other, biases, betas)[0]
        assert torch.equal(again, x)


def test_threads_change_nothing():
    given = problem(70, 6, (8,))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(solve(ops.fixed_point_mlp, *given)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def check_kernel(
    n: int, features: int, hidden: tuple[int, ...], activation: str, memory: int, its=60
):
    y, weights, biases, betas = problem(n, features, hidden, seed=3)
    if n > 4:
        y[3, 0] = torch.nan
    tolerance = torch.full((n,), 1e-6, dtype=torch.float64)
    good = y.isfinite().all(1)
    arguments = (y[good], y[good], tolerance[good], weights, biases, betas, activation)
    check_emulated("fixed_point_mlp", *arguments, 0.95, 1e-15, its, memory, magnified=1e5)
    everything = (y, y, tolerance, weights, biases, betas, activation, 0.95, 1e-15, its, memory)
    states = torch.ops.deepgen_ext_emulated.fixed_point_mlp(*everything)[2]
    assert torch.equal(states, torch.ops.deepgen_ext.fixed_point_mlp(*everything)[2])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_emulated(activation, memory):
    check_kernel(11, 5, (13, 6), activation, memory)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("memory", [0, 3])
def test_emulated_rows_that_are_done_wait_unchanged(memory):
    """A row beside slower ones is, bit for bit, what it is alone."""
    y, weights, biases, betas = problem(8, 5, (9,), factor=0.95)
    tolerance = torch.logspace(-1, -10, 8, dtype=torch.float64)

    def solved(rows: slice) -> list[Tensor]:
        given = (y[rows], y[rows], tolerance[rows], weights, biases, betas)
        options = ("relu", 0.95, 1e-15, 200, memory)
        return torch.ops.deepgen_ext_emulated.fixed_point_mlp(*given, *options)

    among = solved(slice(None))
    assert len(among[2][:, EVALUATIONS].unique()) > 3
    for i in range(8):
        for ours, theirs in zip(among, solved(slice(i, i + 1))):
            assert torch.equal(ours[i], theirs[0])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("n", "features", "hidden", "memory", "its"),
    [
        (0, 4, (5,), 3, 9),
        (1, 1, (), 2, 30),
        (3, 4, (5,), 3, 3),  # too few iterations
        (3, 100, (120,), 2, 9),  # weights do not fit in shared memory
        (2, 600, (4,), 4, 4),  # nor does the tile
    ],
)
def test_emulated_sizes(n, features, hidden, memory, its):
    check_kernel(n, features, hidden, "tanh", memory, its)


def test_opcheck_and_compile():
    y, weights, biases, betas = problem(3, 4, (5,))
    tolerance = torch.full((3,), 1e-6, dtype=torch.float64)
    arguments = (y, y, tolerance, weights, biases, betas, "elu", 0.9, 1e-15, 50, 3)
    torch.library.opcheck(torch.ops.deepgen_ext.fixed_point_mlp.default, arguments)
    compiled = torch.compile(ops.fixed_point_mlp, fullgraph=True, backend="aot_eager")
    options = {"lipschitz": 0.9, "rounding": 1e-15, "memory": 3}
    ours = compiled(y, y, tolerance, weights, biases, betas, **options)
    theirs = ops.fixed_point_mlp(y, y, tolerance, weights, biases, betas, **options)
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"y": torch.zeros(3, 4, dtype=torch.float16)}, TypeError, "y must be"),
        ({"y": torch.zeros(3)}, ValueError, "y must have the shape"),
        ({"x0": torch.zeros(2, 4)}, ValueError, "x0 must have the shape"),
        ({"tolerance": torch.zeros(3)}, TypeError, "tolerance"),
        ({"tolerance": torch.zeros(2).double()}, ValueError, "tolerance"),
        ({"weights": []}, ValueError, "weights"),
        ({"weights": [torch.zeros(5, 3), torch.zeros(4, 5)]}, ValueError, r"weights\[0\]"),
        ({"weights": [torch.zeros(5, 4), torch.zeros(3, 5)]}, ValueError, r"weights\[1\]"),
        ({"weights": [torch.zeros(5, 4).double(), torch.zeros(4, 5)]}, TypeError, r"weights\[0\]"),
        ({"biases": [torch.zeros(5)]}, ValueError, "biases must have an entry"),
        ({"biases": [torch.zeros(5), torch.zeros(5)]}, ValueError, r"biases\[1\]"),
        ({"betas": torch.zeros(2)}, ValueError, "betas"),
        ({"activation": "gelu"}, ValueError, "relu, elu, .*, leaky_relu, sigmoid"),
        ({"lipschitz": 1.0}, ValueError, "lipschitz"),
        ({"rounding": torch.inf}, ValueError, "rounding"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"memory": 1}, ValueError, "memory"),
        ({"memory": 13}, ValueError, "memory"),
    ],
)
def test_bad_inputs(change, error, named):
    y = torch.zeros(3, 4)
    arguments = {"y": y, "x0": y, "tolerance": torch.ones(3).double(), "betas": torch.ones(1)}
    arguments |= {"weights": [torch.zeros(5, 4), torch.zeros(4, 5)]}
    arguments |= {"biases": [torch.zeros(5), torch.zeros(4)], "lipschitz": 0.5, "rounding": 1e-7}
    with pytest.raises(error, match=named):
        ops.fixed_point_mlp(**(arguments | change))
