"""accelerate, report, restore: the walk over a model."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .accelerated import Accelerated, named_parts, swap, swap_back
from .masked_convolution import class_of, mask_of
from .peers import Peer, other_version, peer_of, reasons_to_stay, replacements
from .verification import difference


@dataclass(frozen=True)
class Verdict:
    """What is to become of one module, or hook: `fast`, or it stays, for a reason."""

    path: str
    part: Any
    fast: type[Accelerated] | None
    reason: str = ""


def accelerate(module: nn.Module, *, inplace: bool = False, verify: bool = True) -> nn.Module:
    """The model with the parts that we compute faster replaced: same weights, same numbers.

    A replaced module keeps its parameters, buffers, hooks, state_dict keys, device, dtype, mode and
    its class's public behaviour: it is given a subclass of its own class, under the same name, with
    methods of its own. So optimisers that hold its parameters go on working, checkpoints fit both
    ways, and copies and pickles keep what was done. Only instances of the very classes that
    deepgen_ext/compat/README.md lists are replaced; a subclass has methods of its own and stays.
    Besides these, masked convolutions of one's own, which are known by their buffer and by what they
    compute.

    Args:
        module: a model, or a part of one.
        inplace: change the module itself; otherwise a deep copy.
        verify: compare each replacement with the module that it replaces, on random input in
            float64, on copies, so that nothing of the model's state moves, nor torch's generators.
            One that differs stays as it was, with a warning that names it.

    Returns:
        The model. Where nothing is to be replaced, the module itself, with a warning that says so.

    Raises:
        TypeError: not an nn.Module.
        ValueError: a module on the meta device, or with tensors on several devices.
    """
    _check(module)
    verdicts, notes = _verdicts(module)
    for note in notes:
        warnings.warn(f"accelerate: {note}", stacklevel=2)
    if not any(verdict.fast for verdict in verdicts):
        warnings.warn("accelerate: nothing to accelerate in this model", stacklevel=2)
        return module
    if not inplace:
        module = copy.deepcopy(module)
    parts = dict(named_parts(module))
    done: dict[type[Accelerated], list[Any]] = {}
    for verdict in verdicts:
        if verdict.fast is None:
            continue
        part = parts[verdict.path]
        swap(part, verdict.fast)
        wrong = difference(part) if verify else ""
        if wrong:
            swap_back(part)
            warnings.warn(
                f"accelerate: {_named(verdict.path, part)} stays: verification failed, {wrong}",
                stacklevel=2,
            )
        else:
            done.setdefault(verdict.fast, []).append(part)
    for fast, alike in done.items():
        fast.together(alike)
    return module


def restore(model: nn.Module) -> nn.Module:
    """Give every accelerated module its own class back, in place; returns the model."""
    _check_type(model)
    for _, part in named_parts(model):
        if isinstance(part, Accelerated):
            swap_back(part)
    return model


def report(model: nn.Module) -> str:
    """Print, and return, a table: each known module, what `accelerate` makes of it, what that gains,
    or why it stays. Changes nothing.
    """
    _check(model)
    verdicts, notes = _verdicts(model)
    lines = [("module", "class", "becomes", "gain, or why it stays")]
    for verdict in verdicts:
        is_done = isinstance(verdict.part, Accelerated)
        fast = type(verdict.part) if is_done else verdict.fast
        if fast is None:
            becomes, remark = "stays", verdict.reason
        else:
            becomes = "is accelerated" if is_done else "accelerated"
            remark = f"{fast.gain}; {fast.caveat}" if fast.caveat else fast.gain
        lines.append((verdict.path or "(model)", type(verdict.part).__name__, becomes, remark))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[3]])
        for line in lines
    ]
    if not verdicts:
        text = ["nothing to accelerate in this model"]
    table = "\n".join([*notes, *text])
    print(table)
    return table


def _verdicts(model: nn.Module) -> tuple[list[Verdict], list[str]]:
    """Of each module and hook that is known, and sentences about libraries as a whole."""
    verdicts: list[Verdict] = []
    notes: dict[str, None] = {}  # in order, each once
    for path, part in named_parts(model):
        if isinstance(part, Accelerated):
            verdicts.append(Verdict(path, part, None))
            continue
        if mask_of(part):
            verdicts.append(_of_fast(path, part, class_of(type(part))))
            continue
        for cls in type(part).__mro__:
            peer = peer_of(cls)
            note = other_version(peer) if peer else ""
            if note:
                notes[note] = None
            elif peer:
                verdict = _verdict(path, part, cls, peer)
                if verdict:
                    verdicts.append(verdict)
                    break
    return verdicts, list(notes)


def _verdict(path: str, part: Any, cls: type, peer: Peer) -> Verdict | None:
    """Of a part that is an instance of the peer's class cls, or nothing if that one is unknown."""
    fast = replacements(peer).get(cls)
    reason = reasons_to_stay(peer).get(cls, "") if fast is None else ""
    if fast is None and not reason:
        return None
    if cls is not type(part):
        return Verdict(path, part, None, f"a subclass of {cls.__name__}, with methods of its own")
    if fast is None:
        return Verdict(path, part, None, reason)
    return _of_fast(path, part, fast)


def _of_fast(path: str, part: Any, fast: type[Accelerated]) -> Verdict:
    reason = fast.why_not(part)
    return Verdict(path, part, None if reason else fast, reason)


def _named(path: str, part: Any) -> str:
    return f"{path or 'the model'} ({type(part).__name__})"


def _check_type(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")


def _check(module: nn.Module) -> None:
    _check_type(module)
    devices: dict[torch.device, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        devices.setdefault(tensor.device, name)
    for device, name in devices.items():
        if device.type == "meta":
            raise ValueError(
                f"module: {name!r} is on the meta device, without values to work on; "
                "module.to_empty(device=...) and load_state_dict give it some"
            )
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(
            f"module: expected all tensors on one device, got {where}; module.to(device) moves them"
        )
