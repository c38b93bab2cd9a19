"""The next step of many spectral norms, computed in one call, each used when its own turn has come.

A layer's u and v move when its weight is used, as torch has it: once for each use, never for a layer
that is not used. So the steps of a model cannot be made together, but they can be computed together:
the first layer that is used after the weights have changed has the next step of all computed, beside
their buffers. A layer that is used then takes its own, and only then do its u and v move; what was
computed holds if weight, u and v are those that it was computed of. Used again, it steps alone.

A weight that is written through `.data` in the midst of a pass is the one change that is not seen
(train() and eval() drop what waits of a parametrization); after an optimiser's step nothing of
before is taken. Scaled weights wait until they are taken, and no longer than to the next pass.

On a CPU what is saved is the overhead of a call a layer: against the same steps one by one, 1.5 times
faster forward for 20 layers of 64 units, 1.3 with gradients; within 10 % for 3 M weights and more. On a
GPU it is launches, which nobody has timed yet.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepgen_ext.ops import spectral_normalize

MOST_MISSES = 6


class Step(NamedTuple):
    """What `spectral_normalize` returns of one weight."""

    scaled: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor  # (1,)


class _Round(NamedTuple):
    """One call: the weight of the layer that made it, and its version then."""

    weight: Tensor
    version: int

    def is_over(self) -> bool:
        """After an optimiser's step, say. What is left then was of layers that were not used."""
        return self.weight._version != self.version


class _Ahead(NamedTuple):
    """A step that has been computed but not made."""

    step: Step
    of: tuple[Tensor, Tensor, Tensor]
    facts: tuple[Any, ...]
    round: _Round

    def holds(self, *given: Any) -> bool:
        of = self.of
        return (
            of[0] is given[0]
            and of[1] is given[1]
            and of[2] is given[2]
            and self.facts == _facts(*given)
            and not self.round.is_over()
        )


