"""Steps that are computed ahead for a whole model and made one by one: torch's sequence, fewer calls."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import weakref

import pytest
import torch
from torch import nn

from deepgen_ext import restore
from deepgen_ext.compat import spectral_group
from tests.compat.accelerated_models import accelerated_parts, close, strictly_accelerated
from tests.compat.spectral_twins import NORMS, WIDTH, Twins, network, original, run

both = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)

ACTIONS = (
    Twins.use,
    Twins.use_without_graph,
    Twins.use_for_inference,
    Twins.learn,
    Twins.checkpoint,
    Twins.interrupted,
    Twins.replaced_data,
    Twins.replaced_vectors,
    Twins.evaluate,
    Twins.copy,
)


@pytest.mark.parametrize("seed", range(12))
@both
def test_any_sequence_is_torchs(norm, seed) -> None:
    """Layers used twice, in any order, or not at all; whatever happens in between."""
    draw = random.Random(seed)
    twins = Twins(norm)
    for _ in range(25):
        order = (
            "0123" if draw.random() < 0.4 else "".join(draw.choices("0123", k=draw.randint(2, 6)))
        )
        draw.choice(ACTIONS)(twins, order)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many weights each call had."""
    sizes: list[int] = []
    op = spectral_group.spectral_normalize

    def counted(weights, *rest):
        sizes.append(len(weights))
        return op(weights, *rest)

    monkeypatch.setattr(spectral_group, "spectral_normalize", counted)
    return sizes


def sizes_of(calls: list[int], model: nn.Module, order: str) -> list[int]:
    calls.clear()
    run(model, order)
    return list(calls)


def changed(model: nn.Module) -> None:
    """As by an optimiser."""
    with torch.no_grad():
        for layer in model:
            original(layer).mul_(0.9)


def accelerated(norm, n: int) -> nn.ModuleList:
    """Of layers that all go into the group, the hook's too."""
    torch.manual_seed(0)
    layers = nn.ModuleList([norm(nn.Conv2d(WIDTH, WIDTH, 1)) for _ in range(n)])
    return strictly_accelerated(layers.double(), n)


@both
def test_a_pass_is_one_call(norm, calls) -> None:
    model = accelerated(norm, 4)
    assert sizes_of(calls, model, "0123") == [1, 1, 1, 1], "not before a layer has been used"
    for _ in range(3):
        changed(model)
        assert sizes_of(calls, model, "0123") == [4]
        assert sizes_of(calls, model, "0123") == [4], "nor does a second batch take more"
    changed(model)
    assert sizes_of(calls, model, "01023") == [4, 1], "a layer that comes again steps alone"
    changed(model)
    assert sizes_of(calls, model, "01231") == [4, 1], "also when nothing waits"
    changed(model)
    assert sizes_of(calls, model, "2310") == [4]


@both
def test_layers_that_are_not_used_leave_and_come_back(norm, calls) -> None:
    model = accelerated(norm, 4)
    for _ in range(2):
        run(model, "0123")
        changed(model)
    assert sizes_of(calls, model, "012") == [4]
    for _ in range(2):
        changed(model)
        assert sizes_of(calls, model, "012") == [3]
    changed(model)
    assert sizes_of(calls, model, "0123") == [3, 1]
    changed(model)
    assert sizes_of(calls, model, "0123") == [3, 1]
    changed(model)
    assert sizes_of(calls, model, "0123") == [4]


@both
def test_what_a_pass_has_left_is_dropped_with_the_next_optimisers_step(norm) -> None:
    """Then weights are written through `.data`, as WGAN clips them: no version tells of that."""
    model = accelerated(norm, 3)
    twin = restore(copy.deepcopy(model))
    for layers in (model, twin):
        for _ in range(2):
            run(layers, "012")
        changed(layers)
        run(layers, "01")
        with torch.no_grad():
            original(layers[0]).mul_(0.9)
        original(layers[2]).data.clamp_(-0.1, 0.1)
    close([run(model, "210")], [run(twin, "210")], 1e-10)


@both
def test_nothing_is_kept_that_is_of_no_use(norm) -> None:
    model = accelerated(norm, 3)
    turns = [part._turn for part in accelerated_parts(model)]
    for _ in range(2):
        run(model, "012")
    assert all(turn.ahead is None for turn in turns)
    changed(model)
    run(model, "0")
    assert [turn.ahead is not None for turn in turns] == [False, True, True]
    kept = weakref.ref(turns[1].ahead.step.scaled)
    weight = weakref.ref(original(model[2]))
    if norm is NORMS["hook"]:
        changed(model)
        run(model, "0")
    else:
        model.eval()
    assert kept() is None
    del model, turns
    gc.collect()
    assert weight() is None


