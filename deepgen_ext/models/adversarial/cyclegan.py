"""CycleGAN: two domains without pairs, and a translator in each direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adversarial_model import AdversarialModel, CriticTerms, Noise
from .image_buffer import ImageBuffer
from .modes import evaluated, frozen
from .networks import halvings
from .objectives import objective as objective_called
from .patch_networks import PatchCritic, Translator

Pair = tuple[Tensor, Tensor]
DIRECTIONS = ("a-to-b", "b-to-a")


class CycleGAN(AdversarialModel):
    """Translators a -> b and b -> a, a critic of patches for each domain, no pairs.

    L = L_GAN(a -> b) + L_GAN(b -> a) + cycle (E|back(to(a)) - a| + E|to(back(b)) - b|)
        + cycle identity (E|to(b) - b| + E|back(a) - a|)

    in means over pixels in [-1, 1]. Nothing but the cycle ties a translation to its input: it may
    still permute what both domains share, and hide one domain in the other as noise that cannot be
    seen. Zhu et al. 2017, arXiv:1703.10593; hiding: Chu et al. 2017, arXiv:1712.02950.

    Its data are pairs (a, b) of levels, (n, C, H, W) each, that have nothing to do with each other.

    Args:
        shape: (C, H, W) of both domains, even sides of 4 or more.
        objective: "least-squares", or any but "wasserstein".
        width: channels of the largest map.
        blocks: residual blocks between the translators' halvings and doublings.
        cycle, identity: weights.
        buffer: past translations kept for each critic; a batch must not be larger. 0 for none.
        Others: see `AdversarialModel`.

    Raises:
        ValueError: an argument that makes no sense, by its name.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        n_levels: int | None = None,
        objective: str = "least-squares",
        width: int = 32,
        blocks: int = 3,
        cycle: float = 10.0,
        identity: float = 0.5,
        buffer: int = 64,
        n_critic: int = 1,
        ema: float = 0.999,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"shape: expected (C, H, W), got {tuple(shape)}")
        if objective == "wasserstein":
            raise ValueError("objective: 'wasserstein' needs a bound on the slope of the critics")
        for name, value in (("cycle", cycle), ("identity", identity)):
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        for name, value in (("width", width), ("blocks", blocks)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if buffer < 0:
            raise ValueError(f"buffer: expected 0 or more, got {buffer}")
        times = min(2, halvings(shape))
        translators = {
            name: Translator(shape[0], width, times, blocks) for name in ("to_b", "to_a")
        }
        critics = nn.ModuleDict({name: PatchCritic(shape[0], width, times) for name in ("a", "b")})
        game = objective_called(objective)
        super().__init__(
            shape, translators, critics, game, n_levels=n_levels, n_critic=n_critic, ema=ema
        )
        self.cycle, self.identity = cycle, identity
        self.buffers_of = nn.ModuleDict({name: ImageBuffer(shape, buffer) for name in ("a", "b")})

    def critic_terms(
        self,
        x: Pair,
        labels: None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> CriticTerms:
        noise = self.noise_for(x, noise, generator)
        real = self._stretched(x, noise)
        with torch.no_grad():
            fake = {"b": self.to_b(real["a"]), "a": self.to_a(real["b"])}
        loss, gap = 0.0, 0.0
        for name in ("a", "b"):
            old = self.buffers_of[name].exchange(
                fake[name], noise[f"order_{name}"], noise[f"swap_{name}"]
            )
            scores = self.critic[name](torch.cat((real[name], old.to(real[name].dtype))))
            real_scores, fake_scores = scores[: len(old)], scores[len(old) :]
            loss = loss + self.objective.critic_loss(real_scores, fake_scores) / 2
            gap = gap + (real_scores.detach().float().mean() - fake_scores.detach().float().mean())
        return CriticTerms(loss, loss.new_zeros(()), gap / 2)

    def generator_loss(
        self,
        x: Pair,
        labels: None = None,
        *,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = self.noise_for(x, noise, generator)
        real = self._stretched(x, noise)
        a, b = real["a"], real["b"]
        # Both inputs of a translator in one pass: instance norms do not mix them.
        fake_b, same_b = self.to_b(torch.cat((a, b))).split((len(a), len(b)))
        fake_a, same_a = self.to_a(torch.cat((b, a))).split((len(b), len(a)))
        with frozen(self.critic):
            loss = self.objective.generator_loss(self.critic["a"](fake_a))
            loss = loss + self.objective.generator_loss(self.critic["b"](fake_b))
        loss = loss + self.cycle * (
            F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b)
        )
        identity = F.l1_loss(same_b, b) + F.l1_loss(same_a, a)
        return loss + self.cycle * self.identity * identity

    @torch.no_grad()
    def translate(self, x: Tensor, direction: str) -> Tensor:
        """Levels of one domain, (n, C, H, W), as images of the other, real in [0, 1].

        Args:
            direction: "a-to-b" or "b-to-a".

        Raises:
            ValueError: another direction or shape.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected {' or '.join(DIRECTIONS)}, got {direction!r}")
        self._check(x, "x")
        network = self.averaged("to_b" if direction == "a-to-b" else "to_a")
        return self.shrink(evaluated(network, self.stretch(x, self.middle(x))))

    @torch.no_grad()
    def there_and_back(self, x: Tensor, direction: str) -> Pair:
        """`translate(x)`, and that translated back, both real in [0, 1]."""
        there = self.translate(x, direction)
        network = self.averaged("to_a" if direction == "a-to-b" else "to_b")
        return there, self.shrink(evaluated(network, there * 2 - 1))

    @torch.no_grad()
    def cycle_error(self, x: Tensor, direction: str) -> Tensor:
        """Mean |there and back - x| over the pixels in [0, 1] of each image, (n,)."""
        target = self.shrink(self.stretch(x, self.middle(x)))
        return (self.there_and_back(x, direction)[1] - target).flatten(1).abs().mean(1)

    def sample(self, *args: object, **kwargs: object) -> Tensor:
        """Refused: a CycleGAN has no latents to draw.

        Raises:
            ValueError: always; see `translate`.
        """
        raise ValueError("a CycleGAN draws no samples, it translates: see translate(x, direction)")

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Noise:
        """Of one step on n images of each domain."""
        noise = {}
        for name in ("a", "b"):
            noise[f"dequantisation_{name}"] = self._uniform((n, *self.shape), generator)
            noise[f"order_{name}"] = self._uniform((self.buffers_of[name].size,), generator)
            noise[f"swap_{name}"] = self._uniform((n,), generator)
        return noise

    def noise_for(self, x: Pair, noise: Noise | None, generator: torch.Generator | None) -> Noise:
        for name, domain in zip(("a", "b"), x, strict=True):
            self._check(domain, name)
        if len(x[0]) != len(x[1]):
            raise ValueError(f"x: as many of a as of b, got {len(x[0])} and {len(x[1])}")
        return self.draw_noise(len(x[0]), generator) if noise is None else noise

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"{name}: expected (n, {wanted}), got {tuple(x.shape)}")

    def _stretched(self, x: Pair, noise: Noise) -> dict[str, Tensor]:
        return {
            name: self.stretch(domain, {"dequantisation": noise[f"dequantisation_{name}"]})
            for name, domain in zip(("a", "b"), x, strict=True)
        }
