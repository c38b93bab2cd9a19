"""What every adversarial model shares: two players, their losses, the average of the generator."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import objectives
from .choose_networks import check_shape
from .modes import evaluated, frozen
from .objectives import Objective

Noise = dict[str, Tensor]


class CriticTerms(NamedTuple):
    """What a critic's step minimises, and what it says: scalars.

    `gap` is E[s(x)] - E[s(G(z))], the critic's idea of how far samples are from data; under a
    Lipschitz constant of 1 it estimates the Wasserstein distance from below.
    """

    objective: Tensor
    penalty: Tensor
    gap: Tensor

    @property
    def loss(self) -> Tensor:
        return self.objective + self.penalty


class AdversarialModel(nn.Module):
    """A generator and a critic. Each step of a loop draws, minimises one loss over one's parameters:

        for _ in range(model.n_critic):
            model.critic_loss(x).backward()      # over critic_parameters(), then after_critic_step()
        model.generator_loss(x).backward()       # over generator_parameters(), after_generator_step()

    Images enter as integer levels (n, C, H, W); the networks see x = (levels + u) / n_levels
    stretched to [-1, 1]. Vectors enter as they are, (n, D). Conditional models take labels (n,).

    Args:
        shape: of a sample, (C, H, W) or (D,).
        generators: the networks of the generator's side, by name; a plain model's "generator" maps
            latents to samples. Each is an attribute of that name.
        critic: maps samples to scores; see `networks`.
        objective: see `objectives`.
        n_levels: of images; None for vectors.
        n_critic: steps of the critic for one of the generator.
        ema: decay of the generator's moving average, which `sample` uses; 0 for none.

    Raises:
        ValueError: n_critic < 1, ema outside of [0, 1), images without levels or vectors with.
    """

    betas = (0.5, 0.999)  # of Adam

    def __init__(
        self,
        shape: Sequence[int],
        generators: Mapping[str, nn.Module],
        critic: nn.Module,
        objective: Objective,
        *,
        n_levels: int | None,
        n_critic: int = 1,
        ema: float = 0.999,
    ) -> None:
        super().__init__()
        if isinstance(n_critic, bool) or not isinstance(n_critic, int) or n_critic < 1:
            raise ValueError(f"n_critic: expected an integer of 1 or more, got {n_critic}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema: expected a number in [0, 1), got {ema}")
        check_shape(shape, n_levels)
        self.shape, self.n_levels = tuple(shape), n_levels
        self.critic, self.objective = critic, objective
        self.n_critic, self.ema = n_critic, ema
        self.names = tuple(generators)
        for name, network in generators.items():
            self.add_module(name, network)
        self.latent_features = getattr(generators.get("generator"), "latent_features", 0)
        self.n_classes = getattr(generators.get("generator"), "n_classes", 0)
        self.averages = nn.ModuleDict()
        if ema:
            self.averages.update(copy.deepcopy(dict(generators)))
            self.averages.requires_grad_(False)
        self.register_buffer("averaged_steps", torch.zeros((), dtype=torch.int64))

    # ------------------------------------------------------------ the two players

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def generator_parameters(self) -> list[nn.Parameter]:
        return [p for name in self.names for p in getattr(self, name).parameters()]

    def averaged(self, name: str) -> nn.Module:
        """The moving average of a network of the generator's side, or itself without one."""
        return self.averages[name] if self.ema else getattr(self, name)

    def optimizer(
        self, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """The paper's, for either player."""
        return torch.optim.Adam(parameters, lr=learning_rate, betas=self.betas)

    def critic_loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What the critic minimises on the data x, a scalar; no gradient goes to the generator."""
        return self.critic_terms(x, labels, noise=noise, generator=generator).loss

    def critic_terms(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> CriticTerms:
        """The parts of `critic_loss`."""
        noise = self.noise_for(x, noise, generator)
        real = self.stretch(x, noise)
        with torch.no_grad():
            fake = self.generator(noise["latents"], labels).to(real.dtype)
        real_scores, fake_scores = self.scores(real, fake, labels)
        return CriticTerms(
            self.objective.critic_loss(real_scores, fake_scores),
            self.penalty(real, fake, labels, noise),
            (real_scores.detach().float().mean() - fake_scores.detach().float().mean()),
        )

    def generator_loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What the generator minimises, a scalar, with as many samples as x has.

        No gradient goes to the critic's parameters.
        """
        noise = self.noise_for(x, noise, generator)
        fake = self.generator(noise["latents"], labels)
        with frozen(self.critic):
            return self.objective.generator_loss(self.critic(fake, *_given(labels)))

    def penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """What is added to the critic's loss, with its weight."""
        return real.new_zeros(())

    def after_critic_step(self) -> None:
        """To be called after each step of the critic's optimiser."""

    @torch.no_grad()
    def after_generator_step(self) -> None:
        """To be called after each step of the generator's optimiser: moves the average.

        Its decay rises to `ema` as (1 + t) / (10 + t): the first steps do not linger.
        """
        if not self.ema:
            return
        t = self.averaged_steps
        weight = 1 - ((1 + t) / (10 + t)).clamp(max=self.ema)
        t += 1
        averages, currents = [], []
        for average, current in self._averages_and_currents():
            if current.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        steps = torch._foreach_sub(currents, averages)
        torch._foreach_mul_(steps, weight.to(currents[0].dtype))
        torch._foreach_add_(averages, steps)

    # ------------------------------------------------------------ samples

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """n samples of the averaged generator: images real in [0, 1], vectors as they come.

        `temperature` scales the latents' deviation. A conditional model draws the classes that it is
        not given.

        Raises:
            ValueError: n < 0, temperature < 0, labels that are not n classes.
        """
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if not temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, got {temperature}")
        like = self._like()
        z = self._normal(n, generator) * temperature
        if self.n_classes and labels is None:
            labels = torch.randint(
                self.n_classes, (n,), generator=generator, device=_device(generator, like)
            )
        if labels is not None:
            labels = labels.to(like.device)
            if labels.numel() != n:
                raise ValueError(f"labels: expected {n} classes, got {tuple(labels.shape)}")
        if n == 0:
            return like.new_zeros((0, *self.shape))
        return self.shrink(evaluated(self.averaged("generator"), z, labels))

    # ------------------------------------------------------------ data and noise

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Noise:
        """All random numbers of one step on n samples, by name: a row each for every sample."""
        noise = {"latents": self._normal(n, generator)}
        if self.n_levels is not None:
            noise["dequantisation"] = self._uniform((n, *self.shape), generator)
        return noise

    def noise_for(self, x: Tensor, noise: Noise | None, generator: torch.Generator | None) -> Noise:
        """The given noise, or that of a step on x; x is checked."""
        if x.ndim != 1 + len(self.shape) or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"x: expected (n, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        return self.draw_noise(x.shape[0], generator) if noise is None else noise

    def middle(self, x: Tensor) -> Noise:
        """The noise that puts levels into the middle of their bins: `quantize` finds them again."""
        return {"dequantisation": torch.full(x.shape, 0.5, device=x.device)}

    def stretch(self, x: Tensor, noise: Noise) -> Tensor:
        """What the critic sees of data: levels dequantised and stretched to [-1, 1]."""
        dtype = next(self.critic.parameters()).dtype
        if self.n_levels is None:
            return x.to(dtype)
        u = noise["dequantisation"].to(dtype)
        return objectives.dequantize(x, self.n_levels, noise=u) * 2 - 1

    def shrink(self, x: Tensor) -> Tensor:
        """Back from `stretch`, but for the levels: [-1, 1] to [0, 1]."""
        return x if self.n_levels is None else (x + 1) / 2

    def scores(
        self, real: Tensor, fake: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The critic's, of both. In one pass, so that spectral norms step once for both, unless a
        batch norm must see them apart.
        """
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.critic.modules()):
            return self.critic(real, *_given(labels)), self.critic(fake, *_given(labels))
        both = None if labels is None else torch.cat((labels, labels))
        scores = self.critic(torch.cat((real, fake)), *_given(both))
        return scores[: real.shape[0]], scores[real.shape[0] :]

    def _like(self) -> Tensor:
        return next(iter(self.generator_parameters()))

    def _averages_and_currents(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name in self.names:
            yield from zip(_state(self.averages[name]), _state(getattr(self, name)), strict=True)

    def _normal(self, n: int, generator: torch.Generator | None) -> Tensor:
        like = self._like()
        shape, device = (n, self.latent_features), _device(generator, like)
        return torch.randn(shape, generator=generator, device=device).to(like)

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        like = self._like()
        return torch.rand(shape, generator=generator, device=_device(generator, like)).to(like)


def _given(labels: Tensor | None) -> tuple[Tensor, ...]:
    return () if labels is None else (labels,)


def _state(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _device(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device
