"""Old against new, on copies in float64: nothing of the model or of torch's generators moves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .accelerated import Accelerated, swap_back

TOLERANCE = 1e-6  # of float64, relative to the largest value: tells another formula, not a rounding


def difference(module: Accelerated) -> str:
    """In what an accelerated module differs from the one it was; empty where in nothing."""
    devices = {tensor.device for tensor in _tensors(module) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)), torch.inference_mode(False):
        torch.manual_seed(0)
        try:
            fast = _bare_copy(module)
            original = _bare_copy(module)
            swap_back(original)
            with torch.no_grad():
                for what, expected, found in fast.comparisons(original):
                    wrong = _wrong(expected, found)
                    if wrong:
                        return f"{what} {wrong}"
        except Exception as error:  # whatever one of the two refuses, the model keeps what it had
            return f"{type(error).__name__}: {error}"
    return ""


def _tensors(part: Any) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else []


def _bare_copy(part: Any) -> Any:
    """In float64, without the hooks of others, which may count, log or write."""
    twin = copy.deepcopy(part)
    if not isinstance(twin, nn.Module):
        return twin
    twin.double()
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if not _is_torchs(hook)]:
                del hooks[key]
    return twin


def _is_torchs(hook: object) -> bool:
    return any(cls.__module__.startswith("torch.nn.utils") for cls in type(hook).__mro__)


def _wrong(expected: Tensor, found: Tensor) -> str:
    if expected.shape != found.shape:
        return f"has shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if expected.dtype != found.dtype:
        return f"has dtype {found.dtype} instead of {expected.dtype}"
    if expected.numel() == 0:
        return ""
    scale = expected.abs().max().clamp_min(1.0)
    error = float((found - expected).abs().max() / scale)
    return "" if error <= TOLERANCE else f"is off by {error:.1e}"
