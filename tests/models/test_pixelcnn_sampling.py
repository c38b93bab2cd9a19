"""PixelCNN, plain and gated: three samplers that draw the same, and as often as the density says."""

import copy

import pytest
import torch

from deepgen_ext.models import PixelCNN
from deepgen_ext.models.autoregressive import jacobi_sample, naive_sample, sampling_inputs
from deepgen_ext.nn import Categorical
from tests.models.pixelcnn_cases import COLOR, GRAY, build, name, uniforms_of
from tests.pixel_checks import (
    check_frequencies,
    check_methods,
    sharpen,
)


@pytest.mark.parametrize("options", GRAY, ids=name)
@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 1, 1), (1, 1, 5), (1, 5, 1)], ids=str)
def test_all_methods_draw_the_same_gray_images(options, shape):
    model = build(shape, **options)
    levels = check_methods(model, 33 if shape == (1, 5, 4) else 1)
    if shape == (1, 5, 4):
        # Alone, an image is drawn as it is in a batch.
        assert torch.equal(model.sample(1, uniforms=uniforms_of(model, 33)[5:6]), levels[5:6])


@pytest.mark.parametrize("options", COLOR, ids=name)
@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 1, 1)], ids=str)
def test_all_methods_draw_the_same_coloured_images(options, shape):
    check_methods(build(shape, **options), 5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_methods_draw_the_same_given_a_condition(gated, channels):
    shape = (channels, 3, 5)
    model = build(shape, gated=gated, conditional_channels=2)
    vector = torch.randn(4, 2, dtype=torch.float64)
    image = torch.randn(4, 2, 3, 5, dtype=torch.float64)
    of_vector = check_methods(model, 4, condition=vector)
    of_image = check_methods(model, 4, condition=image)
    assert not torch.equal(of_vector, of_image)
    uniforms = uniforms_of(model, 4)
    assert not torch.equal(of_vector, model.sample(4, uniforms=uniforms, condition=-vector))
    # A map that is the same everywhere is the vector.
    constant = vector[:, :, None, None].expand(image.shape)
    assert torch.equal(of_vector, model.sample(4, uniforms=uniforms, condition=constant))
    torch.testing.assert_close(
        model.log_prob(of_vector, vector), model.log_prob(of_vector, constant)
    )


@pytest.mark.parametrize("options", [{}, {"gated": True}], ids=name)
def test_samples_come_as_often_as_their_probability_says(options):
    check_frequencies(build((1, 2, 2), n_levels=2, **options))


def test_ordered_colours_come_as_often_as_their_probability_says():
    check_frequencies(build((3, 1, 2), n_levels=2, gated=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_given_stays_and_the_rest_is_drawn(channels):
    model = build((channels, 4, 4), gated=True)
    uniforms = uniforms_of(model, 6)
    whole = model.sample(6, uniforms=uniforms)
    for rows in (0, 2, 4):
        # The rows of the image itself: the completion is the image.
        again = check_methods(model, 6, given=whole[:, :, :rows])
        assert torch.equal(again[:, :, :rows], whole[:, :, :rows])
        assert torch.equal(model.sample(6, uniforms=uniforms, given=whole[:, :, :rows]), whole)
    other = (whole + 1) % 4
    one = check_methods(model, 6, given=other[:1, :, :2])
    assert torch.equal(one[:, :, :2], other[:1, :, :2].expand(6, -1, -1, -1))
    assert not torch.equal(one[:, :, 2:], whole[:, :, 2:])

    mask = torch.rand(6, channels, 4, 4) < 0.4
    masked = check_methods(model, 6, given=(other, mask))
    assert torch.equal(masked[mask], other[mask])
    assert torch.equal(model.sample(6, uniforms=uniforms, given=(whole, mask)), whole)
    right_half = torch.arange(4) >= 2
    masked = check_methods(model, 6, given=(other[:1], right_half))
    assert torch.equal(masked[..., 2:], other[:1, ..., 2:].expand(6, -1, -1, -1))
    for method in ("incremental", "naive", "jacobi"):
        everything = model.sample(6, method=method, given=(other, torch.tensor(True)))
        assert torch.equal(everything, other)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_low_temperature_takes_the_mode_of_each_pixel(channels):
    model = build((channels, 4, 4))
    levels = model.sample(3, temperature=1e-6)
    best = model(levels).unflatten(1, (channels, 4)).argmax(2)
    assert torch.equal(levels, best)
    check_methods(model, 3, temperature=0.5)
    cool = model.bits_per_dim(model.sample(200, temperature=0.5)).mean()
    assert cool < model.bits_per_dim(model.sample(200)).mean()


def test_uniforms_are_drawn_from_the_generator():
    model = build((1, 4, 4))
    first, again, other = (
        model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    uniforms = torch.rand(
        3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert torch.equal(first, model.sample(3, uniforms=uniforms))


def test_uniforms_that_round_to_one_stay_below_it():
    model = build((1, 3, 3)).float()
    largest = torch.full((2, 1, 3, 3), 1 - 1e-12, dtype=torch.float64)
    assert (model.sample(2, uniforms=largest) < 4).all()


@pytest.mark.parametrize("method", ["incremental", "naive", "jacobi"])
def test_batches_are_cut_and_rows_reported(method, monkeypatch):
    model = build((1, 5, 4))
    uniforms = uniforms_of(model, 7)
    rows = []
    whole = model.sample(7, method=method, uniforms=uniforms, on_row=lambda *row: rows.append(row))
    assert rows == [(i + 1, 5) for i in range(5)]
    rows.clear()
    parts = model.sample(
        7, method=method, uniforms=uniforms, max_batch=3, on_row=lambda *row: rows.append(row)
    )
    assert torch.equal(parts, whole)
    assert rows == [(i + 1, 15) for i in range(15)]
    monkeypatch.setattr(sampling_inputs, "SAMPLING_BYTES", 1)
    with pytest.warns(UserWarning, match="7 images at once .* 1 are sampled at a time; max_batch"):
        one_by_one = model.sample(7, method=method, uniforms=uniforms)
    assert torch.equal(one_by_one, whole)
    assert model.sample(0, method=method).shape == (0, 1, 5, 4)


def test_sampling_leaves_the_model_as_it_was():
    model = build((1, 3, 3)).train()
    model.network.hidden.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    levels = model.sample(2)
    assert not levels.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # New weights are sampled from, not those of the first call.
    uniforms = uniforms_of(model, 8)
    before = model.sample(8, uniforms=uniforms)
    with torch.no_grad():
        model.network.output.bias.add_(torch.tensor([0.0, 2.0, 0.0, 0.0]))
    after = model.sample(8, uniforms=uniforms)
    assert not torch.equal(before, after)
    assert torch.equal(after, model.sample(8, uniforms=uniforms, method="naive"))
    # So are new layers.
    model.network.hidden = torch.nn.Conv2d(6, 6, 1).double()
    replaced = model.sample(8, uniforms=uniforms)
    assert not torch.equal(replaced, after)
    assert torch.equal(replaced, model.sample(8, uniforms=uniforms, method="naive"))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        model.network.output.bias.add_(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    assert torch.equal(copied.sample(8, uniforms=uniforms), replaced)


# ---------------------------------------------------------------- Jacobi


def test_jacobi_takes_few_sweeps_where_pixels_hang_together_loosely():
    torch.manual_seed(0)
    model = PixelCNN((1, 8, 8), 3, 8, n_levels=4, kernel_size=3).double()  # nearly flat
    levels, sweeps = model.sample(16, method="jacobi", return_sweeps=True)
    assert levels.shape == (16, 1, 8, 8)
    assert (sweeps < 40).all()
    alone = sharpen(model, model.network.output)
    uniforms = uniforms_of(alone, 5)
    together = alone.sample(5, method="jacobi", uniforms=uniforms, return_sweeps=True)
    for index in range(5):
        one = alone.sample(
            1, method="jacobi", uniforms=uniforms[index : index + 1], return_sweeps=True
        )
        assert torch.equal(one[0][0], together[0][index])
        assert one[1] == together[1][index]
    assert len(together[1].unique()) > 1, "all samples stopped together"


class Alternating(torch.nn.Module):
    """Each pixel is the opposite of the one before, whatever the uniforms: the longest chain."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(50.0, dtype=torch.float64))

    def forward(self, x, condition=None):
        before = x.flatten(2).roll(1, 2)
        before[..., 0] = -1.0
        before = before.view(x.shape)
        return torch.cat([before, -before], 1) * self.scale


def test_jacobi_is_exact_on_the_longest_chain_in_no_more_sweeps_than_pixels():
    uniforms = torch.rand(3, 1, 3, 4, dtype=torch.float64)
    chain = torch.arange(1, 13).remainder(2).view(1, 1, 3, 4).expand(3, -1, -1, -1)
    for block_rows in (1, 2, 3):
        levels, sweeps = jacobi_sample(
            Alternating(), Categorical(1, 2), uniforms, block_rows=block_rows
        )
        assert torch.equal(levels, chain)
        assert (sweeps <= 12).all()
        assert (sweeps >= 6).all()  # of a guess every second pixel is right by chance
    assert torch.equal(naive_sample(Alternating(), Categorical(1, 2), uniforms), chain)


def test_jacobi_evaluates_neither_finished_samples_nor_rows_below_the_block():
    model = build((1, 7, 4), n_levels=6)
    seen = []
    hook = model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    _, sweeps = model.sample(9, method="jacobi", block_rows=3, return_sweeps=True)
    hook.remove()
    assert sum(shape[0] for shape in seen) == sweeps.sum()
    heights = [shape[2] for shape in seen]
    assert heights[0] == 3
    assert sum(heights) < 7 * len(heights)
    known = torch.zeros(9, 1, 7, 4, dtype=torch.bool)
    known[:4] = True
    given = (torch.zeros(9, 1, 7, 4, dtype=torch.long), known)
    _, sweeps = model.sample(9, method="jacobi", given=given, return_sweeps=True)
    assert (sweeps[:4] == 0).all()
    assert (sweeps[4:] > 0).all()


@pytest.mark.parametrize("gated", [False, True])
def test_a_saved_model_draws_the_same(gated):
    model = build((1, 4, 4), gated=gated)
    torch.manual_seed(1)
    other = PixelCNN((1, 4, 4), 3, 6, gated, 4, kernel_size=3).double()
    uniforms = uniforms_of(model, 3)
    assert not torch.equal(other.sample(3, uniforms=uniforms), model.sample(3, uniforms=uniforms))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.sample(3, uniforms=uniforms), model.sample(3, uniforms=uniforms))
