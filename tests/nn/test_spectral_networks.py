"""Spectral norms of whole networks, and layers that scale their output."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from deepgen_ext.nn import SpectralConv2d, SpectralLinear, spectral_norm, spectral_norm_all


def original(layer):
    return layer.parametrizations.weight.original


def check_same_state(ours, theirs):
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(),
        nn.Linear(75, 6), nn.Tanh(), nn.Linear(6, 1),
    )  # fmt: skip


def each(model, **options):
    for layer in list(model):
        if hasattr(layer, "weight"):
            spectral_norm(layer, **options)
    return model


NORMALISED = {"each": each, "all": spectral_norm_all}


@pytest.mark.parametrize("how", NORMALISED)
def test_a_network_takes_the_steps_of_torch(how):
    """Two forward passes before one backward, retain_graph, accumulated gradients."""
    models = [network(), network()]
    torch.manual_seed(1)
    NORMALISED[how](models[0])
    torch.manual_seed(1)
    for layer in list(models[1]):
        if hasattr(layer, "weight"):
            parametrizations.spectral_norm(layer)
    for step in range(3):
        real, fake = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        for model in models:
            loss = model(real).mean() - model(fake).mean()
            loss.backward(retain_graph=True)
            loss.backward()
            model(real).square().mean().backward()
        check_same_state(*models)
        for a, b in zip(models[0].parameters(), models[1].parameters()):
            torch.testing.assert_close(a.grad, b.grad)
            with torch.no_grad():
                a -= 0.1 * a.grad
                b -= 0.1 * b.grad


@pytest.mark.parametrize("how", NORMALISED)
def test_copies_pickles_autocast_and_compile(how):
    model = NORMALISED[how](network())
    x = torch.randn(3, 2, 4, 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        reference = copy.deepcopy(model)
        assert torch.equal(twin(x), reference(x))
        check_same_state(twin, reference)
        twin(x).sum().backward()
        assert twin[0].parametrizations.weight.original.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
    eager, compiled = copy.deepcopy(model), copy.deepcopy(model)
    for mode in (True, False):
        torch._dynamo.reset()
        if how == "all" and not mode:
            continue  # each layer for itself, as above
        eager.train(mode), compiled.train(mode)
        run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        results = []
        for function, module in ((eager, eager), (run, compiled)):
            module.zero_grad()
            y = function(x)
            y.square().sum().backward()
            results.append([y, *(p.grad for p in module.parameters())])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)
        check_same_state(eager, compiled)


def test_layers_are_selected_by_name_and_kind():
    model = spectral_norm_all(network(), select=lambda name, _: name in ("0", "5", "6"))
    normalised = [n for n, layer in model.named_children() if parametrize.is_parametrized(layer)]
    assert normalised == ["0", "6"], "5 has no weight"
    with pytest.raises(ValueError, match="model: no layer"):
        spectral_norm_all(model, select=lambda _, layer: isinstance(layer, nn.Conv2d))


def test_a_forward_that_raises_leaves_nothing_behind():
    model = spectral_norm_all(network())
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 2, 9, 9))
    before = original(model[0]).detach().clone()
    with torch.no_grad():
        original(model[0]).neg_()
    assert (model[0].weight.detach() * before).sum() < 0, "the weight of the pass that failed"


@pytest.mark.parametrize(
    ("ours", "plain", "shape"),
    [
        (SpectralLinear, nn.Linear, (3, 2, 6)),
        (SpectralConv2d, nn.Conv2d, (3, 6, 4, 4)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_scale_their_output(ours, plain, shape, bias):
    extra = (3,) if plain is nn.Conv2d else ()
    torch.manual_seed(0)
    layer = ours(6, 5, *extra, bias=bias).double()
    rival = spectral_norm(plain(6, 5, *extra, bias=bias).double())
    with torch.no_grad():
        original(rival).copy_(layer.weight)
        if bias:
            rival.bias.copy_(layer.bias)
    for buffer in ("_u", "_v"):
        theirs = getattr(rival.parametrizations.weight[0], buffer)
        theirs.copy_(getattr(layer.constraint, buffer))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for mode in (True, False):
        layer.train(mode), rival.train(mode)
        y, expected = layer(x), rival(x)
        torch.testing.assert_close(y, expected)
        weight = torch.randn_like(y)
        firsts = []
        for result, leaf in ((y, layer.weight), (expected, original(rival))):
            grads = torch.autograd.grad((result.sin() * weight).sum(), (x, leaf), create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, leaf))
            firsts.append((*grads, *second))
        for a, b in zip(*firsts):
            torch.testing.assert_close(a, b)
        if not mode:
            with torch.no_grad():
                torch.testing.assert_close(layer(x), expected)
