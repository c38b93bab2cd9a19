"""zuko's coupling transforms, alone and in NICE."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

D = 5


@pytest.fixture(autouse=True)
def seed() -> None:
    pytest.importorskip("zuko")
    torch.manual_seed(0)


def options_of(kind: str) -> dict[str, Any]:
    from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

    spline = {"univariate": MonotonicRQSTransform, "shapes": [(4,), (4,), (3,)]}
    return {
        "affine": {},
        "affine of another slope": {"univariate": partial(MonotonicAffineTransform, slope=0.05)},
        "spline": spline,
        "two bins": {**spline, "shapes": [(2,), (2,), (1,)]},
        "spline of other options": {
            **spline,
            "univariate": partial(MonotonicRQSTransform, bound=2.0, slope=0.05),
        },
    }[kind]


KINDS = "affine", "affine of another slope", "spline", "two bins", "spline of other options"


def flow_of(kind: str, context: int = 0, **options: Any) -> nn.Module:
    from zuko.flows import NICE

    return NICE(D, context, **{"hidden_features": (8,), **options_of(kind), **options})


def inputs_of(flow: nn.Module, *batch: int) -> Tensor:
    weight = next(flow.parameters())
    generator = torch.Generator().manual_seed(5)
    x = 3 * torch.randn(*batch, D, generator=generator, dtype=torch.float64)
    return x.to(weight).requires_grad_()


def all_of(flow: nn.Module, x: Tensor, c: Tensor | None) -> list[Tensor]:
    """All that a lazy transform and a flow have, and the gradients of the input and of the context."""
    transform = flow.transform(c)
    y, ladj = transform.call_and_ladj(x)
    results = [
        y,
        ladj,
        transform(x),
        transform.log_abs_det_jacobian(x, y),
        transform.inv(x),
        *transform.inv.call_and_ladj(x),
        flow(c).log_prob(x),
    ]
    for layer in flow.transform.transforms:
        one = layer(c)
        results += [*one.call_and_ladj(x), one(x), one.inv(x), *one.inv.call_and_ladj(x)]
        results += [one.log_abs_det_jacobian(x, one(x)), one.inv.inv(x)]
    if torch.is_grad_enabled():
        total = sum((k + 1) * result.sin().sum() for k, result in enumerate(results))
        leaves = (x,) if c is None else (x, c)
        results += torch.autograd.grad(total, leaves, retain_graph=True)
    return results


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nice(kind: str, context: int) -> None:
    flow = flow_of(kind, context, randmask=context > 0)

    def run(flow: nn.Module) -> list[Tensor]:
        x = inputs_of(flow, 4, 2)
        c = torch.linspace(-1, 1, 6).view(2, 3).to(x).requires_grad_() if context else None
        return all_of(flow, x, c)

    fast = check_accelerated(flow, run, 3, tolerance=1e-8)
    draws = []
    for model in (flow, fast):
        model.load_state_dict(flow.state_dict())
        torch.manual_seed(2)
        c = torch.ones(2, 3, dtype=torch.float64) if context else None
        draws.append([model(c).sample((5,)), *model(c).rsample_and_log_prob((5,))])
    close(*draws, 1e-8)


@pytest.mark.parametrize("batches", [((), ()), ((4,), ()), ((3, 4), (4,)), ((4,), (1,))])
def test_batches(batches: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    of_x, of_c = batches
    flow = randomize(flow_of("affine", 3).double(), 0.3)
    fast = strictly_accelerated(flow, 3)
    for kept in (True, False):
        x, c = inputs_of(flow, *of_x), torch.ones(*of_c, 3, dtype=torch.float64) * 0.3
        with torch.set_grad_enabled(kept):
            c = c.requires_grad_()
            close(all_of(fast, x, c), all_of(flow, x, c), 1e-9)


def test_a_context_of_a_larger_batch_is_refused_as_before() -> None:
    flow = flow_of("affine", 3)
    fast = strictly_accelerated(flow, 3)
    for c in (torch.ones(4, 3), torch.ones(2, 1, 3)):
        x = torch.ones(1, D)
        errors = []
        for model in (flow, fast):
            try:
                errors.append(str(model.transform(c).call_and_ladj(x)[0].shape))
            except RuntimeError as error:
                errors.append(str(error))
        assert errors[0] == errors[1]


def test_a_mask_that_changes_counts() -> None:
    flow = randomize(flow_of("affine", transforms=2))
    fast = strictly_accelerated(flow, 2)
    with torch.no_grad():
        for model in (flow, fast):
            for layer in model.transform.transforms:
                layer.mask.copy_(
                    layer.mask.flip(0).roll(1) if layer.mask[0] else layer.mask.roll(1)
                )
        x = inputs_of(flow, 4)
        close([fast().log_prob(x)], [flow().log_prob(x)], 1e-5)


def test_the_net_is_passed_once_for_a_draw_and_its_density() -> None:
    flow = flow_of("affine", transforms=1)
    fast = strictly_accelerated(flow, 1)
    for model, passes in ((flow, 2), (fast, 1)):
        seen: list[Any] = []

        def count(*given: Any, seen: list[Any] = seen) -> None:
            seen.append(given)

        model.transform.transforms[0].hyper.register_forward_hook(count)
        model().rsample_and_log_prob((3,))
        assert len(seen) == passes


def test_half_precision_and_functional_transforms() -> None:
    flow = randomize(flow_of("affine"))
    fast = strictly_accelerated(flow, 3)
    x = inputs_of(flow, 4).detach()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before, after = (m.transform().call_and_ladj(x) for m in (flow, fast))
    assert after[0].dtype == before[0].dtype
    close([t.float() for t in after], [t.float() for t in before], 5e-2)
    jacobians = [torch.func.vmap(torch.func.jacrev(m.transform()))(x) for m in (fast, flow)]
    close(jacobians[:1], jacobians[1:], 1e-5)


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_compiles_whole(kind: str) -> None:
    """One layer, as zuko's own; a flow's ComposedTransform is refused by torch.compile in both."""
    layer = randomize(flow_of(kind).transform.transforms[0])
    fast = strictly_accelerated(layer, 1)
    x = inputs_of(layer, 4).detach()
    torch._dynamo.reset()

    def density(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return model().call_and_ladj(x)

    def inverse(model: nn.Module, x: Tensor) -> tuple[Tensor]:
        return (model().inv(x),)

    for function in (density, inverse):
        for model in (layer, fast):
            whole = torch.compile(partial(function, model), fullgraph=True, backend="aot_eager")
            close(whole(x), function(layer, x), 1e-4)


def test_what_stays() -> None:
    import zuko

    coupling = zuko.flows.GeneralCouplingTransform

    class Own(coupling):
        pass

    models = [
        (coupling(D, univariate=zuko.transforms.AdditiveTransform, shapes=[()]), "neither affine"),
        (coupling(D, **{**options_of("spline"), "shapes": [(101,), (101,), (100,)]}), "neither"),
        (Own(D), "a subclass of GeneralCouplingTransform"),
        (coupling(D), "its net is no MLP, but Linear"),
    ]
    models[-1][0].hyper = nn.Linear(2, 6)
    for model, words in models:
        assert words in report(model)
        with pytest.warns(UserWarning, match="nothing to accelerate"):
            assert accelerate(model) is model
    assert "map and log-det in one pass" in report(coupling(D))


def test_verification_sees_another_map(monkeypatch) -> None:
    model = randomize(flow_of("affine").transform.transforms[0])
    replaced = sys.modules[type(accelerate(model)).__module__]
    given = replaced.affine_coupling
    monkeypatch.setattr(
        replaced,
        "affine_coupling",
        lambda *args, clamp, **options: given(*args, clamp=2 * clamp, **options),
    )
    with pytest.warns(UserWarning, match="verification failed, the forward is off"):
        assert type(accelerate(model)) is type(model)
