"""FrEIA's blocks in whole networks, and what holds of every one of them."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.checks import randomize
from tests.compat.accelerated_models import (
    accelerated_parts,
    check_accelerated,
    close,
    strictly_accelerated,
)
from tests.compat.freia_blocks import D, block, both_ways, net, randomize_learned


@pytest.fixture(autouse=True)
def generator_of_numpy() -> None:
    """FrEIA draws its permutations from it."""
    pytest.importorskip("FrEIA")
    import numpy

    numpy.random.seed(0)
    torch.manual_seed(0)


def sequence(conditional: bool = False) -> nn.Module:
    import FrEIA.framework
    import FrEIA.modules

    inn = FrEIA.framework.SequenceINN(D)
    condition = {"cond": 0, "cond_shape": (3,)} if conditional else {}
    for name in ("GLOWCouplingBlock", "AllInOneBlock", "RNVPCouplingBlock"):
        inn.append(getattr(FrEIA.modules, name), subnet_constructor=net, **condition)
    return inn


def graph() -> nn.Module:
    import FrEIA.framework as framework
    import FrEIA.modules as modules

    condition = framework.ConditionNode(3, name="condition")
    nodes = [framework.InputNode(D, name="input")]
    for name in ("GLOWCouplingBlock", "AllInOneBlock"):
        options = {"subnet_constructor": net}
        node = framework.Node(
            nodes[-1], getattr(modules, name), options, conditions=condition, name=name
        )
        nodes.append(node)
    return framework.GraphINN([*nodes, condition, framework.OutputNode(nodes[-1], name="output")])


@pytest.mark.parametrize("make", [graph, sequence, lambda: sequence(True)])
def test_whole_networks(make: Any) -> None:
    model = make()
    is_graph = hasattr(model, "node_list")
    conditional = is_graph or model.conditions[0] is not None

    def run(inn: nn.Module) -> list[Tensor]:
        like = next(inn.parameters())
        x = torch.linspace(-2, 2, 4 * D).view(4, D).to(like)
        c = [torch.linspace(-1, 1, 12).view(4, 3).to(like)] if conditional else None
        return [*inn(x, c), *inn(x, c, rev=True)]

    check_accelerated(model, run, 2 if is_graph else 3, pickles=False)


def test_networks_compile_whole() -> None:
    model = randomize(sequence())
    fast = strictly_accelerated(model, 3)
    x = torch.randn(4, D)
    torch._dynamo.reset()
    for rev in (False, True):
        for part in (model, fast):
            whole = torch.compile(part, fullgraph=True, backend="aot_eager")
            close(whole(x, rev=rev), model(x, rev=rev), 1e-4)
    learned = block("AllInOneBlock", (D,), learned_householder_permutation=2)
    fast = strictly_accelerated(learned, 1)
    whole = torch.compile(fast, fullgraph=True, backend="aot_eager")
    close(whole((x,))[0], learned((x,))[0], 1e-4)


def test_what_stays_and_what_does_not_pickle() -> None:
    import FrEIA.modules

    class Own(FrEIA.modules.GLOWCouplingBlock):
        pass

    model = nn.ModuleList(
        [
            block("GINCouplingBlock", (D,)),
            block("NICECouplingBlock", (D,)),
            block("AllInOneBlock", (D,), gin_block=True),
            block("GLOWCouplingBlock", (D,), split_len=0),
            Own([(D,)], subnet_constructor=net),
            block("GLOWCouplingBlock", (D,)),
        ]
    )
    lines = report(model).splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["stays"] * 5 + ["accelerated"]
    for line, words in zip(
        lines,
        (
            "its log-scales lose their mean",
            "two additions",
            "a GIN block",
            "a split into 0 and 5 channels",
            "a subclass of GLOWCouplingBlock",
            "scale, shift and log-det in one pass",
        ),
        strict=True,
    ):
        assert words in line
    fast = strictly_accelerated(model, 1)
    assert [part is fast[5] for part in accelerated_parts(fast)] == [True]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(model[5])


def test_odd_inputs_are_answered_as_before() -> None:
    for name in ("GLOWCouplingBlock", "AllInOneBlock"):
        model = block(name, (D,))
        fast = strictly_accelerated(model, 1)
        for x in (torch.randn(2, D + 1), torch.randn(D), torch.randn(2, D).double()):
            errors = []
            for part in (model, fast):
                with pytest.raises((RuntimeError, IndexError)) as caught:
                    part((x,))
                errors.append(str(caught.value))
            assert errors[0] == errors[1]
        x = torch.randn(3, D)
        jacobians = [
            torch.func.jacrev(lambda u, p=part: p((u[None],))[0][0])(x[0]) for part in (model, fast)
        ]
        close(jacobians[1:], jacobians[:1], 1e-5)


@pytest.mark.parametrize("name", ["GLOWCouplingBlock", "AllInOneBlock"])
def test_half_precision_keeps_its_types(name: str) -> None:
    model = randomize_learned(block(name, (D,)))
    fast = strictly_accelerated(model, 1)
    x = torch.randn(3, D)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (a,), b = model((x,))
        (c,), d = fast((x,))
    assert c.dtype == a.dtype
    close([c.float(), d.float()], [a.float(), b.float()], 3e-2)
    model, fast = model.bfloat16(), fast.bfloat16()
    with torch.no_grad():
        (a,), b = model((x.bfloat16(),))
        (c,), d = fast((x.bfloat16(),))
    assert (c.dtype, d.dtype) == (a.dtype, b.dtype)
    close([c.float(), d.float()], [a.float(), b.float()], 5e-2)


def test_a_net_whose_output_is_broadcast() -> None:
    """One scale and shift a channel, which FrEIA's coupling lets torch broadcast."""

    class Pooled(nn.Module):
        def __init__(self, channels_in: int, channels_out: int) -> None:
            super().__init__()
            self.inner = nn.Linear(channels_in, channels_out)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(2).mean(2)).view(len(x), -1, 1, 1)

    for name in ("GLOWCouplingBlock", "AllInOneBlock"):
        module = block(name, (D, 2, 3), subnet_constructor=Pooled)
        check_accelerated(module, both_ways, 1, pickles=False)


@pytest.mark.parametrize("name", ["GLOWCouplingBlock", "AllInOneBlock"])
def test_verification_sees_another_map(name: str, monkeypatch) -> None:
    model = randomize_learned(block(name, (D,)))
    replaced = sys.modules[type(accelerate(model)).__module__]
    given = replaced.affine_coupling
    monkeypatch.setattr(
        replaced,
        "affine_coupling",
        lambda *args, inverse, **options: given(*args, inverse=inverse, scale_map="softclip"),
    )
    with pytest.warns(UserWarning, match="verification failed, the forward is off"):
        assert type(accelerate(model)) is type(model)
