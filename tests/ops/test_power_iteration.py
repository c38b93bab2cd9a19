"""power_iteration and spectral_normalize against their definition, and the singular values."""

import pytest
import torch
import torch.nn.functional as F

from deepgen_ext import ops, reference
from tests.checks import _check_views, check_values
from tests.emulation.compare import check_emulated

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALVES)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def many_weights():
    """Shapes around the kernels' tiles, and every order of memory that weights come in."""
    return [
        draw(1, 1),
        draw(7, 5, seed=1),
        draw(6, 4, 3, 3, seed=2),
        draw(4, 6, 3, 3, seed=3).movedim(1, 0),  # of a transposed convolution
        draw(6, 4, 3, 3, seed=4).to(memory_format=torch.channels_last),
        draw(5, 9, seed=5).t(),
        draw(3, 4, 2, 3, 2, seed=6).permute(2, 4, 1, 3, 0),  # not two dimensions of columns
        draw(5, 12, seed=7)[:, ::2],  # with gaps
        torch.zeros(3, 4, dtype=torch.float64),
        draw(300, 700, seed=8),
        draw(1100, 130, seed=9),
        draw(3, 2100, seed=10),
    ]


def vectors(weights):
    us = [F.normalize(draw(w.shape[0], seed=20 + i), dim=0) for i, w in enumerate(weights)]
    vs = [F.normalize(draw(w[0].numel(), seed=40 + i), dim=0) for i, w in enumerate(weights)]
    return us, vs


def bound(function, us, vs, *options):
    """A function of the weights alone; u and v come in the dtype of their sums."""

    def of_weights(*weights):
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        results = function(weights, [u.to(dtype) for u in us], [v.to(dtype) for v in vs], *options)
        tensors = [*results[0], results[-1]] if len(results) == 4 else [results[-1]]
        return tuple(tensors)

    return of_weights


@pytest.mark.parametrize("coefficient", [None, 2.0])
@pytest.mark.parametrize("n_iterations", [0, 1, 3])
def test_values_and_gradients(n_iterations, coefficient):
    weights = tuple(many_weights())
    us, vs = vectors(weights)
    if n_iterations == 0:  # the u and v that come with a weight, not noise: sigma = 0 by chance
        us, vs, _ = reference.power_iteration(weights, us, vs, 2)
    options = (n_iterations, 1e-12)
    for name, extra in (("power_iteration", ()), ("spectral_normalize", (coefficient,))):
        check_values(
            bound(getattr(ops, name), us, vs, *options, *extra),
            bound(getattr(reference, name), us, vs, *options, *extra),
            weights,
            DTYPES,
        )


@pytest.mark.parametrize("dtype", HALVES)
def test_half_weights_are_summed_in_float32(dtype):
    """So u, v and sigma are those of the rounded weights to float32's precision, in any layout."""
    weights = [w.to(dtype) for w in many_weights()]
    us, vs = vectors(weights)
    exact = reference.power_iteration([w.double() for w in weights], us, vs, 3)
    us, vs = ([t.float() for t in group] for group in (us, vs))
    scaled, *found = ops.spectral_normalize(weights, us, vs, 3)
    for ours, theirs in zip((*found[0], *found[1], found[2]), (*exact[0], *exact[1], exact[2])):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    for ours, weight, sigma in zip(scaled, weights, exact[2]):
        expected = weight.double() / (sigma if sigma > 0 else 1.0)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected.to(dtype).double(), rtol=0.01, atol=0)
    leaves = [w.clone().requires_grad_() for w in weights]
    loss = sum((s.float() ** 2).sum() for s in ops.spectral_normalize(leaves, us, vs, 1)[0])
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().sum() for g in gradients), leaves)
    assert all(g.dtype == dtype and g.isfinite().all() for g in (*gradients, *second))


@pytest.mark.parametrize("n_iterations", [1, 4])
def test_u_and_v_are_those_of_the_definition_and_new(n_iterations):
    weights = many_weights()
    us, vs = vectors(weights)
    before = [t.clone() for t in (*us, *vs)]
    new_us, new_vs, sigmas = ops.power_iteration(weights, us, vs, n_iterations)
    assert all(torch.equal(a, b) for a, b in zip((*us, *vs), before))
    expected = reference.power_iteration(weights, us, vs, n_iterations)
    for ours, theirs in zip((*new_us, *new_vs, sigmas), (*expected[0], *expected[1], expected[2])):
        torch.testing.assert_close(ours, theirs)
    for u, w, v, sigma in zip(new_us, weights, new_vs, sigmas):
        torch.testing.assert_close(u @ w.flatten(1) @ v, sigma)


