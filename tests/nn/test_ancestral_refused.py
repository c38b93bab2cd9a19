"""What the sampler cannot compile and does not take, and mistakes in its programs that show."""

import pytest
import torch
from torch import nn

from deepgen_ext.nn import (
    AncestralSampler,
    Categorical,
    ConditionProjection,
    MaskedConv2d,
    ShiftedConv2d,
)
from deepgen_ext.nn.ancestral.program import Tap
from tests.nn.ancestral_networks import LEVELS, Network, both, first, head, prepared


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
