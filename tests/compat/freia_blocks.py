"""FrEIA's blocks as the tests want them, and what is asked of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.checks import randomize

D = 5  # odd: halves of 2 and 3 channels
SHAPES = {"vectors": (D,), "sequences": (D, 3), "pictures": (D, 2, 3)}


def net(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(
        PointwiseLinear(channels_in, 8), nn.Tanh(), PointwiseLinear(8, channels_out)
    )


class PointwiseLinear(nn.Linear):
    """Of the channels, at each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def block(name: str, shape: tuple[int, ...], condition: bool = False, **options: Any) -> nn.Module:
    import FrEIA.modules

    dims_c = [(2, *shape[1:]), (1, *shape[1:])] if condition else []
    options = {"subnet_constructor": net, **options}
    return getattr(FrEIA.modules, name)([shape], dims_c, **options)


def both_ways(module: nn.Module) -> list[Tensor]:
    """Both directions, with and without `jac`, and the gradients of the input and the conditions."""
    like = next(module.parameters())
    generator = torch.Generator().manual_seed(5)
    x, *c = (
        torch.randn(4, *dims, generator=generator, dtype=torch.float64).to(like).requires_grad_()
        for dims in (*module.dims_in, *module.dims_c)
    )
    results = []
    for rev in (False, True):
        for jac in (True, False):
            (y,), log_det = module((x,), c, rev=rev, jac=jac)
            results += [y, log_det]
    if torch.is_grad_enabled():
        total = sum((k + 1) * result.square().sum() for k, result in enumerate(results))
        results += torch.autograd.grad(total, (x, *c), retain_graph=True)
    return results


def randomize_learned(module: nn.Module) -> nn.Module:
    """But for permutations, which are parameters without a gradient."""
    fixed = {
        name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad
    }
    randomize(module, 0.3)
    with torch.no_grad():
        for name, value in fixed.items():
            module.get_parameter(name).copy_(value)
    return module
