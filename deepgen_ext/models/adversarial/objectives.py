"""What critics and generators are trained on, the penalties of critics, and the clip of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Critic = Callable[[Tensor], Tensor]


class Objective:
    """A game of two players in terms of the critic's scores s, any shape, real numbers.

    Scores are logits: where the papers' discriminator is a probability, D = sigmoid(s). Both losses
    are to be minimised, means over all scores, in float32 for half types.
    """

    name: str
    equilibrium = 0.0  # the least loss of a critic where data and samples are alike

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Of the scores of data and of samples; the two may differ in number."""
        raise NotImplementedError

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        """Of the scores of samples."""
        raise NotImplementedError


class Minimax(Objective):
    """-E[ln D(x)] - E[ln(1 - D(G(z)))] against E[ln(1 - D(G(z)))], D = sigmoid(s).

    The best critic is s = ln p - ln q, and its loss ln 4 - 2 JS(p, q): ln 4 where p = q, and 0, with
    no gradient left for the generator, where they do not overlap. Goodfellow et al. 2014,
    arXiv:1406.2661.
    """

    name = "minimax"
    equilibrium = 1.3862943611198906  # ln 4

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return F.softplus(-_wide(real_scores)).mean() + F.softplus(_wide(fake_scores)).mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        return -F.softplus(_wide(fake_scores)).mean()


class NonSaturating(Minimax):
    """The critic of `Minimax` against -E[ln D(G(z))].

    The generator's gradient does not vanish where the critic is sure. For the best critic it is
    that of KL(q || p) - 2 JS(p, q). Goodfellow et al. 2014; Arjovsky & Bottou 2017,
    arXiv:1701.04862.
    """

    name = "non-saturating"

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        return F.softplus(-_wide(fake_scores)).mean()


class Hinge(Objective):
    """E[max(0, 1 - s(x))] + E[max(0, 1 + s(G(z)))] against -E[s(G(z))].

    The best critic is sign(p - q), and its loss 2 sum min(p, q) = 2 - 2 TV(p, q). Lim & Ye 2017,
    arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957.
    """

    name = "hinge"
    equilibrium = 2.0

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return F.relu(1 - _wide(real_scores)).mean() + F.relu(1 + _wide(fake_scores)).mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        return -_wide(fake_scores).mean()


class Wasserstein(Objective):
    """E[s(G(z))] - E[s(x)] against -E[s(G(z))].

    Over the critics of Lipschitz constant k the least loss is -k W(p, q), the distance to move p
    onto q. Something must bound the constant: `clip_weights`, `gradient_penalty`, spectral norms.
    Arjovsky et al. 2017, arXiv:1701.07875.
    """

    name = "wasserstein"

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return _wide(fake_scores).mean() - _wide(real_scores).mean()

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        return -_wide(fake_scores).mean()


class LeastSquares(Objective):
    """E[(s(x) - 1)^2] / 2 + E[s(G(z))^2] / 2 against E[(s(G(z)) - 1)^2] / 2.

    The best critic is p / (p + q), and its loss sum p q / (p + q) / 2: 1/4 where p = q. Mao et al.
    2017, arXiv:1611.04076.
    """

    name = "least-squares"
    equilibrium = 0.25

    def critic_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        real, fake = _wide(real_scores), _wide(fake_scores)
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator_loss(self, fake_scores: Tensor) -> Tensor:
        return (_wide(fake_scores) - 1).square().mean() / 2


OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (Minimax, NonSaturating, Hinge, Wasserstein, LeastSquares)
}


def objective(name: str) -> Objective:
    """The objective of that name: a key of `OBJECTIVES`.

    Raises:
        ValueError: another name.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}; got {name!r}")
    return OBJECTIVES[name]()


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    target: float = 1.0,
    one_sided: bool = False,
    mix: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """E[(|grad s(x)| - target)^2] at x = mix real + (1 - mix) fake, to be differentiated again.

    It holds the critic's slope at 1 between data and samples, where the best critic of the
    Wasserstein distance has it. Gulrajani et al. 2017, arXiv:1704.00028, with a weight of 10.

    Args:
        critic: scores (n,) of (n, ...), each of its own sample alone: no batch norm.
        real, fake: (n, ...), of the same shape; no gradient goes to them.
        target: the slope.
        one_sided: max(0, |grad s(x)| - target)^2, which allows smaller slopes: Petzka et al. 2018,
            arXiv:1709.08894. The two-sided penalty also holds a slope of the wrong sign, which a
            critic of data near samples may start with and then cannot leave.
        mix: (n,) in [0, 1]; drawn from `generator` when None.

    Raises:
        ValueError: shapes that differ.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"fake: expected the shape of real {tuple(real.shape)}, got {tuple(fake.shape)}"
        )
    n = real.shape[0]
    if mix is None:
        mix = torch.rand(n, generator=generator, device=real.device)
    elif tuple(mix.shape) != (n,):
        raise ValueError(f"mix: expected ({n},), got {tuple(mix.shape)}")
    mix = mix.to(real).view(-1, *[1] * (real.ndim - 1))
    x = torch.lerp(fake.detach().to(real), real.detach(), mix)
    slopes = torch.linalg.vector_norm(_gradient(critic, x).flatten(1), dim=1)
    excess = slopes - target
    return (F.relu(excess) if one_sided else excess).square().mean()


def r1_penalty(critic: Critic, real: Tensor) -> Tensor:
    """E[|grad s(x)|^2] on data, to be differentiated again; papers weigh it by gamma / 2.

    It is 0 at the equilibrium, where the game then converges. Mescheder et al. 2018,
    arXiv:1801.04406, with gamma = 10.
    """
    return _gradient(critic, real.detach()).flatten(1).square().sum(1).mean()


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """Clamp every parameter to [-bound, bound], in place.

    Raises:
        ValueError: a bound that is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"bound: expected a positive number, got {bound}")
    parameters = list(module.parameters())
    torch._foreach_clamp_min_(parameters, -bound)
    torch._foreach_clamp_max_(parameters, bound)


def _gradient(critic: Critic, x: Tensor) -> Tensor:
    """grad s(x) with a graph, in float32 for half types."""
    x = x.requires_grad_()
    with torch.enable_grad():
        scores = critic(x)
        (gradient,) = torch.autograd.grad(_wide(scores).sum(), x, create_graph=True)
    return _wide(gradient)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
