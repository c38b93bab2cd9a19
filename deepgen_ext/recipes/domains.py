"""Two domains of images without pairs: two classes, the images and their negatives, two folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.data import NAMES, Dataset, load

__all__ = ["CHANGES", "load_domains"]

# What an image of a domain may have been through; of levels, and how many of them there are.
CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "inverted": lambda levels, n_levels: n_levels - 1 - levels,
    "turned": lambda levels, n_levels: levels.rot90(1, (2, 3)).contiguous(),
    "mirrored": lambda levels, n_levels: levels.flip(3),
}


def load_domains(a: str, b: str | None, *, size: int | None = None) -> tuple[Dataset, Dataset]:
    """The domains ``a`` and ``b``; without ``b``, the negatives of the images of ``a``.

    A domain is a name or path as of `data.load`, and after a colon a class, "fashion-mnist:7", or
    one of `CHANGES`. Of the same images each gets one half: nothing is left that could be paired.
    ``size`` is of folders of pictures.

    Raises:
        RecipeError: no images, an unknown class, domains of different sizes, colours or levels.
    """
    names = (a, b if b is not None else f"{_parts(a)[0]}:inverted")
    (first, part_a), (second, part_b) = (_parts(name) for name in names)
    domains = []
    for half, (name, base, part) in enumerate(
        zip(names, (first, second), (part_a, part_b), strict=True)
    ):
        dataset = load(base, size=None if base in NAMES else size)
        if dataset.n_levels is None:
            raise RecipeError(f"'{name}' holds vectors, and a domain is of images")
        by_class = part.isdigit()
        if by_class:
            dataset = _of_class(dataset, int(part), name)
        elif part:
            dataset = _changed(dataset, CHANGES[part])
        same = first == second and (part_a == part_b or not (part_a.isdigit() or part_b.isdigit()))
        if same:
            dataset = replace(
                dataset, train=dataset.train[half::2], test=dataset.test[half::2], labels=None
            )
        domains.append(replace(dataset, name=name, labels=None))
    _check_alike(*domains)
    return domains[0], domains[1]


def _parts(name: str) -> tuple[str, str]:
    """ "fashion-mnist:7" to ("fashion-mnist", "7"); a path keeps its colons otherwise."""
    base, colon, part = name.rpartition(":")
    return (base, part) if colon and (part.isdigit() or part in CHANGES) else (name, "")


def _of_class(dataset: Dataset, wanted: int, name: str) -> Dataset:
    if dataset.labels is None:
        raise RecipeError(f"'{name}': no classes are known of these data")
    n_classes = int(dataset.labels[0].max()) + 1
    if wanted >= n_classes:
        raise RecipeError(f"'{name}': the classes are 0 to {n_classes - 1}")
    train, test = (labels == wanted for labels in dataset.labels)
    return replace(dataset, train=dataset.train[train], test=dataset.test[test], labels=None)


def _changed(dataset: Dataset, change: Callable[[Tensor, int], Tensor]) -> Dataset:
    train, test = (change(part, dataset.n_levels) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train.to(torch.uint8), test=test.to(torch.uint8))


def _check_alike(a: Dataset, b: Dataset) -> None:
    if a.shape[1:] != b.shape[1:]:
        sizes = " and ".join(f"{d.shape[1]}x{d.shape[2]} ('{d.name}')" for d in (a, b))
        raise RecipeError(
            f"the domains are of different sizes, {sizes}: --size N crops and resizes folders of "
            f"pictures to the same"
        )
    if a.shape[0] != b.shape[0]:
        colors = " and ".join(f"{d.shape[0]} ('{d.name}')" for d in (a, b))
        raise RecipeError(f"the domains have different numbers of colours, {colors}")
    if a.n_levels != b.n_levels:
        levels = " and ".join(f"{d.n_levels} ('{d.name}')" for d in (a, b))
        raise RecipeError(f"the domains have different numbers of levels, {levels}")
