"""What holds for the gradient of every op, because one node (csrc/gradient.cpp) carries them all."""

import pytest
import torch
from torch.autograd import forward_ad

from deepgen_ext import ops


def inverse(x):
    units = torch.arange(48)
    weights = [x.new_full((48, 48), 0.1), x.new_full((96, 48), 0.1)]
    return ops.autoregressive_inverse(
        x.flatten(1), weights, [x.new_zeros(48), x.new_zeros(96)], [units]
    )[0]


CALLS = {
    "autoregressive_inverse": inverse,
    "bernoulli_log_prob": lambda x: ops.bernoulli_log_prob(x.new_full((4,), 0.3), x),
    "block_triangular_linear": lambda x: ops.block_triangular_linear(
        x.flatten(0, 2), x.new_ones(3, 4), None, torch.arange(1, 4)
    ),
    "spectral_normalize": lambda x: ops.spectral_normalize(
        [x.flatten(1)], [x.new_ones(2)], [x.new_ones(48)]
    )[0][0],
    "affine_coupling": lambda x: ops.affine_coupling(x, x, x, scale_map="tanh")[0],
    "channel_affine": lambda x: ops.channel_affine(x, x.new_zeros(3), x.new_ones(3))[0],
    "masked_conv2d": lambda x: ops.masked_conv2d(x, x.new_ones(2, 3, 3, 3), None, mask_type="A"),
    "glow_conv_net": lambda x: ops.glow_conv_net(
        x,
        *[x.new_ones(s) for s in ((2, 3, 3, 3), 2, (2, 2, 1, 1), 2, (1, 2, 3, 3), 1, 1)],
    ),
    "planar_chain": lambda x: ops.planar_chain(
        x.flatten(1), x.new_full((1, 48), 0.1), x.new_full((1, 48), 0.2), x.new_ones(1)
    )[0],
    "radial_chain": lambda x: ops.radial_chain(
        x.flatten(1), x.new_full((1, 48), 0.1), x.new_ones(1), x.new_ones(1)
    )[0],
    "rational_quadratic_spline": lambda x: ops.rational_quadratic_spline(
        x, *[x.new_zeros(*x.shape, n) for n in (4, 4, 3)]
    )[0],
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def test_no_graph_where_none_is_wanted(call, x):
    assert not call(x).requires_grad
    with torch.no_grad():
        assert not call(x.requires_grad_()).requires_grad
    assert call(x).requires_grad


def test_a_graph_is_used_once_unless_it_is_retained(call, x):
    y = call(x.requires_grad_()).sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (again,) = torch.autograd.grad(y, x)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(y, x)


def test_what_the_gradient_needs_must_not_be_changed(x):
    y = CALLS["affine_coupling"](x.requires_grad_())
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_forward_mode_is_refused_rather_than_dropped(call, x):
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(RuntimeError, match="jvp is not implemented"):
                call(dual)


def test_functional_transforms_are_refused(call, x):
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: call(x).sum())(x)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jvp(call, (x,), (x,))
