"""block_triangular_linear against its definition, and against what a mask means."""

import pytest
import torch
import torch.nn.functional as F

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated


def staircase(rows, columns, shift=0):
    """Steps that end neither at a block's end nor at the matrix's."""
    return (torch.arange(rows) * columns // max(rows, 1) + 1 - shift).clamp(0, columns)


# batch, then what each row sees of how many columns: nothing at all, one group, several groups, steps so flat or
# so steep that a block on the diagonal is empty, columns that no row sees, more samples than a tile.
CASES = {
    "empty batch": (0, staircase(5, 7), 7),
    "one": (1, torch.tensor([1]), 1),
    "all masked": (3, torch.zeros(4, dtype=torch.long), 6),
    "no columns": (3, torch.zeros(4, dtype=torch.long), 0),
    "no rows": (3, torch.zeros(0, dtype=torch.long), 4),
    "small": (5, staircase(9, 13, 2), 13),
    "one group": (4, staircase(60, 90), 90),
    "groups": (6, staircase(210, 330), 330),
    "tall": (3, staircase(500, 100), 100),
    "last columns unseen": (3, staircase(220, 310, 37), 310),
    "first rows see nothing": (3, staircase(220, 310, 120), 310),
    "a cliff": (3, torch.tensor([100] * 150 + [300] * 150), 300),
    "dense": (3, torch.full((200,), 150), 150),
    "more samples than a tile": (300, staircase(130, 110), 110),
}


def inputs_of(name, seed=0, bias="shared"):
    batch, visible, columns = CASES[name]
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    rows = len(visible)
    tensors = draw(batch, columns), draw(rows, columns) * max(columns, 1) ** -0.5
    if bias:
        tensors += (draw(rows) if bias == "shared" else draw(batch, rows),)
    return tensors, visible


def pair(visible):
    def with_bias(function):
        return lambda x, weight, bias=None: (function(x, weight, bias, visible),)

    return with_bias(ops.block_triangular_linear), with_bias(reference.block_triangular_linear)


@pytest.mark.parametrize("bias", [None, "shared", "of each sample"])
def test_contract(bias):
    inputs, visible = inputs_of("small", bias=bias)
    leaves = [t.clone().requires_grad_() for t in inputs]
    overload = torch.ops.deepgen_ext.block_triangular_linear.default
    check_op(*pair(visible), inputs, overload, (*(leaves if bias else [*leaves, None]), visible))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    for bias in (None, "shared", "of each sample"):
        inputs, visible = inputs_of(name, bias=bias)
        check_values(*pair(visible), inputs)


@pytest.mark.parametrize("name", ["groups", "tall", "last columns unseen"])
def test_second_gradients(name):
    """Of blocks of all kinds, every pair of inputs."""
    inputs, visible = inputs_of(name)
    results = []
    for function in pair(visible):
        leaves = [t.clone().requires_grad_() for t in inputs]
        (y,) = function(*leaves)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([*first, *second])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_what_is_wanted(wanted):
    inputs, visible = inputs_of("groups")
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    given = [leaves[i] for i in wanted]
    ours, theirs = (torch.autograd.grad(f(*leaves)[0].sin().sum(), given) for f in pair(visible))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["small", "groups", "tall"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masked_weights_are_never_read(name, dtype):
    inputs, visible = inputs_of(name)
    x, weight, bias = (t.to(dtype) for t in inputs)
    masked = torch.arange(weight.shape[1]) >= visible[:, None]
    results = []
    for hidden in (0.0, float("nan"), float("inf")):
        leaves = [t.clone().requires_grad_() for t in (x, weight.masked_fill(masked, hidden), bias)]
        y = ops.block_triangular_linear(*leaves, visible)
        gradients = torch.autograd.grad(y.sin().sum(), leaves)
        assert (gradients[1][masked] == 0).all()
        results.append([y, *gradients])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0]))


def test_does_not_depend_on_threads():
    for name in ("groups", "more samples than a tile"):
        inputs, visible = inputs_of(name)
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                leaves = [t.float().requires_grad_() for t in inputs]
                y = ops.block_triangular_linear(*leaves, visible)
                results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_autocast():
    inputs, visible = inputs_of("small")
    x, weight, bias = (t.float() for t in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.block_triangular_linear(x, weight, bias, visible)
        assert ops.block_triangular_linear(*inputs, visible).dtype == torch.float64
    assert y.dtype == F.linear(x.bfloat16(), weight.bfloat16()).dtype
    torch.testing.assert_close(
        y.float(), reference.block_triangular_linear(x, weight, bias, visible), rtol=0.03, atol=0.03
    )


GOOD = {
    "x": torch.ones(2, 4),
    "weight": torch.ones(3, 4),
    "bias": torch.ones(3),
    "visible": torch.tensor([0, 2, 4]),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(4)}, ValueError, r"x must have the shape \(batch, columns\), got \[4\]"),
        ({"x": torch.ones(2, 4).int()}, TypeError, "x must be a float32, .* got Int"),
        ({"weight": torch.ones(3, 5)}, ValueError, r"weight must have the shape \(rows, 4\), got \[3, 5\]"),
        ({"weight": torch.ones(3, 4).double()}, TypeError, "weight must have the dtype of x"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have the shape \[3\] or \[2, 3\], got \[4\]"),
        ({"bias": torch.ones(1, 3)}, ValueError, r"bias must have the shape .*, got \[1, 3\]"),
        ({"visible": torch.tensor([0, 2])}, ValueError, r"visible must be a vector of 3 numbers on the CPU, got \[2\]"),
        ({"visible": torch.tensor([0, 2, 5])}, ValueError, "visible must lie in 0 ... 4, got 5"),
        ({"visible": torch.tensor([-1, 2, 4])}, ValueError, "visible must lie in 0 ... 4, got -1"),
        ({"visible": torch.tensor([2, 1, 4])}, ValueError, "visible must be ascending, got 1 after 2"),
        ({"visible": torch.tensor([0.0, 2, 4])}, TypeError, "visible must be an int64 tensor, got Float"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        ops.block_triangular_linear(**(GOOD | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cuda_kernels_in_emulation(emulated, dtype):
    for name in (
        "empty batch",
        "all masked",
        "small",
        "one group",
        "last columns unseen",
        "a cliff",
    ):
        inputs, visible = inputs_of(name)
        x, weight, bias = (t.to(dtype) for t in inputs)
        grad = torch.randn(x.shape[0], weight.shape[0]).to(dtype)
        masked = torch.arange(weight.shape[1]) >= visible[:, None]
        weight = weight.masked_fill(masked, float("nan"))  # never read
        check_emulated("block_triangular_linear", x, weight, bias, visible)
        for wanted in ((True, True, True), (False, False, True), (False, True, False)):
            check_emulated("block_triangular_linear_backward", grad, x, weight, visible, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_gpu(name):
    inputs, visible = inputs_of(name)
    check_values(*pair(visible), tuple(t.cuda() for t in inputs), [torch.float64])
