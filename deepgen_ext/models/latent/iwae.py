"""Importance-weighted autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decoder_distributions import DecoderDistribution
from .importance import doubly_reparametrized, log_mean_exp, with_value
from .posteriors import log_normal
from .vae import VAE

GRADIENTS = ("plain", "resampled", "dreg")


class IWAE(VAE):
    """Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders", 2016, arXiv:1509.00519.

    A `VAE` trained on F_k = E[ln 1/k sum_i w_i], w_i = p(x, z_i) / q(z_i|x), with k draws z_i of
    q(z|x). F_1 is the ELBO, F_k <= F_{k+1} <= ln p(x).

    The gradient of `loss`, with v_i = w_i / sum_j w_j the self-normalised weights:

    ===========  =======================================================================
    "plain"      sum_i v_i grad ln w_i, z_i reparametrised: the gradient of F_k itself
    "resampled"  grad ln w_i of one draw, taken with probability v_i: the same in
                 expectation. k passes forward without a graph, then one forward and
                 backward: about a third of the time, and the memory of k = 1
    "dreg"       doubly reparametrised (Tucker et al. 2019, arXiv:1810.04152): the same in
                 expectation, with less variance for the encoder. With a flow as the
                 posterior it inverts the flow once
    ===========  =======================================================================

    Args:
        k: draws of z for each image in training.
        gradient: "plain", "resampled" or "dreg".
        image_shape, latent_features, decoder, posterior, n_levels, network, hidden_features,
            channels, activation, flow_steps, flow_hidden: as of `VAE`.

    Raises:
        ValueError: k < 1, an unknown gradient, and what `VAE` refuses.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 50,
        *,
        k: int = 5,
        gradient: str = "plain",
        decoder: str | DecoderDistribution = "bernoulli",
        posterior: str = "gaussian",
        n_levels: int = 256,
        network: str = "dense",
        hidden_features: Sequence[int] = (200, 200),
        channels: int = 32,
        activation: str = "relu",
        flow_steps: int | None = None,
        flow_hidden: int = 64,
    ) -> None:
        if k < 1:
            raise ValueError(f"k: expected 1 or more, got {k}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient: expected one of {', '.join(GRADIENTS)}; got {gradient!r}")
        super().__init__(
            image_shape,
            latent_features,
            decoder=decoder,
            posterior=posterior,
            n_levels=n_levels,
            network=network,
            hidden_features=hidden_features,
            channels=channels,
            activation=activation,
            flow_steps=flow_steps,
            flow_hidden=flow_hidden,
        )
        self.k = k
        self.gradient = gradient

    def bound(
        self,
        levels: Tensor,
        k: int | None = None,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One estimate of F_k for each image, (n,) in nats: ln 1/k sum_i w_i.

        Its gradient is the "plain" one. Arguments and errors as of `VAE.elbo`; k is the model's own
        when None.
        """
        target = self.target(levels, noise, generator)
        eps = self.draw_eps(target.shape[0], self.k if k is None else k, eps, generator)
        return log_mean_exp(self.log_weights(self.encode(target), target, eps))

    def loss(
        self,
        levels: Tensor,
        *,
        noise: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of -`bound` in the model's unit, with the gradient that was chosen."""
        if self.gradient == "plain":
            return super().loss(levels, noise=noise, eps=eps, generator=generator)
        target = self.target(levels, noise, generator)
        eps = self.draw_eps(target.shape[0], self.k, eps, generator)
        estimate = self._dreg if self.gradient == "dreg" else self._resampled
        return self.in_units(estimate(target, eps, generator)).mean()

    def _dreg(self, target: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        h = self.encode(target)
        z = self.posterior.draw(h, eps).z
        log_q = self.posterior.log_prob_of_fixed(z, h)
        log_weights = self.log_likelihood_of_latents(target, z) + log_normal(z) - log_q
        return with_value(log_mean_exp(log_weights), doubly_reparametrized(log_weights, z))

    def _resampled(self, target: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            log_weights = self.log_weights(self.encode(target), target, eps)
            weights = torch.softmax(log_weights, 1)
            # A row of nan has no draw to take; it stays nan and the loop that trains says so.
            chosen = torch.multinomial(weights.nan_to_num(1.0), 1, generator=generator)
        rows = torch.arange(eps.shape[0], device=eps.device)
        eps = eps[rows, chosen[:, 0]].unsqueeze(1)
        gradient_of = self.log_weights(self.encode(target), target, eps).squeeze(1)
        return with_value(log_mean_exp(log_weights), gradient_of)
