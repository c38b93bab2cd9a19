"""Readers of image files: IDX (MNIST, Fashion-MNIST), CIFAR-10's python batches, folders of
pictures, npy and npz.

Every reader checks what it reads and raises `RecipeError`: one sentence with the file's name and
what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepgen_ext.recipes import RecipeError, require

__all__ = [
    "PICTURE_SUFFIXES",
    "read_arrays",
    "read_cifar_batch",
    "read_idx",
    "read_idx_labels",
    "read_pictures",
]

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_IDX_IMAGES = 0x00000803  # unsigned bytes, three dimensions: (n, H, W)
_IDX_LABELS = 0x00000801  # unsigned bytes, one dimension


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, zlib.error) as error:
        raise RecipeError(f"{path}: the gzip file is truncated or damaged ({error})") from None
    except gzip.BadGzipFile as error:
        raise RecipeError(
            f"{path}: not a gzip file although its name ends in .gz ({error})"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_idx(path: Path) -> Tensor:
    """The images of one IDX file, gzipped or raw, as uint8 ``(n, 1, H, W)``."""
    raw = _read_bytes(path)
    if len(raw) < 16:
        raise RecipeError(f"{path}: truncated: {len(raw)} bytes, and the IDX header alone has 16")
    magic, n, height, width = struct.unpack(">4I", raw[:16])
    if magic != _IDX_IMAGES:
        kind = " (that is a file of labels)" if magic == _IDX_LABELS else ""
        raise RecipeError(
            f"{path}: wrong magic number {magic:#010x}{kind}, expected {_IDX_IMAGES:#010x}: IDX "
            f"images"
        )
    if 0 in (n, height, width):
        raise RecipeError(f"{path}: holds no image: {n} images of {height}x{width} pixels")
    expected = 16 + n * height * width
    if len(raw) != expected:
        what = "truncated" if len(raw) < expected else "too long"
        raise RecipeError(
            f"{path}: {what}: its header says {n} images of {height}x{width}, which is {expected} "
            f"bytes, and it has {len(raw)}"
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=16).view(n, 1, height, width)


def read_idx_labels(path: Path) -> Tensor:
    """The classes of one IDX file, gzipped or raw, as int64 ``(n,)``."""
    raw = _read_bytes(path)
    magic, n = struct.unpack(">2I", raw[:8]) if len(raw) >= 8 else (0, 0)
    if magic != _IDX_LABELS:
        raise RecipeError(f"{path}: wrong magic number {magic:#010x}: not a file of IDX labels")
    if n == 0 or len(raw) != 8 + n:
        raise RecipeError(f"{path}: its header says {n} labels, and it has {len(raw) - 8}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=8).long()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of NumPy arrays and nothing that could run code."""

    def find_class(self, module: str, name: str) -> object:
        module = module.replace(
            "numpy.core", "numpy._core"
        )  # CIFAR-10 was written by an older NumPy
        if (module, name) == ("numpy._core.multiarray", "_reconstruct"):
            return np.zeros(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 2 wrote bytes with protocol 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which a batch of CIFAR-10 does not need"
        )


def read_cifar_batch(path: Path) -> tuple[Tensor, Tensor | None]:
    """Of one of CIFAR-10's python batches the images as uint8 ``(n, 3, 32, 32)``, and their classes,
    int64 ``(n,)``, if they are in it; code inside the pickle never runs.
    """
    raw = _read_bytes(path)
    try:
        batch = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise RecipeError(
            f"{path}: not a whole CIFAR-10 batch ({error or type(error).__name__})"
        ) from None
    data = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != 3072
    ):
        found = (
            f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        )
        raise RecipeError(f"{path}: its entry 'data' must be uint8 (n, 3072), found {found}")
    images = torch.from_numpy(data.copy()).view(-1, 3, 32, 32)
    labels = batch.get(b"labels", batch.get("labels"))
    if labels is None:
        return images, None
    if not isinstance(labels, list) or len(labels) != len(images):
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise RecipeError(
            f"{path}: its entry 'labels' must be a list of {len(images)} classes, found {found}"
        )
    if not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise RecipeError(f"{path}: its entry 'labels' holds something that is no class")
    return images, torch.tensor(labels, dtype=torch.int64)


def read_pictures(folder: Path, size: int | None) -> Tensor:
    """All pictures below ``folder`` in the order of their names, as uint8 ``(n, 1 or 3, H, W)``.

    Grey if all of them are grey, else RGB. With ``size`` each is cropped to its central square and
    resized to ``size x size``; without it they must all have the same size.
    """
    image_module = require("PIL.Image", "reading a folder of pictures")
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
    )
    pictures: list[np.ndarray] = []
    for path in paths:
        try:
            with image_module.open(path) as picture:
                picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
        except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
            reason = str(error).replace(f"'{path}'", "the file")
            raise RecipeError(f"{path}: not a readable picture ({reason})") from None
        if size is not None:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = (left, top, left + side, top + side)
            # crop first: with resize(box=...) the filter would reach outside of the square
            picture = picture.crop(box).resize((size, size), image_module.Resampling.LANCZOS)
        pixels = np.asarray(picture)
        if pictures and pixels.shape[:2] != pictures[0].shape[:2]:
            first, this = pictures[0].shape, pixels.shape
            raise RecipeError(
                f"{path}: {this[1]}x{this[0]} pixels, but {paths[0].name} has "
                f"{first[1]}x{first[0]}: "
                f"add --size N to crop and resize them all"
            )
        pictures.append(pixels)
    if not pictures:
        raise RecipeError(f"{folder}: no picture in this folder")
    if any(pixels.ndim == 3 for pixels in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[:, :, None], 3, axis=2) for p in pictures]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return torch.from_numpy(np.stack(pictures))[:, None]


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npy file (under the name "") or of a .npz file, as images or vectors, see
    `as_samples`.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise RecipeError(f"{path}: not a whole .npy or .npz file of numbers ({error})") from None
    if not arrays:
        raise RecipeError(f"{path}: holds no array")
    return {
        name: as_samples(array, f"{path}" + (f", array '{name}'" if name else ""))
        for name, array in arrays.items()
        if array.ndim > 1  # one-dimensional arrays beside the images are labels
    }


def as_samples(array: np.ndarray, source: str) -> Tensor:
    """uint8 ``(n, H, W)``, ``(n, C, H, W)`` or ``(n, H, W, C)`` to ``(n, C, H, W)``; floating ``(n,
    D)`` to float32.
    """
    if math.prod(array.shape) == 0:
        raise RecipeError(f"{source}: empty, its shape is {array.shape}")
    if array.dtype == np.uint8 and array.ndim == 3:
        return torch.from_numpy(array)[:, None]
    if array.dtype == np.uint8 and array.ndim == 4:
        if array.shape[1] in (1, 3):
            return torch.from_numpy(array)
        if array.shape[3] in (1, 3):
            return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 2:
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise RecipeError(f"{source}: row {int(bad.argmax())} holds a value that is not finite")
        return torch.from_numpy(array.astype(np.float32))
    raise RecipeError(
        f"{source}: {array.dtype} of shape {array.shape}; expected uint8 images (n, H, W), (n, C, "
        f"H, W) or (n, H, W, C) "
        f"with 1 or 3 channels, or floating vectors (n, D)"
    )
