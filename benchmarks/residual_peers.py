"""The residual block of normflows, around a network of ours."""

from __future__ import annotations

from torch import nn

from benchmarks.peers import NotInstalled, is_installed


def normflows_block(g: nn.Module, terms: int) -> nn.Module | NotInstalled:
    """It cuts its series at a given term in training mode alone; g keeps its own mode."""
    if not is_installed("normflows"):
        return NotInstalled("normflows")
    from normflows.flows.residual import iResBlock

    block = iResBlock(g, n_power_series=terms, neumann_grad=False)
    block.training = True
    return block
