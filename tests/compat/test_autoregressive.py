"""Masked autoregressive flows of nflows, normflows and zuko, inverted in one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext.compat import report
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

D = 7


def both_ways(module: nn.Module, **given: Any) -> list[Tensor]:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, D, generator=generator, dtype=torch.float64).to(weight)
    given = {name: value.to(weight) for name, value in given.items()}
    return [*module.forward(x, **given), *module.inverse(x, **given)]


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("element", ["affine", "spline"])
def test_nflows(element: str, residual: bool, context: int | None) -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    options = {
        "context_features": context,
        "use_residual_blocks": residual,
        "activation": torch.tanh if residual else torch.nn.functional.elu,
    }
    if element == "affine":
        module = peer.MaskedAffineAutoregressiveTransform(D, 12, **options)
    else:
        module = peer.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            D, 12, num_bins=4, tails="linear", tail_bound=2.0, **options
        )
    given = {} if context is None else {"context": torch.linspace(-1, 1, 12).view(4, 3)}
    check_accelerated(module, lambda m: both_ways(m, **given), 1)


@pytest.mark.parametrize("num_blocks", [0, 1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("element", ["affine", "spline"])
def test_normflows(element: str, residual: bool, num_blocks: int) -> None:
    nf = pytest.importorskip("normflows")
    options = {"num_blocks": num_blocks, "use_residual_blocks": residual}
    if element == "affine":
        module = nf.flows.MaskedAffineAutoregressive(D, 12, **options)
    else:
        kind = nf.flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive
        module = kind(
            D, 12, num_bins=4, tails="linear", tail_bound=2.0, permute_mask=True, **options
        )
    check_accelerated(module, both_ways, 1)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", ["MAF", "NSF"])
def test_zuko(name: str, context: int) -> None:
    zuko = pytest.importorskip("zuko")
    flow = getattr(zuko.flows, name)(
        D, context, transforms=2, hidden_features=(12, 9), randperm=True, activation=nn.ELU
    )

    def run(flow: nn.Module) -> list[Tensor]:
        weight = flow.transform.transforms[0].hyper[0].weight
        c = torch.linspace(-1, 1, 6).view(2, 3).to(weight) if context else None
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(4, 2, D, generator=generator, dtype=torch.float64).to(weight)
        transform = flow.transform(c)
        return [flow(c).log_prob(z), transform.inv(z), *transform.inv.call_and_ladj(z)]

    fast = check_accelerated(flow, run, 2)
    draws = []
    for model in (flow, fast):
        model.load_state_dict(flow.state_dict())
        torch.manual_seed(2)
        c = torch.ones(3, dtype=torch.float64) if context else None
        draws.append(model(c).sample((5,)))
    close(draws[:1], draws[1:], 1e-9)


@pytest.mark.parametrize("passes", [2, 3, 4])
@pytest.mark.parametrize("name", ["MAF", "NSF"])
def test_features_that_are_found_together_and_a_state_without_derivatives(
    name: str, passes: int
) -> None:
    zuko = pytest.importorskip("zuko")
    kind = getattr(zuko.flows, name)
    flow = kind(9, transforms=1, passes=passes, hidden_features=(20,)).double()
    fast = strictly_accelerated(randomize(flow), 1)
    z = torch.randn(3, 9, dtype=torch.float64)
    close([fast.transform().inv(z)], [flow.transform().inv(z)], 1e-10)


def test_flow_of_nflows_samples_and_compiles() -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, RandomPermutation

    flow = Flow(
        CompositeTransform(
            [
                peer.MaskedAffineAutoregressiveTransform(D, 12),
                RandomPermutation(D),
                peer.MaskedAffineAutoregressiveTransform(D, 12, num_blocks=1),
            ]
        ),
        StandardNormal([D]),
    )
    fast = strictly_accelerated(randomize(flow), 3)
    draws = []
    for model in (flow, fast):
        torch.manual_seed(3)
        draws.append(model.sample(6))
    close(draws[:1], draws[1:], 1e-4)
    close([fast.log_prob(draws[0])], [flow.log_prob(draws[0])], 0.0)

    z = torch.randn(4, D)
    torch._dynamo.reset()
    for part in (fast._transform, strictly_accelerated(flow, 3)._transform):
        inverse = torch.compile(part.inverse, fullgraph=True, backend="aot_eager")
        close(inverse(z), part.inverse(z), 1e-5)


def test_loaded_masks_make_another_plan() -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")

    def drawn(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        module = peer.MaskedAffineAutoregressiveTransform(
            D, 12, use_residual_blocks=False, random_mask=True
        )
        return randomize(module.double(), seed=seed)

    fast, other = strictly_accelerated(drawn(0), 1), drawn(1)
    both_ways(fast)
    fast.load_state_dict(other.state_dict())
    close(both_ways(fast), both_ways(other), 1e-10)


def test_dropout_is_the_peers_own_in_training() -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    module = peer.MaskedAffineAutoregressiveTransform(D, 12, dropout_probability=0.5)
    fast = strictly_accelerated(randomize(module), 1)
    z = torch.randn(4, D)
    results = []
    for part in (module, fast):
        torch.manual_seed(1)
        results.append(part.inverse(z)[0])
    close(results[:1], results[1:], 0.0)
    close(fast.eval().inverse(z), module.eval().inverse(z), 1e-5)


def stays(module: nn.Module, words: str) -> None:
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert strictly_or_not(module) is module
    assert words in report(module)


def strictly_or_not(module: nn.Module) -> nn.Module:
    from deepgen_ext import accelerate

    return accelerate(module)


def test_what_cannot_be_done_stays_with_its_reason() -> None:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    kind = peer.MaskedAffineAutoregressiveTransform
    stays(kind(D, 12, use_batch_norm=True), "batch norm between its layers")
    stays(kind(D, 12, activation=torch.sigmoid), "its activation is neither ReLU, ELU nor tanh")
    spline = peer.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    stays(spline(D, 12), "tails=None: only linear ones are known")
    stays(spline(D, 12, tails="linear", min_derivative=1e-2), "smallest bins and slope are")
    hooked = kind(D, 12)
    hooked.autoregressive_net.initial_layer.register_forward_hook(lambda *args: None)
    stays(hooked, "hooks on its layers")
    broken = kind(D, 12)
    broken.autoregressive_net.final_layer.mask.fill_(1.0)
    stays(broken, "its masks are not those of an autoregressive network")
    stays(peer.MaskedPiecewiseCubicAutoregressiveTransform(4, D, 12), "no kernel for cubic splines")


def test_what_cannot_be_done_of_the_others() -> None:
    nf = pytest.importorskip("normflows")
    stays(nf.flows.MaskedAffineAutoregressive(D, 12, context_features=2), "acts through gates")
    zuko = pytest.importorskip("zuko")
    stays(zuko.flows.MAF(D, residual=True), "residual blocks")
    stays(zuko.flows.MAF(D, activation=nn.SiLU), "its activation is neither ReLU, ELU nor tanh")
    stays(zuko.flows.NCSF(D), "neither affine nor a rational-quadratic spline")
    chain = torch.ones(D, D).tril().bool()
    stays(zuko.flows.MaskedAutoregressiveTransform(D, adjacency=chain), "an adjacency of its own")
