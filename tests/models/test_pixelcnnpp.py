"""PixelCNN++: order, density, three samplers, odd sizes, conditions."""

import math

import pytest
import torch

from deepgen_ext.models import PixelCNNPlusPlus
from deepgen_ext.nn import ConcatELU, ShiftedConvTranspose2d
from tests.pixel_checks import (
    allowed,
    check_causal,
    check_frequencies,
    check_methods,
    check_normalised,
    influence,
    sharpen,
)


def build(image_shape, n_levels=5, **options):
    """A small model, far from flat."""
    options = {"resnets": 1, "filters": 4, "mixtures": 2, **options}
    torch.manual_seed(0)
    model = PixelCNNPlusPlus(image_shape, n_levels=n_levels, **options)
    return sharpen(model, model.network.output, std=1.0)


@pytest.mark.parametrize("shape", [(1, 5, 6), (2, 4, 5), (1, 7, 3), (1, 1, 6), (1, 6, 1)], ids=str)
def test_a_pixel_depends_on_all_pixels_before_it_and_no_other(shape):
    model = build(shape)
    found = check_causal(model.network, torch.randn(*shape, dtype=torch.float64))
    assert torch.equal(found, allowed(shape, 1))


def test_every_level_of_resolution_is_causal():
    """Each stream at each resolution, after each of its blocks."""
    network = build((1, 6, 7), resnets=2).network
    layers = {
        f"{stream}.{level}.{index}": (layer, 2**level)
        for stream in ("down_u", "down_ul", "up_u", "up_ul")
        for level, blocks in enumerate(getattr(network, stream))
        for index, layer in enumerate(blocks)
    }
    assert len(layers) == 28
    kept = {}
    for name, (layer, _) in layers.items():
        layer.register_forward_hook(lambda *call, name=name: kept.update({name: call[-1]}))

    def features(x):
        network(x)
        images = x.new_zeros(len(x), len(layers), 4, 6, 7)
        for index, (name, (_, stride)) in enumerate(layers.items()):
            # Its pixel (i, j) belongs to (stride i, stride j): it is known when that one is drawn.
            images[:, index, :, ::stride, ::stride] = kept[name]
        return images.flatten(1, 2)

    found = influence(features, torch.randn(1, 6, 7, dtype=torch.float64), groups=len(layers))
    for index, name in enumerate(layers):
        source, target = found[:, index :: len(layers)].nonzero().T
        assert len(source), name
        assert (source < target).all(), f"{name} sees a later pixel"
        if "_ul" not in name:
            assert (source // 7 < target // 7).all(), f"{name} sees its own row"


@pytest.mark.parametrize("mixtures", [1, 3])
def test_densities_add_up_to_one(mixtures):
    check_normalised(build((1, 2, 3), n_levels=2, mixtures=mixtures))
    check_normalised(build((1, 2, 2), n_levels=4, mixtures=mixtures))
    check_normalised(build((2, 2, 1), n_levels=3, mixtures=mixtures))
    check_normalised(build((3, 1, 2), n_levels=3, mixtures=mixtures))


def test_densities_given_a_condition_add_up_to_one():
    model = build((1, 2, 2), n_levels=3, conditional_channels=2)
    check_normalised(model, torch.randn(1, 2, dtype=torch.float64))
    check_normalised(model, torch.randn(1, 2, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((3, 4, 6), 2),
        ((1, 5, 7), 33),
        ((1, 1, 1), 1),
        ((3, 1, 1), 2),
        ((1, 1, 7), 2),
        ((1, 7, 1), 2),
        ((1, 3, 2), 1),
        ((2, 6, 5), 1),
    ],
    ids=str,
)
def test_all_methods_draw_the_same(shape, n):
    levels = check_methods(build(shape, n_levels=9), n)
    if n > 2:
        assert (levels != levels[:1]).double().mean() > 0.3, "too flat to tell the methods apart"


@pytest.mark.parametrize("options", [{"resnets": 2}, {"mixtures": 1}, {"filters": 7}], ids=str)
def test_all_methods_draw_the_same_for_other_options(options):
    check_methods(build((3, 4, 3), n_levels=256, **options), 3)


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 2, 3)], ids=str)
def test_all_methods_draw_the_same_given_a_condition(shape):
    model = build(shape, conditional_channels=2)
    vector = torch.randn(3, 2, dtype=torch.float64)
    image = torch.randn(3, 2, *shape[1:], dtype=torch.float64)
    of_vector = check_methods(model, 3, condition=vector)
    of_image = check_methods(model, 3, condition=image)
    assert not torch.equal(of_vector, of_image)
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    assert not torch.equal(of_vector, model.sample(3, uniforms=uniforms, condition=-vector))
    constant = vector[:, :, None, None].expand(image.shape)
    torch.testing.assert_close(
        model.log_prob(of_vector, vector), model.log_prob(of_vector, constant)
    )
    assert torch.equal(of_vector, model.sample(3, uniforms=uniforms, condition=constant))


