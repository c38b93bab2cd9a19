"""fixed_point_inverse: the bound holds, and failures and bad inputs are reported."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepgen_ext.nn import FixedPointError, fixed_point_inverse
from tests.nn.contractions import F64, METHODS, Counted, network, rotated_tanh

# ------------------------------------------------------------------------------------ the solution


@settings(deadline=None, max_examples=60)
@given(
    lipschitz=st.floats(0.02, 0.99),
    sign=st.sampled_from((-1.0, 1.0)),
    shape=st.sampled_from(((1, 1), (3, 2), (2, 3, 4), (4, 40), (2, 2, 3, 5))),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
    method=st.sampled_from(METHODS),
    tol=st.sampled_from((1e-2, 1e-5, 1e-8, 1e-14)),
    scale=st.sampled_from((1e-3, 1.0, 1e3)),
)
def test_the_bound_is_never_below_the_error(lipschitz, sign, shape, dtype, method, tol, scale):
    """Against the exact solution for the rounded y, at tolerances that the dtype does not reach too."""
    features = torch.Size(shape[1:]).numel()
    g = rotated_tanh(sign, lipschitz, features)

    def shaped(x: Tensor) -> Tensor:
        return scale * g(x.flatten(1).double() / scale).view(x.shape).to(x.dtype)

    generator = torch.Generator().manual_seed(len(shape))
    y = (scale * torch.randn(shape, generator=generator, dtype=F64)).to(dtype)
    exact = fixed_point_inverse(shaped, y.double(), lipschitz=lipschitz, tol=1e-30,
                                max_iterations=3000, method="anderson")  # fmt: skip
    result = fixed_point_inverse(shaped, y, lipschitz=lipschitz, tol=tol, method=method,
                                 max_iterations=3000)  # fmt: skip
    error = (result.x.double() - exact.x).flatten(1).norm(dim=1)
    assert (error <= result.error_bound + exact.error_bound).all()
    assert (result.error_bound <= result.tolerance).all()
    assert (result.tolerance >= tol).all()
    if tol == 1e-2 and dtype == F64 and scale < 1e3:
        assert (result.tolerance == tol).all()
    if dtype == torch.float32 and tol == 1e-14:  # cannot be reached, and the result says so
        assert (result.tolerance > 1e-11 * scale).all()
    assert (result.expansion <= lipschitz * (1 + 1e-9)).all()


def test_a_circle_of_rounding_ends():
    """float32 steps whose errors change sign may go on for ever, at a bound above 2 e / (1 - L)."""
    g = rotated_tanh(1.0, 0.96875, 1)
    y = torch.tensor([[4e-4]])
    ends = []
    for factor in torch.linspace(0.5, 2.0, 40):
        result = fixed_point_inverse(
            lambda x: (1e-3 * g(1e3 * x.double())).float(), factor * y, lipschitz=0.96875, tol=1e-8,
            method="picard", max_iterations=2000,
        )  # fmt: skip
        assert result.error_bound <= result.tolerance < 3e-8
        exact = fixed_point_inverse(
            lambda x: 1e-3 * g(1e3 * x), (factor * y).double(), lipschitz=0.96875, tol=1e-15
        )
        assert (result.x.double() - exact.x).abs() <= result.error_bound + exact.error_bound
        ends.append(result.iterations.item())
    assert max(ends) < 400


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_holds_where_iterations_run_out(method):
    g = network()
    y = torch.randn(5, 6, dtype=F64)
    exact = fixed_point_inverse(g, y, lipschitz=0.9**3, tol=1e-13).x
    for count in (1, 2, 3, 5):
        result = fixed_point_inverse(g, y, lipschitz=0.9**3, tol=1e-12, method=method,
                                     max_iterations=count, raise_on_failure=False)  # fmt: skip
        assert not result.converged.any()
        assert (result.iterations <= count).all()
        assert ((result.x - exact).norm(dim=1) <= result.error_bound).all()
        assert result.error_bound.isfinite().all()


@pytest.mark.parametrize(("sign", "most"), [(1.0, 40), (-1.0, 120)])
@pytest.mark.parametrize("features", [16, 64])
@pytest.mark.parametrize("method", ["auto", "anderson"])
def test_contraction_of_098(method, features, sign, most):
    """Where plain iteration takes 490 to 750 evaluations."""
    g = rotated_tanh(sign, 0.98, features)
    for scale in (0.3, 1.0, 3.0):
        counted = Counted(g)
        x = scale * torch.randn(10, features, dtype=F64, generator=torch.Generator().manual_seed(1))
        y = x + g(x)
        result = fixed_point_inverse(counted, y, lipschitz=0.98, tol=1e-6, method=method)
        assert (result.x - x).norm(dim=1).max() <= 1e-6
        with torch.no_grad():
            counted.calls = 0
            fixed_point_inverse(counted, y, lipschitz=0.98, tol=1e-6, method=method)
        assert counted.calls <= most


def test_a_linear_g():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 7, generator=generator, dtype=F64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)  # not symmetric
    y = torch.randn(3, 7, generator=generator, dtype=F64)
    exact = torch.linalg.solve(torch.eye(7, dtype=F64) + a, y.T).T
    for method in METHODS:
        result = fixed_point_inverse(
            lambda x: x @ a.T, y, lipschitz=0.9, tol=1e-10, method=method, max_iterations=500
        )
        assert (result.x - exact).norm(dim=1).max() <= 1e-10, method


def test_images():
    torch.manual_seed(0)
    g = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 2, 3, padding=1)
    ).double()
    for layer in g[::2]:  # |conv| <= k |W|: a crude bound, enough here
        with torch.no_grad():
            layer.weight.mul_(0.8 / (3 * torch.linalg.matrix_norm(layer.weight.flatten(1), 2)))
    x = torch.randn(4, 2, 6, 6, dtype=F64)
    y = (x + g(x)).detach()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = fixed_point_inverse(g, y.to(memory_format=memory_format), lipschitz=0.64, tol=1e-9)
        assert (result.x - x).flatten(1).norm(dim=1).max() <= 1e-9
        assert result.method == "anderson"


def test_an_easy_sample_among_hard_ones():
    """Its x, bound and iterations are those that it has alone; the hard ones cost it nothing."""
    g = rotated_tanh(-1.0, 0.98, 8)
    y = torch.randn(6, 8, dtype=F64, generator=torch.Generator().manual_seed(2))
    y[0] *= 100  # where tanh is flat
    for method in METHODS:
        for compact in (False, True):
            options = {"lipschitz": 0.98, "tol": 1e-6, "method": method, "max_iterations": 2000}
            alone = fixed_point_inverse(g, y[:1], **options)
            among = fixed_point_inverse(g, y, compact=compact, **options)
            assert among.iterations[0] == alone.iterations[0] < among.iterations[1:].min()
            torch.testing.assert_close(among.x[:1], alone.x, rtol=1e-12, atol=1e-18)
            # A residual's last bits depend on how many rows its product has, by the CPU.
            rounding = torch.finfo(F64).eps * y[0].norm().item() / (1 - 0.98)
            torch.testing.assert_close(
                among.error_bound[:1], alone.error_bound, rtol=1e-6, atol=rounding
            )


def test_compaction_leaves_out_what_has_stopped():
    sizes = []

    class Seen(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return -0.9 * torch.tanh(x)

    y = torch.randn(8, 5, dtype=F64)
    y[:6] *= 1e-8
    with torch.no_grad():
        fixed_point_inverse(Seen(), y, lipschitz=0.9, tol=1e-6)
        assert sizes[0] == 8
        assert sizes[-1] <= 2
        sizes.clear()
        context = torch.zeros(8, 5, dtype=F64)
        seen = Seen()
        fixed_point_inverse(lambda x: seen(x + context), y, lipschitz=0.9, tol=1e-6)
    assert set(sizes) == {8}


def test_no_samples_and_no_elements():
    g = network()
    assert fixed_point_inverse(g, torch.zeros(0, 6, dtype=F64), lipschitz=0.8).x.shape == (0, 6)
    empty = fixed_point_inverse(lambda x: 0.5 * x, torch.zeros(3, 0), lipschitz=0.8)
    assert empty.converged.all()


def test_x0():
    g = network()
    y = torch.randn(3, 6, dtype=F64)
    for fused in (False, True):
        x = fixed_point_inverse(g, y, lipschitz=0.8, tol=1e-12, fused=fused).x.detach()
        before = x.clone()
        again = fixed_point_inverse(g, y, lipschitz=0.8, tol=1e-9, x0=x, fused=fused)
        assert (again.iterations == 1).all()
        assert torch.equal(x, before)


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("method", METHODS)
def test_an_expanding_g_is_reported(method):
    y = torch.randn(4, 3, dtype=F64)
    slope = torch.tensor([-0.5, -1.5, -0.5, 3.0], dtype=F64)[:, None]
    counted = Counted(lambda x: slope * x)
    options = {"lipschitz": 0.6, "method": method}
    result = fixed_point_inverse(counted, y, raise_on_failure=False, **options)
    assert result.status.tolist() == [1, 2, 1, 2]
    assert result.converged.tolist() == [True, False, True, False]
    torch.testing.assert_close(result.expansion[[1, 3]], slope[[1, 3], 0].abs())
    assert result.error_bound[[1, 3]].isinf().all()
    assert counted.calls < 60
    with pytest.raises(
        FixedPointError, match=r"2 of 4 samples \(1, 3\): g is not contractive.* 3\b"
    ):
        fixed_point_inverse(counted, y, **options)


def test_a_lipschitz_constant_that_is_too_small_is_replaced():
    """0.5 is said, 0.8 is true: the bound has to hold all the same once that has been seen."""
    y = torch.randn(4, 3, dtype=F64)
    result = fixed_point_inverse(lambda x: -0.8 * x, y, lipschitz=0.5, tol=1e-6, method="picard")
    torch.testing.assert_close(result.expansion, torch.full((4,), 0.8, dtype=F64))
    assert ((result.x - 5 * y).norm(dim=1) <= result.error_bound).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fused", [False, True])
def test_what_is_not_finite_fails_alone(method, fused):
    g = network()
    y = torch.randn(5, 6, dtype=F64)
    options = {"lipschitz": 0.8, "method": method, "fused": fused}
    good = fixed_point_inverse(g, y, **options)
    y[1, 2], y[3, 0] = torch.nan, -torch.inf
    result = fixed_point_inverse(g, y, raise_on_failure=False, **options)
    assert result.status.tolist() == [1, 3, 1, 3, 1]
    torch.testing.assert_close(result.x[::2], good.x[::2], rtol=1e-12, atol=1e-12)
    with pytest.raises(FixedPointError, match=r"2 of 5 samples \(1, 3\).*not finite"):
        fixed_point_inverse(g, y, **options)


def test_a_g_that_turns_nan_fails():
    def g(x):
        return torch.where(x.sum(1, keepdim=True) > 0, torch.nan, -0.5 * x)

    y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    result = fixed_point_inverse(g, y, lipschitz=0.5, raise_on_failure=False)
    assert result.status.tolist() == [3, 1]


# --------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"lipschitz": 1.0}, ValueError, r"lipschitz: .*\(0, 1\), got 1.0"),
        ({"lipschitz": 0.0}, ValueError, "lipschitz"),
        ({"lipschitz": -0.5}, ValueError, "lipschitz"),
        ({"lipschitz": float("nan")}, ValueError, "lipschitz"),
        ({"lipschitz": float("inf")}, ValueError, "lipschitz"),
        ({"tol": 0.0}, ValueError, "tol"),
        ({"tol": -1e-6}, ValueError, "tol"),
        ({"tol": float("nan")}, ValueError, "tol"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"max_iterations": 2.5}, TypeError, "integer"),
        ({"rounding": 0.0}, ValueError, "rounding"),
        ({"method": "broyden"}, ValueError, "auto, picard, anderson, got 'broyden'"),
        ({"y": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "y: .*int64"),
        ({"y": [1.0]}, TypeError, "y: .*list"),
        ({"y": torch.tensor(1.0)}, ValueError, "y: .*shape"),
        ({"x0": torch.zeros(3, 5)}, ValueError, r"x0: expected shape \(3, 4\), got \(3, 5\)"),
        ({"x0": torch.zeros(3, 4, dtype=F64)}, TypeError, "x0: expected torch.float32"),
        ({"g": lambda x: x[:, :2]}, ValueError, r"g: .*\(3, 4\), got \(3, 2\)"),
        ({"g": lambda x: x[:1]}, ValueError, r"g: .*\(3, 4\), got \(1, 4\)"),
        ({"g": lambda x: (x, x)}, ValueError, "g: .*tuple"),
        ({"g": lambda x: x.double()}, TypeError, "g: .*float64"),
    ],
)
def test_bad_inputs(change, error, named):
    arguments = {"g": lambda x: -0.5 * x, "y": torch.zeros(3, 4), "lipschitz": 0.5} | change
    with pytest.raises(error, match=named):
        fixed_point_inverse(arguments.pop("g"), arguments.pop("y"), **arguments)
