"""``deepgen cyclegan-failure``: translations that the losses cannot tell from right ones.

Digits become their negatives, from images without pairs. The right counterpart of each image is
known here, and no term of the loss asks for it: where h permutes the images of b without changing
their distribution, h(to_b(.)) and to_a(h^-1(.)) have the same losses as to_b and to_a. So a CycleGAN may
turn every 0 into a convincing negative of an 8, and back again. Which permutation it finds, its
start decides: two seeds, two answers. Zhu et al. 2017, arXiv:1703.10593, section 6, saw labels of
trees and buildings permuted; the symmetry: Moriakov et al. 2020, arXiv:2001.09061.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import CycleGAN
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.domains import CHANGES, load_domains
from deepgen_ext.recipes.games import critic_steps, figure, generator_step, save_rows
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["Failure", "classes_of", "run_cyclegan_failure", "translate_digits", "verdict"]

CHANGE = "inverted"
BATCH, RATE = 16, 2e-3
CLASSES = 10


@dataclass(frozen=True)
class Failure:
    """What one training came to, of held-out images x; errors are means of |difference| over pixels
    in [0, 1].

    Attributes:
        cycle_error: of to_a(to_b(x)) from x.
        unrelated_error: of x from other images, which is what an error is measured by.
        counterpart_error: of to_b(x) from the negative of x.
        becomes: (10, 10), of each class the fractions of its translations in each class, by the
            nearest negative of the training data.
        known: the fraction of right counterparts whose class that finds.
        shown: an image of each class, its translation, this translated back, its right counterpart.
    """

    seed: int
    cycle_error: float
    unrelated_error: float
    counterpart_error: float
    becomes: Tensor
    known: float
    shown: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def kept(self) -> float:
        """The mean over classes of the fraction that stays in its class; 0.1 by chance."""
        return self.becomes.diagonal().mean().item()


def classes_of(images: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Of each image the class of the nearest known one, (n,)."""
    return labels[torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)]


def translate_digits(*, steps: int, seed: int, width: int = 8) -> Failure:
    """Train a small CycleGAN for so many steps and look at the test images of all classes."""
    data = load("digits")
    a, b = load_domains("digits", f"digits:{CHANGE}")
    torch.manual_seed(seed)
    model = CycleGAN(a.shape, n_levels=a.n_levels, width=width, blocks=1, ema=0.99)
    generator = torch.Generator().manual_seed(seed)

    def pairs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(
            domain.train[torch.randint(len(domain.train), (n,), generator=generator)]
            for domain in (a, b)
        )

    players = (
        model.optimizer(model.critic_parameters(), RATE),
        model.optimizer(model.generator_parameters(), RATE),
    )
    for step in range(steps):  # the paper's schedule: the same, then down to 0
        for group in (group for player in players for group in player.param_groups):
            group["lr"] = RATE * min(1.0, 2 - 2 * step / steps)
        critic_steps(model, players[0], pairs, 1, generator, BATCH)
        generator_step(model, players[1], pairs, generator, BATCH)

    def real(levels: Tensor) -> Tensor:
        return model.shrink(model.stretch(levels, model.middle(levels)))

    x, labels = real(data.test), data.labels[1]
    right = real(CHANGES[CHANGE](data.test, data.n_levels))
    there, back = model.there_and_back(data.test, "a-to-b")
    known = real(b.train), data.labels[0][1::2]
    counts = torch.zeros(CLASSES, CLASSES)
    counts.index_put_((labels, classes_of(there, *known)), torch.ones(len(x)), accumulate=True)
    first = [int((labels == digit).nonzero()[0]) for digit in range(CLASSES)]
    return Failure(
        seed,
        cycle_error=_error(back, x),
        unrelated_error=_error(x.roll(1, 0), x),
        counterpart_error=_error(there, right),
        becomes=counts / counts.sum(1, keepdim=True),
        known=(classes_of(right, *known) == labels).double().mean().item(),
        shown=tuple(images[first] for images in (x, there, back, right)),
    )


def verdict(found: Failure) -> str:
    """One sentence, from the numbers."""
    closes = found.cycle_error < found.unrelated_error / 2
    errors = (
        f"|there and back - x| {found.cycle_error:.3f} (other images: {found.unrelated_error:.3f}), "
        f"|there - the right negative| {found.counterpart_error:.3f}; {found.kept:.0%} keep their "
        f"digit (of right ones {found.known:.0%} would be seen to)"
    )
    if not closes:
        return f"the cycle does not close yet: {errors}"
    if found.kept < found.known / 2:
        return f"the cycle closes, and other digits come out: {errors}"
    return f"the cycle closes, and digits stay what they were: {errors}"


def run_cyclegan_failure(out: Path, *, steps: int, seed: int) -> list[Failure]:
    """Two seeds; ``out`` is the picture, a .csv of that name the numbers, a row for each class."""
    failures = [translate_digits(steps=steps, seed=seed + index) for index in range(2)]
    rows = []
    for found in failures:
        errors = found.cycle_error, found.unrelated_error, found.counterpart_error
        for digit, fractions in enumerate(found.becomes):
            share, other = fractions.max(0)
            kept = fractions[digit].item()
            rows.append((found.seed, digit, kept, other.item(), share.item(), *errors))
    columns = ("seed", "digit", "kept", "becomes", "share")
    save_rows(
        out.with_suffix(".csv"),
        (*columns, "cycle_error", "unrelated_error", "counterpart_error"),
        rows,
    )
    draw_failures(failures, out)
    return failures


def draw_failures(failures: list[Failure], out: Path) -> None:
    """A line for each seed: images of all classes, and which class becomes which."""
    drawing, panels = figure(
        len(failures), 2, (12, 4 * len(failures)), gridspec_kw={"width_ratios": (2.4, 1)}
    )
    for found, (images, classes) in zip(failures, panels, strict=True):
        rows = [torch.cat([_framed(image[0]) for image in row], dim=1) for row in found.shown]
        images.imshow(torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1)
        places = [(0.5 + row) * len(rows[0]) for row in range(len(rows))]
        images.set_yticks(places, ("x", "there", "and back", "right"))
        images.set_xticks([])
        images.set(
            title=f"seed {found.seed}: |there and back - x| {found.cycle_error:.3f}, "
            f"|there - right| {found.counterpart_error:.3f}"
        )
        classes.imshow(found.becomes.numpy(), cmap="magma", vmin=0, vmax=1)
        classes.set(title=f"{found.kept:.0%} keep their digit", xlabel="of there", ylabel="of x")
        classes.set_xticks(range(CLASSES))
        classes.set_yticks(range(CLASSES))
    save_figure(drawing, out)


def _framed(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image, (1, 1, 1, 1), value=0.5)


def _error(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().mean().item()
