"""Checkpoints that are whole or not there: a kill or a full disk while saving leaves the one before
untouched.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from deepgen_ext.recipes import RecipeError

__all__ = ["FORMAT", "load", "random_state", "restore_random_state", "save"]

FORMAT = "deepgen_ext checkpoint 1"


def _write(file: BinaryIO, content: memoryview) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step: to ``path.partial`` in the same folder first, then
    renamed over ``path``.

    The rename is atomic (POSIX) and comes after fsync, so ``path`` is at every moment a whole
    checkpoint, the old or the new one. It is serialised in memory first: that costs its size once
    more, and an error while writing is then an `OSError` and not whatever the zip writer makes of
    it.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            _write(file, buffer.getbuffer())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = "; the checkpoint before it is whole" if path.exists() else ""
        raise RecipeError(
            f"{path}: cannot save the checkpoint: {error.strerror or error}{kept}"
        ) from None


def _sync_folder(folder: Path) -> None:
    """The rename itself is on the disk only when the folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, on the CPU, without running any code that it might hold; its checksums are
    verified.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: there is no checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise RecipeError(f"{path}: the checkpoint is damaged (checksum of {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError, OSError) as error:
        if isinstance(error, pickle.UnpicklingError):
            raise RecipeError(
                f"{path}: not a checkpoint of deepgen_ext (it holds more than tensors)"
            ) from None
        raise RecipeError(f"{path}: the checkpoint is truncated or damaged") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise RecipeError(
            f"{path}: not a checkpoint of deepgen_ext (format {found!r}, expected {FORMAT!r})"
        )
    return state


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that ``torch.load(weights_only=True)``
    accepts.
    """
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; the state of GPUs that are no longer there is dropped."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
