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
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hook
from torch.utils.checkpoint import checkpoint

from deepgen_ext import restore
from deepgen_ext.compat import spectral_group
from tests.compat.accelerated_models import accelerated_parts, close, strictly_accelerated

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hook}
both = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
WIDTH = 4


def network(norm, n: int = 4, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    """Layers that take and give WIDTH x 1 x 1: what they do to an image is known by their order."""
    torch.manual_seed(0)
    layers = [norm(nn.Conv2d(WIDTH, WIDTH, 1)) for _ in range(n - 2)]
    layers += [
        norm(nn.ConvTranspose2d(WIDTH, WIDTH, 1)),
        norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    ]
    return nn.ModuleList(layers).to(dtype)


def original(layer: nn.Module) -> nn.Parameter:
    is_new = parametrize.is_parametrized(layer)
    return layer.parametrizations.weight.original if is_new else layer.weight_orig


def run(model: nn.ModuleList, order: str) -> Tensor:
    weight = original(model[0])
    x = torch.linspace(-1, 1, 2 * WIDTH, dtype=weight.dtype).view(2, WIDTH, 1, 1)
    for index in order:
        x = torch.tanh(model[int(index)](x))
    return x


class Twins:
    """torch's model and ours, with which the same is done; they are compared after each action."""

    def __init__(self, norm, n: int = 4) -> None:
        given = network(norm, n)
        self.models = [given, strictly_accelerated(given, n)]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in self.models]

    def compare(self, results: list[list[Tensor]]) -> None:
        for model, found in zip(self.models, results, strict=True):
            found += [*model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        close(results[1], results[0], 1e-9)

    def use(self, order: str) -> None:
        self.compare([[run(model, order)] for model in self.models])

    def use_without_graph(self, order: str) -> None:
        with torch.no_grad():
            self.use(order)

    def use_for_inference(self, order: str) -> None:
        with torch.inference_mode():
            self.compare([[run(model, order)] for model in self.models])

    def learn(self, order: str) -> None:
        """Two passes before one backward pass; an optimiser's step."""
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            optimizer.zero_grad()
            (run(model, order).square().sum() + run(model, order[::-1]).sum()).backward()
        self.compare([[], []])
        for optimizer in self.optimizers:
            optimizer.step()

    def checkpoint(self, order: str) -> None:
        for model in self.models:
            model.zero_grad()
            checkpoint(run, model, order, use_reentrant=False).square().sum().backward()
        self.compare([[], []])

    def interrupted(self, order: str) -> None:
        """A pass within which a weight of a later layer, or its u, is written."""
        results = []
        for model in self.models:
            first = run(model, order[:1])
            with torch.no_grad():
                original(model[int(order[-1])]).mul_(1.5)
                [*model[int(order[-1])].buffers()][0].neg_()
            results.append([first, run(model, order[1:])])
        self.compare(results)

    def replaced_data(self, order: str) -> None:
        for model in self.models:
            weight = original(model[int(order[-1])])
            weight.data = weight.detach() + 0.1
        self.use(order)

    def evaluate(self, order: str) -> None:
        for model in self.models:
            model.eval()
        self.use(order)
        self.use_without_graph(order)
        for model in self.models:
            model.train()

    def copy(self, order: str) -> None:
        """The copies go on, the originals are used once more, both from where they were."""
        self.use_without_graph("0123")  # of the hook's weights torch copies none with a graph
        before, self.models = self.models, [copy.deepcopy(model) for model in self.models]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in self.models]
        self.use(order)
        self.compare([[run(model, order)] for model in before])


ACTIONS = (
    Twins.use,
    Twins.use_without_graph,
    Twins.use_for_inference,
    Twins.learn,
    Twins.checkpoint,
    Twins.interrupted,
    Twins.replaced_data,
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
    if norm is hook:
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
    if norm is hook:
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
