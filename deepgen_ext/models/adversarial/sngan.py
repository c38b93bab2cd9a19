"""SN-GAN: a critic of spectrally normalised layers, all norms in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import spectral_norm_all
from .adversarial_model import AdversarialModel
from .choose_networks import make_networks
from .objectives import objective as objective_called


class SNGAN(AdversarialModel):
    """A GAN whose critic's weights are divided by their spectral norms in each forward pass.

    The product of the norms, 1 each, bounds the critic's Lipschitz constant with respect to its
    input, up to the leaky ReLUs, which are 1-Lipschitz, and the root of the taps, by which the norm
    of a convolution may exceed its matrix's. Miyato et al. 2018, arXiv:1802.05957.

    Args:
        objective: "hinge", or any of `objectives.OBJECTIVES`.
        n_power_iterations: of u and v, in each forward pass in training.
        Others: see `GAN` and `AdversarialModel`.

    Raises:
        ValueError: an argument that makes no sense, by its name.
    """

    betas = (0.0, 0.9)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_levels: int | None = None,
        objective: str = "hinge",
        network: str | None = None,
        latent_features: int | None = None,
        width: int | None = None,
        n_classes: int = 0,
        n_power_iterations: int = 1,
        n_critic: int = 5,
        ema: float = 0.999,
    ) -> None:
        generators, critic = make_networks(
            shape, network, latent_features, width, n_classes, between=True
        )
        spectral_norm_all(critic, n_power_iterations=n_power_iterations)
        game = objective_called(objective)
        super().__init__(
            shape, generators, critic, game, n_levels=n_levels, n_critic=n_critic, ema=ema
        )