@pytest.mark.parametrize("n_iterations", [0, 1, 3])
@pytest.mark.parametrize("shape", [(1100, 130), (130, 1101), (3, 2100), (4, 70), (1, 7)])
def test_transposes_are_read_as_they_lie(shape, n_iterations):
    """Panels of dense columns, several of them, also where lines and panels do not come out even."""
    weights = [draw(*shape, seed=11).t()]
    us, vs = vectors(weights)
    expected = reference.spectral_normalize(weights, us, vs, n_iterations)
    found = ops.spectral_normalize(weights, us, vs, n_iterations)
    for ours, theirs in zip(found[:3], expected[:3]):
        torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(found[3], expected[3])
    assert found[0][0].stride() == weights[0].stride()


def test_sigma_is_the_largest_singular_value():
    weights = [draw(20, 30), draw(6, 4, 3, 3, seed=1), draw(4, 6, 3, 3, seed=2).movedim(1, 0)]
    sigmas = ops.power_iteration(weights, *vectors(weights), 3000)[2]
    for weight, sigma in zip(weights, sigmas):
        torch.testing.assert_close(sigma, torch.linalg.svdvals(weight.flatten(1))[0])


@pytest.mark.parametrize("coefficient", [None, 2.5])
def test_contract(coefficient):
    weights = (draw(4, 3), draw(2, 4, 3, seed=1).movedim(1, 0), 0.1 * draw(2, 3, seed=2))
    us, vs, _ = reference.power_iteration(weights, *vectors(weights), 2)
    for name, extra in (("power_iteration", ()), ("spectral_normalize", (coefficient,))):
        op = bound(getattr(ops, name), us, vs, 0, 1e-12, *extra)
        leaves = [w.clone().requires_grad_() for w in weights]
        assert torch.autograd.gradcheck(op, leaves)
        assert torch.autograd.gradgradcheck(op, leaves)
        _check_views(op, weights)
        torch.library.opcheck(
            getattr(torch.ops.deepgen_ext, name).default, (leaves, us, vs, 1, 1e-12, *extra)
        )
        torch._dynamo.reset()
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        for ours, theirs in zip(compiled(*weights), op(*weights)):
            torch.testing.assert_close(ours, theirs)


def test_a_zero_matrix_stays_and_comes_to_life():
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    us, vs = vectors([weight])
    scaled, new_us, new_vs, sigmas = ops.spectral_normalize([weight], us, vs)
    assert torch.equal(scaled[0], weight)
    assert sigmas.item() == 0
    assert torch.equal(new_us[0], us[0])
    assert torch.equal(new_vs[0], vs[0])
    grad = draw(3, 4, seed=3)
    assert torch.equal(torch.autograd.grad(scaled[0], weight, grad)[0], grad)
    alive = draw(3, 4, seed=4)
    assert ops.power_iteration([alive], new_us, new_vs)[2].item() > 0


def test_nan_reaches_its_own_matrix_alone():
    weights = [draw(4, 5), draw(4, 5, seed=1)]
    weights[0][1, 2] = float("nan")
    scaled, _, _, sigmas = ops.spectral_normalize(weights, *vectors(weights))
    assert sigmas.isnan().tolist() == [True, False]
    assert scaled[0].isnan().all()
    assert not scaled[1].isnan().any()
    bounded = ops.spectral_normalize(weights, *vectors(weights), coefficient=0.1)[0]
    assert bounded[0].isnan().all()


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_a_sigma_below_0_divides_unless_it_need_only_be_bounded(coefficient):
    """As u and v are that do not belong to the weight; torch's parametrization divides as well."""
    weight = draw(4, 5)
    u, v = (t[0] for t in ops.power_iteration([weight], *vectors([weight]), 5)[:2])
    leaf = weight.clone().requires_grad_()
    scaled, *_, sigmas = ops.spectral_normalize([leaf], [-u], [v], 0, coefficient=coefficient)
    divisor = 1.0 if coefficient else -(u @ leaf @ v)
    torch.testing.assert_close(scaled[0], leaf / divisor)
    assert sigmas.item() < 0
    cotangent = draw(4, 5, seed=2)
    expected = torch.autograd.grad(leaf / divisor, leaf, cotangent)
    torch.testing.assert_close(torch.autograd.grad(scaled[0], leaf, cotangent), expected)
    op = bound(ops.spectral_normalize, [-u], [v], 0, 1e-12, coefficient)
    assert torch.autograd.gradgradcheck(op, [leaf])


