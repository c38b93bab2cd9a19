"""WGAN-GP: the Wasserstein distance, by a critic whose slope is held at 1 by a penalty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .adversarial_model import AdversarialModel, Noise
from .choose_networks import make_networks
from .objectives import Wasserstein, gradient_penalty


class WGANGP(AdversarialModel):
    """min_G max_s E[s(x)] - E[s(G(z))] - penalty E[(|grad s(x~)| - 1)^2], x~ between x and G(z).

    Gulrajani et al. 2017, arXiv:1704.00028. The critic has no batch norm: a penalty is of each
    sample alone.

    Args:
        penalty: the weight, lambda.
        target: the slope.
        one_sided: see `gradient_penalty`.
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
        penalty: float = 10.0,
        target: float = 1.0,
        one_sided: bool = False,
        network: str | None = None,
        latent_features: int | None = None,
        width: int | None = None,
        n_classes: int = 0,
        n_critic: int = 5,
        ema: float = 0.999,
    ) -> None:
        for name, value in (("penalty", penalty), ("target", target)):
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        networks = make_networks(shape, network, latent_features, width, n_classes)
        super().__init__(
            shape, *networks, Wasserstein(), n_levels=n_levels, n_critic=n_critic, ema=ema
        )
        self.weight, self.target, self.one_sided = penalty, target, one_sided

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Noise:
        return {**super().draw_noise(n, generator), "mix": self._uniform((n,), generator)}

    def penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        critic = self.critic if labels is None else partial(self.critic, labels=labels)
        return self.weight * gradient_penalty(
            critic,
            real,
            fake,
            target=self.target,
            one_sided=self.one_sided,
            mix=noise["mix"],
        )
