"""accelerate, report and restore: what they touch, what they leave alone, what they refuse."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deepgen_ext import accelerate, report, restore
from deepgen_ext.compat import peers
from tests.checks import randomize
from tests.compat.accelerated_models import accelerated_parts, close, strictly_accelerated


def maf() -> nn.Module:
    peer = pytest.importorskip("nflows.transforms.autoregressive")
    return randomize(peer.MaskedAffineAutoregressiveTransform(5, 8))


def test_nothing_to_accelerate_returns_the_module_itself_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert accelerate(model) is model
    assert report(model) == "nothing to accelerate in this model"


def test_in_place_and_back() -> None:
    model = nn.ModuleList([maf(), nn.Linear(2, 2)])
    kind, weights = type(model[0]), list(model.parameters())
    assert strictly_accelerated(model, 1, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert "is accelerated" in report(model)
    assert restore(model) is model
    assert type(model[0]) is kind
    assert not accelerated_parts(model)
    again = strictly_accelerated(model, 1, verify=False)
    z = torch.randn(3, 5)
    close(again[0].inverse(z), model[0].inverse(z), 1e-5)


def test_a_root_module_and_its_hooks() -> None:
    model, seen = maf(), []
    model.register_forward_hook(lambda *given: seen.append(given))
    fast = strictly_accelerated(model, 1)
    assert not seen, "verification called a hook of the user's"
    fast(torch.randn(2, 5))
    assert len(seen) == 1


def test_a_subclass_is_left_alone() -> None:
    model = maf()

    class Own(type(model)):
        def inverse(self, inputs, context=None):
            return inputs, inputs.sum(1)

    model.__class__ = Own
    assert "a subclass of MaskedAffineAutoregressiveTransform" in report(model)
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert type(accelerate(model)) is Own


def test_a_replacement_that_differs_is_named_and_left_as_it_was(monkeypatch) -> None:
    model = nn.ModuleDict({"flow": maf()})
    fast = type(accelerate(model)["flow"])
    monkeypatch.setattr(fast, "element", lambda self: {"scale_map": "exp"})
    with pytest.warns(UserWarning, match=r"flow \(Masked.* verification failed, .* is off by"):
        left = accelerate(model)
    assert type(left["flow"]) is type(model["flow"])
    z = torch.randn(3, 5)
    close(left["flow"].inverse(z), model["flow"].inverse(z), 0.0)


def test_another_version_stays_with_a_clear_message(monkeypatch) -> None:
    model = maf()
    monkeypatch.setattr(peers.importlib.metadata, "version", lambda name: "9.9")
    with pytest.warns(UserWarning, match="nflows 9.9 is installed, 0.14 is supported"):
        assert accelerate(model) is model
    assert "nflows 9.9 is installed" in report(model)


def test_state_that_verification_must_not_move() -> None:
    model = maf().train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fast = accelerate(model, inplace=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert fast.training
    assert all(torch.equal(a, before[k]) for k, a in fast.state_dict().items())
    assert all(parameter.grad is None for parameter in fast.parameters())


def test_couplings_that_stay_have_their_reason() -> None:
    coupling = pytest.importorskip("nflows.transforms.coupling")
    nf = pytest.importorskip("normflows")
    model = nn.ModuleList(
        [
            coupling.AdditiveCouplingTransform([0, 1], nn.Linear),
            nf.flows.AffineCouplingBlock(nn.Linear(1, 2), scale=False),
        ]
    )
    lines = report(model).splitlines()[1:]
    assert [line.split()[:3] for line in lines] == [
        ["0", "AdditiveCouplingTransform", "stays"],
        ["1", "AffineCouplingBlock", "stays"],
        ["1.flows.1", "AffineCoupling", "stays"],
    ]
    assert not any("subclass" in line for line in lines)


@pytest.mark.parametrize("function", [accelerate, report, restore])
def test_only_modules(function) -> None:
    with pytest.raises(TypeError, match="module: expected a torch.nn.Module, got dict"):
        function({})


def test_meta_and_mixed_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'0.weight' is on the meta device, .* load_state_dict"):
        accelerate(nn.Sequential(nn.Linear(2, 2, device="meta")))

    class Elsewhere(nn.Linear):
        def named_buffers(self, *args, **kwargs):
            yield "far", SimpleNamespace(device=torch.device("cuda"))

    with pytest.raises(
        ValueError, match=r"one device, got 'weight' on cpu, 'far' on cuda; module.to"
    ):
        report(Elsewhere(2, 2))
