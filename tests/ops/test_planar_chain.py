"""planar_chain against its definition, and what keeps it invertible."""

import math

import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

# (samples, features, steps): around the 32 samples of a tile and the 32 lanes of a warp.
SHAPES = [(0, 3, 2), (1, 1, 1), (5, 3, 4), (33, 2, 8), (70, 17, 3), (3, 65, 2), (600, 4, 5)]


def inputs_of(shape, seed=0, each_sample=False):
    samples, features, steps = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    lead = (samples,) if each_sample else ()
    w = draw(*lead, steps, features) / math.sqrt(features)
    u = draw(*lead, steps, features) / math.sqrt(features)
    return draw(samples, features), w, u, draw(*lead, steps)


def packed(z, w, u, b):
    """The parameters as the kernels take them: u as it is, with a slope that goes with it."""
    slope = torch.nn.functional.softplus((w * u).sum(-1))
    dtype = torch.promote_types(z.dtype, torch.float32)
    return torch.cat((w, u, slope[..., None], b[..., None]), -1).to(dtype)


def test_contract():
    inputs = inputs_of((4, 3, 2))
    overload = torch.ops.deepgen_ext.planar_chain.default
    leaves = (inputs[0].clone().requires_grad_(), packed(*inputs).requires_grad_())
    check_op(ops.planar_chain, reference.planar_chain, inputs, overload, leaves)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    check_values(ops.planar_chain, reference.planar_chain, inputs_of(shape))


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 1, 1), (0, 2, 3)], ids=str)
def test_parameters_of_each_sample(shape):
    inputs = inputs_of(shape, each_sample=True)
    check_values(ops.planar_chain, reference.planar_chain, inputs)
    if shape[0] == 5:
        assert torch.autograd.gradcheck(ops.planar_chain, [t.requires_grad_() for t in inputs])
        for n in range(5):  # each sample as a chain of its own
            z, w, u, b = (t.detach()[n] for t in inputs)
            alone = ops.planar_chain(z[None], w, u, b)
            together = ops.planar_chain(*(t.detach() for t in inputs))
            for one, many in zip(alone, together):
                torch.testing.assert_close(one[0], many[n], rtol=1e-13, atol=1e-13)


def test_no_steps_are_the_identity():
    z, w, u, b = inputs_of((6, 3, 0))
    y, log_det = ops.planar_chain(z, w, u, b)
    assert torch.equal(y, z)
    assert torch.equal(log_det, torch.zeros(6, dtype=z.dtype))


def test_log_det_is_that_of_the_jacobian():
    z, *parameters = inputs_of((3, 5, 4))
    _, log_det = ops.planar_chain(z, *parameters)
    for n in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: ops.planar_chain(v[None], *parameters)[0][0], z[n]
        )
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign > 0
        torch.testing.assert_close(log_det[n], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("w", "u"),
    [
        ([1e-12, 0.0], [1.0, 1.0]),
        ([1e-30, -1e-30], [1e6, 1.0]),
        ([0.0, 0.0], [3.0, -2.0]),
        ([1.0, 1.0], [-50.0, -50.0]),
        ([3.0, -4.0], [-1e4, 1e4]),
        ([1e4, 1e4], [1.0, -1.5]),
    ],
)
def test_adversarial_parameters_stay_invertible(w, u, dtype):
    """log_det finite and right, where 1 + u'w (1 - t^2) would have lost all its digits."""
    z = torch.linspace(-3, 3, 41, dtype=dtype)[:, None] * torch.tensor([1.0, 0.5], dtype=dtype)
    leaves = [torch.tensor([v], dtype=dtype, requires_grad=True) for v in (w, u, 0.25)]
    y, log_det = ops.planar_chain(z, *leaves)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    gradients = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    inner = sum(a * b for a, b in zip(leaves[0].double()[0], leaves[1].double()[0]))
    slope = torch.logaddexp(inner, torch.zeros_like(inner))
    if max(map(abs, w)) < torch.finfo(dtype).eps ** 2:
        slope = torch.ones_like(slope)  # as w = 0: a translation
    t = torch.tanh(z.double() @ leaves[0].double()[0] + 0.25)
    decay = torch.exp(-2 * (z.double() @ leaves[0].double()[0] + 0.25).abs())
    expected = (t * t + slope * 4 * decay / (1 + decay) ** 2).log()
    # Of a = w'z + b float32 has 1e-7 |w| |z|, and log_det changes with a at a rate of 2 at most.
    scale = 1e-6 * (1 + max(map(abs, w))) if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-5, atol=20 * scale)


