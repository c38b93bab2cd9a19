"""nflows 0.14: masked autoregressive transforms, affine and spline couplings."""

from __future__ import annotations

from typing import Any

from nflows.nn.nets import resnet
from nflows.transforms import autoregressive, coupling, made, nonlinearities, permutations
from nflows.transforms.base import InputOutsideDomain
from torch import Tensor

from . import dense_network, permutation
from .activations import activation_name
from .coupling import AffineCouplingTransform
from .made import MadeInverse, SplineElement
from .spline_coupling import SplineCDF, SplineCoupling


class _MadeInverse(MadeInverse):
    made = made

    @classmethod
    def why_not_net(cls, net: Any) -> str:
        known = activation_name(net.activation)
        if known is None:
            return "its activation is neither ReLU, ELU nor tanh"
        if any(activation_name(block.activation) != known for block in net.blocks):
            return "its blocks have other activations"
        return super().why_not_net(net)

    def addends(self, context: Tensor | None) -> list[Tensor | None] | None:
        if context is None:
            return None
        net = self.autoregressive_net
        addends: list[Tensor | None] = [net.activation(net.context_layer(context))]
        for block in net.blocks:
            # Feed-forward blocks pay no attention to the context.
            addends += [block.context_layer(context), None] if net.use_residual_blocks else [None]
        return [*addends, None]


class MaskedAffineAutoregressiveTransform(
    _MadeInverse, autoregressive.MaskedAffineAutoregressiveTransform
):
    replaces = autoregressive.MaskedAffineAutoregressiveTransform

    @classmethod
    def why_not_element(cls, module: Any) -> str:
        return "" if module._epsilon == 1e-3 else f"its smallest scale is {module._epsilon}"

    def element(self) -> dict[str, Any]:
        return {"element": "affine", "scale_map": "softplus"}


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    SplineElement,
    _MadeInverse,
    autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
):
    replaces = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform


class PiecewiseRationalQuadraticCouplingTransform(
    SplineCoupling, coupling.PiecewiseRationalQuadraticCouplingTransform
):
    replaces = coupling.PiecewiseRationalQuadraticCouplingTransform
    outside_domain = InputOutsideDomain


class PiecewiseRationalQuadraticCDF(SplineCDF, nonlinearities.PiecewiseRationalQuadraticCDF):
    replaces = nonlinearities.PiecewiseRationalQuadraticCDF
    outside_domain = InputOutsideDomain


class ResidualNet(dense_network.ResidualNet, resnet.ResidualNet):
    replaces = resnet.ResidualNet
    block = resnet.ResidualBlock


class Permutation(permutation.Permutation, permutations.Permutation):
    replaces = permutations.Permutation


class RandomPermutation(permutation.Permutation, permutations.RandomPermutation):
    replaces = permutations.RandomPermutation


class ReversePermutation(permutation.Permutation, permutations.ReversePermutation):
    replaces = permutations.ReversePermutation


REPLACEMENTS = (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    AffineCouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    PiecewiseRationalQuadraticCDF,
    ResidualNet,
    Permutation,
    RandomPermutation,
    ReversePermutation,
)
STAYS = {
    autoregressive.MaskedPiecewiseLinearAutoregressiveTransform: "no kernel for linear splines",
    autoregressive.MaskedPiecewiseQuadraticAutoregressiveTransform: "no kernel for quadratic ones",
    autoregressive.MaskedPiecewiseCubicAutoregressiveTransform: "no kernel for cubic splines",
    coupling.AdditiveCouplingTransform: "one addition, which no kernel shortens",
}
