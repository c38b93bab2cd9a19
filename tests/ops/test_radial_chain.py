"""radial_chain against its definition, and what keeps it invertible."""

import pytest
import torch

from deepgen_ext import ops, reference
from tests.checks import check_op, check_values
from tests.emulation.compare import check_emulated

# (samples, features, steps): around the 32 samples of a tile and the 32 lanes of a warp. The error of
# rho counts D - 1 times in log_det: 64 times would be more than check_values allows in float32.
SHAPES = [(0, 3, 2), (1, 1, 1), (5, 3, 4), (33, 2, 8), (70, 17, 3), (3, 40, 2), (600, 4, 5)]


def inputs_of(shape, seed=0, each_sample=False):
    samples, features, steps = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    lead = (samples,) if each_sample else ()
    center = draw(*lead, steps, features)
    return draw(samples, features), center, draw(*lead, steps), draw(*lead, steps)


def packed(z, center, raw_alpha, raw_beta):
    """The parameters as the kernels take them."""
    scalars = torch.nn.functional.softplus(torch.stack((raw_alpha, raw_beta), -1))
    return torch.cat((center, scalars), -1).to(torch.promote_types(z.dtype, torch.float32))


def test_contract():
    inputs = inputs_of((4, 3, 2))
    overload = torch.ops.deepgen_ext.radial_chain.default
    leaves = (inputs[0].clone().requires_grad_(), packed(*inputs).requires_grad_())
    check_op(ops.radial_chain, reference.radial_chain, inputs, overload, leaves)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    check_values(ops.radial_chain, reference.radial_chain, inputs_of(shape))


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 1, 1), (0, 2, 3)], ids=str)
def test_parameters_of_each_sample(shape):
    inputs = inputs_of(shape, each_sample=True)
    check_values(ops.radial_chain, reference.radial_chain, inputs)
    if shape[0] == 5:
        assert torch.autograd.gradcheck(ops.radial_chain, [t.requires_grad_() for t in inputs])
        for n in range(5):  # each sample as a chain of its own
            z, *parameters = (t.detach()[n] for t in inputs)
            alone = ops.radial_chain(z[None], *parameters)
            together = ops.radial_chain(*(t.detach() for t in inputs))
            for one, many in zip(alone, together):
                torch.testing.assert_close(one[0], many[n], rtol=1e-13, atol=1e-13)


def test_no_steps_are_the_identity():
    z, *parameters = inputs_of((6, 3, 0))
    y, log_det = ops.radial_chain(z, *parameters)
    assert torch.equal(y, z)
    assert torch.equal(log_det, torch.zeros(6, dtype=z.dtype))


def test_log_det_is_that_of_the_jacobian():
    z, *parameters = inputs_of((3, 5, 4))
    _, log_det = ops.radial_chain(z, *parameters)
    for n in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: ops.radial_chain(v[None], *parameters)[0][0], z[n]
        )
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign > 0
        torch.testing.assert_close(log_det[n], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("raw_alpha", "raw_beta"), [(0.0, -40.0), (-40.0, 0.0), (-60.0, -60.0), (1e4, -1e4), (3.0, 1e6)]
)
def test_adversarial_parameters_stay_invertible(raw_alpha, raw_beta, dtype):
    """log_det finite and right, where 1 + beta h would have lost all its digits."""
    direction = torch.tensor([0.6, 0.8], dtype=dtype)
    center = torch.tensor([[0.5, -0.25]], dtype=dtype, requires_grad=True)
    r = torch.logspace(-5, 2, 29, dtype=dtype)
    z = center.detach() + r[:, None] * direction
    r = torch.linalg.vector_norm((z - center.detach()).double(), dim=1)
    leaves = [
        center,
        *(torch.tensor([v], dtype=dtype).requires_grad_() for v in (raw_alpha, raw_beta)),
    ]
    y, log_det = ops.radial_chain(z, *leaves)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    gradients = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    tiny = torch.finfo(dtype).tiny
    alpha, reach = (
        torch.tensor(v, dtype=torch.float64).exp().log1p().clamp_min(tiny) if v < 50 else v
        for v in (raw_alpha, raw_beta)
    )
    across = (r + reach) / (r + alpha)
    along = (r * r + 2 * alpha * r + alpha * reach) / (r + alpha) ** 2
    expected = across.log() + along.log()
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(log_det.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_center_stays_where_it_is():
    z, center, *scalars = inputs_of((4, 3, 1))
    z = center.expand(4, 3).clone().requires_grad_()
    y, log_det = ops.radial_chain(z, center, *scalars)
    torch.testing.assert_close(y, z)
    (gradient,) = torch.autograd.grad(y.sum() + log_det.sum(), z)
    alpha, reach = (torch.nn.functional.softplus(t) for t in scalars)
    torch.testing.assert_close(gradient, (reach / alpha).expand(4, 3))  # r has a kink there


def test_equal_raw_parameters_are_the_identity():
    z, center, raw, _ = inputs_of((4, 3, 2))
    y, log_det = ops.radial_chain(z, center, raw, raw)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det))