def test_w_zero_is_a_translation():
    z, _, u, b = inputs_of((4, 3, 1))
    y, log_det = ops.planar_chain(z, torch.zeros(1, 3, dtype=z.dtype), u, b)
    torch.testing.assert_close(y, z + u * torch.tanh(b))
    torch.testing.assert_close(log_det, torch.zeros_like(log_det))


def test_nan_reaches_the_log_det_of_its_sample_alone():
    z, *parameters = inputs_of((40, 3, 4))
    z[7, 1] = float("nan")
    y, log_det = ops.planar_chain(z, *parameters)
    assert y[7].isnan().all()
    assert log_det.isnan().nonzero().flatten().tolist() == [7]


def test_sums_do_not_depend_on_threads():
    inputs = [t.float().requires_grad_() for t in inputs_of((3000, 5, 4))]
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, log_det = ops.planar_chain(*inputs)
            gradients.append(torch.autograd.grad((y**2).sum() + log_det.sum(), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, gradients[0]))


def test_autocast_computes_in_float32():
    inputs = [t.float() for t in inputs_of((6, 3, 4))]
    expected = ops.planar_chain(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = ops.planar_chain(inputs[0].bfloat16().float(), *inputs[1:])
        mixed = ops.planar_chain(inputs[0].bfloat16(), *inputs[1:])
    for value, same, close in zip(expected, results, mixed):
        assert same.dtype == close.dtype == torch.float32
        assert torch.equal(same, close)
        torch.testing.assert_close(close, value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"z": torch.ones(3)}, ValueError, r"z must have the shape \(batch, features\), got \(3,\)"),
        ({"z": torch.ones(2, 3).int()}, TypeError, "z must be a floating-point tensor, got"),
        ({"w": torch.ones(4, 2)}, ValueError, r"w must have the shape \(steps, 3\).* got \(4, 2\)"),
        ({"w": torch.ones(5, 4, 3)}, ValueError, "w must have parameters of each of the 2 samples"),
        ({"u": torch.ones(5, 3)}, ValueError, r"u must have the shape \(4, 3\), got \(5, 3\)"),
        ({"b": torch.ones(4, 1)}, ValueError, r"b must have the shape \(4,\), got \(4, 1\)"),
        ({"b": torch.ones(4).half()}, TypeError, "b must have the dtype of z"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    good = {"z": torch.ones(2, 3), "w": torch.ones(4, 3), "u": torch.ones(4, 3), "b": torch.ones(4)}
    with pytest.raises(error, match=words):
        ops.planar_chain(**(good | change))


def test_bad_input_to_the_registered_op():
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"parameters must have the shape \(steps, 8\)"):
        torch.ops.deepgen_ext.planar_chain(z, torch.ones(4, 7))
    with pytest.raises(TypeError, match="parameters must be Double for z of Double, got Float"):
        torch.ops.deepgen_ext.planar_chain(z.double(), torch.ones(4, 8))
    with pytest.raises(ValueError, match="grad_output must have the shape of z"):
        torch.ops.deepgen_ext.planar_chain_backward(
            torch.ones(2, 2), torch.ones(2), z, torch.ones(4, 8)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cuda_kernels_in_emulation(emulated, dtype):
    for shape in SHAPES:
        z, *rest = (t.to(dtype) for t in inputs_of(shape))
        parameters = packed(z, *rest)
        grad_log_det = torch.randn(shape[0], dtype=parameters.dtype)
        for given in (z, z.t().contiguous().t()):
            grad = torch.randn_like(given)
            check_emulated("planar_chain", given, parameters)
            check_emulated("planar_chain_backward", grad, grad_log_det, given, parameters)


def test_more_tiles_than_blocks_in_emulation(emulated):
    """Blocks of the backward kernel that work on several tiles one after another."""
    inputs = inputs_of((8 * 513 + 3, 20, 1))
    z, parameters = inputs[0], packed(*inputs)
    grad, grad_log_det = torch.randn_like(z), torch.randn_like(z[:, 0])
    check_emulated("planar_chain_backward", grad, grad_log_det, z, parameters)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_gpu(shape):
    inputs = tuple(t.cuda() for t in inputs_of(shape))
    check_values(ops.planar_chain, reference.planar_chain, inputs)