class Turn:
    """A layer in a group.

    dim: of the weight's outputs. transposed: the matrix is W', with v for its u, for norms that
    step v first; of contiguous weights with dim 0.

    What a layer's turn takes: its weight, u, v, the number of iterations and eps.
    """

    __slots__ = (
        "__weakref__",
        "ahead",
        "dim",
        "given",
        "group",
        "key",
        "misses",
        "steps_alone",
        "transposed",
        "version",
        "weight",
    )

    def __init__(self, group: SpectralGroup, dim: int = 0, transposed: bool = False) -> None:
        self.group, self.dim, self.transposed = group, dim, transposed
        self.misses = 0
        self.version = -1
        self.weight: weakref.ref[Tensor] | None = None  # the layer's, which may be given another
        self.leave()

    def __reduce__(self) -> Any:
        """Copies and pickles of a model's layers are a group of their own, that begins anew."""
        return Turn, (self.group, self.dim, self.transposed)

    def take(self, weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> Step:
        """Moves u and v by a step, and returns it; no graph is made."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead.holds(weight, u, v, n_iterations, eps):
            self.misses = 0
            step = ahead.step
        else:
            if ahead is not None:
                self.miss()
            step = self.group.compute(self, weight, u, v, n_iterations, eps)
        self.version = weight._version
        # In place: these are the module's, and no graph holds them.
        u.copy_(step.u)
        v.copy_(step.v)
        return step

    def leave(self) -> None:
        """Nothing more is computed ahead until the layer is used again."""
        self.ahead: _Ahead | None = None
        self.key: Any = None
        self.given: tuple[Any, ...] = ()
        self.steps_alone = 0

    def miss(self) -> None:
        """What was computed was of no use: next time later, each time twice as late."""
        self.leave()
        self.misses = min(self.misses + 1, MOST_MISSES)

    def has_changed(self) -> bool:
        """Whether the weight is another than that of the last step."""
        weight = self.weight and self.weight()
        return weight is not None and weight._version != self.version

    def matrix(self, weight: Tensor) -> Tensor:
        if self.transposed:
            return weight.view(len(weight), -1).t()
        return weight if self.dim == 0 else weight.movedim(self.dim, 0)


class SpectralGroup:
    """The layers of a model that are stepped ahead together.

    It learns them by their use: a layer belongs to it from its second use on, with those of its
    dtype, device, number of iterations and eps. A layer whose steps were computed for nothing leaves
    for 2, then 4, ... up to 64 uses. At most the scaled weights of one step are kept.
    """

    def __init__(self) -> None:
        self.rings: dict[Any, _Ring] = {}

    def __reduce__(self) -> Any:
        return SpectralGroup, ()

    def compute(self, turn: Turn, *given: Any) -> Step:
        """The step of one layer; of the others too, if this is where a round begins."""
        weight = given[0]
        key = _key(*given)
        ring = self.rings.setdefault(key, _Ring())
        others: list[Turn] = []
        if turn.key == key:
            others = ring.begin(turn, weight)
        else:
            turn.key = None
            turn.steps_alone += 1
            if turn.steps_alone >= 2**turn.misses:
                turn.key = key
                ring.add(turn)
        if turn.weight is None or turn.weight() is not weight:
            turn.weight = weakref.ref(weight)
        turn.given = given[1:]
        members = [(turn, given)]
        for other in others:
            of = other.weight()
            if of is not None:
                theirs = (of, *other.given)
                if _key(*theirs) == key and of.numel() == theirs[1].numel() * theirs[2].numel():
                    members.append((other, theirs))
        return _compute(members)


class _Ring:
    """The layers of a group whose steps fit in one call."""

    def __init__(self) -> None:
        self.turns: list[weakref.ref[Turn]] = []
        self.leader: weakref.ref[Turn] | None = None

    def add(self, turn: Turn) -> None:
        self.turns = [ref for ref in self.turns if ref() not in (None, turn)]
        self.turns.append(weakref.ref(turn))

    def begin(self, turn: Turn, weight: Tensor) -> list[Turn]:
        """The layers to be computed beside this one; none within a round.

        A round begins where a weight has changed, for those whose weights have too. Or for all,
        where the layer that began the last one comes again when all others have been used, as in a
        critic's pass over a second batch.
        """
        leader = self.leader and self.leader()
        members = [other for ref in self.turns if (other := ref()) is not None]
        others = [other for other in members if other is not turn and other.key is not None]
        waiting = [other for other in others if other.ahead is not None]
        has_changed = turn.version != weight._version
        if not has_changed and (waiting or leader not in (None, turn)):
            return []
        for other in waiting:
            other.miss()
        self.leader = weakref.ref(turn)
        return [
            other
            for other in others
            if other.key is not None and (not has_changed or other.has_changed())
        ]


def can_wait(weight: Tensor) -> bool:
    """Whether what is computed of the weight now may be used later.

    Not of tensors that a replica, torch.func or another parametrization has made; not where a trace
    or a graph of the device's records one of the two.
    """
    return (
        type(weight) is nn.Parameter
        and not torch.is_inference_mode_enabled()
        and not weight.is_inference()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _key(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> Any:
    return weight.dtype, weight.device, u.dtype, u.device, n_iterations, eps


def _facts(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> tuple[Any, ...]:
    """What another value, or another wish, would change. Streams do not wait for each other."""
    return (
        weight._version,
        u._version,
        v._version,
        weight.data_ptr(),
        u.data_ptr(),
        v.data_ptr(),
        n_iterations,
        eps,
        torch.cuda.current_stream(weight.device).cuda_stream if weight.is_cuda else 0,
    )


@torch.no_grad()
def _compute(members: list[tuple[Turn, tuple[Any, ...]]]) -> Step:
    """The step of the first; those of the others wait."""
    weight, _, _, n_iterations, eps = members[0][1]
    # Before the values are read: who writes them meanwhile is noticed.
    facts = [_facts(*given) for _, given in members]
    sums = torch.promote_types(weight.dtype, torch.float32)
    scaled, us, vs, sigmas = spectral_normalize(
        [turn.matrix(given[0]) for turn, given in members],
        [given[1] if given[1].dtype == sums else given[1].to(sums) for _, given in members],
        [given[2] if given[2].dtype == sums else given[2].to(sums) for _, given in members],
        n_iterations,
        eps,
    )
    steps = list(map(Step, scaled, us, vs, sigmas.split(1) if len(members) > 1 else (sigmas,)))
    this_round = _Round(weight, facts[0][0])
    for (turn, given), step, of in zip(members[1:], steps[1:], facts[1:], strict=True):
        turn.ahead = _Ahead(step, given[:3], of, this_round)
    return steps[0]
