"""The multiply-adds of an image: of a network's pass, and of the program that draws it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepgen_ext.nn import MaskedConv2d

LINEAR, NODE, STEP, TERM, TAP = 0, 6, 13, 6, 4  # words of each, as csrc/ancestral_sample.h says
PANEL = 16  # output channels of a packed matrix


@dataclass(frozen=True)
class Plan:
    """Multiply-adds of one image: those asked for, and with the packed weights' filled-up panels."""

    needed: int
    packed: int


def pass_of(network: nn.Module, shape: tuple[int, ...]) -> int:
    """One forward pass of one image without the masked weights: each weight once a pixel."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        weights = int(layer.mask().expand(weight.shape).sum()) if masked(layer) else weight.numel()
        transposed = getattr(layer, "transposed", False)
        image = inputs[0] if transposed else output
        total += weights * image.shape[2] * image.shape[3]

    def masked(layer: nn.Module) -> bool:
        return isinstance(layer, MaskedConv2d)

    layers = [m for m in network.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 4]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def plan_of(program: Tensor, height: int, width: int) -> Plan:
    """What the program's row steps and pixel steps multiply, read from its words."""
    words = program.tolist()
    nodes, rows, pixels, terms, taps = words[:5]
    parts = iter_parts(
        words[8:], [(NODE, nodes), (STEP, rows + pixels), (TERM, terms), (TAP, taps)]
    )
    nodes, steps, terms, taps = parts
    needed = packed = 0
    for kind, dst, _, channels, *_, first_term, n_terms, _, _ in steps:
        if kind != LINEAR:
            continue
        stride = max(nodes[dst][2], 1)
        positions = -(-height // stride) * -(-width // stride)
        for _, _, inputs, _, first_tap, n_taps in terms[first_term : first_term + n_terms]:
            for _, _, phase, _ in taps[first_tap : first_tap + n_taps]:
                products = positions // (1 if phase < 0 else 4) * inputs
                needed += products * channels
                packed += products * -(-channels // PANEL) * PANEL
    return Plan(needed, packed)


def iter_parts(words: list[int], sizes: list[tuple[int, int]]) -> Iterator[list[list[int]]]:
    """`count` records of `size` words for each pair, one kind after another."""
    for size, count in sizes:
        yield [words[i * size : (i + 1) * size] for i in range(count)]
        words = words[size * count :]