@both
def test_other_dtypes_and_iterations_are_other_calls(norm, calls) -> None:
    model = accelerated(norm, 4)
    for _ in range(2):
        run(model, "0123")
    model[2:].float()
    accelerated_parts(model)[1].n_power_iterations = 2
    for _ in range(2):
        calls.clear()
        changed(model)
        run(model[:2], "01")
        run(model[2:], "01")
    assert calls == [1, 1, 2]
    model.to(torch.bfloat16)
    for _ in range(2):
        changed(model)
        found = sizes_of(calls, model, "0123")
    assert found == [3, 1]


@both
def test_a_layer_of_another_shape_does_not_disturb_the_others(norm) -> None:
    model = accelerated(norm, 2)
    for _ in range(2):
        run(model, "01")
    changed(model)
    original(model[1]).data = torch.ones(WIDTH, WIDTH, 3, 3, dtype=torch.float64)
    run(model, "0")


@both
def test_copies_and_pickles_are_groups_of_their_own(norm, calls) -> None:
    model = accelerated(norm, 4)
    for _ in range(2):
        run(model, "0123")
    changed(model)
    with torch.no_grad():
        run(model, "0123")
        changed(model)
        run(model, "01")  # two steps wait
    twins = [copy.deepcopy(model)]
    if norm is NORMS["hook"]:
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        groups = {id(part._turn.group) for part in accelerated_parts(twin)}
        assert len(groups) == 1
        assert groups.isdisjoint(id(part._turn.group) for part in accelerated_parts(model))
    assert sizes_of(calls, model, "23") == [], "the copies have nothing of the original's"
    for twin in twins:
        run(twin, "23")
        close([*twin.buffers()], [*model.buffers()], 0.0)
        for _ in range(2):
            changed(twin)
            found = sizes_of(calls, twin, "0123")
        assert found == [4]
    with torch.no_grad():
        run(model, "0123")
    layer = copy.deepcopy(model[0])
    (part,) = accelerated_parts(layer)
    assert part._turn.group.rings == {}


@both
def test_half_a_group_in_each_of_two_threads(norm) -> None:
    """The halves of one model, of one group, learn at the same time."""
    given = network(norm, 8)
    models = [given, strictly_accelerated(given, 8)]

    def learn(half: nn.ModuleList) -> None:
        optimizer = torch.optim.SGD(half.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            (run(half, "0123").square().sum() + run(half, "3021").sum()).backward()
            optimizer.step()

    failures: list[BaseException] = []

    def caught(half: nn.ModuleList) -> None:
        try:
            learn(half)
        except BaseException as error:
            failures.append(error)

    halves = [model[a:b] for model in models for a, b in ((0, 4), (4, 8))]
    for half in halves[:2]:
        learn(half)
    threads = [threading.Thread(target=caught, args=(half,)) for half in halves[2:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    close([*models[1].state_dict().values()], [*models[0].state_dict().values()], 1e-8)


def test_a_tensor_in_a_weights_place_is_not_computed_ahead(calls) -> None:
    """As replicas of DataParallel have them, which share their originals' turns, in other threads."""
    model = accelerated(NORMS["parametrization"], 2)
    twin = restore(copy.deepcopy(model))
    for _ in range(2):
        run(model, "01"), run(twin, "01")
    calls.clear()
    for layers in (model, twin):
        norm = layers[0].parametrizations.weight[0]
        norm(original(layers[0]).detach() * 2)
    assert calls == []
    close([*model.buffers()], [*twin.buffers()], 1e-12)


@both
def test_gradients_are_torchs_twice(norm) -> None:
    """Of a step that waited."""
    model = accelerated(norm, 2)
    twin = restore(copy.deepcopy(model))
    found = []
    for layers in (model, twin):
        for _ in range(3):
            y = run(layers, "01")
        first = torch.autograd.grad(y.square().sum(), original(layers[1]), create_graph=True)[0]
        found.append([first, torch.autograd.grad(first.square().sum(), original(layers[1]))[0]])
    close(found[0], found[1], 1e-9)
