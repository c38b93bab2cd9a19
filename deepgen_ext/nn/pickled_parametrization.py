"""Parametrized modules that can be pickled, as torch's own cannot."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def make_picklable(module: nn.Module) -> None:
    """Give a parametrized module's class, which torch makes up for it, a way to be pickled."""
    type(module).__reduce_ex__ = _reduce


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    return _restore, (type(module).__bases__[0], tuple(module.parametrizations)), module.__dict__


def _restore(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty module of such a class; its state follows."""
    module = base.__new__(base)
    nn.Module.__init__(module)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    make_picklable(module)
    return module
