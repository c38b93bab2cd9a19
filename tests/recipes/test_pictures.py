"""Pictures: the right image at the right place, sharp, and one sentence when they cannot be
written.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.pictures import save_density, save_grid, save_reconstruction


def _tiles(path: Path, height: int, width: int, factor: int) -> np.ndarray:
    """Undo the enlarging, checking that it was sharp; then cut at the gaps: (rows, columns, H, W[,
    3]).
    """
    pixels = np.asarray(Image.open(path))
    small = pixels[::factor, ::factor]
    assert np.array_equal(pixels, small.repeat(factor, axis=0).repeat(factor, axis=1))
    rows, columns = (small.shape[0] - 1) // (height + 1), (small.shape[1] - 1) // (width + 1)
    return np.array(
        [
            [
                small[1 + r * (height + 1) :, 1 + c * (width + 1) :][:height, :width]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )  # fmt: skip


def test_grid_of_grey_images_row_by_row(tmp_path: Path) -> None:
    levels = torch.randint(0, 17, (5, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    levels[0, 0, 0, :2] = torch.tensor([0, 16])
    path = tmp_path / "new" / "grid.png"
    save_grid(levels, 17, path, min_width=4 * (3 * 4 + 1))
    tiles = _tiles(path, 2, 3, factor=4)
    assert tiles.shape == (2, 3, 2, 3)  # five images: three columns, two rows
    expected = (levels[:, 0].double() * 255 / 16).round().numpy()
    assert np.array_equal(tiles.reshape(6, 2, 3)[:5], expected)
    assert expected.min() == 0
    assert expected.max() == 255
    assert (tiles[1, 2] == 255).all()  # the empty place


def test_grid_keeps_the_order_of_colours(tmp_path: Path) -> None:
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 255
    save_grid(red, 256, tmp_path / "red.png", min_width=1)
    assert (_tiles(tmp_path / "red.png", 4, 4, 1) == [255, 0, 0]).all()


def test_inputs_above_reconstructions(tmp_path: Path) -> None:
    inputs = torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 2, 2) * 50
    save_reconstruction(inputs, inputs + 7, 256, tmp_path / "pair.png", min_width=1)
    tiles = _tiles(tmp_path / "pair.png", 2, 2, 1)[:, :, 0, 0]
    assert tiles.tolist() == [[0, 50, 100], [7, 57, 107]]


class _Blob(nn.Module):
    """N((2, -1), 0.5^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([2.0, -1.0]))

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - self.centre) / 0.5).square().sum(dim=1) - math.log(2 * math.pi * 0.25)


def test_density_is_drawn_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    imshow = Axes.imshow

    def note(self: Axes, image: np.ndarray, **options: object) -> object:
        drawn.append((image, options))
        return imshow(self, image, **options)

    monkeypatch.setattr(Axes, "imshow", note)
    generator = torch.Generator().manual_seed(0)
    near = 1.5 * torch.randn(2000, 2, generator=generator)  # the blob is not at their centre
    far = torch.tensor([[float("nan"), 0.0]])  # one broken sample does not spoil the picture
    save_density(_Blob(), torch.cat([near, far]), tmp_path / "density.png")
    ((image, options),) = drawn
    assert options["origin"] == "lower"
    left, right, bottom, top = options["extent"]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert left + (right - left) * (column + 0.5) / image.shape[1] == pytest.approx(2.0, abs=0.05)
    assert bottom + (top - bottom) * (row + 0.5) / image.shape[0] == pytest.approx(-1.0, abs=0.05)
    cell = (right - left) * (top - bottom) / image.size
    assert image.sum() * cell == pytest.approx(
        1.0, abs=0.02
    )  # it is a density, and nearly all of it is shown
    assert Image.open(tmp_path / "density.png").size[0] > 800


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        save_grid(torch.zeros(1, 1, 2, 2), 2, tmp_path / "file" / "grid.png")
    with pytest.raises(RecipeError, match="these samples have 2"):
        save_grid(torch.zeros(1, 2, 2, 2), 2, tmp_path / "grid.png")