def test_results_do_not_depend_on_threads():
    weights = [w.float().requires_grad_() for w in many_weights()]
    us, vs = ([t.float() for t in group] for group in vectors(weights))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            scaled, *_, sigmas = ops.spectral_normalize(weights, us, vs)
            loss = sum((s**2).sum() for s in scaled) + sigmas.sum()
            found.append([sigmas, *scaled, *torch.autograd.grad(loss, weights)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0]))


W, U, V = torch.ones(2, 3), torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([], [], []), ValueError, "weights must hold at least one matrix"),
        (([W], [], [V]), ValueError, "us and vs must have an entry for each of the 1 weights"),
        (([W.int()], [U], [V]), TypeError, r"weights\[0\] must be"),
        (
            ([W.half()], [U.half()], [V]),
            TypeError,
            r"us\[0\] must be a Float tensor for weights of",
        ),
        (([W, W.double()], [U] * 2, [V] * 2), TypeError, r"weights\[1\] must have the dtype of"),
        (([U], [U], [V]), ValueError, r"weights\[0\] must have the shape \(out, in\)"),
        (([W[:0]], [U[:0]], [V]), ValueError, r"weights\[0\] must have the shape"),
        (([W], [V], [V]), ValueError, r"us\[0\] must have the shape \[2\], got \[3\]"),
        (([W], [U], [U]), ValueError, r"vs\[0\] must have the shape \[3\], got \[2\]"),
        (([W], [U.double()], [V]), TypeError, r"us\[0\] must be a Float tensor"),
        (([W], [U], [V], -1), ValueError, "n_iterations must be 0 or more, got -1"),
        (([W], [U], [V], 1, -1.0), ValueError, "eps must be a finite number, 0 or more"),
    ],
)
def test_bad_input(arguments, error, words):
    for op in (ops.power_iteration, ops.spectral_normalize):
        with pytest.raises(error, match=words):
            op(*arguments)


@pytest.mark.parametrize("coefficient", [0.0, -1.0, float("nan"), float("inf")])
def test_a_coefficient_that_makes_no_sense(coefficient):
    with pytest.raises(ValueError, match="coefficient must be a finite number above 0"):
        ops.spectral_normalize([W], [U], [V], coefficient=coefficient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_kernels_in_emulation(emulated, dtype):
    weights = [w.to(dtype) for w in many_weights()]
    sums = torch.promote_types(dtype, torch.float32)
    us, vs = ([t.to(sums) for t in group] for group in vectors(many_weights()))
    for n_iterations in (0, 1, 2):
        arguments = (weights, us, vs, n_iterations, 1e-12)
        check_emulated("power_iteration", *arguments, magnified=20)
    check_emulated("spectral_normalize", weights, us, vs, 1, 1e-12, 2.0, magnified=20)
    many = [weights[1]] * 45  # more than a launch takes
    us, vs = [us[1]] * 45, [vs[1]] * 45
    check_emulated("spectral_normalize", many, us, vs, 1, 1e-12, None, magnified=20)


@pytest.mark.parametrize("coefficient", [None, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_gradients_in_emulation(emulated, dtype, coefficient):
    weights = [w.to(dtype) for w in many_weights()]
    sums = torch.promote_types(dtype, torch.float32)
    us, vs, sigmas = ops.power_iteration(
        weights, *([t.to(sums) for t in group] for group in vectors(many_weights()))
    )
    grads = [torch.randn_like(w) for w in weights]
    arguments = (grads, torch.randn_like(sigmas), weights, us, vs, sigmas, coefficient)
    check_emulated("spectral_normalize_backward", *arguments, magnified=20)


@pytest.mark.gpu
def test_on_gpu():
    weights = tuple(w.cuda() for w in many_weights())
    us, vs = ([t.cuda() for t in group] for group in vectors(many_weights()))
    check_values(
        bound(ops.spectral_normalize, us, vs),
        bound(reference.spectral_normalize, us, vs),
        weights,
        DTYPES,
    )
