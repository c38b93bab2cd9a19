"""The sampler that computes each activation once: of networks that a user has built."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from deepgen_ext.models.autoregressive import naive_sample
from deepgen_ext.nn import (
    AncestralSampler,
    AppendOnes,
    Categorical,
    ConcatELU,
    ConditionProjection,
    DiscretizedLogisticMixture,
    Gate,
    GatedSigmoid,
    MaskedConv2d,
    Shift,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
)
from deepgen_ext.nn.ancestral.program import Tap

LEVELS = 5


class Network(nn.Module):
    """Layers by name, and a forward pass given as a function of them."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for key, layer in layers.items():
            setattr(self, key, layer)

    def forward(self, x, condition=None):
        return self.call(self, x, condition)


def first(channels=6, kernel=3, **options):
    return MaskedConv2d(1, channels, kernel, mask_type="A", **options)


def head(channels=6):
    return nn.Conv2d(channels, LEVELS, 1)


def normalised(channels):
    """Batch normalisation whose statistics are those of no batch."""
    layer = nn.BatchNorm2d(channels).eval()
    for value in (layer.running_mean, layer.weight, layer.bias):
        nn.init.normal_(value)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


def residual(net, x, _):
    h = net.first(x)
    h = h + net.hidden(F.relu(h))
    return net.last(net.norm(h.tanh() * 0.7 - 0.2))


def numbers(net, x, _):
    h = net.first(1 - x) - 0.5 * net.other(x)
    return net.last((2 * h).sigmoid() + F.elu(-h))


def pieces(net, x, _):
    a, b = net.first(x).chunk(2, dim=1)
    c, d = torch.split(net.hidden(torch.cat([b, a], 1)), [2, 4], 1)
    return net.last(torch.cat([c, a * b, d, c - c * 3], 1))


def embedded(net, x, _):
    """The image itself goes through layers, before any mask hides a pixel."""
    e = net.embed(net.ones(x)).relu()
    return net.last(net.first(e) + net.skip(net.shift(e)))


def two_scales(net, x, _):
    """A vertical and a horizontal stream at half the resolution and back."""
    u = net.down(net.above(x))
    v = net.shift_down(u) + net.shift_right(net.left(x))
    half_u, half_v = net.half_u(net.elu(u)), net.half_v(net.elu(v))
    half_v = half_v + net.gate(net.mix(half_u))
    u = net.full_u(half_u)
    return net.last(v + u + net.full_v(half_v))


def two_scales_network(height, width):
    size = {"output_size": (height, width)}
    return Network(
        two_scales,
        above=Shift("down"),
        down=ShiftedConv2d(1, 4, (2, 3), shift="down"),
        shift_down=Shift("down"),
        shift_right=Shift("right"),
        left=ShiftedConv2d(1, 4, (2, 1), shift="down_right"),
        elu=ConcatELU(),
        half_u=weight_norm(ShiftedConv2d(8, 6, (2, 3), shift="down", stride=2)),
        half_v=ShiftedConv2d(8, 6, (2, 2), shift="down_right", stride=2),
        mix=nn.Conv2d(6, 12, 1),
        gate=GatedSigmoid(),
        full_u=ShiftedConvTranspose2d(6, 4, (2, 3), shift="down", **size),
        full_v=weight_norm(ShiftedConvTranspose2d(6, 4, (2, 2), shift="down_right", **size)),
        last=head(4),
    )


NETWORKS = {
    "residual": lambda: Network(
        residual,
        first=first(),
        hidden=MaskedConv2d(6, 6, 3, dilation=2),
        norm=normalised(6),
        last=head(),
    ),
    "numbers": lambda: Network(numbers, first=first(), other=first(kernel=5), last=head()),
    "pieces": lambda: Network(pieces, first=first(), hidden=MaskedConv2d(6, 6, 3), last=head(11)),
    "embedded": lambda: Network(
        embedded,
        ones=AppendOnes(),
        embed=nn.Conv2d(2, 3, 1),
        first=MaskedConv2d(3, 6, 3, mask_type="A"),
        shift=Shift("right"),
        skip=nn.Conv2d(3, 6, 1),
        last=head(),
    ),
    "two scales": lambda: two_scales_network(5, 7),
    "wide": lambda: Network(  # several panels of output channels, and a rest
        residual,
        first=first(37),
        hidden=MaskedConv2d(37, 37, 3),
        norm=normalised(37),
        last=head(37),
    ),
    "sequential": lambda: nn.Sequential(
        first(),
        nn.ReLU(),
        nn.Dropout(),
        MaskedConv2d(6, 6, (1, 3)),
        nn.ELU(),
        nn.Identity(),
        head(),
    ),
    "bias only": lambda: nn.Sequential(MaskedConv2d(1, 6, 1, mask_type="A"), nn.Tanh(), head()),
}


