"""fixed_point_step against the row-by-row reference, and the promises of a step."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from deepgen_ext import ops, reference
from tests.emulation.compare import ORDERS

STATUS, EVALUATIONS, VALID, NEWEST, PROPOSED = range(5)
TOLERANCE, BOUND, RESIDUAL, EXPANSION = range(4)


def start(y: Tensor, memory: int, tolerance: float = 1e-9) -> list[Tensor]:
    """x = y and what a step reads and writes beside: images, residuals, gram, record, state."""
    n, features = y.shape
    history = [torch.full((n, memory, features), 7.0, dtype=y.dtype) for _ in range(2)]
    record = torch.tensor([[tolerance, torch.inf, torch.inf, 0.0]], dtype=torch.float64)
    return [
        y.clone(),
        *history,
        torch.zeros(n, memory, memory, dtype=torch.float64),
        record.repeat(n, 1),
        torch.zeros(n, 5, dtype=torch.int32),
    ]


def wild(x: Tensor) -> Tensor:
    """A contraction with constant 0.9 that is far from linear: some proposals are thrown back."""
    return 0.6 * torch.sin(12 * x.roll(1, 1)) / 12 + 0.3 * torch.sin(12 * x) / 12


def run(step, g, given: list[Tensor], y: Tensor, count: int, lipschitz=0.99, rounding=1e-15):
    x, *rest = given
    for _ in range(count):
        step(x, g(x), y, *rest, lipschitz=lipschitz, rounding=rounding)
    return given


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    x, _, _, _, record, state = ours
    their_x, _, _, _, their_record, their_state = theirs
    assert torch.equal(state, their_state)
    torch.testing.assert_close(x, their_x.to(x.dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(record, their_record, rtol=1e3 * tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", [0, 2, 3, 5, 12])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 40), (40, 3), (5, 1500), (3, 0)])
def test_steps_are_those_of_the_reference(shape, memory):
    torch.manual_seed(0)
    y = torch.randn(shape, dtype=torch.float64)
    for count in (1, 2, 4, 9):
        ours = run(ops.fixed_point_step, wild, start(y, memory), y, count)
        theirs = run(reference.fixed_point_step, wild, start(y, memory), y, count)
        same(ours, theirs, 1e-8)


def test_plain_steps_where_they_contract_tenfold():
    """A row whose last Picard step did mixes nothing; one on which g stops doing so mixes again."""
    y = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = torch.tensor([0.05, -0.099, 0.101, -0.5], dtype=torch.float64)[:, None]
    given = start(y, 3, tolerance=1e-14)
    proposed = []
    for _ in range(4):
        run(ops.fixed_point_step, lambda x: slope * x, given, y, 1)
        proposed.append(given[-1][:, PROPOSED].tolist())
    assert proposed[0] == [0, 0, 0, 0]
    assert [row[:2] for row in proposed] == [[0, 0]] * 4
    assert proposed[1][2:] == [1, 1]
    # The newest pair stays in use: the first slow step is mixed with it.
    given = start(y, 3, tolerance=1e-14)
    run(ops.fixed_point_step, lambda x: 0.05 * x, given, y, 3)
    assert (given[-1][:, PROPOSED] == 0).all()
    last = given[2][torch.arange(4), given[-1][:, NEWEST].long()]
    run(ops.fixed_point_step, lambda x: y - x - 0.5 * last.roll(1, 1), given, y, 1)
    assert (given[-1][:, PROPOSED] == 1).all()


def test_the_wild_function_makes_steps_back():
    """Or the test above compares no rejected proposals."""
    torch.manual_seed(0)
    y = torch.randn(40, 3, dtype=torch.float64)
    given = start(y, 5)
    back = 0
    for _ in range(12):
        before = given[-1].clone()
        run(ops.fixed_point_step, wild, given, y, 1)
        state = given[-1]
        back += int(
            ((before[:, PROPOSED] == 1) & (state[:, PROPOSED] == 0) & (state[:, STATUS] == 0)).sum()
        )
    assert back >= 2


@pytest.mark.parametrize("memory", [0, 3])
def test_float32_sums_in_double(memory):
    torch.manual_seed(1)
    y = torch.randn(4, 5000)
    ours = run(ops.fixed_point_step, wild, start(y, memory), y, 3, rounding=1e-7)
    theirs = run(reference.fixed_point_step, wild, start(y, memory), y, 3, rounding=1e-7)
    same(ours, theirs, 1e-6)
    torch.testing.assert_close(ours[4], theirs[4], rtol=1e-6, atol=0)


def test_the_bound_is_what_the_docstring_says():
    y = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    given = start(y, 0)
    x, record = given[0], given[4]
    ops.fixed_point_step(x, y * 0.5, y, *given[1:], lipschitz=0.75, rounding=0.01)
    # x = y: r = -y / 2, |r| = 2.5, e = 0.01 (5 + 5)
    assert record[0, BOUND].item() == pytest.approx((0.75 * 2.5 + 0.1) / 0.25)
    torch.testing.assert_close(x, y / 2)


@pytest.mark.parametrize("memory", [0, 4])
def test_stopped_rows_are_not_touched(memory):
    torch.manual_seed(2)
    y = torch.randn(3, 6, dtype=torch.float64)
    given = run(ops.fixed_point_step, wild, start(y, memory), y, 2)
    given[-1][1, STATUS] = 1
    before = [t.clone() for t in given]
    run(ops.fixed_point_step, wild, given, y, 1)
    for now, then in zip(given, before):
        assert torch.equal(now[1], then[1])
    assert not torch.equal(given[0][0], before[0][0])


@pytest.mark.parametrize("memory", [0, 4])
def test_an_expansion_is_measured(memory):
    y = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = run(ops.fixed_point_step, lambda x: -1.25 * x, start(y, memory), y, 2)
    assert (given[5][:, STATUS] == 2).all()
    torch.testing.assert_close(given[4][:, EXPANSION], torch.full((2,), 1.25).double())
    assert given[4][:, BOUND].isinf().all()


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stops_its_row(memory, bad):
    torch.manual_seed(3)
    y = torch.randn(3, 4, dtype=torch.float64)
    y[1, 2] = bad
    given = run(ops.fixed_point_step, wild, start(y, memory), y, 3)
    assert given[5][:, STATUS].tolist() == [0, 3, 0]
    assert given[0][[0, 2]].isfinite().all()


def test_proposals_that_are_not_finite_go_back():
    """Anderson's step may leave where g is defined: the Picard step before cannot."""

    def g(x):
        return torch.where(proposals, torch.nan, 0.5 * x)

    y = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    given = start(y, 3)
    for _ in range(6):
        proposals = given[-1][:, PROPOSED, None] != 0
        run(ops.fixed_point_step, g, given, y, 1)
        assert given[0].isfinite().all()
        assert (given[-1][:, STATUS] != 3).all()


