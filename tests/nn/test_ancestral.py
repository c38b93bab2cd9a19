"""The sampler that computes each activation once: of networks that a user has built."""

import copy
import pickle

import pytest
import torch
from torch import nn

from deepgen_ext.models.autoregressive import naive_sample
from deepgen_ext.nn import (
    AncestralSampler,
    Categorical,
    ConditionProjection,
    DiagonalGaussian,
    DiscretizedLogisticMixture,
    Gate,
    MaskedConv2d,
)
from tests.nn.ancestral_networks import (
    LEVELS,
    NETWORKS,
    Network,
    both,
    first,
    head,
    prepared,
    two_scales_network,
)

# ---------------------------------------------------------------- equality with the definition


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 3, 33])
def test_draws_what_the_definition_draws(name, n):
    both(prepared(name), (5, 7), n)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2), (4, 9)])
def test_images_of_any_sides(shape):
    both(prepared("residual"), shape, 3)
    torch.manual_seed(1)
    both(two_scales_network(*shape).double(), shape, 3)


def test_no_image_at_all():
    sampler = AncestralSampler(prepared("residual"), (1, 5, 7), Categorical(1, LEVELS))
    assert sampler(torch.rand(0, 1, 5, 7)).shape == (0, 1, 5, 7)


@pytest.mark.parametrize("groups", [1, 3])
def test_three_channels(groups):
    """In turns within a pixel, or at once."""
    torch.manual_seed(0)
    layers = {
        "first": MaskedConv2d(3, 18, 3, mask_type="A", groups_in_order=groups),
        "hidden": MaskedConv2d(18, 36, 3, groups_in_order=groups),
        "gate": Gate(groups),
        "embed": MaskedConv2d(3, 6, 1, groups_in_order=groups),
        "again": MaskedConv2d(6, 18, 3, mask_type="A", groups_in_order=groups),
        "last": MaskedConv2d(18, 3 * LEVELS, 1, groups_in_order=groups),
    }

    def call(net, x, _):
        h = net.first(x) + net.again(net.embed(x).relu())
        return net.last(h * 1.5 + net.gate(net.hidden(h.relu())))

    network = Network(call, **layers).double()
    for parameter in network.parameters():
        parameter.data.mul_(2.5)
    both(network, (4, 3), 5, Categorical(3, LEVELS, groups_in_order=groups), channels=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixtures_of_logistics(channels):
    torch.manual_seed(0)
    distribution = DiscretizedLogisticMixture(channels, 16, 3)
    network = nn.Sequential(
        MaskedConv2d(channels, 8, 3, mask_type="A"),
        nn.ELU(),
        nn.Conv2d(8, distribution.parameters, 1),
    ).double()
    levels = both(network, (5, 4), 6, distribution, channels=channels, temperature=0.8)
    assert len(levels.unique()) > 4


def test_real_numbers_from_gaussians():
    """Seen as they are, not as levels; conditions, known pixels and temperature as of levels."""
    torch.manual_seed(0)
    distribution = DiagonalGaussian(2)
    layers = {
        "first": MaskedConv2d(2, 6, 3, mask_type="A"),
        "condition": ConditionProjection(3, 6),
        "last": nn.Conv2d(6, distribution.parameters, 1),
    }

    def call(net, x, condition):
        return net.last(torch.tanh(net.first(x) + net.condition(condition)))

    network = Network(call, **layers).double()
    for parameter in network.parameters():
        parameter.data.mul_(2.5)
    noise, condition = torch.randn(4, 2, 5, 7).double(), torch.randn(4, 3, 5, 7).double()
    levels = torch.randn(4, 2, 5, 7).double()
    known = (torch.rand(4, 1, 5, 7) < 0.3).expand_as(levels)
    sampler = AncestralSampler(network, (2, 5, 7), distribution)
    for options in ({}, {"temperature": 0.3}, {"levels": levels, "known": known}):
        drawn = sampler(noise, condition, **options)
        naive = naive_sample(network, distribution, noise, condition=condition, **options)
        torch.testing.assert_close(drawn, naive, rtol=1e-11, atol=1e-11)
        assert drawn.std() > 0.2
    assert torch.equal(drawn[known], levels[known])
    exact = sampler(noise, condition)
    single = AncestralSampler(network.float(), (2, 5, 7), distribution)(noise, condition.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)


def test_known_levels_are_kept_and_seen():
    network = prepared("residual")
    levels = torch.randint(0, LEVELS, (3, 1, 5, 7))
    for known in (torch.rand(3, 1, 5, 7) < 0.5, (torch.arange(5) < 2)[:, None]):
        drawn = both(network, (5, 7), 3, levels=levels, known=known.expand(3, 1, 5, 7))
        mask = known.expand(3, 1, 5, 7)
        assert torch.equal(drawn[mask], levels[mask])


def test_temperature():
    network = prepared("residual")
    cold = both(network, (5, 7), 4, temperature=0.01)
    warm = both(network, (5, 7), 4, temperature=3.0)
    assert not torch.equal(cold, warm)
    distinct = [len({tuple(image.flatten().tolist()) for image in drawn}) for drawn in (cold, warm)]
    assert distinct == [1, 4]  # the mode, whatever the uniforms


# ---------------------------------------------------------------- what may not change an image


def test_batch_threads_and_rows_change_nothing():
    """In float32 too: whatever the register tile, each sum adds its terms in one order."""
    network = prepared("wide").float()
    sampler = AncestralSampler(network, (1, 5, 7), Categorical(1, LEVELS))
    uniforms = torch.rand(37, 1, 5, 7)
    rows = []
    expected = sampler(uniforms, on_row=rows.append)
    assert rows == [1, 2, 3, 4, 5]
    assert torch.equal(sampler(uniforms), expected)
    assert torch.equal(sampler(uniforms[5:6]), expected[5:6])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(sampler(uniforms), expected)
            assert torch.equal(sampler(uniforms[:2]), expected[:2])
    finally:
        torch.set_num_threads(threads)


def test_weights_are_read_anew():
    network = prepared("residual")
    sampler = AncestralSampler(network, (1, 5, 7), Categorical(1, LEVELS))
    uniforms = torch.rand(2, 1, 5, 7)
    before = sampler(uniforms)
    with torch.no_grad():
        network.hidden.weight.mul_(-1)
    assert not torch.equal(sampler(uniforms), before)
    with torch.no_grad():
        network.hidden.weight.mul_(-1)
    assert torch.equal(sampler(uniforms), before)


def test_masked_weights_are_not_read():
    network = prepared("residual")
    sampler = AncestralSampler(network, (1, 5, 7), Categorical(1, LEVELS))
    uniforms = torch.rand(2, 1, 5, 7)
    before = sampler(uniforms)
    with torch.no_grad():
        for layer in (network.first, network.hidden):
            layer.weight.masked_fill_(layer.mask() == 0, float("nan"))
    assert torch.equal(sampler(uniforms), before)


def test_copies_and_half_types():
    sampler = AncestralSampler(prepared("sequential"), (1, 5, 7), Categorical(1, LEVELS))
    uniforms = torch.rand(2, 1, 5, 7)
    expected = sampler(uniforms)
    assert torch.equal(copy.deepcopy(sampler)(uniforms), expected)
    assert torch.equal(pickle.loads(pickle.dumps(sampler))(uniforms), expected)
    sampler.network.bfloat16()
    rounded = AncestralSampler(
        copy.deepcopy(sampler.network).float(), (1, 5, 7), Categorical(1, LEVELS)
    )
    assert torch.equal(sampler(uniforms), rounded(uniforms))


def test_caches_hold_the_rows_that_are_still_read():
    """O(layers * channels * kernel rows * width): not the images' height."""

    def size(height):
        network = nn.Sequential(first(8, 7), MaskedConv2d(8, 8, 3), head(8))
        return AncestralSampler(network, (1, height, 16), Categorical(1, LEVELS)).cache_bytes()

    assert size(100) == size(10)
    image, sums = 3 * (16 + 6), 2 * 8 * 16  # three rows of the image; the sums of upper taps
    hidden, others = 8 * (16 + 2), 8 * 16 + LEVELS * 16
    assert size(10) == 4 * (image + sums + hidden + others)