def test_nan_reaches_the_log_det_of_its_sample_alone():
    z, *parameters = inputs_of((40, 3, 4))
    z[7, 1] = float("nan")
    y, log_det = ops.radial_chain(z, *parameters)
    assert y[7].isnan().all()
    assert log_det.isnan().nonzero().flatten().tolist() == [7]


def test_sums_do_not_depend_on_threads():
    inputs = [t.float().requires_grad_() for t in inputs_of((3000, 5, 4))]
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, log_det = ops.radial_chain(*inputs)
            gradients.append(torch.autograd.grad((y**2).sum() + log_det.sum(), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, gradients[0]))


def test_autocast_computes_in_float32():
    inputs = [t.float() for t in inputs_of((6, 3, 4))]
    expected = ops.radial_chain(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = ops.radial_chain(inputs[0].bfloat16().float(), *inputs[1:])
        mixed = ops.radial_chain(inputs[0].bfloat16(), *inputs[1:])
    for value, same, close in zip(expected, results, mixed):
        assert same.dtype == close.dtype == torch.float32
        assert torch.equal(same, close)
        torch.testing.assert_close(close, value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"z": torch.ones(3)}, ValueError, r"z must have the shape \(batch, features\), got \(3,\)"),
        ({"z": torch.ones(2, 3).int()}, TypeError, "z must be a floating-point tensor, got"),
        ({"center": torch.ones(4, 2)}, ValueError, r"center must have the shape \(steps, 3\).* got \(4, 2\)"),
        ({"center": torch.ones(5, 4, 3)}, ValueError, "center must have parameters of each of the 2"),
        ({"raw_alpha": torch.ones(4, 1)}, ValueError, r"raw_alpha must have the shape \(4,\), got \(4, 1\)"),
        ({"raw_beta": torch.ones(4).half()}, TypeError, "raw_beta must have the dtype of z"),
    ],
)  # fmt: skip
def test_bad_input(change, error, words):
    scalars = {"raw_alpha": torch.ones(4), "raw_beta": torch.ones(4)}
    good = {"z": torch.ones(2, 3), "center": torch.ones(4, 3), **scalars}
    with pytest.raises(error, match=words):
        ops.radial_chain(**(good | change))


def test_bad_input_to_the_registered_op():
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"parameters must have the shape \(steps, 5\)"):
        torch.ops.deepgen_ext.radial_chain(z, torch.ones(4, 7))
    with pytest.raises(TypeError, match="parameters must be Double for z of Double, got Float"):
        torch.ops.deepgen_ext.radial_chain(z.double(), torch.ones(4, 5))
    with pytest.raises(ValueError, match="grad_output must have the shape of z"):
        torch.ops.deepgen_ext.radial_chain_backward(
            torch.ones(2, 2), torch.ones(2), z, torch.ones(4, 5)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cuda_kernels_in_emulation(emulated, dtype):
    for shape in SHAPES:
        z, *rest = (t.to(dtype) for t in inputs_of(shape))
        parameters = packed(z, *rest)
        grad_log_det = torch.randn(shape[0], dtype=parameters.dtype)
        for given in (z, z.t().contiguous().t()):
            grad = torch.randn_like(given)
            check_emulated("radial_chain", given, parameters)
            check_emulated("radial_chain_backward", grad, grad_log_det, given, parameters)


def test_more_tiles_than_blocks_in_emulation(emulated):
    """Blocks of the backward kernel that work on several tiles one after another."""
    inputs = inputs_of((8 * 513 + 3, 20, 1))
    z, parameters = inputs[0], packed(*inputs)
    grad, grad_log_det = torch.randn_like(z), torch.randn_like(z[:, 0])
    check_emulated("radial_chain_backward", grad, grad_log_det, z, parameters)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_gpu(shape):
    inputs = tuple(t.cuda() for t in inputs_of(shape))
    check_values(ops.radial_chain, reference.radial_chain, inputs)
