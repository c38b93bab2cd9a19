"""Norms from p to q, p and q given or learned: by their definition, and their gradient in p and q."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from deepgen_ext.nn import LearnedExponent, spectral_norm
from deepgen_ext.nn.induced_norm import p_norm


def induced_norm(matrix, p, q):
    """max |Wx|_q / |x|_p, from many starts by gradient ascent's cousin: random search refined."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    x = torch.randn(20000, matrix.shape[1], generator=generator, dtype=torch.float64)
    if p == math.inf:
        x = x.sign()
    if p == 1:
        x = torch.eye(matrix.shape[1], dtype=torch.float64)
    for spread in (0.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        noise = torch.randn(20000, matrix.shape[1], generator=generator, dtype=torch.float64)
        tried = x if spread == 0.0 else torch.cat([x, x + spread * noise])
        ratio = (tried @ matrix.T).norm(q, dim=1) / tried.norm(p, dim=1)
        best = max(best, ratio.max().item())
        x = tried[ratio.argmax()][None] / tried[ratio.argmax()].norm(p)
    return best


@pytest.mark.parametrize(
    ("p", "q"), [(1, 1), (math.inf, math.inf), (1, 2), (2, math.inf), (1.5, 3), (2, 4), (3, 2)]
)
def test_other_norms_against_their_definition(p, q):
    torch.manual_seed(3)
    layer = nn.Linear(4, 5).double()
    with torch.no_grad():
        if p > 1 and q < math.inf:
            layer.weight.abs_()  # where Boyd's iteration is exact
    expected = induced_norm(layer.weight.detach(), p, q)
    before = layer.weight.detach().clone()
    spectral_norm(layer, domain=p, codomain=q, n_power_iterations=100)
    estimated = (before / layer.weight.detach()).mean().item()
    assert expected * (1 - 1e-9) <= estimated <= expected * (1 + 2e-3)


def learned_layer(p=1.6, q=2.7, n=200):
    torch.manual_seed(3)
    layer = nn.Linear(4, 5).double()
    with torch.no_grad():
        layer.weight.abs_()  # where the iteration is exact
    before = layer.weight.detach().clone()
    domain, codomain = LearnedExponent(p).double(), LearnedExponent(q).double()
    spectral_norm(layer, domain=domain, codomain=codomain, n_power_iterations=n)
    return layer, before, domain, codomain


@pytest.mark.parametrize("p", [1.3, 2.0, 4.5])
def test_a_norm_and_its_gradient_in_the_exponent(p):
    exponent = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.0, -2.0, 3.0, 1e-3], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(p_norm(x, exponent), torch.linalg.vector_norm(x, p))
    inner = x[1:].detach().requires_grad_()
    assert torch.autograd.gradcheck(p_norm, (inner, exponent))
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(p_norm(zero, exponent), (zero, exponent))
    assert all((g == 0).all() for g in gradients)


def test_a_learned_norm_is_that_of_its_exponents():
    layer, before, domain, codomain = learned_layer()
    given = nn.Linear(4, 5).double()
    with torch.no_grad():
        given.weight.copy_(before)
    spectral_norm(given, domain=domain().item(), codomain=codomain().item(), n_power_iterations=200)
    torch.testing.assert_close(layer.weight, given.weight)
    assert (domain().item(), codomain().item()) == pytest.approx((1.6, 2.7))


def test_the_gradient_in_the_exponents_is_that_of_the_converged_norm():
    layer, before, domain, codomain = learned_layer()
    loss = layer.weight.sum()
    raws = [e.raw for e in (domain, codomain)]
    for raw, gradient in zip(raws, torch.autograd.grad(loss, raws)):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                raw += step
                values.append(layer.weight.sum().item())
                raw -= step
        difference = (values[0] - values[1]) / 2e-4
        assert abs(difference) > 1e-2
        assert gradient.item() == pytest.approx(difference, rel=1e-4)


def test_eval_forgets_what_other_exponents_made():
    layer, _, domain, _ = learned_layer()
    layer.eval()
    with torch.no_grad():
        kept = layer.weight
        assert layer.weight is kept
        domain.raw += 0.5
        assert not torch.equal(layer.weight, kept)


def test_layers_share_an_exponent_and_it_survives_copies():
    shared = LearnedExponent()
    first = spectral_norm(nn.Linear(4, 5), domain=1.5, codomain=shared)
    second = spectral_norm(nn.Linear(5, 4), domain=shared, codomain=1.5)
    model = nn.Sequential(first, nn.Tanh(), second)
    assert sum(p is shared.raw for p in model.parameters()) == 1
    model(torch.randn(3, 4)).square().sum().backward()
    assert shared.raw.grad.abs() > 0
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        raws = [twin[0].parametrizations.weight[0].codomain.raw]
        raws.append(twin[2].parametrizations.weight[0].domain.raw)
        assert raws[0] is raws[1]
    with torch.no_grad():
        shared.raw += 1
    model.load_state_dict(twin.state_dict())
    assert torch.equal(shared.raw, raws[0])


def test_bad_exponents():
    for initial in (1.0, 5.0, math.nan):
        with pytest.raises(ValueError, match="initial: expected an exponent"):
            LearnedExponent(initial)
    for other in (1, math.inf):
        with pytest.raises(ValueError, match="beside a LearnedExponent"):
            spectral_norm(nn.Linear(3, 3), domain=LearnedExponent(), codomain=other)
    with pytest.raises(ValueError, match="kind='conv' has the norm from 2 to 2 alone"):
        spectral_norm(nn.Conv2d(1, 1, 3), kind="conv", input_shape=4, domain=LearnedExponent())
