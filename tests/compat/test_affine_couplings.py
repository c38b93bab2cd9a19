"""nflows' affine coupling layers as a whole: split, map and merge."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

D = 5
MASKS = {  # which features move, and how many there are of each kind
    "scattered": [1, 0, 0, 1, 1],
    "first half": [1, 1, 1, 0, 0],
    "second half": [0, 0, 1, 1, 1],
    "one of many": [0, 0, 0, 0, 1],
    "even": [1, 0, 1, 0, 1, 0],
    "odd": [0, 1, 0, 1, 0, 1],
    "alternate of five": [0, 1, 0, 1, 0],
    "pair": [1, 0],
}


def coupling(mask: Any = None, pictures: bool = False, **options: Any) -> nn.Module:
    peer = pytest.importorskip("nflows.transforms.coupling")
    from nflows.nn.nets import ConvResidualNet, ResidualNet

    def net(inputs: int, outputs: int) -> nn.Module:
        if pictures:
            return ConvResidualNet(inputs, outputs, hidden_channels=6, num_blocks=1)
        return ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1, context_features=3)

    mask = torch.tensor(MASKS["scattered"] if mask is None else mask)
    return peer.AffineCouplingTransform(mask, net, **options)


def both_ways(module: nn.Module, *rest: int) -> list[Tensor]:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, module.features, *rest, generator=generator, dtype=torch.float64).to(weight)
    x.requires_grad_()
    given = [] if rest else [torch.linspace(-1, 1, 12).view(4, 3).to(weight)]
    results = [*module.forward(x, *given), *module.inverse(x, *given)]
    if torch.is_grad_enabled():
        total = sum(result.square().sum() for result in results)
        results.append(torch.autograd.grad(total, x, retain_graph=True)[0])
    return results


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_nflows(rest: tuple[int, ...], mask: str) -> None:
    model = coupling(MASKS[mask], pictures=bool(rest))
    check_accelerated(model, lambda m: both_ways(m, *rest), 1 if rest else 2)


def test_halves_and_alternate_features_are_neither_picked_nor_put_by_index() -> None:
    for mask, by_index in (("even", False), ("second half", False), ("scattered", True)):
        fast = strictly_accelerated(coupling(MASKS[mask], pictures=True), 1)
        x = torch.randn(2, len(MASKS[mask]), 3, 3)
        fast(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            fast.inverse(fast(x)[0])
        called = {event.key for event in profile.key_averages()}
        assert bool(called & {"aten::index_select", "aten::index_copy", "aten::cat"}) == by_index


def test_a_mask_from_a_checkpoint_is_seen() -> None:
    model, other = coupling(MASKS["first half"]), coupling(MASKS["scattered"])
    fast = strictly_accelerated(model, 2)
    x, context = torch.randn(4, D), torch.randn(4, 3)
    fast(x, context)
    for buffer in ("identity_features", "transform_features"):
        getattr(fast, buffer).copy_(getattr(other, buffer))
        getattr(model, buffer).copy_(getattr(other, buffer))
    close(fast(x, context), model(x, context), 1e-5)


def test_a_net_that_wants_its_input_in_one_piece() -> None:
    peer = pytest.importorskip("nflows.transforms.coupling")

    class Viewing(nn.Linear):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(x.view(-1).view(x.shape))

    for mask in ("even", "first half"):
        model = peer.AffineCouplingTransform(MASKS[mask], Viewing)
        fast = strictly_accelerated(model, 1)
        x = torch.randn(4, len(MASKS[mask]))
        close(fast(x), model(x), 1e-5)


def test_the_input_stays_as_it_was_and_wrong_ones_are_refused_as_before() -> None:
    model = coupling(pictures=True)
    fast = strictly_accelerated(model, 1)
    x = torch.randn(2, D, 3, 3)
    before = x.clone()
    fast(x)
    assert torch.equal(x, before)
    for part in (model, fast):
        with pytest.raises(ValueError, match="Expected features = 5, got 4"):
            part(x[:, :4])
        with pytest.raises(ValueError, match="2D or a 4D"):
            part.inverse(x[0])


def test_a_flow_samples_and_compiles() -> None:
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform, RandomPermutation

    def layer() -> nn.Module:
        return AffineCouplingTransform(
            torch.arange(D) % 2, lambda a, b: ResidualNet(a, b, hidden_features=8)
        )

    transforms = [layer(), RandomPermutation(D), layer()]
    flow = randomize(Flow(CompositeTransform(transforms), StandardNormal([D])))
    fast = strictly_accelerated(flow, 5)
    draws = []
    for model in (flow, fast):
        torch.manual_seed(3)
        draws.append(model.sample(6))
    close(draws[:1], draws[1:], 1e-5)
    close([fast.log_prob(draws[0])], [flow.log_prob(draws[0])], 1e-5)
    torch._dynamo.reset()
    x = torch.randn(4, D)
    for model in (flow, fast):
        whole = torch.compile(model._transform.forward, fullgraph=True, backend="aot_eager")
        close(whole(x), model._transform(x), 1e-5)


def test_what_stays() -> None:
    model = coupling(unconditional_transform=lambda features: nn.Identity())
    assert "an unconditional transform" in report(model)


@pytest.mark.parametrize(
    ("mask", "op"), [("scattered", "affine_coupling"), ("even", "half_coupling")]
)
def test_verification_sees_another_map(mask: str, op: str, monkeypatch) -> None:
    model = coupling(MASKS[mask], pictures=True)
    replaced = sys.modules[type(accelerate(model)).__module__]
    given = getattr(replaced, op)

    def wrong(*args, scale_map, **options):
        return given(*args, scale_map="sigmoid", **options)

    monkeypatch.setattr(replaced, op, wrong)
    with pytest.warns(UserWarning, match="verification failed, the forward is off"):
        assert type(accelerate(model)) is type(model)
