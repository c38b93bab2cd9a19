"""WGAN: the Wasserstein distance, by a critic whose weights are clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .adversarial_model import AdversarialModel
from .choose_networks import make_networks
from .objectives import Wasserstein, clip_weights


class WGAN(AdversarialModel):
    """min_G max_s E[s(x)] - E[s(G(z))] over critics s of weights in [-clip, clip].

    These are k-Lipschitz for some k that nobody knows: the maximum is at most k W(p, q), and follows
    the quality of samples. Arjovsky et al. 2017, arXiv:1701.07875: RMSprop, five steps of the critic.

    Args:
        clip: bound of every parameter of the critic, after each of its steps.
        Others: see `GAN` and `AdversarialModel`.

    Raises:
        ValueError: an argument that makes no sense, by its name.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_levels: int | None = None,
        clip: float = 0.01,
        network: str | None = None,
        latent_features: int | None = None,
        width: int | None = None,
        n_classes: int = 0,
        n_critic: int = 5,
        ema: float = 0.999,
    ) -> None:
        if not clip > 0:
            raise ValueError(f"clip: expected a positive number, got {clip}")
        networks = make_networks(shape, network, latent_features, width, n_classes)
        super().__init__(
            shape, *networks, Wasserstein(), n_levels=n_levels, n_critic=n_critic, ema=ema
        )
        self.clip = clip
        self.after_critic_step()

    def optimizer(
        self, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=learning_rate)

    def after_critic_step(self) -> None:
        clip_weights(self.critic, self.clip)
