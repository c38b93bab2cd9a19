"""Objectives: the value of each game at its best critic; penalties and their second derivatives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.func import functional_call

from deepgen_ext.models.adversarial import (
    OBJECTIVES,
    DCGANCritic,
    MLPCritic,
    ResNetCritic,
    clip_weights,
    gradient_penalty,
    objective,
    r1_penalty,
)
from deepgen_ext.nn import SpectralConv2d, spectral_norm_all

# Two distributions on the atoms 0 ... 3, as counts of tens.
COUNTS = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 1, 3, 5])
P, Q = (counts.double() / 10 for counts in COUNTS)
M = (P + Q) / 2


def kl(p, q):
    return (p * (p / q).log()).sum()


JS = (kl(P, M) + kl(Q, M)) / 2
TV = (P - Q).abs().sum() / 2

# The best scores, and the critic's loss there.
BEST = {
    "minimax": ((P / Q).log(), math.log(4) - 2 * JS),
    "non-saturating": ((P / Q).log(), math.log(4) - 2 * JS),
    "hinge": ((P - Q).sign(), 2 - 2 * TV),
    "least-squares": (P / (P + Q), (P * Q / (P + Q)).sum() / 2),
}


def expected_loss(game, scores):
    return game.critic_loss(*(scores.repeat_interleave(counts) for counts in COUNTS))


@pytest.mark.parametrize("name", BEST)
def test_the_best_critic_reaches_the_divergence(name):
    game, (scores, value) = objective(name), BEST[name]
    torch.testing.assert_close(expected_loss(game, scores), value)
    for deviation in (0.01, 0.3, 3.0):
        other = scores + deviation * torch.randn(200, 4, dtype=torch.float64)
        assert all(expected_loss(game, row) >= value - 1e-12 for row in other)
    # and where data and samples are alike, the value that the class states
    alike = scores.new_zeros(4) if name != "least-squares" else scores.new_full((4,), 0.5)
    assert game.critic_loss(alike, alike).item() == pytest.approx(game.equilibrium)


def test_a_descent_finds_js():
    """Nothing is put in but the loss: the table of scores that it leads to has the value of JS."""
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(objective("minimax"), scores)
        loss.backward()
        return loss

    optimizer.step(closure)
    value = 2 * JS.item() - math.log(4)
    assert -expected_loss(objective("minimax"), scores).item() == pytest.approx(value, abs=1e-9)


def test_the_best_lipschitz_critic_reaches_the_wasserstein_distance():
    game = objective("wasserstein")
    slopes = -(P.cumsum(0) - Q.cumsum(0)).sign()[:-1]  # of 1 where mass must cross

    def table(slopes):
        return torch.cat((slopes.new_zeros(1), slopes.cumsum(0)))

    atoms = torch.arange(4)
    distance = wasserstein_distance(atoms, atoms, P, Q)
    assert expected_loss(game, table(slopes)).item() == pytest.approx(-distance)
    for other in torch.rand(200, 3, dtype=torch.float64) * 2 - 1:
        assert expected_loss(game, table(other)) >= -distance


def test_gradients_of_the_generator_at_the_best_critic():
    """Minimax: that of 2 JS. Non-saturating: that of KL(q || p) - 2 JS."""
    theta = Q.log().requires_grad_()
    q = theta.softmax(0)
    m = (P + q) / 2
    js = (kl(P, m) + kl(q, m)) / 2
    scores = (P / Q).log()
    for name, divergence in (("minimax", 2 * js), ("non-saturating", kl(q, P) - 2 * js)):
        game = objective(name)
        per_atom = torch.stack([game.generator_loss(score[None]) for score in scores])
        (actual,) = torch.autograd.grad((q * per_atom).sum(), theta, retain_graph=True)
        (expected,) = torch.autograd.grad(divergence, theta, retain_graph=True)
        torch.testing.assert_close(actual, expected)


def test_minimax_saturates_and_non_saturating_does_not():
    for name, slope in (("minimax", 0.0), ("non-saturating", -1.0)):
        scores = torch.full((5,), -30.0, requires_grad=True)  # the critic is sure of all samples
        (gradient,) = torch.autograd.grad(objective(name).generator_loss(scores), scores)
        assert gradient.sum().item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_scores_are_summed_in_float32(name):
    real, fake = torch.randn(2, 4096)
    game = objective(name)
    loss = game.critic_loss(real.bfloat16(), fake.bfloat16())
    assert loss.dtype == torch.float32
    exact = game.critic_loss(real.bfloat16().double(), fake.bfloat16().double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    assert game.generator_loss(fake.half()).dtype == torch.float32


# ------------------------------------------------------------ penalties


class Spectral(nn.Module):
    """A critic whose layers scale their outputs by 1 / sigma."""

    def __init__(self):
        super().__init__()
        self.layer = SpectralConv2d(1, 3, 3, padding=1)
        self.output = nn.Linear(48, 1)

    def forward(self, x):
        return self.output(torch.tanh(self.layer(x)).flatten(1)).squeeze(1)


def _normalised():
    """In training mode, all norms in one launch; u and v at rest, so that calls agree."""
    critic = spectral_norm_all(DCGANCritic((1, 8, 8), 2, between=True).double(), "weight", 400)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.5)
    for _ in range(3):
        critic(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    return critic


def _random(critic):
    critic = critic.double()
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.5)
    return critic


CRITICS = {
    "mlp": (lambda: _random(MLPCritic(3, 5, 2)), (3,)),
    "dcgan": (lambda: _random(DCGANCritic((1, 8, 8), 2)), (1, 8, 8)),
    "resnet": (lambda: _random(ResNetCritic((1, 8, 8), 2)), (1, 8, 8)),
    "all spectral norms in one launch": (_normalised, (1, 8, 8)),
    "spectral norm, evaluation": (lambda: _normalised().eval(), (1, 8, 8)),
    "layers that scale outputs": (lambda: _random(Spectral()).eval(), (1, 4, 4)),
}


@pytest.mark.parametrize("kind", CRITICS)
@pytest.mark.parametrize("penalty", ["gradient", "r1"])
def test_penalties_against_finite_differences(kind, penalty):
    """Their gradient in every parameter of the critic: second derivatives of all it is made of."""
    make, shape = CRITICS[kind]
    critic = make()
    real, fake = torch.randn(2, 3, *shape, dtype=torch.float64)
    mix = torch.tensor([0.1, 0.5, 0.8])
    parameters = dict(critic.named_parameters())

    def loss(*values):
        given = partial(functional_call, critic, dict(zip(parameters, values, strict=True)))
        if penalty == "r1":
            return r1_penalty(given, real)
        return gradient_penalty(given, real, fake, mix=mix)

    values = tuple(parameters.values())
    gradients = torch.autograd.grad(loss(*values), values, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    directions = [
        torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values
    ]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    step = 1e-6
    ends = [
        loss(*(v.detach() + sign * step * d for v, d in zip(values, directions, strict=True)))
        for sign in (1, -1)
    ]
    expected = (ends[0] - ends[1]) / (2 * step)
    assert abs(slope) > 1e-6
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-5, atol=1e-8)


def test_penalties_of_a_linear_critic():
    """Its slope is |w| everywhere."""
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    real, fake = torch.randn(2, 6, 2)

    def critic(x):
        return x @ w

    assert gradient_penalty(critic, real, fake).item() == pytest.approx(16.0)
    assert gradient_penalty(critic, real, fake, target=5.0).item() == pytest.approx(0.0, abs=1e-9)
    assert gradient_penalty(critic, real, fake, one_sided=True).item() == pytest.approx(16.0)
    assert gradient_penalty(critic, real, fake, target=6.0).item() == pytest.approx(1.0)
    assert gradient_penalty(critic, real, fake, target=6.0, one_sided=True).item() == 0
    assert r1_penalty(critic, real).item() == pytest.approx(25.0)
    (gradient,) = torch.autograd.grad(gradient_penalty(critic, real, fake), w)
    torch.testing.assert_close(gradient, torch.tensor([4.8, 6.4]))  # 2 (|w| - 1) w / |w|


def test_where_the_penalty_looks():
    """At mix real + (1 - mix) fake, one mix for each sample."""
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    real, fake = torch.ones(3, 2, 2), torch.zeros(3, 2, 2)
    gradient_penalty(critic, real, fake, mix=torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(seen[0][:, 0, 0], torch.tensor([0.0, 0.25, 1.0]))
    assert (seen[0] == seen[0][:, :1, :1]).all()
    generator = torch.Generator().manual_seed(3)
    gradient_penalty(critic, real, fake, generator=generator)
    assert len(seen[1][:, 0, 0].unique()) == 3


def test_a_slope_of_zero_has_a_finite_gradient():
    critic = MLPCritic(2, 4, 1)
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    loss = gradient_penalty(critic, torch.randn(3, 2), torch.randn(3, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="objective: expected one of minimax.*got 'mimimax'"):
        objective("mimimax")
    with pytest.raises(
        ValueError, match=r"fake: expected the shape of real \(2, 3\), got \(2, 4\)"
    ):
        gradient_penalty(lambda x: x.sum(1), torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mix: expected \(2,\), got \(3,\)"):
        gradient_penalty(lambda x: x.sum(1), *torch.zeros(2, 2, 3), mix=torch.zeros(3))
    with pytest.raises(ValueError, match="bound: expected a positive number, got 0"):
        clip_weights(nn.Linear(1, 1), 0)


def test_clip_weights():
    layer = nn.Linear(50, 50)
    nn.init.normal_(layer.weight)
    before = layer.weight.detach().clone()
    clip_weights(layer, 0.3)
    torch.testing.assert_close(layer.weight.detach(), before.clamp(-0.3, 0.3), rtol=0, atol=0)
