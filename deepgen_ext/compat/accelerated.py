"""What every replaced module has in common: its own class, its own parameters, other arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Accelerated:
    """Mixed into a subclass of a peer's class, whose instances are made by giving a peer's instance
    that class: parameters, buffers, hooks, state_dict keys, mode and every method that is not
    overridden stay what they were. The class is one of modules, or of hooks that modules have.

    A subclass has the name of the class that it replaces, so that repr shows no difference.
    """

    replaces: ClassVar[type]
    gain: ClassVar[str]  # as `report` prints it
    caveat: ClassVar[str] = ""
    keeps: ClassVar[tuple[str, ...]] = ("_kept",)  # what an instance has beside the peer's

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Why this instance of `replaces` stays as it is; empty where nothing speaks against it."""
        return ""

    def prepare(self) -> None:
        """Called once an instance has this class."""

    @classmethod
    def together(cls, parts: list[Any]) -> None:
        """Called with all parts of a model that have been given this class at once."""

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Pairs (what, expected, found) on random input; `original` is a copy of the old class."""
        raise NotImplementedError


def named_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each module, and each hook before its forward, under names that copies of the model share."""
    for path, module in model.named_modules():
        yield path, module
        for position, hook in enumerate(module._forward_pre_hooks.values()):
            yield f"{path}{'.' if path else ''}hook{position}", hook


def swap(part: Any, fast: type[Accelerated]) -> None:
    part.__class__ = fast
    part.prepare()


def swap_back(part: Any) -> None:
    for name in part.keeps:
        part.__dict__.pop(name, None)
    part.__class__ = part.replaces


def is_hooked(*modules: nn.Module) -> bool:
    """Whether one of the modules itself has hooks, which its call would run."""
    for part in modules:
        if (
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or part._backward_pre_hooks
        ):
            return True
    return False


def has_hooks(module: nn.Module) -> bool:
    """Whether a part of the module, itself aside, has hooks, which other arithmetic would pass by."""
    return any(is_hooked(part) for part in module.modules() if part is not module)


def typed(x: Tensor, result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """In x's type, where the kernel has another: of the log-det of half types, and under autocast."""
    return result[0].to(x.dtype), result[1].to(x.dtype)


def is_functional() -> bool:
    """Inside of torch.func, which the kernels do not know."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
