"""Data sets by name and by path."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.densities import DENSITIES


def test_digits_split_without_overlap() -> None:
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert digits.n_levels == 17
    assert digits.unit == "bits/dim"
    assert digits.train.dtype == torch.uint8
    assert digits.train.max() == 16
    assert len(digits.train) == 1497
    assert len(digits.test) == 300
    everything = torch.cat([digits.train, digits.test]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().images).to(torch.uint8).flatten(1)
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, original.tolist()))
    assert torch.equal(digits.test, data.load("digits").test)


@pytest.mark.parametrize("name", sorted(DENSITIES))
def test_densities(name: str) -> None:
    density = data.load(name)
    assert density.shape == (2,)
    assert density.n_levels is None
    assert density.unit == "nats"
    assert density.train.dtype == torch.float32
    assert density.train.isfinite().all()
    assert density.train.abs().max() < 5
    assert density.train.std(dim=0).min() > 0.8
    assert torch.equal(density.train, data.load(name).train)
    assert not torch.equal(density.train[:100], density.test[:100])
    # any slice is a fair sample: the parts of the mixtures are in random order
    assert (density.train[:5000].mean(dim=0) - density.train[-5000:].mean(dim=0)).abs().max() < 0.25


def test_checkerboard_is_on_the_even_squares_only() -> None:
    points = data.load("checkerboard").train
    square = ((points + 4) / 2).floor().long()
    assert (square.sum(dim=1) % 2 == 0).all()
    assert len(square.unique(dim=0)) == 8


def test_eight_gaussians_and_circles_have_their_radii() -> None:
    radius = data.load("8-gaussians").train.norm(dim=1)
    assert abs(radius.mean() - 3.0) < 0.05
    assert 0.2 < radius.std() < 0.4
    radius = data.load("circles").train.norm(dim=1)
    assert torch.equal(data.load("Rings").train, data.load("circles").train)
    assert data.resolve("rings") == "circles"
    assert ((radius - 3).abs() < 1).float().mean() == pytest.approx(0.5, abs=0.05)
    assert ((radius - 1.5).abs() < 0.7).float().mean() == pytest.approx(0.5, abs=0.05)


def test_spirals_have_two_opposite_arms() -> None:
    points = data.load("spirals").train
    radius = points.norm(dim=1)
    arm = radius > 1
    angle = torch.atan2(points[:, 1], points[:, 0])[arm] - torch.pi * radius[arm]
    # on one arm the angle minus pi r is 0, on the other pi: twice that has cosine 1 on both, but
    # for the noise
    assert (2 * angle).cos().mean() > 0.75
    assert abs(angle.cos().mean()) < 0.1


def _write_idx(path: Path, images: np.ndarray) -> None:
    path.write_bytes(struct.pack(">4I", 0x803, *images.shape) + images.tobytes())


def test_idx_folder(tmp_path: Path) -> None:
    _write_idx(tmp_path / "train-images-idx3-ubyte", np.full((6, 4, 4), 1, np.uint8))
    assert len(data.load(str(tmp_path)).test) == 1  # a tenth held out when there is no test file
    _write_idx(tmp_path / "t10k-images.idx3-ubyte", np.full((3, 4, 4), 2, np.uint8))
    loaded = data.load(str(tmp_path))
    assert loaded.train.shape == (6, 1, 4, 4)
    assert (loaded.train == 1).all()
    assert loaded.test.shape == (3, 1, 4, 4)
    assert (loaded.test == 2).all()
    assert loaded.n_levels == 256
    assert loaded.name == tmp_path.name
    _write_idx(tmp_path / "t10k-images.idx3-ubyte", np.full((3, 5, 4), 2, np.uint8))
    with pytest.raises(RecipeError, match=r"shape \(1, 4, 4\).*test split \(1, 5, 4\)"):
        data.load(str(tmp_path))


def test_classes_of_an_idx_folder(tmp_path: Path) -> None:
    """Each beside its image, where all are there; held out as the images are."""

    def write_labels(name: str, labels: list[int], magic: int = 0x801) -> None:
        (tmp_path / name).write_bytes(struct.pack(">2I", magic, len(labels)) + bytes(labels))

    def images_of(labels: list[int]) -> np.ndarray:
        return np.repeat(np.array(labels, np.uint8), 16).reshape(-1, 4, 4)

    classes = list(range(20))
    _write_idx(tmp_path / "train-images-idx3-ubyte", images_of(classes))
    assert data.load(str(tmp_path)).labels is None
    with pytest.raises(RecipeError, match="no classes are known for it"):
        data.load_classes(str(tmp_path))
    write_labels("train-labels-idx1-ubyte", classes)
    loaded, labels = data.load_classes(str(tmp_path))
    for part, found in zip((loaded.train, loaded.test), labels, strict=True):
        assert found.dtype == torch.int64
        assert torch.equal(part[:, 0, 0, 0].long(), found)
    assert len(labels[1]) == 2
    _write_idx(tmp_path / "t10k-images-idx3-ubyte", images_of([7, 3]))
    assert data.load(str(tmp_path)).labels is None
    write_labels("t10k-labels-idx1-ubyte", [7, 3])
    train_labels, test_labels = data.load(str(tmp_path)).labels
    assert train_labels.tolist() == classes
    assert test_labels.tolist() == [7, 3]
    write_labels("t10k-labels-idx1-ubyte", [7, 3, 1])
    with pytest.raises(RecipeError, match="3 labels, and there are 2 images"):
        data.load(str(tmp_path))
    write_labels("t10k-labels-idx1-ubyte", [7, 3], magic=0x803)
    with pytest.raises(RecipeError, match="0x00000803: not a file of IDX labels"):
        data.load(str(tmp_path))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + b"7")
    with pytest.raises(RecipeError, match="its header says 2 labels, and it has 1"):
        data.load(str(tmp_path))


def test_cifar_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        batch = {b"data": np.full((2, 3072), number, np.uint8), b"labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    loaded = data.load(str(folder))
    assert loaded.shape == (3, 32, 32)
    assert loaded.train[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert loaded.test[:, 0, 0, 0].tolist() == [2, 2]
    assert [part.tolist() for part in loaded.labels] == [[0, 9, 1, 9], [2, 9]]
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": batch[b"data"]}, protocol=2))
    assert data.load(str(folder)).labels is None
    with pytest.raises(RecipeError, match=f"did you mean {folder}"):
        data.load(str(tmp_path))
    with pytest.raises(RecipeError, match="holds CIFAR-10"):
        data.load(str(folder), size=8)
    (folder / "test_batch").unlink()
    with pytest.raises(RecipeError, match="test_batch of CIFAR-10 is missing"):
        data.load(str(folder))


def test_picture_folders(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        (tmp_path / part).mkdir()
        for number in range(count):
            Image.fromarray(np.full((4, 6), number, np.uint8)).save(
                tmp_path / part / f"{number}.png"
            )
    loaded = data.load(str(tmp_path), size=4)
    assert loaded.train.shape == (4, 1, 4, 4)
    assert loaded.test.shape == (2, 1, 4, 4)
    alone = data.load(str(tmp_path / "train"))
    assert len(alone.train) == 3
    assert len(alone.test) == 1
    assert alone.shape == (1, 4, 6)


def test_array_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train=np.zeros((5, 3)), test=np.ones((2, 3)))
    loaded = data.load(str(tmp_path / "a.npz"))
    assert loaded.n_levels is None
    assert len(loaded.train) == 5
    assert (loaded.test == 1).all()
    np.savez(tmp_path / "b.npz", left=np.zeros((5, 3)), right=np.ones((2, 3)))
    with pytest.raises(RecipeError, match="named 'train' and 'test'; found 'left', 'right'"):
        data.load(str(tmp_path / "b.npz"))
    np.save(tmp_path / "c.npy", np.zeros((20, 4, 4), np.uint8))
    assert len(data.load(str(tmp_path / "c.npy")).test) == 2
    np.save(tmp_path / "d.npy", np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(RecipeError, match="at least 2 samples"):
        data.load(str(tmp_path / "d.npy"))


def test_what_is_not_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no data called 'digitz'.*digits, fashion-mnist"):
        data.load("digitz")
    with pytest.raises(RecipeError, match="holds no data that is known"):
        data.load(str(tmp_path))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(RecipeError, match="unpack the archive first"):
        data.load(str(tmp_path / "cifar-10-python.tar.gz"))
    with pytest.raises(RecipeError, match="have their own size"):
        data.load("digits", size=4)
    monkeypatch.setattr(data, "FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(RecipeError, match="apt install dataset-fashion-mnist"):
        data.load("fashion-mnist")


@pytest.mark.skipif(
    not data.FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)
def test_fashion_mnist() -> None:
    loaded = data.load("Fashion_MNIST")
    assert loaded.train.shape == (60_000, 1, 28, 28)
    assert loaded.test.shape == (10_000, 1, 28, 28)
    assert loaded.n_levels == 256
    assert loaded.train.max() == 255
