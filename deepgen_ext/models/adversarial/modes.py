"""Networks held as they are for a while: without gradients, or in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradient to the parameters of these from what is computed within."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def evaluated(network: nn.Module, *args: Tensor | None) -> Tensor:
    """network(*args) in evaluation mode, whatever its mode is."""
    training = network.training
    try:
        return network.eval()(*args)
    finally:
        network.train(training)
