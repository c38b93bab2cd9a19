"""FrEIA 0.2: affine coupling blocks, AllInOneBlock."""

from __future__ import annotations

from FrEIA.modules import coupling_layers
from torch import nn

from .all_in_one_block import AllInOneBlock
from .freia_coupling import (
    AffineCouplingOneSided,
    ConditionalAffineTransform,
    GLOWCouplingBlock,
    RNVPCouplingBlock,
)

REPLACEMENTS = (
    GLOWCouplingBlock,
    RNVPCouplingBlock,
    AffineCouplingOneSided,
    ConditionalAffineTransform,
    AllInOneBlock,
)
STAYS: dict[type[nn.Module], str] = {
    coupling_layers.NICECouplingBlock: "two additions, which no kernel shortens",
    coupling_layers.GINCouplingBlock: "its log-scales lose their mean, which no kernel does",
}
