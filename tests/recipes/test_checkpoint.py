"""A checkpoint is whole or not there."""

from __future__ import annotations

import errno
import pickle
import random
import resource
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from deepgen_ext.recipes import RecipeError, checkpoint


def _state(value: float, n: int = 1000) -> dict[str, object]:
    return {"step": int(value), "parameters": {"weight": torch.full((n,), value)}}


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(3))
    assert torch.equal(checkpoint.load(path)["parameters"]["weight"], torch.full((1000,), 3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]  # nothing left beside it


class _Killed(BaseException):
    """Stands for the end of the process: nothing may be tidied up after it."""


def test_killed_in_the_middle_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(1))

    def half(file: BinaryIO, content: memoryview) -> None:
        file.write(content[: len(content) // 2])
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", half)
        with pytest.raises(_Killed):
            checkpoint.save(path, _state(2))
    assert checkpoint.load(path)["step"] == 1
    checkpoint.save(path, _state(3))  # over what the kill left behind
    assert checkpoint.load(path)["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_disk_full_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(1))

    def full(file: BinaryIO, content: memoryview) -> None:
        file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(
        RecipeError, match=r"cannot save the checkpoint: No space left on device; .* whole"
    ) as caught:
        checkpoint.save(path, _state(2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [
        "checkpoint.pt"
    ]  # the half-written file is not left to fill the disk
    assert checkpoint.load(path)["step"] == 1


def test_a_real_write_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, hard)
    )  # the kernel refuses to write past one MiB
    try:
        with pytest.raises(RecipeError, match="cannot save the checkpoint: File too large"):
            checkpoint.save(path, _state(2, n=1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path)["step"] == 1


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(1))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(RecipeError, match="truncated or damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_in_the_parameters(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, _state(1))
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 1000] ^= 1  # past its header, inside the 4000 bytes of the weight
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="damaged"):
        checkpoint.load(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": checkpoint.FORMAT, "trap": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RecipeError, match="not a checkpoint of deepgen_ext"):
        checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_other_files(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(RecipeError, match="format None"):
        checkpoint.load(tmp_path / "other.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"format": checkpoint.FORMAT}))
    with pytest.raises(RecipeError, match="truncated or damaged"):
        checkpoint.load(tmp_path / "pickle.pt")
    with pytest.raises(RecipeError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_random_state_of_every_generator(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        gaussian = np.random.standard_normal(
            3
        )  # an odd number: NumPy keeps the second of the last pair
        return random.random(), random.gauss(0, 1), *gaussian.tolist(), *torch.randn(5).tolist()

    draw()
    checkpoint.save(tmp_path / "checkpoint.pt", {"random": checkpoint.random_state()})
    first = draw()
    draw()
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "checkpoint.pt")["random"])
    assert draw() == first
