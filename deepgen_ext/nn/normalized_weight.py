"""What weights divided by a norm of theirs share: when the norm is estimated, what eval keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 15  # iterations when a constraint is registered, as torch has it


class NormalizedWeight(nn.Module):
    """A parametrization, W / norm(W), or with a coefficient c, W min(1, c / norm(W)).

    The norm comes of an iteration on two vectors, buffers `_u` and `_v`, from below. In training
    each call moves them `n_iterations` steps, or until the norm changes by less than
    atol + rtol * norm. In eval mode nothing moves; there the normalised weight is kept until the
    weight or the vectors change, which autograd's version counter tells (writing through `.data`
    is the one change that it cannot see: call `forget()`, which train() and eval() do). With a
    coefficient, a bound that must hold, the kept weight's norm is iterated to convergence first, on
    copies of the vectors.
    """

    def __init__(
        self,
        n_iterations: int,
        eps: float,
        coefficient: float | None,
        rtol: float | None,
        atol: float | None,
    ) -> None:
        super().__init__()
        self.n_power_iterations, self.eps, self.coefficient = n_iterations, eps, coefficient
        self.rtol, self.atol = rtol, atol
        self._kept: tuple[Tensor, Any, Tensor] | None = None
        # What a group has computed for this forward pass: the scaled weight of a call.
        self.ready: Callable[[Tensor], Tensor] | None = None

    # ------------------------------------------------------------ what a norm defines

    def iterate(
        self, weight: Tensor, u: Tensor, v: Tensor, n_iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New u and v, and the norm, with a graph to the weight."""
        raise NotImplementedError

    def scaled(
        self, weight: Tensor, u: Tensor, v: Tensor, n_iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled weight, new u and v."""
        u, v, norm = self.iterate(weight, u, v, n_iterations)
        return weight * self.factor(norm), u, v

    def factor(self, norm: Tensor) -> Tensor:
        """1 / norm, or min(1, coefficient / norm); 1 where the norm is 0."""
        most, least = (1.0, 0.0) if self.coefficient is None else (self.coefficient,) * 2
        depends = norm > least
        return torch.where(depends, most / torch.where(depends, norm, 1.0), 1.0)

    def depends_on(self) -> tuple[Tensor, ...]:
        """What the scaled weight is made of beside the weight."""
        return self._u, self._v

    # ------------------------------------------------------------ the parametrization

    def forward(self, weight: Tensor) -> Tensor:
        if self.ready is not None:
            return self.ready(weight)
        if self.training:
            return self.step(weight)
        if is_transformed():
            n = 0 if self.coefficient is None else WARM_UP
            return self.scaled(weight, self._u, self._v, n)[0]
        if torch.is_grad_enabled() and weight.requires_grad:
            return self.with_graph(weight)
        return self.kept(weight)

    def step(self, weight: Tensor) -> Tensor:
        """The scaled weight of a training step; u and v move."""
        u, v, n_iterations = self._u, self._v, self.n_power_iterations
        if in_backward():
            return self.scaled(weight, u, v, 0)[0]
        by_tolerance = self.rtol is not None or self.atol is not None
        if by_tolerance and not torch.compiler.is_compiling():
            u, v = self.converged(weight.detach(), u, v, self.rtol or 0.0, self.atol or 0.0)
            n_iterations = 0
        scaled, new_u, new_v = self.scaled(weight, u, v, n_iterations)
        self.move(new_u, new_v)
        return scaled

    @torch.no_grad()
    def move(self, u: Tensor, v: Tensor) -> None:
        # In place: replicas of DataParallel share these, and graphs keep other tensors.
        self._u.copy_(u)
        self._v.copy_(v)

    @torch.no_grad()
    def converged(
        self, weight: Tensor, u: Tensor, v: Tensor, rtol: float, atol: float, most: int = 1000
    ) -> tuple[Tensor, Tensor]:
        """u and v once the norm changes by less than atol + rtol * norm in a step.

        Reads the norm in every step, which on a GPU waits for it.
        """
        before = -math.inf
        for _ in range(most):
            u, v, norm = self.iterate(weight, u, v, 1)
            norm = norm.item()
            if not abs(norm - before) > atol + rtol * abs(norm):
                break
            before = norm
        return u, v

    def with_graph(self, weight: Tensor) -> Tensor:
        """In eval mode, the scaled weight where its gradient is wanted: of the weight as it is now,
        whatever has written it, at the u and v that are kept."""
        return self.scaled(weight, *self.eval_vectors(weight), 0)[0]

    def eval_vectors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.coefficient is None:
            return self._u, self._v
        if is_transformed():
            return self.iterate(weight.detach(), self._u, self._v, WARM_UP)[:2]
        return self._kept_of(weight)[1:]

    def kept(self, weight: Tensor) -> Tensor:
        """The scaled weight without a graph, computed once for each change."""
        return self._kept_of(weight)[0]

    def _kept_of(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor, Tensor]:
            u, v = self._u, self._v
            if self.coefficient is not None:
                rtol = 1e-12 if weight.dtype == torch.float64 else 1e-7
                u, v = self.converged(weight.detach(), u, v, rtol, 0.0)
            return self.scaled(weight, u, v, 0)

        return self.keep(weight, make)

    def keep(self, weight: Tensor, make: Callable[[], Any]) -> Any:
        """make(), called again when the weight, or what else it depends on, have changed."""
        tensors = (weight, *self.depends_on())
        if any(tensor.is_inference() for tensor in tensors):  # they keep no version
            with torch.no_grad():
                return make()
        key = tuple((t._version, t.data_ptr(), t.dtype, t.device) for t in tensors)
        if self._kept is None or self._kept[0] is not weight or self._kept[1] != key:
            # Not an inference tensor, whatever mode this is: a graph may want it later.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (weight, key, make())
        return self._kept[2]

    # ------------------------------------------------------------ when what is kept is dropped

    def forget(self) -> None:
        """Drop the weight that eval mode keeps, and what a group has computed."""
        self._kept = self.ready = None

    def train(self, mode: bool = True) -> NormalizedWeight:
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> NormalizedWeight:
        self.forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "ready": None}

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, coefficient={self.coefficient}"


def is_transformed() -> bool:
    """Whether torch.compile or torch.func sees this call: nothing is kept, nothing waits."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def in_backward() -> bool:
    """Whether a checkpoint runs its forward again: u and v stay, or the weight would be another."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def unit(x: Tensor, eps: float) -> Tensor:
    """x / max(|x|, eps), of a tensor of any shape."""
    return x / torch.linalg.vector_norm(x).clamp_min(eps)
