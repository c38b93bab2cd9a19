"""Networks as a user builds them, and the check that the sampler draws what they define."""

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
    GatedSigmoid,
    MaskedConv2d,
    Shift,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
)

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
