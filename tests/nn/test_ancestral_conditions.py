"""The sampler that computes each activation once: what a network makes of a condition."""

import pytest
import torch
from torch import nn

from deepgen_ext.nn import (
    AncestralSampler,
    Categorical,
    ConditionProjection,
    MaskedConv2d,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
)
from tests.nn.ancestral_networks import LEVELS, Network, both, first, head

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


def joined_late(net, x, c):
    """The projection before and after the convolution it is added to, which has no row above."""
    h = net.first(x)
    h = net.conditions[0](c) + net.row(h.tanh())
    return net.last(net.conditions[1](c) + net.row(h.tanh()))


def joined_early(net, x, c):
    """To a convolution with rows above, to a 1x1 one with a bias, and to the first of all."""
    h = (net.first(x) + net.biased(c)).relu()
    return net.last((net.square(h) + net.conditions[0](c)).tanh()) + net.levels(c)


def used_twice(net, x, c):
    """A projection that is added and multiplied, one that scales, one of a convolution read again."""
    p, h = net.conditions[0](c), net.first(x)
    total = net.square(h + p) * p
    h = net.square(total.relu())
    return net.last((h + net.biased(c)) * net.conditions[1](c) - h)


def of_the_condition_alone(net, x, c):
    """A projection of a projection, and one that something else reads too."""
    p = net.conditions[0](net.biased(c).relu()[:, :3])
    return net.last(net.square((net.first(x) + p).tanh()) + net.biased(p[:, :3].abs()))


JOINED = [joined_late, joined_early, used_twice, of_the_condition_alone]


def network_of(call, groups=1):
    torch.manual_seed(0)
    in_order = {"groups_in_order": groups}
    network = Network(
        call,
        first=MaskedConv2d(groups, 6, 3, mask_type="A", **in_order),
        row=MaskedConv2d(6, 6, (1, 3), **in_order),
        square=MaskedConv2d(6, 6, 3, **in_order),
        conditions=nn.ModuleList(ConditionProjection(3, 6) for _ in range(2)),
        biased=ConditionProjection(3, 6, bias=True),
        levels=ConditionProjection(3, groups * LEVELS),
        last=MaskedConv2d(6, groups * LEVELS, 1, **in_order),
    ).double()
    for parameter in network.parameters():
        parameter.data.mul_(2.5)
    return network


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("call", JOINED, ids=lambda call: call.__name__)
def test_projections_of_maps(call, groups):
    distribution = Categorical(groups, LEVELS, groups_in_order=groups)
    network, condition = network_of(call, groups), torch.randn(3, 3, 4, 5).double()
    drawn = both(network, (4, 5), 3, distribution, channels=groups, condition=condition)
    changed = condition.clone()
    changed[:, :, 2] += 3
    torch.manual_seed(2)
    uniforms = torch.rand(3, groups, 4, 5, dtype=torch.float64)
    sampler = AncestralSampler(network, (groups, 4, 5), distribution)
    before, after = sampler(uniforms, condition), sampler(uniforms, changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])
    assert len(drawn.unique()) > 3


def test_maps_of_several_forms_take_turns():
    """One sampler, given a vector, a map, one map for all, and another projection's weights."""
    network = network_of(joined_early)
    sampler = AncestralSampler(network, (1, 4, 5), Categorical(1, LEVELS))
    uniforms = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    image, vector = torch.randn(1, 3, 4, 5).double(), torch.randn(3, 3).double()
    constant = vector[:, :, None, None].expand(3, 3, 4, 5)
    for _ in range(2):
        assert torch.equal(sampler(uniforms, vector), sampler(uniforms, constant))
        assert torch.equal(sampler(uniforms, image), sampler(uniforms, image.repeat(3, 1, 1, 1)))
        before = sampler(uniforms, image)
        with torch.no_grad():
            network.levels.weight.mul_(-1)
        assert not torch.equal(sampler(uniforms, image), before)


def test_a_map_is_read_once_however_often_it_is_projected(monkeypatch):
    """Projections are as large as activations: a program makes them where they are added."""
    from deepgen_ext.nn.ancestral import sampler as module

    taken = []
    real = module.ancestral_sample
    monkeypatch.setattr(
        module, "ancestral_sample", lambda *a, **k: (taken.append(a[2]), real(*a, **k))
    )
    network = network_of(joined_late)
    sampler = AncestralSampler(network, (1, 4, 5), Categorical(1, LEVELS))
    uniforms = torch.rand(2, 1, 4, 5)
    sampler(uniforms, torch.randn(2, 3, 4, 5).double())
    assert [tuple(t.shape) for t in taken.pop()] == [(4, 5, 2, 3)]
    sampler(uniforms, torch.randn(2, 3).double())
    assert [tuple(t.shape) for t in taken.pop()] == [(2, 6), (2, 6)]


def test_layers_that_are_more_than_a_convolution_run_as_they_are():
    """A subclass may do anything in its forward; a hook may change what a layer returns."""

    class Doubled(nn.Conv2d):
        def forward(self, c):
            return 2 * super().forward(c)

    network = network_of(joined_early)
    network.levels = Doubled(3, LEVELS, 1).double()
    network.conditions[0].register_forward_hook(lambda layer, given, out: out - 1)
    both(network, (4, 5), 2, condition=torch.randn(2, 3, 4, 5).double())


def test_what_a_projection_refuses_is_refused():
    sampler = AncestralSampler(network_of(joined_early), (1, 4, 5), Categorical(1, LEVELS))
    with pytest.raises(RuntimeError, match="expected input.* to have 3 channels, but got 2"):
        sampler(torch.rand(2, 1, 4, 5), torch.randn(2, 2, 4, 5).double())
    with pytest.raises(RuntimeError, match="same"):
        sampler(torch.rand(2, 1, 4, 5), torch.randn(2, 3, 4, 5))
