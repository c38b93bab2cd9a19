"""What an ELBO is made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """Both parts of an ELBO, (n,) each, in nats: E_q[ln p(x|z)] and KL(q(z|x) || p(z))."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        return self.reconstruction - self.kl


class LevelTerms(NamedTuple):
    """The same with latents in levels, the top one first: E_q[ln p(x|z)], (n,), and for each level
    E_q[KL(q(z_l|x, z_above) || p(z_l|z_above))], (n,), in nats.
    """

    reconstruction: Tensor
    kl_by_level: tuple[Tensor, ...]

    @property
    def kl(self) -> Tensor:
        return sum(self.kl_by_level)

    @property
    def elbo(self) -> Tensor:
        return self.reconstruction - self.kl
