"""Readers of image files: what they read, and one sentence for each way in which a file is
broken.
"""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.image_files import read_arrays, read_cifar_batch, read_idx, read_pictures


def _idx(images: np.ndarray, magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)


@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x-idx3-ubyte.gz"])
def test_idx(tmp_path: Path, images: np.ndarray, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(_idx(images)) if name.endswith("gz") else _idx(images))
    read = read_idx(path)
    assert read.shape == (5, 1, 3, 4)
    assert read.dtype == torch.uint8
    assert np.array_equal(read[:, 0].numpy(), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw[:-1],
            "truncated: its header says 5 images of 3x4, which is 76 bytes, and it has 75",
        ),
        (lambda raw: raw[:9], "truncated: 9 bytes"),
        (lambda raw: raw + b"x", "too long"),
        (
            lambda raw: b"\0\0\x08\x01" + raw[4:],
            "wrong magic number 0x00000801 .that is a file of labels",
        ),
        (lambda raw: b"abcd" + raw[4:], "wrong magic number 0x61626364"),
        (lambda raw: raw[:4] + bytes(12), "holds no image"),
    ],
)
def test_broken_idx(tmp_path: Path, images: np.ndarray, change: object, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(_idx(images)))
    with pytest.raises(RecipeError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_gzip(tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed = gzip.compress(_idx(images))
    path.write_bytes(packed[:-9])
    with pytest.raises(RecipeError, match="truncated or damaged"):
        read_idx(path)
    path.write_bytes(packed[:12] + bytes([packed[12] ^ 255]) + packed[13:])
    with pytest.raises(RecipeError, match="gzip"):
        read_idx(path)
    path.write_bytes(_idx(images))
    with pytest.raises(RecipeError, match="not a gzip file although"):
        read_idx(path)


def _cifar(data: object, protocol: int = 2) -> bytes:
    return pickle.dumps({b"data": data, b"labels": [1, 2], b"batch_label": b"x"}, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batch_is_red_green_blue_planes(tmp_path: Path, protocol: int) -> None:
    data = np.zeros((2, 3072), np.uint8)
    data[1, 1024 + 32 * 5 + 7] = 9  # second image, green, row 5, column 7
    (tmp_path / "data_batch_1").write_bytes(_cifar(data, protocol))
    read, classes = read_cifar_batch(tmp_path / "data_batch_1")
    assert torch.equal(classes, torch.tensor([1, 2]))
    assert read.shape == (2, 3, 32, 32)
    assert read.sum() == 9
    assert read[1, 1, 5, 7] == 9


def test_cifar_batch_written_by_an_old_numpy(tmp_path: Path) -> None:
    raw = _cifar(np.ones((2, 3072), np.uint8)).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy.core" in raw
    (tmp_path / "data_batch_1").write_bytes(raw)
    assert read_cifar_batch(tmp_path / "data_batch_1")[0].sum() == 2 * 3072


def test_broken_cifar(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    raw = _cifar(np.zeros((2, 3072), np.uint8))
    for content, message in [
        (raw[: len(raw) // 2], "not a whole CIFAR-10 batch"),
        (b"", "not a whole CIFAR-10 batch"),
        (_cifar(np.zeros((2, 300), np.uint8)), r"found uint8 \(2, 300\)"),
        (_cifar("text"), "found str"),
        (pickle.dumps([1]), "found NoneType"),
        (_cifar(np.zeros((3, 3072), np.uint8)), "'labels' must be a list of 3 classes, found 2"),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}),
            "holds something that is no class",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=message) as caught:
            read_cifar_batch(path)
        assert str(path) in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Trap()}))
    with pytest.raises(RecipeError, match="asks for builtins.exec"):
        read_cifar_batch(tmp_path / "data_batch_1")
    assert not (tmp_path / "ran").exists()


def _picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    _picture(tmp_path / "b.png", grey + 1)
    _picture(tmp_path / "a.png", grey)
    (tmp_path / "notes.txt").write_text("no picture")
    read = read_pictures(tmp_path, None)
    assert read.shape == (2, 1, 3, 4)
    assert np.array_equal(read[:, 0].numpy(), np.stack([grey, grey + 1]))


def test_one_coloured_picture_makes_all_rgb(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", np.full((2, 2), 7, np.uint8))
    _picture(tmp_path / "b.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    read = read_pictures(tmp_path, None)
    assert read.shape == (2, 3, 2, 2)
    assert read[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_size_crops_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200  # the central square
    _picture(tmp_path / "wide.png", wide)
    _picture(tmp_path / "tall.png", wide.T)
    assert (read_pictures(tmp_path, 2) == 200).all()


def test_broken_pictures(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    _picture(tmp_path / "b.png", np.zeros((3, 2), np.uint8))
    with pytest.raises(RecipeError, match=r"b.png: 2x3 pixels, but a.png has 2x2: add --size N"):
        read_pictures(tmp_path, None)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    _picture(tmp_path / "b.png", noise)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:300])
    with pytest.raises(RecipeError, match=r"b.png: not a readable picture"):
        read_pictures(tmp_path, 2)
    (tmp_path / "b.png").write_text("hello")
    with pytest.raises(RecipeError, match=r"b.png: not a readable picture"):
        read_pictures(tmp_path, 2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 4, 5), (6, 1, 4, 5)),
        ((6, 3, 4, 5), (6, 3, 4, 5)),
        ((6, 4, 5, 3), (6, 3, 4, 5)),
        ((6, 4, 5, 1), (6, 1, 4, 5)),
    ],
)
def test_arrays_of_images(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    read = read_arrays(tmp_path / "x.npy")[""]
    assert read.shape == expected
    assert read.dtype == torch.uint8
    channel_last = shape[-1] in (1, 3) and len(shape) == 4
    assert read[2, 0, 1, 3] == (
        array[2, 1, 3, 0] if channel_last else array.reshape(expected)[2, 0, 1, 3]
    )


def test_arrays_of_vectors_and_labels_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train=np.ones((4, 7)), labels=np.arange(4))
    read = read_arrays(tmp_path / "x.npz")
    assert list(read) == ["train"]
    assert read["train"].shape == (4, 7)
    assert read["train"].dtype == torch.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4), np.float32), r"float32 of shape \(3, 4, 4\); expected uint8 images"),
        (np.zeros((3, 2, 4, 4), np.uint8), "with 1 or 3 channels"),
        (np.zeros((0, 4, 4), np.uint8), "empty"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "row 1 holds a value that is not finite"),
        (np.array([{}, {}]), "not a whole .npy or .npz file of numbers"),  # would need pickle
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(RecipeError, match=message) as caught:
        read_arrays(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_truncated_arrays(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (np.save if name == "x.npy" else np.savez)(path, np.zeros((100, 8), np.float32))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecipeError, match="not a whole .npy or .npz file"):
        read_arrays(path)
    path.write_bytes(b"")
    with pytest.raises(RecipeError, match="not a whole .npy or .npz file"):
        read_arrays(path)
