"""Which of the activations that the kernels know a function or a module is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.elu: "elu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}


def activation_name(activation: Any) -> str | None:
    """ "relu", "elu" or "tanh"; None for any other."""
    if isinstance(activation, nn.Module):
        kinds = {nn.ReLU: "relu", nn.Tanh: "tanh"}
        if type(activation) is nn.ELU:
            return "elu" if activation.alpha == 1.0 else None
        return kinds.get(type(activation))
    try:
        return _FUNCTIONS.get(activation)
    except TypeError:  # not hashable
        return None
