"""Data sets by name or by path, as tensors in memory, split into a part to train on and a part held
out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.recipes import RecipeError, require
from deepgen_ext.recipes.densities import DENSITIES, sample_density
from deepgen_ext.recipes.energies import ENERGIES, sample_energy
from deepgen_ext.recipes.image_files import (
    PICTURE_SUFFIXES,
    read_arrays,
    read_cifar_batch,
    read_idx,
    read_idx_labels,
    read_pictures,
)

__all__ = ["Dataset", "NAMES", "load", "load_classes", "resolve"]

FASHION_MNIST = Path(
    "/usr/share/datasets/fashion-mnist"
)  # where Debian's dataset-fashion-mnist puts it
NAMES = ("digits", "fashion-mnist", *DENSITIES, *ENERGIES)
OTHER_NAMES = {"rings": "circles"}


@dataclass(frozen=True)
class Dataset:
    """Images as integer levels 0 ... n_levels - 1, uint8 ``(n, C, H, W)``, or real vectors, float32
    ``(n, D)``.
    """

    name: str
    train: Tensor
    test: Tensor
    n_levels: int | None  # None for vectors
    # Of `energies`: a flow is then trained by reverse KL, and the samples, exact draws, only score.
    energy: str | None = None
    labels: tuple[Tensor, Tensor] | None = None  # classes of train and test, int64, where known

    def __post_init__(self) -> None:
        for part, data in (("train", self.train), ("test", self.test)):
            if len(data) == 0:
                raise RecipeError(f"data '{self.name}': the {part} split is empty")
        if self.train.shape[1:] != self.test.shape[1:] or self.train.dtype != self.test.dtype:
            raise RecipeError(
                f"data '{self.name}': the train split has samples of shape "
                f"{tuple(self.train.shape[1:])}, {self.train.dtype}, "
                f"the test split {tuple(self.test.shape[1:])}, {self.test.dtype}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])

    @property
    def is_image(self) -> bool:
        return self.n_levels is not None

    @property
    def description(self) -> str:
        if self.energy is not None:
            return f"the energy {self.name}, by reverse KL (test: KL(p||q))"
        shape = "x".join(map(str, self.shape))
        return f"{self.name} ({len(self.train):,} samples of {shape})"

    @property
    def unit(self) -> str:
        """Of the loss: bits per dimension for levels, nats a sample for a density of real
        vectors.
        """
        return "bits/dim" if self.is_image else "nats"


def load(data: str, *, size: int | None = None) -> Dataset:
    """The data set called ``data``, or the one in the folder or file ``data``.

    ``size`` crops and resizes a folder of pictures. Splits are the same on every call: the files'
    own where they have them, else a tenth, drawn with a fixed seed, is held out.
    """
    if size is not None and size < 1:
        raise RecipeError(f"--size must be at least 1, got {size}")
    name = _name(data)
    if name in NAMES and size is not None:
        raise RecipeError(
            f"--size resizes a folder of pictures; the data '{name}' have their own size"
        )
    if name == "digits":
        return _digits()
    if name in ENERGIES:
        points = sample_energy(name, 25_000, torch.Generator().manual_seed(1)).float()
        return Dataset(name, points[:20_000], points[20_000:], None, energy=name)
    if name in DENSITIES:
        return Dataset(
            name, sample_density(name, 20_000, 1), sample_density(name, 5_000, 1001), None
        )
    if name == "fashion-mnist":
        if not FASHION_MNIST.is_dir():
            raise RecipeError(
                f"Fashion-MNIST is not in {FASHION_MNIST}: apt install dataset-fashion-mnist, "
                f"or give --data the path of a folder with its four IDX files"
            )
        return _idx_folder(FASHION_MNIST, name)
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path, size)
    if path.is_file():
        if path.suffix in (".npy", ".npz"):
            return _array_file(path)
        raise RecipeError(f"{path}: expected a folder, a .npy or a .npz file" + _hint(path))
    known = ", ".join(NAMES)
    raise RecipeError(f"no data called '{data}' and no such folder or file; the names are: {known}")


def load_classes(data: str) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """`load`, and the classes of train and test, int64.

    Raises:
        RecipeError: data whose classes are not known.
    """
    dataset = load(data)
    if dataset.labels is None:
        raise RecipeError(
            f"--data {data}: no classes are known for it; digits, fashion-mnist, IDX folders with "
            f"files of labels and CIFAR-10 have them"
        )
    return dataset, dataset.labels


def resolve(data: str) -> str:
    """``data`` in the form in which a run remembers it: a name as it is, a path made absolute."""
    name = _name(data)
    path = os.path.abspath(os.path.expanduser(data))
    return name if name in NAMES else path if os.path.exists(path) else data


def _name(data: str) -> str:
    """``data`` spelt as in NAMES, if it is a name at all."""
    name = data.lower().replace("_", "-")
    return OTHER_NAMES.get(name, name)


def _hint(path: Path) -> str:
    if ".tar" in path.suffixes or path.suffix in (".zip", ".tgz"):
        return "; unpack the archive first"
    if "idx" in path.name:
        return "; give the folder that holds the IDX files"
    return ""


def _held_out(samples: Tensor, fraction: float = 0.1) -> tuple[Tensor, Tensor]:
    """A fixed random split: the same for the same number of samples, whatever the seed of the
    run.
    """
    if len(samples) < 2:
        raise RecipeError("at least 2 samples are needed, one of them to hold out")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(20190101))
    n_test = max(1, round(fraction * len(samples)))
    return samples[order[n_test:]], samples[order[:n_test]]


def _digits() -> Dataset:
    """1797 digits of 8x8 pixels and 17 levels (0 ... 16): 1497 to train on, 300 held out."""
    datasets = require("sklearn.datasets", "the data 'digits'")
    digits = datasets.load_digits()
    levels = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    classes = torch.from_numpy(digits.target).long()
    train, test = _held_out(levels, 300 / 1797)
    return Dataset("digits", train, test, 17, labels=_held_out(classes, 300 / 1797))


def _idx_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    found = sorted(p for p in folder.iterdir() if p.name.startswith(stems) and "idx" in p.name)
    return found[0] if found else None


def _idx_folder(folder: Path, name: str) -> Dataset:
    train = _idx_file(folder, ("train-images",))
    test = _idx_file(folder, ("t10k-images", "test-images"))
    if train is None:
        raise RecipeError(
            f"{folder}: no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    images = read_idx(train)
    classes = _idx_classes(folder, ("train-labels",), len(images))
    if test is None:
        labels = None if classes is None else _held_out(classes)
        return Dataset(name, *_held_out(images), 256, labels=labels)
    test_images = read_idx(test)
    test_classes = _idx_classes(folder, ("t10k-labels", "test-labels"), len(test_images))
    labels = None if classes is None or test_classes is None else (classes, test_classes)
    return Dataset(name, images, test_images, 256, labels=labels)


def _idx_classes(folder: Path, stems: tuple[str, ...], n: int) -> Tensor | None:
    """Of the n images beside which they lie; None where there is no such file."""
    path = _idx_file(folder, stems)
    if path is None:
        return None
    classes = read_idx_labels(path)
    if len(classes) != n:
        raise RecipeError(f"{path}: {len(classes)} labels, and there are {n} images")
    return classes


def _cifar_folder(folder: Path) -> Dataset:
    batches = sorted(folder.glob("data_batch_*"))
    if not (folder / "test_batch").is_file():
        raise RecipeError(f"{folder}: the file test_batch of CIFAR-10 is missing")
    parts, classes = zip(*(read_cifar_batch(path) for path in batches), strict=True)
    test, test_classes = read_cifar_batch(folder / "test_batch")
    known = test_classes is not None and all(part is not None for part in classes)
    labels = (torch.cat(classes), test_classes) if known else None
    return Dataset(folder.name, torch.cat(parts), test, 256, labels=labels)


def _folder(folder: Path, size: int | None) -> Dataset:
    name = folder.resolve().name
    is_idx = _idx_file(folder, ("train-images", "t10k-images", "test-images")) is not None
    is_cifar = any(folder.glob("data_batch_*"))
    if (is_idx or is_cifar) and size is not None:
        raise RecipeError(
            f"--size resizes a folder of pictures; {folder} holds "
            f"{'IDX files' if is_idx else 'CIFAR-10'}"
        )
    if is_idx:
        return _idx_folder(folder, name)
    if is_cifar:
        return _cifar_folder(folder)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return Dataset(
            name, read_pictures(folder / "train", size), read_pictures(folder / "test", size), 256
        )
    if any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*")):
        return Dataset(name, *_held_out(read_pictures(folder, size)), 256)
    inner = [
        child for child in folder.iterdir() if child.is_dir() and any(child.glob("data_batch_*"))
    ]
    hint = f"; did you mean {inner[0]}?" if inner else ""
    raise RecipeError(
        f"{folder}: holds no data that is known: IDX files (train-images-idx3-ubyte[.gz]), "
        f"CIFAR-10's python batches "
        f"(data_batch_1 ...) or pictures{hint}"
    )


def _array_file(path: Path) -> Dataset:
    arrays = read_arrays(path)
    train, test = (
        next((arrays[name] for name in names if name in arrays), None)
        for names in (("train", "x_train", "train_images"), ("test", "x_test", "test_images"))
    )
    if train is None and len(arrays) == 1:
        train = next(iter(arrays.values()))
    if train is None:
        found = ", ".join(repr(name) for name in arrays) or "only one-dimensional arrays"
        raise RecipeError(
            f"{path}: expected one array, or arrays named 'train' and 'test'; found {found}"
        )
    if test is None:
        train, test = _held_out(train)
    return Dataset(path.stem, train, test, 256 if train.dtype == torch.uint8 else None)