def test_samples_come_as_often_as_their_probability_says_for_one_channel():
    check_frequencies(build((1, 2, 2), n_levels=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_given_stays_and_the_rest_is_drawn(channels):
    model = build((channels, 5, 4))
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(4, channels, 5, 4, generator=generator, dtype=torch.float64)
    whole = model.sample(4, uniforms=uniforms)
    other = 4 - whole
    again = check_methods(model, 4, given=whole[:, :, :2])
    assert torch.equal(again, whole)
    changed = check_methods(model, 4, given=other[:, :, :2])
    assert torch.equal(changed[:, :, :2], other[:, :, :2])
    assert not torch.equal(changed[:, :, 2:], whole[:, :, 2:])
    mask = torch.rand(4, 1, 5, 4) < 0.4
    masked = check_methods(model, 4, given=(other, mask))
    mask = mask.expand_as(other)
    assert torch.equal(masked[mask], other[mask])
    if channels > 1:
        with pytest.raises(ValueError, match=r"given\[1\]: a mixture draws the channels"):
            model.sample(4, given=(other, torch.rand(4, 3, 5, 4) < 0.5))


def test_a_low_temperature_takes_the_mean_of_the_likeliest_logistic():
    model = build((1, 4, 4), n_levels=50, mixtures=3)
    levels = model.sample(3, temperature=1e-6)
    logits, means, _ = model(levels).split(3, 1)
    mean = means.gather(1, logits.argmax(1, keepdim=True))
    best = ((mean + 1) * 49 / 2).round().clamp(0, 49).long()
    assert torch.equal(levels, best)
    check_methods(model, 3, temperature=0.5)


def test_dropout_is_for_training_alone():
    model = build((1, 4, 4), dropout=0.5)
    levels = torch.randint(0, 5, (2, 1, 4, 4))
    assert torch.equal(model.log_prob(levels), model.log_prob(levels))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    calm = model.sample(4, generator=generators[0])
    model.train()
    assert not torch.equal(model.log_prob(levels), model.log_prob(levels))
    assert torch.equal(model.sample(4, generator=generators[1]), calm)
    assert all(module.training for module in model.modules())


def test_weights_are_normalised_and_every_parameter_is_trained():
    torch.manual_seed(0)
    model = PixelCNNPlusPlus((3, 4, 4), 1, 12, 2, 2, dropout=0.0, n_levels=8)
    # One learned norm for each output channel, also where these are the weight's second dimension.
    for module in model.network.modules():
        if hasattr(module, "parametrizations"):
            norm = module.parametrizations.weight.original0
            output = int(isinstance(module, ShiftedConvTranspose2d))
            assert norm.numel() == norm.shape[output] == module.out_channels
    levels = (torch.arange(48).view(1, 3, 4, 4) % 8).expand(8, -1, -1, -1)
    condition = torch.randn(8, 2)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = model.loss(levels, condition, noise=torch.rand(8, 3, 4, 4))
        adam.zero_grad()
        loss.backward()
        if not losses:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.any(), name
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_saved_model_draws_the_same():
    model = build((1, 4, 4))
    other = PixelCNNPlusPlus((1, 4, 4), 1, 4, 2, n_levels=5).double()
    uniforms = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.sample(3, uniforms=uniforms), model.sample(3, uniforms=uniforms))


def test_shape_of_the_network_is_the_papers():
    model = PixelCNNPlusPlus((3, 8, 8), 2, 4, 10)
    assert model.distribution.parameters == 100
    kinds = [type(module) for module in model.modules()]
    # Resnets of two streams: 2 + 2 + 2 down and 2 + 3 + 3 up.
    assert kinds.count(ConcatELU) == 2 * 14
    bits = model.bits_per_dim(torch.randint(0, 256, (2, 3, 8, 8)))
    assert bits.shape == (2,)
    assert (bits > 0).all()


def test_bits_per_dim_of_bytes():
    model = build((3, 4, 4), n_levels=256)
    levels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    bits = -model.log_prob(levels) / (48 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(levels), bits)
    for dtype in (torch.int16, torch.int32, torch.int64):
        torch.testing.assert_close(model.loss(levels.to(dtype), noise=None), bits.mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PixelCNNPlusPlus((4, 4)), r"image_shape: .*\(4, 4\)"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), 0), "resnets: .*0"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), filters=0), "filters: .*0"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), mixtures=0), "mixtures: .*0"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), dropout=1.0), "dropout: .*1.0"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), n_levels=1), "n_levels: .*1"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), conditional_channels=-1), "condition.*-1"),
        (
            lambda: PixelCNNPlusPlus((1, 4, 4), 1, 4, 2, 3).sample(2),
            r"condition: expected \(2, 3\) or \(2, 3, 4, 4\), got None",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
