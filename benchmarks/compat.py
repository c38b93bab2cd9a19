"""Layers of other libraries before and after `deepgen_ext.accelerate`: the same weights and noise.

Only libraries that are installed have entries here: without one there is nothing to accelerate.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import masked_peers, peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import accelerate

PEERS = "nflows", "normflows", "zuko"


def _masked_inverse(peer: str, features: int, batch: int, setting: Setting) -> Case:
    """The direction that costs the peer D passes of its net."""
    hidden = (512, 512)
    if setting.tiny:
        features, batch, hidden = 6, 3, (8, 8)
    torch.manual_seed(0)
    z = setting.random(batch, features, seed=1)
    found = masked_peers.autoregressive_inverse(peer, features, hidden)
    before, double = found.to(z), found.to(z.double())
    after = masked_peers.AutoregressiveInverse(
        peer, accelerate(before.layer), found.inverse, found.arithmetic
    )

    def quietly(layer: masked_peers.AutoregressiveInverse) -> Results:
        with torch.no_grad():
            return layer.call(z.to(next(layer.layer.parameters())))

    net = getattr(before.layer, "autoregressive_net", None) or before.layer.hyper

    def one_pass() -> Results:
        with torch.no_grad():
            return [net(z)]

    return Case(
        tuple(z.shape),
        partial(quietly, after),
        partial(quietly, double),
        [Rival(f"{peer} before", partial(quietly, before))],
        [Rival("a pass of its net", one_pass)],
        notes=[f"ours: the same layer of {peer} after deepgen_ext.accelerate"],
    )


ENTRIES = [
    Entry(
        f"accelerate {peer} D={features} batch 64",
        partial(_masked_inverse, peer, features, 64),
    )
    for features in (784, 64)
    for peer in PEERS
    if peers.is_installed(peer)
]
