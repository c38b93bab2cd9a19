"""Two domains without pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.data import load
from deepgen_ext.recipes.domains import load_domains


def test_by_default_half_of_the_images_are_inverted() -> None:
    """Each image is in one domain: none has its partner in the other."""
    a, b = load_domains("digits", None)
    data = load("digits")
    assert len(a.train) + len(b.train) == len(data.train)
    assert torch.equal(a.train, data.train[0::2])
    assert torch.equal(b.train, 16 - data.train[1::2])
    assert torch.equal(b.test, 16 - data.test[1::2])
    assert (a.name, b.name, b.n_levels) == ("digits", "digits:inverted", 17)
    assert b.train.dtype == torch.uint8


def test_two_classes() -> None:
    a, b = load_domains("digits:3", "digits:8")
    data = load("digits")
    for domain, wanted in ((a, 3), (b, 8)):
        assert torch.equal(domain.train, data.train[data.labels[0] == wanted])
        assert torch.equal(domain.test, data.test[data.labels[1] == wanted])
    a, b = load_domains("digits:3", "digits:3")
    assert len(a.train) + len(b.train) == (data.labels[0] == 3).sum()


def test_changes() -> None:
    a, b = load_domains("digits:turned", "digits:mirrored")
    data = load("digits")
    assert torch.equal(a.train[5, 0], data.train[10, 0].rot90())
    assert torch.equal(b.train[5, 0], data.train[11, 0].flip(1))


def _folder(path: Path, side: int, mode: str = "L") -> str:
    path.mkdir()
    for index in range(4):
        Image.new(mode, (side, side), index * 20).save(path / f"{index}.png")
    return str(path)


def test_two_folders(tmp_path: Path) -> None:
    first, second = _folder(tmp_path / "a", 8), _folder(tmp_path / "b", 12)
    with pytest.raises(RecipeError, match=r"different sizes, 8x8 .* and 12x12 .*: --size N crops"):
        load_domains(first, second)
    a, b = load_domains(first, second, size=8)
    assert a.shape == b.shape == (1, 8, 8)
    with pytest.raises(RecipeError, match="different numbers of levels, 17 .* and 256"):
        load_domains("digits", first)
    coloured = _folder(tmp_path / "c", 8, "RGB")
    if load(coloured).shape[0] == 3:
        with pytest.raises(RecipeError, match="different numbers of colours, 1 .* and 3"):
            load_domains(first, coloured)


def test_what_is_not_a_domain() -> None:
    with pytest.raises(RecipeError, match="'digits:12': the classes are 0 to 9"):
        load_domains("digits:12", "digits:1")
    with pytest.raises(RecipeError, match="'two-moons' holds vectors"):
        load_domains("two-moons", "digits")
    with pytest.raises(RecipeError, match="no data called 'digits:upside'"):
        load_domains("digits:upside", "digits")
