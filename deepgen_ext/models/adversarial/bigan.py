"""BiGAN: a generator and an encoder that are inverses of each other at the optimum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .adversarial_model import AdversarialModel, CriticTerms, Noise
from .choose_networks import make_networks
from .modes import evaluated, frozen
from .networks import SLOPE, DCGANCritic, MLPCritic, Projection
from .objectives import objective as objective_called
from .objectives import r1_penalty

OBJECTIVES = ("non-saturating", "minimax", "hinge")


class BiGAN(AdversarialModel):
    """The critic tells pairs (x, E(x)) from pairs (G(z), z); E and G together deceive it.

    For the best critic the loss is that of a GAN on the joint distributions: it is least where both
    are the same, and there E(G(z)) = z and G(E(x)) = x. How far from it: `reconstruct`. Donahue et
    al. 2017, arXiv:1605.09782; ALI, Dumoulin et al. 2017, arXiv:1606.00704.

    Args:
        objective: "non-saturating", "minimax" or "hinge".
        r1: gamma of the penalty on the critic's gradient at (x, E(x)).
        Others: see `GAN` and `AdversarialModel`; the networks are DCGAN's, or perceptrons.

    Raises:
        ValueError: an argument that makes no sense, by its name.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_levels: int | None = None,
        objective: str = "non-saturating",
        latent_features: int | None = None,
        width: int | None = None,
        r1: float = 0.0,
        n_critic: int = 1,
        ema: float = 0.999,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"objective: expected one of {', '.join(OBJECTIVES)}; got {objective!r}"
            )
        if not r1 >= 0:
            raise ValueError(f"r1: expected 0 or more, got {r1}")
        generators, _ = make_networks(shape, None, latent_features, width, 0)
        latents = generators["generator"].latent_features
        width = width or (64 if len(shape) == 3 else 128)
        generators["encoder"] = Encoder(shape, latents, width)
        super().__init__(
            shape,
            generators,
            JointCritic(shape, latents, width),
            objective_called(objective),
            n_levels=n_levels,
            n_critic=n_critic,
            ema=ema,
        )
        self.r1 = r1

    def critic_terms(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> CriticTerms:
        noise = self.noise_for(x, noise, generator)
        real, z = self.stretch(x, noise), noise["latents"]
        with torch.no_grad():
            fake, code = self.generator(z).to(real.dtype), self.encoder(real).to(z.dtype)
        scores = self.critic(torch.cat((real, fake)), torch.cat((code, z)))
        real_scores, fake_scores = scores[: len(x)], scores[len(x) :]
        penalty = real.new_zeros(())
        if self.r1:
            pairs = torch.cat((real.flatten(1), code), dim=1)
            penalty = self.r1 / 2 * r1_penalty(self._score_pairs, pairs)
        return CriticTerms(
            self.objective.critic_loss(real_scores, fake_scores),
            penalty,
            real_scores.detach().float().mean() - fake_scores.detach().float().mean(),
        )

    def generator_loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What generator and encoder minimise: each wants its pairs taken for the other's."""
        noise = self.noise_for(x, noise, generator)
        real, z = self.stretch(x, noise), noise["latents"]
        fake, code = self.generator(z), self.encoder(real)
        with frozen(self.critic):
            scores = self.critic(
                torch.cat((real, fake.to(real.dtype))), torch.cat((code.to(z.dtype), z))
            )
        # The games of OBJECTIVES are symmetric: s for data is -s for samples.
        loss = self.objective.generator_loss
        return loss(scores[len(x) :]) + loss(-scores[: len(x)])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The latents E(x), (n, latent_features), of levels in the middle of their bins."""
        return evaluated(self.averaged("encoder"), self.stretch(x, self.middle(x)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)): images real in [0, 1], vectors as they come."""
        return self.shrink(evaluated(self.averaged("generator"), self.encode(x)))

    @torch.no_grad()
    def reconstruction_error(self, x: Tensor) -> Tensor:
        """The root of the mean square of G(E(x)) - x over the dimensions of each sample, (n,)."""
        target = self.shrink(self.stretch(x, self.middle(x)))
        return (self.reconstruct(x) - target).flatten(1).square().mean(1).sqrt()

    def _score_pairs(self, pairs: Tensor) -> Tensor:
        x, z = pairs.split((pairs.shape[1] - self.latent_features, self.latent_features), dim=1)
        return self.critic(x.unflatten(1, self.shape), z)


class Encoder(nn.Module):
    """(n, C, H, W) in [-1, 1] or (n, D) -> (n, latent_features)."""

    def __init__(self, shape: Sequence[int], latent_features: int, width: int) -> None:
        super().__init__()
        self.layers, features = _layers(shape, width, batch_norm=True)
        self.output = nn.Linear(features, latent_features)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layers(x).flatten(1))


class JointCritic(nn.Module):
    """Scores (n,) of pairs: features of x and of z, concatenated, and two dense layers."""

    def __init__(self, shape: Sequence[int], latent_features: int, width: int) -> None:
        super().__init__()
        self.layers, features = _layers(shape, width, batch_norm=False)
        hidden = 4 * width
        self.latents = nn.Sequential(nn.Linear(latent_features, hidden), nn.LeakyReLU(SLOPE))
        self.joint = nn.Sequential(nn.Linear(features + hidden, hidden), nn.LeakyReLU(SLOPE))
        self.output = Projection(hidden)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h, latents = self.layers(x).flatten(1), self.latents(z)
        return self.output(self.joint(torch.cat((h, latents.to(h.dtype)), dim=1)))


def _layers(shape: Sequence[int], width: int, *, batch_norm: bool) -> tuple[nn.Module, int]:
    """The layers of a critic without the last, and the features that they put out."""
    is_image = len(shape) == 3
    critic = (
        DCGANCritic(shape, width, batch_norm=batch_norm) if is_image else MLPCritic(*shape, width)
    )
    return critic.layers, critic.features
