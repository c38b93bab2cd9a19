"""Families of approximate posteriors q(z|x): a diagonal Gaussian, alone or followed by a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...nn import MLP
from ...nn.transforms import (
    AffineCoupling,
    Inverse,
    InverseAutoregressive,
    Planar,
    Radial,
    Sequential,
    Transform,
    partition_sizes,
)
from ...objectives import standard_normal_log_prob

_MAX_LOG_SCALE = 7.0


class Draws(NamedTuple):
    """z (n, k, D), and ln q(z|x) (n, k) as a function of the noise that z was made of.

    `base` and `base_log_q` are the same before the flow: of the Gaussian.
    """

    z: Tensor
    log_q: Tensor
    base: Tensor
    base_log_q: Tensor


class Posterior(nn.Module):
    """z = flow(mean + scale * eps; context): mean, scale and context are linear in the features.

    Without a flow a diagonal Gaussian. Where there is one, its layers get an own context for each
    image: the amortised flows of Rezende & Mohamed 2015 and Kingma et al. 2016.

    Args:
        in_features: of the encoder's output h, (n, in_features).
        latent_features: D.
        flow: of (rows, D), called with a context (rows, context_features); None for a Gaussian.
        context_features: of what the flow is told about an image.
    """

    def __init__(
        self,
        in_features: int,
        latent_features: int,
        flow: Transform | None = None,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.latent_features = latent_features
        self.moments = nn.Linear(in_features, 2 * latent_features)
        self.context = nn.Linear(in_features, context_features) if flow is not None else None
        self.flow = flow

    def draw(self, h: Tensor, eps: Tensor) -> Draws:
        """k draws for each image, reparametrised: h (n, F), eps (n, k, D) standard normal."""
        mean, log_scale = self.base(h)
        z = mean.unsqueeze(1) + log_scale.exp().unsqueeze(1) * eps
        log_q = log_normal(eps) - log_scale.sum(1, keepdim=True)
        if self.flow is None:
            return Draws(z, log_q, z, log_q)
        moved, log_det = self._flow(self.flow, z, h)
        return Draws(moved, log_q - log_det, z, log_q)

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        """ln q(z|x), (n, k), of any z (n, k, D): a flow is inverted."""
        mean, log_scale = self.base(h)
        log_det = 0.0
        if self.flow is not None:
            z, log_det = self._flow(Inverse(self.flow), z, h)
        eps = (z - mean.unsqueeze(1)) * torch.exp(-log_scale).unsqueeze(1)
        return log_normal(eps) - log_scale.sum(1, keepdim=True) + log_det

    def log_prob_of_fixed(self, z: Tensor, h: Tensor) -> Tensor:
        """`forward`, a function of z alone: constant in h and in the parameters."""
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        return torch.func.functional_call(self, fixed, (z, h.detach()))

    def kl(self, h: Tensor, draws: Draws) -> Tensor:
        """KL(q(z|x) || N(0, I)), (n,): that of the Gaussian in closed form, and from the draws what
        the flow changes of it.

        Without the closed form the noise of the draws drowns the gradient at the start, and latents
        stay unused for long.
        """
        mean, log_scale = self.base(h)
        closed = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)
        if self.flow is None:
            return closed
        after = draws.log_q - log_normal(draws.z)
        before = draws.base_log_q - log_normal(draws.base)
        return closed + (after - before).mean(1)

    def mode(self, h: Tensor) -> Tensor:
        """Where the noise is zero, (n, D): the mean of a Gaussian."""
        mean, _ = self.base(h)
        if self.flow is None:
            return mean
        return self._flow(self.flow, mean.unsqueeze(1), h)[0].squeeze(1)

    def base(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale, (n, D) each, of the Gaussian."""
        mean, log_scale = self.moments(h).chunk(2, 1)
        return mean, log_scale.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE)

    def _flow(self, flow: Transform, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        n, k, features = z.shape
        context = self.context(h).repeat_interleave(k, 0)
        z, log_det = flow(z.reshape(n * k, features), context)
        return z.view(n, k, features), log_det.view(n, k)


def log_normal(z: Tensor) -> Tensor:
    """ln N(z; 0, I), (n, k), of z (n, k, D)."""
    return standard_normal_log_prob(z.flatten(0, 1)).view(z.shape[:2])


def _planar(features: int, context_features: int, steps: int, hidden: int) -> Transform:
    return Planar(features, steps, context_features)


def _radial(features: int, context_features: int, steps: int, hidden: int) -> Transform:
    return Radial(features, steps, context_features)


def _iaf(features: int, context_features: int, steps: int, hidden: int) -> Transform:
    return Sequential(
        *(
            Inverse(
                InverseAutoregressive(
                    features,
                    (hidden, hidden),
                    context_features=context_features,
                    order="reverse" if step % 2 else "natural",
                )
            )
            for step in range(steps)
        )
    )


def _realnvp(features: int, context_features: int, steps: int, hidden: int) -> Transform:
    if features < 2:
        raise ValueError(
            f"latent_features: posterior='realnvp' couples halves, expected 2 or more, got {features}"
        )
    layers = []
    for step in range(steps):
        seen, moved = partition_sizes(features, swap=step % 2 == 1)
        conditioner = MLP(seen, 2 * moved, hidden, context_features=context_features)
        layers.append(AffineCoupling(conditioner, swap=step % 2 == 1))
    return Sequential(*layers)


# Each with the number of steps that it takes by default.
FLOWS: dict[str, tuple[Callable[[int, int, int, int], Transform], int]] = {
    "planar": (_planar, 16),
    "radial": (_radial, 16),
    "iaf": (_iaf, 2),
    "realnvp": (_realnvp, 4),
}
POSTERIORS = ("gaussian", *FLOWS)
_CONTEXT_FEATURES = 32


def make_posterior(
    posterior: str,
    in_features: int,
    latent_features: int,
    *,
    flow_steps: int | None = None,
    flow_hidden: int = 64,
) -> Posterior:
    """The family of this name.

    Args:
        posterior: "gaussian"; "planar" or "radial", fused chains; "iaf", autoregressive layers in
            the direction of one pass, in alternating order; "realnvp", affine couplings.
        in_features, latent_features: as of `Posterior`.
        flow_steps: of the flow; None: 16 planar or radial ones, 2 of IAF, 4 couplings.
        flow_hidden: width of the networks inside the layers of "iaf" and "realnvp".

    Raises:
        ValueError: an unknown name (the known ones are listed), sizes below 1, "realnvp" of one
            feature.
    """
    if posterior not in POSTERIORS:
        raise ValueError(f"posterior: expected one of {', '.join(POSTERIORS)}; got {posterior!r}")
    for name, value in (("latent_features", latent_features), ("flow_hidden", flow_hidden)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if posterior == "gaussian":
        return Posterior(in_features, latent_features)
    make, default_steps = FLOWS[posterior]
    steps = default_steps if flow_steps is None else flow_steps
    if steps < 1:
        raise ValueError(f"flow_steps: expected a positive number, got {steps}")
    flow = make(latent_features, _CONTEXT_FEATURES, steps, flow_hidden)
    return Posterior(in_features, latent_features, flow, _CONTEXT_FEATURES)