def prepared(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    with torch.no_grad():  # far from uniform, so that each level depends on those before it
        for parameter in network.parameters():
            parameter.mul_(2.5)
    return network


def both(network, shape, n, distribution=None, *, channels=1, condition=None, **options):
    """The sampler's levels after checking that they are the naive ones."""
    distribution = distribution or Categorical(channels, LEVELS)
    uniforms = torch.rand(n, channels, *shape, dtype=torch.float64)
    sampler = AncestralSampler(network, (channels, *shape), distribution)
    ours = sampler(uniforms, condition, **options)
    if network_takes_no_condition(network):
        network = _WithCondition(network)
    naive = naive_sample(network, distribution, uniforms, condition=condition, **options)
    assert torch.equal(ours, naive)
    return ours


def network_takes_no_condition(network):
    return isinstance(network, nn.Sequential)


class _WithCondition(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, condition=None):
        return self.network(x)


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


CONDITIONS = {
    "vector": lambda n: torch.randn(n, 3),
    "map": lambda n: torch.randn(n, 3, 5, 7),
    "one for all": lambda n: torch.randn(1, 3),
}


@pytest.mark.parametrize("form", CONDITIONS)
def test_conditions(form):
    """Of both resolutions, through whatever the network does with them."""
    torch.manual_seed(0)
    layers = {
        "encoder": nn.Sequential(ConditionProjection(3, 6), nn.Softplus()),
        "coarse": ConditionProjection(3, 6, stride=2),
        "first": first(),
        "down": ShiftedConv2d(6, 6, (2, 2), shift="down_right", stride=2),
        "up": ShiftedConvTranspose2d(6, 6, (2, 2), shift="down_right", output_size=(5, 7)),
        "last": head(12),
    }

    def call(net, x, condition):
        encoded = net.encoder(condition)
        h = net.first(x) * encoded + encoded
        half = torch.tanh(net.down(h) + net.coarse(condition))
        return net.last(torch.cat([h + net.up(half), h - encoded], 1))

    network = Network(call, **layers).double()
    condition = CONDITIONS[form](4).double()
    drawn = both(network, (5, 7), 4, condition=condition)
    other = AncestralSampler(network, (1, 5, 7), Categorical(1, LEVELS))
    torch.manual_seed(2)
    uniforms = torch.rand(4, 1, 5, 7, dtype=torch.float64)
    assert not torch.equal(other(uniforms, condition), other(uniforms, condition + 2))
    assert drawn.shape == (4, 1, 5, 7)


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


# ---------------------------------------------------------------- memory and mistakes


def test_caches_hold_the_rows_that_are_still_read():
    """O(layers * channels * kernel rows * width): not the images' height."""

    def size(height):
        network = nn.Sequential(first(8, 7), MaskedConv2d(8, 8, 3), head(8))
        return AncestralSampler(network, (1, height, 16), Categorical(1, LEVELS)).cache_bytes()

    assert size(100) == size(10)
    image, sums = 3 * (16 + 6), 2 * 8 * 16  # three rows of the image; the sums of upper taps
    hidden, others = 8 * (16 + 2), 8 * 16 + LEVELS * 16
    assert size(10) == 4 * (image + sums + hidden + others)


def _break(program, how):
    """Plant a mistake in the clock of a program's first convolution of hidden features."""
    steps = [*program.row_steps, *program.pixel_steps]
    term = next(t for s in steps for t in s.terms if t.channels > 1 and len(t.taps) > 1)
    if how == "one row late":
        term.taps[0] = Tap(term.taps[0].dy - 1, term.taps[0].dx, kernel=term.taps[0].kernel)
        program.nodes[term.source].rows += 1
    elif how == "ring too short":
        program.nodes[term.source].rows -= 1
    elif how == "column off":
        term.taps[-1] = Tap(term.taps[-1].dy, term.taps[-1].dx - 1, kernel=term.taps[-1].kernel)
        program.nodes[term.source].pad += 1


@pytest.mark.parametrize("how", ["one row late", "ring too short", "column off", None])
def test_a_clock_that_is_off_is_noticed(how, monkeypatch):
    from deepgen_ext.nn.ancestral import builder

    finish = builder.Builder.finish

    def broken(self):
        program = finish(self)
        _break(program, how)
        return program

    monkeypatch.setattr(builder.Builder, "finish", broken)
    if how is None:
        both(prepared("residual"), (5, 7), 3)
    else:
        with pytest.raises(AssertionError):
            both(prepared("residual"), (5, 7), 3)


BAD = {
    "layer '1' \\(Conv2d\\): .* cannot be computed pixel by pixel": lambda: nn.Sequential(
        first(), nn.Conv2d(6, 6, 3, padding=1), head()
    ),
    "layer '1' \\(MaxPool2d\\)": lambda: nn.Sequential(first(), nn.MaxPool2d(3, 1, 1), head()),
    "layer '1' \\(GroupNorm\\)": lambda: nn.Sequential(first(), nn.GroupNorm(2, 6), head()),
    "the network's output sees the pixel that it predicts": lambda: nn.Sequential(
        MaskedConv2d(1, 6, 3), head()
    ),
    "layer '0' \\(ShiftedConv2d\\): .*pixels to the right": lambda: nn.Sequential(
        ShiftedConv2d(1, 6, (2, 3), shift="down"), head()
    ),
    "output must have 5 channels .* got 4": lambda: nn.Sequential(first(), nn.Conv2d(6, 4, 1)),
    "softmax: no program knows": lambda: Network(
        lambda net, x, _: net.first(x).softmax(1), first=first(LEVELS)
    ),
    "cannot be recorded": lambda: Network(
        lambda net, x, _: net.first(x) if x.sum() > 0 else x, first=first(LEVELS)
    ),
    "concatenates along dimension 2": lambda: Network(
        lambda net, x, _: torch.cat([net.first(x)] * 2, 2), first=first(LEVELS)
    ),
    "combines 6 channels at stride 1 with 5": lambda: Network(
        lambda net, x, _: net.first(x) + net.other(x), first=first(), other=first(5)
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_compiled_is_named(words):
    sampler = AncestralSampler(BAD[words](), (1, 5, 7), Categorical(1, LEVELS))
    with pytest.raises(TypeError, match=words):
        sampler(torch.rand(1, 1, 5, 7))


def test_channels_in_turns_need_layers_that_keep_their_order():
    network = nn.Sequential(
        MaskedConv2d(3, 6, 3, mask_type="A", groups_in_order=3), nn.Conv2d(6, 3 * LEVELS, 1)
    )
    sampler = AncestralSampler(network, (3, 5, 7), Categorical(3, LEVELS, groups_in_order=3))
    with pytest.raises(TypeError, match=r"layer '1' \(Conv2d\): .*groups_in_order=3"):
        sampler(torch.rand(1, 3, 5, 7))


def test_bad_arguments():
    sampler = AncestralSampler(prepared("residual"), (1, 5, 7), Categorical(1, LEVELS))
    with pytest.raises(ValueError, match=r"uniforms: expected \(n, 1, 5, 7\), got \(2, 1, 7, 5\)"):
        sampler(torch.rand(2, 1, 7, 5))
    with pytest.raises(ValueError, match="levels and known"):
        sampler(torch.rand(2, 1, 5, 7), known=torch.ones(2, 1, 5, 7).bool())
    projected = Network(
        lambda net, x, c: net.last(net.first(x) + net.condition(c)),
        first=first(),
        condition=ConditionProjection(3, 6),
        last=head(),
    )
    sampler = AncestralSampler(projected, (1, 5, 7), Categorical(1, LEVELS))
    with pytest.raises(ValueError, match=r"condition.* is a map of \(6, 7\)"):
        sampler(torch.rand(2, 1, 5, 7), torch.randn(2, 3, 6, 7))
    with pytest.raises(ValueError, match="condition: expected 2 samples, got 3"):
        sampler(torch.rand(2, 1, 5, 7), torch.randn(3, 3))
