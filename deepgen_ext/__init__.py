"""Fast C++/CUDA kernels and models for classical deep generative modelling in PyTorch.

`ops` are drop-in functions on tensors, `nn.transforms` invertible layers, `models` whole models, `objectives` what
turns likelihoods into numbers; `accelerate(model)` makes existing models of other libraries fast, `report(model)` says
what it would do, `restore(model)` undoes it; `profile()` watches our ops in your code; `build_info()` says what was
compiled. Parts are imported when first used,
so that `deepgen --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepgen_ext import models, nn, objectives, ops
    from deepgen_ext._extension import build_info
    from deepgen_ext.compat import accelerate, report, restore
    from deepgen_ext.profiling import profile

__version__ = "0.1.0"
__all__ = [
    "accelerate",
    "build_info",
    "models",
    "nn",
    "objectives",
    "ops",
    "profile",
    "report",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name == "build_info":
        return importlib.import_module("deepgen_ext._extension").build_info
    if name == "profile":
        return importlib.import_module("deepgen_ext.profiling").profile
    if name in ("accelerate", "report", "restore"):
        return getattr(importlib.import_module("deepgen_ext.compat"), name)
    if name in __all__:
        return importlib.import_module(f"deepgen_ext.{name}")
    raise AttributeError(f"module 'deepgen_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
