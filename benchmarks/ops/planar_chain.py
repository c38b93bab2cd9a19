"""planar_chain: K planar flows one after another, with their log-det."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.chain_peers import Chain, planar_chains
from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors, differentiated
from benchmarks.peers import NotInstalled
from deepgen_ext import ops, reference

# (samples, features, steps)
PLANE, VECTORS = (65536, 2, 32), (4096, 64, 32)
TINY = {PLANE: (7, 2, 3), VECTORS: (5, 6, 2)}


def eager(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As few passes over the samples as torch's own kernels allow."""
    inner = (w * u).sum(1, keepdim=True)
    u_hat = u + (F.softplus(inner) - 1 - inner) * w / w.square().sum(1, keepdim=True)
    slope = (w * u_hat).sum(1)
    log_det = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
    for k in range(b.shape[0]):
        hidden = torch.tanh(torch.addmv(b[k].expand(z.shape[0]), z, w[k]))
        log_det = log_det + torch.log1p(slope[k] * (1 - hidden * hidden))
        z = torch.addr(z, hidden, u_hat[k])
    return z, log_det


def _case(shape: tuple[int, int, int], backward: bool, setting: Setting) -> Case:
    samples, features, steps = TINY[shape] if setting.tiny else shape
    z = setting.random(samples, features, seed=0)
    w = setting.random(steps, features, seed=1, scale=features**-0.5)
    u = setting.random(steps, features, seed=2, scale=0.3 * features**-0.5)
    leaves = z, w, u, setting.random(steps, seed=3)
    return chain_case(
        leaves, ops.planar_chain, reference.planar_chain, eager, planar_chains, backward, setting
    )


def chain_case(
    leaves: tuple[Tensor, ...],
    op: Callable,
    specification: Callable,
    eager: Callable,
    peers_of: Callable,
    backward: bool,
    setting: Setting,
) -> Case:
    """Of a chain of flows `op`(z, *parameters); its floor is what is read and written of z."""
    z = leaves[0]
    sum_dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    cotangents = (
        setting.random(*z.shape, seed=4),
        setting.random(z.shape[0], seed=5).to(sum_dtype),
    )

    def run(function: Callable) -> Callable[[], Results]:
        if backward:
            return differentiated(function, leaves, cotangents)
        return lambda: function(*leaves)

    def expected() -> Results:
        doubles = [leaf.double() for leaf in leaves]
        if backward:
            return differentiated(specification, doubles, [c.double() for c in cotangents])()
        return specification(*doubles)

    rivals = [
        Rival("eager", run(eager)),
        Rival("torch.compile", run(setting.compiled(eager))),
    ]
    for peer in peers_of(leaves[1:]):
        if isinstance(peer, NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
        else:
            rivals.append(Rival(peer.name, _peer_run(peer, z, cotangents if backward else None)))
    size = z.nbytes * (5 if backward else 2)
    return Case(
        (*z.shape, leaves[1].shape[0]),
        run(op),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
        tolerance=1e-3 if z.dtype == torch.float32 else None,  # 32 steps amplify what one rounds
    )


def _peer_run(
    peer: Chain, z: Tensor, cotangents: tuple[Tensor, Tensor] | None
) -> Callable[[], Results]:
    if cotangents is None:

        def run() -> Results:
            with torch.no_grad():
                return peer.call(z)

        return run
    leaf = z.detach().requires_grad_()

    def run_with_gradients() -> Results:
        results = peer.call(leaf)
        gradients = torch.autograd.grad(results, (leaf, *peer.parameters), cotangents)
        return *results, gradients[0], *peer.as_ours(gradients[1:])

    return run_with_gradients


ENTRIES = [
    Entry("planar_chain plane forward", partial(_case, PLANE, False)),
    Entry("planar_chain plane forward+backward", partial(_case, PLANE, True)),
    Entry("planar_chain vectors forward", partial(_case, VECTORS, False)),
    Entry("planar_chain vectors forward+backward", partial(_case, VECTORS, True)),
]
