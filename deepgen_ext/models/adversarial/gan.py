"""GAN: the two-player game, and DCGAN's networks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .adversarial_model import AdversarialModel, Noise
from .choose_networks import make_networks
from .objectives import objective as objective_called
from .objectives import r1_penalty


class GAN(AdversarialModel):
    """min_G max_D E[ln D(x)] + E[ln(1 - D(G(z)))], whose value is 2 JS(p, q) - ln 4 for the best D.

    Goodfellow et al. 2014, arXiv:1406.2661; the networks of Radford et al. 2016, arXiv:1511.06434.

    Args:
        shape: of a sample, (C, H, W) with even sides of 4 or more, or (D,).
        n_levels: of images; None for vectors.
        objective: "non-saturating", "minimax", "hinge", "least-squares".
        network: "dcgan" or "resnet" for images, "mlp" for vectors.
        latent_features: 128 for images, 16 for vectors.
        width: channels of the largest map (64), or hidden features of the perceptrons (128).
        n_classes: above 0: a conditional model, its losses take labels.
        r1: gamma of the penalty gamma / 2 E[|grad s(x)|^2] on data; it takes batch norm out of the
            critic.
        n_critic, ema: see `AdversarialModel`.

    Raises:
        ValueError: an argument that makes no sense, by its name.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_levels: int | None = None,
        objective: str = "non-saturating",
        network: str | None = None,
        latent_features: int | None = None,
        width: int | None = None,
        n_classes: int = 0,
        r1: float = 0.0,
        n_critic: int = 1,
        ema: float = 0.999,
    ) -> None:
        if not r1 >= 0:
            raise ValueError(f"r1: expected 0 or more, got {r1}")
        if objective == "wasserstein":
            raise ValueError(
                "objective: 'wasserstein' needs a bound on the slope: see WGAN, WGANGP"
            )
        networks = make_networks(
            shape, network, latent_features, width, n_classes, batch_norm=r1 == 0
        )
        game = objective_called(objective)
        super().__init__(shape, *networks, game, n_levels=n_levels, n_critic=n_critic, ema=ema)
        self.r1 = r1

    def penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        if self.r1 == 0:
            return super().penalty(real, fake, labels, noise)
        return self.r1 / 2 * r1_penalty(partial(self.critic, labels=labels), real)