def test_equal_residuals_are_no_singular_matrix():
    """g constant: all residuals behind the first are 0."""
    y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    given = start(y, 4, tolerance=0.0)
    run(ops.fixed_point_step, torch.ones_like, given, y, 6, rounding=0.0)
    torch.testing.assert_close(given[0], y - 1)


def test_views_and_strides():
    torch.manual_seed(6)
    y = torch.randn(6, 4, dtype=torch.float64).t()
    ours = start(y.contiguous(), 2)
    g_x = torch.randn(4, 12, dtype=torch.float64)[:, ::2]
    theirs = [t.clone() for t in ours]
    ops.fixed_point_step(ours[0], g_x, y, *ours[1:], lipschitz=0.9, rounding=1e-15)
    reference.fixed_point_step(theirs[0], g_x, y, *theirs[1:], lipschitz=0.9, rounding=1e-15)
    same(ours, theirs, 1e-12)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("features", [1, 7, 300])
def test_emulated(features, dtype, memory):
    torch.manual_seed(7)
    y = torch.randn(5, features, dtype=dtype)
    y[3, 0] = torch.nan
    emulated = torch.ops.deepgen_ext_emulated.fixed_point_step

    def step(*tensors, lipschitz, rounding):
        emulated(*tensors, lipschitz, rounding)

    unit = 1e-15 if dtype == torch.float64 else 1e-7
    for order in ORDERS:
        os.environ["DEEPGEN_EMULATION_ORDER"] = order
        for count in (1, 5):
            ours = run(step, wild, start(y, memory), y, count, rounding=unit)
            theirs = run(ops.fixed_point_step, wild, start(y, memory), y, count, rounding=unit)
            assert torch.equal(ours[5], theirs[5])
            for mine, other in zip(ours[:5:4], theirs[:5:4]):
                tolerance = 1e-7 if dtype == torch.float64 else 1e-4
                torch.testing.assert_close(
                    mine, other, rtol=tolerance, atol=tolerance, equal_nan=True
                )


def test_opcheck():
    y = torch.randn(3, 4, dtype=torch.float64)
    given = start(y, 2)
    arguments = (given[0], wild(y), y, *given[1:], 0.9, 1e-15)
    torch.library.opcheck(torch.ops.deepgen_ext.fixed_point_step.default, arguments)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda a: a.update(x=a["x"].bfloat16()), TypeError, "x must be"),
        (lambda a: a.update(x=a["x"].t().contiguous().t()), ValueError, "x must be contiguous"),
        (lambda a: a.update(y=a["y"][:2]), ValueError, "y must have the shape"),
        (lambda a: a.update(g_x=a["g_x"].float()), TypeError, "g_x must have the dtype"),
        (
            lambda a: a.update(images=a["images"][:, :1]),
            ValueError,
            "images must keep 0 or 2 to 12",
        ),
        (lambda a: a.update(residuals=a["residuals"][:, :2]), ValueError, "residuals"),
        (lambda a: a.update(gram=a["gram"].float()), TypeError, "gram"),
        (lambda a: a.update(record=a["record"][:, :3]), ValueError, "record"),
        (lambda a: a.update(state=a["state"].long()), TypeError, "state"),
        (lambda a: a.update(lipschitz=1.0), ValueError, "lipschitz"),
        (lambda a: a.update(rounding=-1.0), ValueError, "rounding"),
        (lambda a: a.update(rounding=float("nan")), ValueError, "rounding"),
    ],
)
def test_bad_inputs(change, error, named):
    y = torch.randn(3, 4, dtype=torch.float64)
    x, images, residuals, gram, record, state = start(y, 3)
    arguments = {"x": x, "g_x": y, "y": y, "images": images, "residuals": residuals, "gram": gram}
    arguments |= {"record": record, "state": state, "lipschitz": 0.9, "rounding": 1e-15}
    change(arguments)
    with pytest.raises(error, match=named):
        ops.fixed_point_step(**arguments)
