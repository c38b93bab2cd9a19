"""torchdeq's solvers: the same questions, answers at least as good, and the same dict about them."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext.compat import functional

SOLVERS = ("fixed_point_iter", "anderson_solver")
solvers = pytest.mark.parametrize("solver", [getattr(functional, name) for name in SOLVERS])


def contraction(factor: float, size: int = 6, seed: int = 0):
    """x -> factor Q'tanh(Q x) + b, whose contraction is factor near 0 of tanh."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    b = 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: factor * torch.tanh(x @ q.T) @ q + b


def start(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def solution_of(func, x0):
    x = x0
    for _ in range(4000):
        x = func(x)
    return x


@solvers
@pytest.mark.parametrize("tol", [1e-3, 1e-10])
@pytest.mark.parametrize("factor", [0.05, 0.5, 0.95, -0.95])
def test_is_within_the_tolerance(factor, tol, solver) -> None:
    func, x0 = contraction(factor), start(7, 6)
    x, kept, info = solver(func, x0, max_iter=200, tol=tol)
    assert (x - solution_of(func, x0)).norm(dim=1).max() < 1.5 * tol
    assert info["abs_lowest"].max() < tol
    assert kept == []


@solvers
def test_shapes_and_types(solver) -> None:
    for shape in ((), (5,), (3, 2), (2, 3, 4), (0, 3), (3, 0)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            x0 = start(*shape).to(dtype)
            calls = []
            x, _, _ = solver(lambda v, calls=calls: calls.append(v) or 0.5 * v.cos(), x0)
            assert x.shape == shape
            assert x.dtype == dtype
            assert all(v.shape == shape and v.dtype == dtype for v in calls)
            exact = torch.full(shape, 0.45018361)
            torch.testing.assert_close(x.float(), exact, rtol=0, atol=5e-3)


def test_a_batch_of_numbers_is_a_sample_each() -> None:
    """The slow one of them takes longer, and the other one not."""
    rate = torch.tensor([0.01, -0.9], dtype=torch.float64)
    x, _, info = functional.fixed_point_iter(lambda v: 1 + rate * v, start(2), tol=1e-9)
    torch.testing.assert_close(x, 1 / (1 - rate))
    assert info["nstep"][0] < info["nstep"][1] + 4
    assert info["abs_trace"].shape == (2, 51)


@solvers
def test_a_sample_does_not_depend_on_the_batch_and_rests_when_done(solver) -> None:
    func, x0 = contraction(0.9), start(5, 6)
    x0[2] *= 100
    x, _, info = solver(func, x0, tol=1e-8)
    for i in range(5):
        alone, _, of_it = solver(func, x0[i : i + 1], tol=1e-8)
        torch.testing.assert_close(alone[0], x[i], rtol=0, atol=1e-13)
        assert of_it["nstep"] == info["nstep"][i]
    assert len(info["nstep"].unique()) > 1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
@pytest.mark.parametrize("shape", [(4, 6), (3,)])
def test_the_dict_is_torchdeqs(shape, stop_mode, name) -> None:
    peer = pytest.importorskip("torchdeq.solver")
    func = contraction(0.7) if len(shape) == 2 else torch.cos
    results = [
        getattr(module, name)(func, start(*shape), stop_mode=stop_mode, tol=1e-6, indexing=[3, 5])
        for module in (functional, peer)
    ]
    (x, kept, info), (theirs, their_kept, their_info) = results
    # As close as their residuals, with a contraction of 0.84 at most, let them be.
    off = (x - theirs).reshape(shape[0], -1).norm(dim=1)
    assert (off <= 1e-5 + 7 * their_info["abs_lowest"]).all()
    assert info.keys() == their_info.keys()
    for key, value in their_info.items():
        assert info[key].shape[0] == value.shape[0], key
        assert info[key].dim() == value.dim(), key
    if name == "fixed_point_iter":
        assert info["abs_trace"].shape == their_info["abs_trace"].shape
    assert len(kept) == len(their_kept) == 2
    assert info[f"{stop_mode}_lowest"].max() < 1e-6
    assert torch.equal(info["sradius"], their_info["sradius"])
    assert torch.equal(info["abs_trace"][:, 0], their_info["abs_trace"][:, 0].to(x.dtype))


def test_the_numbers_say_what_they_are_said_to() -> None:
    """What the trace and the lowest say, computed again from what func was asked."""
    func, x0, asked = contraction(0.9), start(4, 6), []
    x, kept, info = functional.fixed_point_iter(
        lambda v: asked.append(v.clone()) or func(v), x0, tol=1e-9, indexing=range(1, 51)
    )
    residuals = torch.stack([(func(v) - v).norm(dim=1) for v in asked], 1)
    relative = torch.stack([(func(v) - v).norm(dim=1) / func(v).norm(dim=1) for v in asked], 1)
    for i in range(4):
        steps = int(info["nstep"][i])
        torch.testing.assert_close(info["abs_trace"][i, 1 : steps + 1], residuals[i, :steps])
        torch.testing.assert_close(info["abs_lowest"][i], residuals[i, :steps].min())
        torch.testing.assert_close(info["rel_lowest"][i], relative[i, :steps].min())
        torch.testing.assert_close(x[i], func(asked[steps - 1])[i])
        assert (info["abs_trace"][i, steps + 1 :] == info["abs_lowest"][i]).all()
    assert len(kept) == len(asked)
    for k in (0, 2):
        best = residuals[:, : k + 1].argmin(1)
        expected = torch.stack([func(asked[int(b)])[i] for i, b in enumerate(best)])
        torch.testing.assert_close(kept[k], expected)


def test_fewer_evaluations_than_torchdeq_where_it_is_slow() -> None:
    peer = pytest.importorskip("torchdeq.solver")
    func, x0 = contraction(-0.99, size=20), start(8, 20)
    counts = []
    for module, options in ((functional, {}), (peer, {"max_iter": 5000})):
        calls = []
        _, _, info = module.fixed_point_iter(
            lambda v, calls=calls: calls.append(1) or func(v), x0, tol=1e-6, **options
        )
        assert info["abs_lowest"].max() < 1e-6
        counts.append(len(calls))
    assert 4 * counts[0] < counts[1]


@solvers
def test_relative_tolerance(solver) -> None:
    func, x0 = (lambda v: 1000 + 100 * torch.cos(v / 200)), start(3, 2)
    x, _, info = solver(func, x0, tol=1e-3, stop_mode="rel")
    assert info["rel_lowest"].max() < 1e-3
    assert ((x - solution_of(func, x0)).norm(dim=1) < 1e-3 * x.norm(dim=1)).all()
    assert (info["nstep"] < solver(func, x0, tol=1e-3)[2]["nstep"]).all()


def test_damping_solves_what_plain_steps_do_not() -> None:
    peer = pytest.importorskip("torchdeq.solver")
    func = lambda v: 3 - 1.5 * v  # noqa: E731
    for module in (functional, peer):
        x, _, _ = module.fixed_point_iter(func, start(4, 3), tau=0.5, tol=1e-6)
        torch.testing.assert_close(x, torch.full_like(x, 1.2), rtol=0, atol=1e-5)


@solvers
def test_goes_on_where_func_expands(solver) -> None:
    """The logistic map expands by 2.8 near 0 and contracts by 0.8 where it ends."""
    asked, x0 = [], torch.tensor([[0.001], [0.5], [0.99]], dtype=torch.float64)
    x, _, info = solver(lambda v: asked.append(v.clone()) or 2.8 * v * (1 - v), x0, tol=1e-9)
    for before, after in zip(asked[:4], asked[1:5], strict=True):
        torch.testing.assert_close(after[0], 2.8 * before[0] * (1 - before[0]))
    torch.testing.assert_close(x, torch.full_like(x, 1.8 / 2.8), rtol=0, atol=1e-9)
    assert info["abs_lowest"].max() < 1e-9
    assert len(asked) < 30


@solvers
def test_nothing_is_kept_from_before_an_expansion(solver) -> None:
    """What follows it is what a call that begins there asks."""
    func, asked = (lambda v: 2.8 * v * (1 - v)), ([], [])
    solver(
        lambda v: asked[0].append(v.clone()) or func(v), torch.full((1, 1), 1e-3).double(), tol=1e-9
    )
    points = torch.cat(asked[0])[:, 0]
    growth = (func(points).diff() / points.diff()).abs()
    seen = int((growth >= 1).nonzero().max()) + 1
    after = func(points[seen]).view(1, 1)
    solver(lambda v: asked[1].append(v.clone()) or func(v), after, tol=1e-9)
    rest = points[seen + 1 :]
    assert len(rest) >= 4
    torch.testing.assert_close(torch.cat(asked[1])[: len(rest), 0], rest)


@pytest.mark.parametrize(("stop_mode", "best", "step"), [("abs", 3.0, 1), ("rel", 63.0, 5)])
def test_the_best_is_that_of_the_mode(stop_mode, best, step) -> None:
    """The residuals of 2 x + 1 grow, and more slowly than its images."""
    x, _, info = functional.fixed_point_iter(
        lambda v: 2 * v + 1, torch.ones(1, 1), max_iter=5, stop_mode=stop_mode
    )
    assert x == best
    assert info["nstep"] == step
    x, _, info = functional.fixed_point_iter(
        lambda v: 2 * v + 1, torch.ones(1, 1), max_iter=5, stop_mode=stop_mode, return_final=True
    )
    assert x == 63
    assert info["nstep"] == 5
    assert info["abs_lowest"] == 32


@solvers
def test_what_has_no_fixed_point_gives_the_best(solver) -> None:
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    rate = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    x, _, info = solver(lambda v: rate * v + torch.tensor([[1.0], [0.0]]), x0, max_iter=20)
    assert info["abs_lowest"][0] >= 1e-3 or abs(x[0] + 1) < 1e-3
    assert abs(x[1]) < 1e-3
    bad, _, info = solver(lambda v: torch.where(v > 1.5, torch.nan, 0.5 * v), x0)
    assert bad[1] == x0[1]
    assert info["abs_lowest"][1] == 1e8
    assert abs(bad[0]) < 1e-3


@solvers
def test_the_final_one(solver) -> None:
    func, x0 = contraction(0.5), start(4, 6)
    x, _, info = solver(func, x0, tol=1.0, return_final=True)
    torch.testing.assert_close(x, solution_of(func, x0), rtol=0, atol=1e-14)
    short, _, info = solver(func, x0, max_iter=3, tol=1e9, return_final=True)
    assert (info["nstep"] == 3).all()


def test_no_gradient_and_torchdeqs_layer() -> None:
    """Its DEQ calls the solver by name, and adds the gradient."""
    torchdeq = pytest.importorskip("torchdeq")
    torchdeq.solver.register_solver("ours", functional.fixed_point_iter)
    weight = (0.2 * start(6, 6)).requires_grad_()
    results = []
    for name in ("ours", "fixed_point_iter"):
        deq = torchdeq.get_deq(f_solver=name, f_tol=1e-10, b_tol=1e-10, f_max_iter=300,
                               b_max_iter=300, ift=True)  # fmt: skip
        z, _ = deq(lambda v: torch.tanh(v @ weight + 0.3), start(5, 6))
        results.append((z[-1], *torch.autograd.grad(z[-1].square().sum(), weight)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    x, _, _ = functional.fixed_point_iter(lambda v: torch.tanh(v @ weight), start(5, 6))
    assert not x.requires_grad


@solvers
def test_what_does_not_fit_is_named(solver) -> None:
    x0 = start(3, 2)
    for options, words in (
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"stop_mode": "both"}, "stop_mode: expected 'abs' or 'rel'"),
    ):
        with pytest.raises(ValueError, match=words):
            solver(torch.cos, x0, **options)
    with pytest.raises(ValueError, match="func: expected a result like x0"):
        solver(lambda v: v[:2], x0)
    with pytest.raises(TypeError, match="x0: expected a floating-point"):
        solver(torch.cos, x0.long())
    for m in (1, 13):
        with pytest.raises(ValueError, match="m: expected 2 to 12"):
            functional.anderson_solver(torch.cos, x0, m=m)
