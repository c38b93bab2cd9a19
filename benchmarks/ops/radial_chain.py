"""radial_chain: K radial flows one after another, with their log-det."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.chain_peers import radial_chains
from benchmarks.harness import Case, Entry, Setting
from benchmarks.ops.planar_chain import PLANE, TINY, VECTORS, chain_case
from deepgen_ext import ops, reference


def eager(z: Tensor, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor) -> tuple[Tensor, Tensor]:
    """As few passes over the samples as torch's own kernels allow."""
    alpha = F.softplus(raw_alpha)
    beta = F.softplus(raw_beta) - alpha
    log_det = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
    for k in range(alpha.shape[0]):
        offset = z - center[k]
        r = torch.linalg.vector_norm(offset, dim=1)
        h = 1 / (alpha[k] + r)
        moved = beta[k] * h
        log_det = log_det + (z.shape[1] - 1) * torch.log1p(moved)
        log_det = log_det + torch.log1p(moved - moved * h * r)
        z = torch.addcmul(z, offset, moved[:, None])
    return z, log_det


def _case(shape: tuple[int, int, int], backward: bool, setting: Setting) -> Case:
    samples, features, steps = TINY[shape] if setting.tiny else shape
    leaves = (
        setting.random(samples, features, seed=0),
        setting.random(steps, features, seed=1),
        setting.random(steps, seed=2),
        setting.random(steps, seed=3),
    )
    return chain_case(
        leaves, ops.radial_chain, reference.radial_chain, eager, radial_chains, backward, setting
    )


ENTRIES = [
    Entry("radial_chain plane forward", partial(_case, PLANE, False)),
    Entry("radial_chain plane forward+backward", partial(_case, PLANE, True)),
    Entry("radial_chain vectors forward", partial(_case, VECTORS, False)),
    Entry("radial_chain vectors forward+backward", partial(_case, VECTORS, True)),
]
