"""Variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decoder_distributions import DecoderDistribution, decoder_distribution
from .latent_model import LatentModel
from .networks import make_networks
from .posteriors import Draws, log_normal, make_posterior
from .terms import Terms


class VAE(LatentModel):
    """Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, arXiv:1312.6114.

    p(z) = N(0, I), p(x|z) factored over pixels, q(z|x) a diagonal Gaussian or a flow of one. The
    bound is ELBO = E_q[ln p(x|z)] - KL(q(z|x) || p(z)) <= ln p(x); the KL of the Gaussian is in
    closed form, what a flow changes of it from the same draws of z.

    Images enter as integer levels (n, C, H, W).

    Args:
        image_shape: (C, H, W).
        latent_features: D, of z.
        decoder: "bernoulli" (more than two levels are binarised dynamically), "gaussian" (learned
            mean and scale of each pixel), "discretized_logistic", or a `DecoderDistribution`.
        posterior: "gaussian", or the flow behind it: "planar", "radial", "iaf", "realnvp"; see
            `posteriors.make_posterior`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
        network: "dense" or "conv": two layers that halve the sides of the image, then dense ones.
        hidden_features: widths of the dense layers of the encoder; the decoder's are the reverse.
        channels: of the first convolution.
        activation: "relu", "elu" or "tanh".
        flow_steps, flow_hidden: of the posterior's flow.

    Raises:
        ValueError: an unknown decoder, posterior or network (the message lists the known ones), an
            image_shape that is not (C, H, W), sizes below 1, n_levels < 2.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 50,
        *,
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
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
        distribution = decoder_distribution(decoder, image_shape[0], n_levels)
        super().__init__(image_shape, distribution, latent_features)
        self.latent_features = latent_features
        self.encoder, self.decoder, features = make_networks(
            network,
            self.image_shape,
            latent_features,
            distribution.parameters,
            hidden_features,
            channels,
            activation,
        )
        self.posterior = make_posterior(
            posterior, features, latent_features, flow_steps=flow_steps, flow_hidden=flow_hidden
        )

    def encode(self, target: Tensor) -> Tensor:
        return self.encoder(self.embed(target))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def log_likelihood_of_latents(self, target: Tensor, z: Tensor) -> Tensor:
        """ln p(x|z) in nats, (n, k), of target (n, C, H, W) and z (n, k, D)."""
        n, k = z.shape[:2]
        parameters = self.decode(z.flatten(0, 1)).unflatten(0, (n, k))
        return self.distribution.log_prob(parameters, target)

    def log_weights(self, h: Tensor, target: Tensor, eps: Tensor) -> Tensor:
        draws = self.posterior.draw(h, eps)
        log_joint = self.log_likelihood_of_latents(target, draws.z) + self.log_prior(draws.z)
        return log_joint - draws.log_q

    def evidence(self, h: Tensor, target: Tensor, eps: Tensor) -> Terms:
        draws = self.posterior.draw(h, eps)
        reconstruction = self.log_likelihood_of_latents(target, draws.z).mean(1)
        return Terms(reconstruction, self.kl(h, draws))

    def mode(self, h: Tensor) -> Tensor:
        return self.posterior.mode(h)

    def log_prior(self, z: Tensor) -> Tensor:
        """ln p(z), (n, k), of z (n, k, D)."""
        return log_normal(z)

    def kl(self, h: Tensor, draws: Draws) -> Tensor:
        """KL(q(z|x) || p(z)), (n,): in closed form as far as there is one."""
        return self.posterior.kl(h, draws)

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """Start the decoder's output at the pixels' statistics in `batch`, levels (n, C, H, W)."""
        target = self.target(batch, noise)
        if self.decoder.shares_bias:  # every pixel counts as an image of one pixel
            target = target.permute(0, 2, 3, 1).reshape(-1, self.image_shape[0], 1, 1)
        self.decoder.start_at(self.distribution.start(target))
