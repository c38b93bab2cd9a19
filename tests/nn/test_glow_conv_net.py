"""GlowConvNet: one op on the CPU, the layers wherever somebody counts on their being called."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations

from deepgen_ext import ops
from deepgen_ext.nn import GlowConvNet
from tests.checks import randomize


def network(context=0, dtype=torch.float64):
    return randomize(GlowConvNet(3, 4, 6, context), 0.3).to(dtype)


def by_layers(net, x, context=None):
    h = net.input(x)
    if context is not None:
        h = h + net.context(context if context.ndim == 4 else context[:, :, None, None])
    return net.output(net.hidden(h.relu()).relu())


@pytest.fixture
def calls(monkeypatch):
    """How often the op was called."""
    seen = []
    op = ops.glow_conv_net
    monkeypatch.setattr(ops, "glow_conv_net", lambda *given: seen.append(1) or op(*given))
    return seen


@pytest.mark.parametrize("context", [None, (5,), (5, 4, 6)], ids=str)
def test_it_is_its_layers(context, calls):
    net = network(0 if context is None else 5)
    x = torch.randn(2, 3, 4, 6).double().requires_grad_()
    given = () if context is None else (torch.randn(2, *context).double().requires_grad_(),)
    wanted = [x, *given, *net.parameters()]
    y, expected = net(x, *given), by_layers(net, x, *given)
    assert len(calls) == 1
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def _spectral_norm(net):
    parametrizations.spectral_norm(net.hidden)


def _hook(net):
    net.input.register_forward_hook(lambda layer, inputs, y: 2 * y)


def _pre_hook(net):
    net.output.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))


def _backward_hook(net):
    net.hidden.register_full_backward_hook(lambda layer, inputs, outputs: (3 * inputs[0],))


def _backward_pre_hook(net):
    net.hidden.register_full_backward_pre_hook(lambda layer, outputs: (3 * outputs[0],))


def _circular(net):
    net.input.padding_mode = "circular"


def _dilated(net):
    net.input.dilation = (2, 2)


def _padded(net):
    net.input = nn.Conv2d(3, 6, 3, padding=2).double()


def _stepped(net):
    net.hidden.stride = (2, 2)


def _no_bias(net):
    net.hidden = nn.Conv2d(6, 6, 1, bias=False).double()


def _another_class(net):
    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net.hidden = Twice(6, 6, 1).double()


def _another_head(net):
    net.output = nn.Conv2d(6, 4, 3, padding=1).double()


@pytest.mark.parametrize(
    "change",
    [
        _spectral_norm,
        _hook,
        _pre_hook,
        _backward_hook,
        _backward_pre_hook,
        _circular,
        _dilated,
        _padded,
        _stepped,
        _no_bias,
        _another_class,
        _another_head,
    ],
)
def test_what_its_layers_do_is_done(change, calls):
    net = network()
    change(net)
    net.eval()  # no power iteration between two calls
    x = torch.randn(2, 3, 4, 6).double().requires_grad_()
    results = []
    for function in (net, lambda x: by_layers(net, x)):
        y = function(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert not calls
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_and_autocast_run_the_convolutions(calls):
    x = torch.randn(2, 3, 4, 6)
    assert network(dtype=torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert network(dtype=torch.float32)(x).dtype == torch.bfloat16
    assert not calls


def test_functional_transforms(calls):
    net = network()
    x = torch.randn(4, 3, 4, 6).double()
    parameters = dict(net.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    assert not calls
    for i in range(4):
        expected = torch.autograd.grad(net(x[i : i + 1]).square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(each[name][i], gradient)
    assert calls
    swapped = {name: 2 * value for name, value in parameters.items()}
    other = copy.deepcopy(net)
    other.load_state_dict(swapped)
    torch.testing.assert_close(torch.func.functional_call(net, swapped, (x,)), other(x))


def test_forward_mode_gradients(calls):
    net = network()
    x, tangent = torch.randn(2, 2, 3, 4, 6).double()
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent)))
    assert not calls
    step = 1e-6
    difference = (net(x + step * tangent) - net(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(y.tangent, difference, rtol=1e-6, atol=1e-6)


def test_it_compiles_whole():
    torch._dynamo.reset()
    net = network()
    x = torch.randn(2, 3, 4, 6).double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    wanted = list(net.parameters())
    y, expected = compiled(x), net(x)
    torch.testing.assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_names_of_its_parameters():
    names = ["input.weight", "input.bias", "hidden.weight", "hidden.bias"]
    names += ["output.weight", "output.bias", "output.log_scale"]
    assert list(network().state_dict()) == names
