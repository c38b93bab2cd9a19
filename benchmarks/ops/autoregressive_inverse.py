"""autoregressive_inverse: samples of a masked autoregressive flow, against one density pass of its net."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import masked_peers, peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import ops, reference

HIDDEN = (512, 512)


def eager_incremental(
    z: Tensor, weights: list[Tensor], biases: list[Tensor], firsts: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """The same idea in plain torch: each unit once, when the dimensions that it sees are known.

    firsts[l][d] is the number of units of layer l of degree < d.
    """
    dimensions = z.shape[1]
    x, log_det = torch.zeros_like(z), z.new_zeros(z.shape[0])
    values = [z.new_zeros(z.shape[0], w.shape[0]) for w in weights[:-1]]
    for i in range(dimensions):
        below, seen = x, i
        for weight, bias, value, first in zip(weights, biases, values, firsts):
            rows = slice(first[i], first[i + 1])
            if rows.start < rows.stop:
                sums = torch.addmm(bias[rows], below[:, :seen], weight[rows, :seen].T)
                value[:, rows] = sums.relu_()
            below, seen = value, first[i + 1]
        rows = slice(2 * i, 2 * i + 2)
        raw, shift = torch.addmm(
            biases[-1][rows], below[:, :seen], weights[-1][rows, :seen].T
        ).unbind(1)
        log_scale = torch.tanh(raw)
        x[:, i] = (z[:, i] - shift) * torch.exp(-log_scale)
        log_det -= log_scale
    return x, log_det


def _pass(z: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Results:
    """One full forward of the net: what scoring one batch costs, masks applied before."""
    h = z
    for weight, bias in zip(weights[:-1], biases[:-1]):
        h = F.linear(h, weight, bias).relu_()
    return [F.linear(h, weights[-1], biases[-1])]


def case(dimensions: int, batch: int, setting: Setting, hidden: tuple[int, ...] = HIDDEN) -> Case:
    if setting.tiny:
        dimensions, batch, hidden = 5, min(batch, 3), (8, 8)
    order = torch.arange(dimensions)
    degrees = [torch.arange(units) * dimensions // units for units in hidden]
    above, below = [*degrees, order.repeat_interleave(2)], [order + 1, *degrees]
    sizes = [dimensions, *hidden, 2 * dimensions]
    weights, biases = [], []
    for seed, (inputs, outputs) in enumerate(pairwise(sizes)):
        mask = (above[seed][:, None] >= below[seed]).to(setting.device)
        weights.append(setting.random(outputs, inputs, seed=seed, scale=inputs**-0.5) * mask)
        biases.append(setting.random(outputs, seed=10 + seed, scale=0.1))
    z = setting.random(batch, dimensions, seed=20)
    firsts = [torch.searchsorted(d, torch.arange(dimensions + 1)).tolist() for d in degrees]

    def without_graph(function, *arguments) -> Results:
        with torch.no_grad():
            return function(*arguments)

    def expected() -> Results:
        doubles = [[t.double() for t in ts] for ts in (weights, biases)]
        if setting.tiny:
            return reference.autoregressive_inverse(z.double(), *doubles, degrees)
        return without_graph(eager_incremental, z.double(), *doubles, firsts)

    rivals = [
        Rival(
            "eager incremental",
            partial(without_graph, eager_incremental, z, weights, biases, firsts),
        ),  # fmt: skip
    ]
    for peer in masked_peers.autoregressive_inverses(dimensions, hidden):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
            continue
        rivals.append(
            Rival(
                peer.name,
                partial(without_graph, peer.to(z).call, z),
                peer.arithmetic,
                partial(without_graph, peer.to(z.double()).call, z.double()),
            )
        )
    return Case(
        (batch, dimensions, *hidden),
        partial(without_graph, ops.autoregressive_inverse, z, weights, biases, degrees),
        expected,
        rivals,
        [Rival("pass", partial(without_graph, _pass, z, weights, biases))],
        notes=["pass: one full forward of the same net, masks applied: D of them are D passes"],
    )


ENTRIES = [
    Entry("autoregressive_inverse D=784 batch 64", partial(case, 784, 64)),
    Entry("autoregressive_inverse D=784 batch 1", partial(case, 784, 1)),
    Entry("autoregressive_inverse D=64 batch 64", partial(case, 64, 64)),
]
