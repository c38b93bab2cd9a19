"""Adaptive density estimation: a VAE on the feature space of a flow, trained adversarially too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...nn import spectral_norm_all
from ...nn.transforms import Transform
from ..adversarial import DCGANCritic, MLPCritic, ResNetCritic, r1_penalty
from ..adversarial import objective as objective_called
from ..adversarial.adversarial_model import CriticTerms, Noise
from ..adversarial.modes import frozen
from ..flow import Flow
from .feature_space import FeatureSpace, GaussianOfFeatures, SharedScale, feature_flow
from .vae import VAE

CRITICS = ("dcgan", "resnet", "mlp")

# The rows of the paper's ablation, as options of `FlowVAE`.
ABLATION: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "GAN": {"likelihood": False, "adversarial": True, "flow": None},
        "VAE": {"likelihood": True, "adversarial": False, "flow": None},
        "V-ADE": {"likelihood": True, "adversarial": False},
        "AV-GDE": {"likelihood": True, "adversarial": True, "flow": None},
        "AV-ADE": {"likelihood": True, "adversarial": True},
    }
)


class FlowVAE(VAE):
    """Lucas, Shmelkov, Alahari, Schmid & Verbeek, "Adaptive Density Estimation for Generative
    Models", 2019, arXiv:1901.01091.

    z ~ N(0, I); y|z ~ N(mu(z), sigma(z)), independent in its elements; x = f^-1(y) with a flow f
    that is trained along. The flow relaxes the independence of the pixels given z, and since its
    inverse is as fast as itself the samples can be judged by a critic while the bound

        ln p(x) >= E_q[ln N(f(x); mu(z), sigma(z))] + ln |det df/dx| - KL(q(z|x) || p(z))

    is maximised: the bound covers all of the data, the critic keeps the samples good. x is
    dequantised uniformly; likelihoods are in bits per dimension.

    ====== ========== =========== ====
           likelihood adversarial flow
    ====== ========== =========== ====
    GAN    no         yes         no
    VAE    yes        no          no
    V-ADE  yes        no          yes
    AV-GDE yes        yes         no
    AV-ADE yes        yes         yes
    ====== ========== =========== ====

    Args:
        image_shape: (C, H, W).
        latent_features: D, of z.
        likelihood: whether `generator_loss` has the bound in it. Without it mu(z) is all that the
            generator has: samples are f^-1(mu(z)), sigma is the same for every z, and it, the
            encoder and the posterior (`inference_parameters`) are left to be fitted to the finished
            generator by `loss`, which then tells its likelihood.
        adversarial: whether there is a critic.
        flow: "realnvp", "glow", a `Flow` of images or a `Transform` of (n, C, H, W) to as large
            features, or None: pixels are the features.
        flow_levels, flow_depth, flow_channels: of "realnvp" and "glow": scales, couplings or steps
            of each, width of the coupling networks.
        critic: "dcgan", "resnet" or "mlp", of `critic_channels`, with spectral norms (Miyato et al.
            2018) where r1 is 0; or a module from images (n, C, H, W) in about [-1, 1] to scores (n,).
        objective: of critic and generator, of `adversarial.OBJECTIVES`.
        adversarial_weight: of the critic's scores, against the bound in bits/dim.
        r1: gamma of the penalty gamma / 2 E[|grad s(x)|^2] on the critic's slope at the data.
        n_critic: steps of the critic for one of the generator.
        posterior, n_levels, network, hidden_features, channels, activation: as of `VAE`.

    `initialize` comes before the first step. Training without a critic is that of a `VAE`, by
    `loss`. With one it follows `adversarial.AdversarialModel`: steps of `critic_loss` over
    `critic_parameters`, then of `generator_loss` over `generator_parameters`.

    Raises:
        ValueError: neither likelihood nor adversarial, an unknown flow, critic or objective, sides
            that flow_levels do not divide, a negative weight, n_critic < 1, and what `VAE` refuses.
    """

    betas = (0.5, 0.999)  # of Adam, for either player
    n_classes = 0

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 50,
        *,
        likelihood: bool = True,
        adversarial: bool = False,
        flow: str | Flow | Transform | None = "realnvp",
        flow_levels: int = 2,
        flow_depth: int = 3,
        flow_channels: int = 32,
        critic: str | nn.Module = "dcgan",
        critic_channels: int = 32,
        objective: str = "hinge",
        adversarial_weight: float = 1.0,
        r1: float = 0.0,
        n_critic: int = 1,
        posterior: str = "gaussian",
        n_levels: int = 256,
        network: str = "dense",
        hidden_features: Sequence[int] = (200, 200),
        channels: int = 32,
        activation: str = "relu",
    ) -> None:
        if not (likelihood or adversarial):
            raise ValueError("likelihood=False needs adversarial=True: nothing else would train it")
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape: expected (C, H, W), got {image_shape}")
        for name, value in (("adversarial_weight", adversarial_weight), ("r1", r1)):
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        if isinstance(n_critic, bool) or not isinstance(n_critic, int) or n_critic < 1:
            raise ValueError(f"n_critic: expected an integer of 1 or more, got {n_critic}")
        flow = feature_flow(flow, image_shape, flow_levels, flow_depth, flow_channels, n_levels)
        shared_scale = None if likelihood else SharedScale(image_shape)
        super().__init__(
            image_shape,
            latent_features,
            decoder=GaussianOfFeatures(image_shape[0], n_levels, flow, shared_scale),
            posterior=posterior,
            n_levels=n_levels,
            network=network,
            hidden_features=hidden_features,
            channels=channels,
            activation=activation,
        )
        self.likelihood, self.adversarial = likelihood, adversarial
        self.flow, self.shared_scale = flow, shared_scale
        self.objective = objective_called(objective)
        self.adversarial_weight, self.r1, self.n_critic = adversarial_weight, r1, n_critic
        self.critic = None
        if adversarial:
            self.critic = _critic(critic, image_shape, critic_channels, bounded=r1 == 0)

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """From levels (n, C, H, W): first the flow's `ActNorm`, then, at the statistics of the
        features, the decoder's output.
        """
        x = self.target(batch, noise).to(next(self.parameters()).dtype)
        if isinstance(self.flow, FeatureSpace):
            self.flow.flow.initialize(x)
        y, _ = self.distribution.features(x)
        if self.decoder.shares_bias:  # as of `VAE`
            y = y.permute(0, 2, 3, 1).reshape(-1, self.image_shape[0], 1, 1)
        self.decoder.start_at(self.distribution.start(y))

    # ------------------------------------------------------------ the two players

    def critic_parameters(self) -> list[nn.Parameter]:
        return [] if self.critic is None else list(self.critic.parameters())

    def generator_parameters(self) -> list[nn.Parameter]:
        """All that `generator_loss` trains: with the bound in it the whole VAE."""
        modules = [self.decoder] if self.flow is None else [self.decoder, self.flow]
        parameters = [p for module in modules for p in module.parameters()]
        return parameters + self.inference_parameters() if self.likelihood else parameters

    def inference_parameters(self) -> list[nn.Parameter]:
        """Encoder and posterior, and without the likelihood the shared scale."""
        modules = [self.encoder, self.posterior]
        if self.shared_scale is not None:
            modules.append(self.shared_scale)
        return [p for module in modules for p in module.parameters()]

    def optimizer(
        self, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate, betas=self.betas)

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Noise:
        """All random numbers of one step on n images, by name, a row each for every image:
        "dequantisation", uniform; "latents" and "features" of samples and "posterior", normal.
        """
        like = next(self.parameters())
        device = like.device if generator is None else generator.device
        shapes = {
            "latents": (n, self.noise_features),
            "features": (n, *self.image_shape),
            "posterior": (n, self.k, self.noise_features),
        }
        noise = {
            name: torch.randn(shape, generator=generator, device=device).to(like)
            for name, shape in shapes.items()
        }
        uniform = torch.rand((n, *self.image_shape), generator=generator, device=device)
        return noise | {"dequantisation": uniform.to(like)}

    def generate(self, noise: Noise) -> Tensor:
        """Samples (n, C, H, W), real x about in [0, 1], differentiable."""
        parameters = self.decode(self.latents_of_noise(noise["latents"]))
        return self.distribution.draw(parameters, None, normals=noise["features"])

    def critic_loss(
        self,
        levels: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What the critic minimises, a scalar; no gradient goes to the generator."""
        return self.critic_terms(levels, labels, noise=noise, generator=generator).loss

    def critic_terms(
        self,
        levels: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> CriticTerms:
        """The parts of `critic_loss`, of levels or real x (n, C, H, W).

        Raises:
            ValueError: adversarial=False, labels, what `target` refuses.
        """
        critic = self._critic_for(labels)
        noise = self.draw_noise(len(levels), generator) if noise is None else noise
        real = self._seen(self.target(levels, noise["dequantisation"]))
        with torch.no_grad():
            fake = self._seen(self.generate(noise))
        # In one pass: spectral norms step once for both.
        real_scores, fake_scores = critic(torch.cat((real, fake))).chunk(2)
        penalty = self.r1 / 2 * r1_penalty(critic, real) if self.r1 else real.new_zeros(())
        gap = real_scores.detach().float().mean() - fake_scores.detach().float().mean()
        return CriticTerms(self.objective.critic_loss(real_scores, fake_scores), penalty, gap)

    def generator_loss(
        self,
        levels: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """adversarial_weight * (the critic's scores), plus -bound in bits/dim where likelihood.

        A scalar; no gradient goes to the critic. Errors as of `critic_terms`.
        """
        critic = self._critic_for(labels)
        noise = self.draw_noise(len(levels), generator) if noise is None else noise
        loss = 0.0
        if self.likelihood:  # first: this direction of the flow is the one that initialises it
            loss = self.loss(levels, noise=noise["dequantisation"], eps=noise["posterior"])
        with frozen(critic):
            scores = critic(self._seen(self.generate(noise)))
        return loss + self.adversarial_weight * self.objective.generator_loss(scores)

    def after_critic_step(self) -> None:
        """Nothing; loops of adversarial models call it."""

    def after_generator_step(self) -> None:
        """Nothing; loops of adversarial models call it."""

    def _seen(self, x: Tensor) -> Tensor:
        """What the critic sees of x: [0, 1] becomes [-1, 1]."""
        return self.embed(x)

    def _critic_for(self, labels: Tensor | None) -> nn.Module:
        if self.critic is None:
            raise ValueError("adversarial=False: the model has no critic")
        if labels is not None:
            raise ValueError("labels: the model has no classes")
        return self.critic


def _critic(
    critic: str | nn.Module, image_shape: tuple[int, int, int], channels: int, *, bounded: bool
) -> nn.Module:
    if isinstance(critic, nn.Module):
        return critic
    if critic not in CRITICS:
        raise ValueError(
            f"critic: expected one of {', '.join(CRITICS)}, or a module; got {critic!r}"
        )
    if critic == "dcgan":
        made = DCGANCritic(image_shape, channels, between=True)
    elif critic == "resnet":
        made = ResNetCritic(image_shape, channels)
    else:
        made = nn.Sequential(nn.Flatten(), MLPCritic(math.prod(image_shape), channels))
    if bounded:
        spectral_norm_all(made)
    return made
