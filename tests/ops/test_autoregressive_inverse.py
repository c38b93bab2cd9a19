"""autoregressive_inverse against the loop over dimensions, and what a triangular solve must keep."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deepgen_ext import ops, reference
from deepgen_ext.reference.autoregressive_inverse import masked_network
from tests.emulation.compare import check_emulated

SCALE_MAPS = ("exp", "tanh", "sigmoid", "atan", "softclip", "softplus", "floored_sigmoid")
ACTIVATIONS = ("relu", "elu", "tanh")
OPTIONS = ("element", "scale_map", "clamp", "n_bins", "bound", "activation", "residual")
DEFAULTS = {"element": "affine", "scale_map": "tanh", "clamp": 2.0, "n_bins": 8, "bound": 3.0}
DEFAULTS |= {"activation": "relu", "residual": False}


@dataclass
class Problem:
    z: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    degrees: list[Tensor]

    def __iter__(self):
        return iter((self.z, self.weights, self.biases, self.degrees))

    def to(self, *where) -> Problem:
        parts = ([t.to(*where) for t in ts] for ts in (self.weights, self.biases))
        return Problem(self.z.to(*where), *parts, self.degrees)

    @property
    def leaves(self) -> list[Tensor]:
        return [t.detach().clone().requires_grad_() for t in (self.z, *self.weights, *self.biases)]

    def of(self, leaves) -> Problem:
        z, *rest = leaves
        layers = len(self.weights)
        return Problem(z, rest[:layers], rest[layers:], self.degrees)


def problem(D, n, hidden=(40, 23), P=2, residual=False, per_sample=False, seed=0) -> Problem:
    """Random degrees, so that some have many units and some none; masked entries are not zero."""
    g = torch.Generator().manual_seed(seed)
    degrees = [torch.randint(0, D, (h,), generator=g).sort().values for h in hidden]
    if residual:
        degrees = [degrees[0]] * len(hidden)
    sizes = [D, *hidden, D * P]

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weights = [normal(b, a) / max(a, 1) ** 0.5 for a, b in zip(sizes, sizes[1:])]
    biases = [normal(n, b) * 0.3 if per_sample else normal(b) * 0.3 for b in sizes[1:]]
    return Problem(normal(n, D), weights, biases, degrees)


def options_of(**given):
    chosen = DEFAULTS | given
    return tuple(chosen[name] for name in OPTIONS)


def close(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
@pytest.mark.parametrize("D", [1, 2, 3, 17, 64])
def test_against_the_loop_over_dimensions(D, n, residual):
    given = problem(D, n, (20, 20, 20) if residual else (40, 23), residual=residual,
                    per_sample=n % 2 == 1)  # fmt: skip
    theirs = reference.autoregressive_inverse(*given, residual=residual)
    close(ops.autoregressive_inverse(*given, residual=residual), theirs)
    close(ops.autoregressive_inverse(*given.to(torch.float32), residual=residual), theirs, 1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_all_maps(scale_map, activation):
    options = {"scale_map": scale_map, "activation": activation, "clamp": 1.3}
    for n in (1, 9):
        given = problem(7, n, (30,))
        close(
            ops.autoregressive_inverse(*given, **options),
            reference.autoregressive_inverse(*given, **options),
        )


@pytest.mark.parametrize("element", ["spline", "softclip_spline"])
@pytest.mark.parametrize("n_bins", [1, 2, 8])
def test_spline(n_bins, element):
    for n in (1, 5):
        given = problem(6, n, (30, 20), P=3 * n_bins - 1)
        given.z *= 2  # some lie in the tails
        options = {"element": element, "n_bins": n_bins, "bound": 2.5, "clamp": 3.0}
        theirs = reference.autoregressive_inverse(*given, **options)
        close(ops.autoregressive_inverse(*given, **options), theirs, 1e-10)
        single = ops.autoregressive_inverse(*given.to(torch.float32), **options)
        close(single, theirs, 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_round_trip_of_an_image(dtype, tolerance):
    given = problem(784, 5, (128, 128)).to(dtype)
    for n in (1, 5):
        z = given.z[:n]
        x, log_det = ops.autoregressive_inverse(z, *list(given)[1:])
        raw, shift = masked_network(x, *list(given)[1:]).unbind(-1)
        again, again_log_det = ops.affine_coupling(x, raw, shift, scale_map="tanh")
        torch.testing.assert_close(again, z, rtol=tolerance, atol=tolerance * 10)
        torch.testing.assert_close(again_log_det, -log_det, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("element", ["affine", "spline"])
def test_log_det_is_that_of_the_jacobian(element):
    given = problem(6, 1, (20, 20), P=2 if element == "affine" else 23)

    def inverse(z):
        _, *rest = given
        return ops.autoregressive_inverse(z[None], *rest, element=element)

    jacobian = torch.autograd.functional.jacobian(lambda z: inverse(z)[0][0], given.z[0])
    assert (jacobian.triu(1) == 0).all()
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(inverse(given.z[0])[1][0], expected)


GRADIENTS = [
    *({"scale_map": scale_map} for scale_map in SCALE_MAPS),
    *({"activation": activation} for activation in ACTIVATIONS),
    {"residual": True, "activation": "elu"},
    {"element": "spline", "n_bins": 3},
    {"element": "softclip_spline", "n_bins": 3, "clamp": 6.9},
    {"element": "spline", "n_bins": 3, "residual": True, "activation": "tanh"},
]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("options", GRADIENTS, ids=str)
def test_gradients(options, per_sample):
    P = 8 if "element" in options else 2
    given = problem(5, 3, (7, 7, 7), P, options.get("residual", False), per_sample)

    def op(*leaves):
        return ops.autoregressive_inverse(*given.of(leaves), **options)

    assert torch.autograd.gradcheck(op, given.leaves)


@pytest.mark.parametrize("D", [1, 40])
def test_gradients_of_many_blocks_are_those_of_the_loop(D):
    given = problem(D, 11, (50, 30))
    found = []
    for function in (ops.autoregressive_inverse, reference.autoregressive_inverse):
        leaves = given.leaves
        x, log_det = function(*given.of(leaves))
        cotangent = torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view_as(x)
        total = (x * cotangent).sum() + (log_det * cotangent[:, 0]).sum()
        found.append(torch.autograd.grad(total, leaves))
    close(*found, 1e-9)


def test_masked_entries_are_neither_read_nor_given_a_gradient():
    given = problem(9, 4)
    order = torch.arange(9)
    masks = [
        above[:, None] >= below[None]
        for above, below in zip(
            [*given.degrees, order.repeat_interleave(2)], [order + 1, *given.degrees]
        )
    ]
    expected = ops.autoregressive_inverse(*given)
    for n in (1, 4):
        poisoned = [torch.where(m, w, torch.nan) for m, w in zip(masks, given.weights)]
        rest = (poisoned, given.biases, given.degrees)
        x, log_det = ops.autoregressive_inverse(given.z[:n], *rest)
        close((x, log_det), [t[:n] for t in expected])
    leaves = given.of(given.leaves)
    x, log_det = ops.autoregressive_inverse(*leaves)
    gradients = torch.autograd.grad(x.square().sum() + log_det.sum(), leaves.weights)
    for gradient, mask in zip(gradients, masks):
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).any()


def test_differentiating_twice_is_refused():
    given = problem(3, 2)
    leaves = given.leaves
    x, _ = ops.autoregressive_inverse(*given.of(leaves))
    (gradient,) = torch.autograd.grad(x.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
        gradient.sum().backward()


def test_results_depend_on_neither_threads_nor_batch():
    given = problem(50, 70, (60, 60)).to(torch.float32)
    z, *rest = given
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = given.leaves
            x, log_det = ops.autoregressive_inverse(*given.of(leaves))
            results.append((x, log_det, *torch.autograd.grad(x.sum() + log_det.sum(), leaves[:1])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))
    for n in (2, 9, 33):
        assert torch.equal(ops.autoregressive_inverse(z[:n], *rest)[0], results[0][0][:n])
    close(ops.autoregressive_inverse(z[:1], *rest), [t[:1] for t in results[0][:2]], 1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_one_sample_of_two_threads_is_that_of_one(residual):
    """Which thread computes which of the early sums differs from call to call."""
    given = problem(300, 1, (400, 400, 400), residual=residual)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.autoregressive_inverse(*given, residual=residual)
        torch.set_num_threads(2)
        for _ in range(50):
            x, log_det = ops.autoregressive_inverse(*given, residual=residual)
            assert torch.equal(x, alone[0])
            assert torch.equal(log_det, alone[1])
    finally:
        torch.set_num_threads(threads)
    twice = Problem(given.z.expand(2, -1), given.weights, given.biases, given.degrees)
    both = ops.autoregressive_inverse(*twice, residual=residual)
    close(alone, [t[:1] for t in both], 1e-9)


@pytest.mark.parametrize("element", ["affine", "spline"])
def test_a_nan_stays_in_its_sample_and_behind_its_dimension(element):
    given = problem(20, 10, P=2 if element == "affine" else 23)
    clean, clean_log_det = ops.autoregressive_inverse(*given, element=element)
    given.z[3, 7] = torch.nan
    x, log_det = ops.autoregressive_inverse(*given, element=element)
    others = [i for i in range(10) if i != 3]
    assert torch.equal(x[others], clean[others])
    assert torch.equal(log_det[others], clean_log_det[others])
    assert torch.equal(x[3, :7], clean[3, :7])
    assert x[3, 7].isnan()
    assert x[3, 8:].isnan().any()
    assert log_det[3].isnan()


def test_strides_change_nothing():
    given = problem(9, 6, per_sample=True)
    z, weights, biases, degrees = given
    expected = ops.autoregressive_inverse(*given)
    for change in (
        lambda t: t.T.contiguous().T,
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
    ):
        other = ops.autoregressive_inverse(
            change(z), [change(w) for w in weights], [change(b) for b in biases], degrees
        )
        close(other, expected)
    shared = [b[0] for b in biases]
    wide = [b.expand(6, -1) for b in shared]
    close(
        ops.autoregressive_inverse(z, weights, wide, degrees),
        ops.autoregressive_inverse(z, weights, shared, degrees),
    )


def test_opcheck_and_compile():
    for options in ({}, {"residual": True}, {"element": "spline", "n_bins": 2}):
        P = 5 if "element" in options else 2
        given = problem(5, 3, (7, 7, 7), P, residual=options.get("residual", False))
        leaves = given.of(given.leaves)
        overload = torch.ops.deepgen_ext.autoregressive_inverse.default
        torch.library.opcheck(overload, (*leaves, *options_of(**options)))
        torch._dynamo.reset()

        def op(*tensors, given=given, options=options):
            x, log_det = ops.autoregressive_inverse(*given.of(tensors), **options)
            return x.square().sum() + log_det.sum()

        results = []
        for function in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
            tensors = given.leaves
            total = function(*tensors)
            results.append((total, *torch.autograd.grad(total, tensors)))
        close(*results)


def test_half_types_and_autocast_run_in_float32():
    given = problem(5, 4)
    x, log_det = ops.autoregressive_inverse(*given.to(torch.bfloat16))
    assert (x.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)
    close(
        (x, log_det), ops.autoregressive_inverse(*given.to(torch.bfloat16).to(torch.float32)), 1e-2
    )
    with torch.autocast("cpu", torch.bfloat16):
        x, _ = ops.autoregressive_inverse(*given.to(torch.float32))
    assert x.dtype == torch.float32
    close([x], ops.autoregressive_inverse(*given.to(torch.float32))[:1], 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p: {"z": torch.ones(3)}, ValueError, r"z must have the shape \(batch, dimensions\), got \[3\]"),
        (lambda p: {"z": torch.ones(2, 3).int()}, TypeError, "z must be a float32.* got Int"),
        (lambda p: {"weights": p.weights[:2]}, ValueError, "one entry more than degrees, 3, got 2 and 3"),
        (lambda p: {"weights": [p.weights[0].T, *p.weights[1:]]}, ValueError, r"shape \[40, 3\], got \[3, 40\]"),
        (lambda p: {"weights": [p.weights[0].float(), *p.weights[1:]]}, TypeError, r"weights\[0\].* dtype of z"),
        (lambda p: {"biases": [*p.biases[:2], p.biases[2][:-1]]}, ValueError, r"shape \[6\] or \[2, 6\], got \[5\]"),
        (lambda p: {"degrees": []}, ValueError, "degrees must have an entry for each of 1 to"),
        (lambda p: {"degrees": [p.degrees[0].flip(0), p.degrees[1]]}, ValueError, r"degrees\[0\] must be ascending"),
        (lambda p: {"degrees": [p.degrees[0] + 1, p.degrees[1]]}, ValueError, r"must lie in 0 ... 2, got 3"),
        (lambda p: {"degrees": [p.degrees[0].int(), p.degrees[1]]}, TypeError, r"degrees\[0\] must be an int64 tensor"),
        (lambda p: {"element": "cubic"}, ValueError, "element must be one of .*, got 'cubic'"),
        (lambda p: {"scale_map": "cube"}, ValueError, "scale_map must be one of"),
        (lambda p: {"activation": "sine"}, ValueError, "activation must be one of"),
        (lambda p: {"clamp": 0.0}, ValueError, "clamp must be a finite number above 0"),
        (lambda p: {"element": "spline", "n_bins": 0}, ValueError, "n_bins must lie in 1"),
        (lambda p: {"element": "spline", "bound": -1.0}, ValueError, "bound must be a finite number above 0"),
        (lambda p: {"residual": True}, ValueError, "odd number of entries for residual=True"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    given = problem(3, 2)
    good = {"z": given.z, "weights": given.weights, "biases": given.biases}
    good |= {"degrees": given.degrees}
    with pytest.raises(error, match=words):
        ops.autoregressive_inverse(**(good | change(given)))


EMULATED = [
    {},
    {"residual": True},
    {"scale_map": "softplus"},
    {"element": "spline", "n_bins": 4},
    {"element": "softclip_spline", "n_bins": 4},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", EMULATED, ids=str)
def test_cuda_kernels_in_emulation(emulated, options, dtype):
    P = 11 if "element" in options else 2
    residual = options.get("residual", False)
    # The last one does not fit into shared memory.
    for D, n, hidden in ((1, 0, (3,)), (2, 1, (5,)), (19, 9, (30, 30, 30)), (24, 3, (1000,))):
        given = problem(D, n, hidden, P, residual, per_sample=n == 9).to(dtype)
        chosen = options_of(**options)
        check_emulated("autoregressive_inverse", *given, *chosen)
        if "element" in options and dtype == torch.float32:
            continue  # its second derivatives jump from bin to bin: rounding decides which
        z, *rest = given
        x, _ = ops.autoregressive_inverse(*given, **options)
        cotangents = torch.randn_like(x), torch.randn_like(x[:, 0])
        check_emulated("autoregressive_inverse_adjoint", *cotangents, z, x, *rest, *chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"element": "spline"}], ids=str)
@pytest.mark.parametrize("D", [1, 17, 784])
def test_on_gpu(D, options):
    P = 23 if "element" in options else 2
    given = problem(D, 33, (64, 64, 64), P, options.get("residual", False))
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).detach().requires_grad_() for t in given.leaves]
        x, log_det = ops.autoregressive_inverse(*given.of(leaves), **options)
        gradients = torch.autograd.grad(x.square().sum() + log_det.sum(), leaves)
        results.append([t.cpu() for t in (x, log_det, *gradients)])
    close(*results, 1e-8)
