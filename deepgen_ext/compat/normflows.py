"""normflows 1.7.3: masked autoregressive flows, couplings, Glow, residual blocks."""

from __future__ import annotations

from typing import Any

from normflows.flows import mixing, normalization
from normflows.flows.affine import autoregressive, coupling
from normflows.flows.neural_spline import autoregressive as splines
from normflows.flows.neural_spline import coupling as spline_couplings
from normflows.nets import made, mlp, resnet
from torch import Tensor, nn

from . import dense_network, permutation
from .glow import AffineCouplingBlock, ConvNet2d, GlowBlock, Invertible1x1Conv
from .lipschitz_block import iResBlock
from .made import MadeInverse, SplineElement
from .spline_coupling import SplineCDF, SplineCoupling


class _MadeInverse(MadeInverse):
    made = made

    @classmethod
    def why_not_net(cls, net: Any) -> str:
        if hasattr(net, "context_layer"):
            return "a context, which acts through gates between its layers"
        if type(net.preprocessing) is not nn.Identity:
            return "its features are preprocessed"
        return super().why_not_net(net)

    def addends(self, context: Tensor | None) -> None:
        if context is not None:  # as the net without a context layer would say
            raise AttributeError("'MADE' object has no attribute 'context_layer'")


class MaskedAffineAutoregressive(_MadeInverse, autoregressive.MaskedAffineAutoregressive):
    replaces = autoregressive.MaskedAffineAutoregressive

    @classmethod
    def why_not_element(cls, module: Any) -> str:
        return ""

    def element(self) -> dict[str, Any]:
        return {"element": "affine", "scale_map": "floored_sigmoid"}


class MaskedPiecewiseRationalQuadraticAutoregressive(
    SplineElement, _MadeInverse, splines.MaskedPiecewiseRationalQuadraticAutoregressive
):
    replaces = splines.MaskedPiecewiseRationalQuadraticAutoregressive


class PiecewiseRationalQuadraticCoupling(
    SplineCoupling, spline_couplings.PiecewiseRationalQuadraticCoupling
):
    replaces = spline_couplings.PiecewiseRationalQuadraticCoupling


class PiecewiseRationalQuadraticCDF(SplineCDF, spline_couplings.PiecewiseRationalQuadraticCDF):
    replaces = spline_couplings.PiecewiseRationalQuadraticCDF


class ResidualNet(dense_network.ResidualNet, resnet.ResidualNet):
    replaces = resnet.ResidualNet
    block = resnet.ResidualBlock


class MLP(dense_network.MLP, mlp.MLP):
    replaces = mlp.MLP


class Permute(permutation.Permute, mixing.Permute):
    replaces = mixing.Permute


REPLACEMENTS = (
    MaskedAffineAutoregressive,
    MaskedPiecewiseRationalQuadraticAutoregressive,
    PiecewiseRationalQuadraticCoupling,
    PiecewiseRationalQuadraticCDF,
    AffineCouplingBlock,
    GlowBlock,
    Invertible1x1Conv,
    ConvNet2d,
    iResBlock,
    ResidualNet,
    MLP,
    Permute,
)
STAYS: dict[type[nn.Module], str] = {
    coupling.AffineCoupling: "what its AffineCouplingBlock gains is gained there",
    normalization.ActNorm: "one product and one sum; GlowBlock takes it into its 1x1 convolution",
}
