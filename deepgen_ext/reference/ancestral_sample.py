from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .categorical_draw import categorical_draw
from .discretized_logistic_mixture import discretized_logistic_mixture_draw

NODE = ("place", "channels", "stride", "rows", "pad", "offset")
STEP = (
    *("kind", "dst", "dst_channel", "channels", "a", "a_channel", "b", "b_channel", "weights"),
    *("first_term", "terms", "dy", "dx"),
)
TERM = ("source", "channel", "channels", "ratio", "first_tap", "taps")
TAP = ("dy", "dx", "phase", "weights")
CACHED, MAP, VECTOR = range(3)
LINEAR, COPY, RELU, ELU, NEGATIVE_ELU, TANH, SIGMOID, AFFINE = range(8)
ADD, SUBTRACT, MULTIPLY, GATE, SIGMOID_GATE, CATEGORICAL, MIXTURE, GAUSSIAN = range(8, 16)
SAME, FINER, COARSER = range(3)


def ancestral_sample(
    program: Tensor,
    weights: Tensor,
    conditions: Sequence[Tensor],
    uniforms: Tensor,
    levels: Tensor,
    caches: Tensor | None = None,
    *,
    known: Tensor | None = None,
    tile: int = 1,
    n_levels: int = 256,
    temperature: float = 1.0,
    first_row: int = 0,
    last_row: int | None = None,
) -> None:
    """Runs the program of csrc/ancestral_sample.h on whole maps, one pixel at a time.

    `caches` and `tile` are how the kernels remember; here all rows before `first_row` are computed
    again from their levels.
    """
    n, channels, height, width = uniforms.shape
    image, nodes, row_steps, pixel_steps, terms, taps = _decoded(program)
    panel = 64 // weights.element_size()
    maps = []
    for node in nodes:
        if node["place"] == CACHED:
            rows, columns = -(-height // node["stride"]), -(-width // node["stride"])
            maps.append(weights.new_zeros(rows, columns, n, node["channels"]))
        else:
            given = conditions[node["offset"]]
            maps.append(given if node["place"] == MAP else given.expand(height, width, -1, -1))

    def at(node: int, channel: int, channels: int, row: int, column: int) -> Tensor:
        grid = maps[node]
        if not (0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]):
            return weights.new_zeros(n, channels)
        return grid[row, column, :, channel : channel + channels]

    def linear(step: dict, row: int, column: int) -> Tensor:
        begin, out = step["weights"], step["channels"]
        if step["a"] >= 0:
            total = at(step["a"], step["a_channel"], out, row, column)
        else:
            total = weights[begin : begin + out] if begin >= 0 else weights.new_zeros(out)
        for term in terms[step["first_term"] : step["first_term"] + step["terms"]]:
            source = row, column
            if term["ratio"] == FINER:
                source = 2 * row, 2 * column
            elif term["ratio"] == COARSER:
                source = row // 2, column // 2
            size = term["channels"]
            for tap in taps[term["first_tap"] : term["first_tap"] + term["taps"]]:
                if tap["phase"] >= 0 and tap["phase"] != 2 * (row % 2) + column % 2:
                    continue
                x = at(
                    term["source"],
                    term["channel"],
                    size,
                    source[0] + tap["dy"],
                    source[1] + tap["dx"],
                )
                panels = -(-out // panel)
                matrix = weights[tap["weights"] :][: panels * size * panel]
                matrix = matrix.view(panels, size, panel).transpose(0, 1).flatten(1)[:, :out]
                total = total + x @ matrix
        return total

    def run(step: dict, row: int, column: int) -> None:
        kind, size = step["kind"], step["channels"]
        if kind == LINEAR:
            value = linear(step, row, column)
        else:
            a = at(step["a"], step["a_channel"], size, row + step["dy"], column + step["dx"])
            b = at(step["b"], step["b_channel"], size, row, column) if step["b"] >= 0 else None
            value = _pointwise(kind, a, b, weights[step["weights"] :][: 2 * size])
        maps[step["dst"]][row, column, :, step["dst_channel"] :][:, :size] = value

    def draw(step: dict, row: int, column: int) -> None:
        argument, size = step["dy"], n_levels
        if step["kind"] == MIXTURE:
            size = argument * (1 + 2 * channels + channels * (channels - 1) // 2)
        elif step["kind"] == GAUSSIAN:
            size = 2 * channels
        parameters = at(step["a"], step["a_channel"], size, row, column)[:, :, None, None]
        if step["kind"] == MIXTURE:
            part = slice(0, channels)
            drawn = discretized_logistic_mixture_draw(
                parameters,
                uniforms[:, :, row, column, None, None],
                n_levels=n_levels,
                mixtures=argument,
                temperature=temperature,
            )
        elif step["kind"] == GAUSSIAN:
            part = slice(0, channels)
            mean, log_scale = parameters.chunk(2, 1)
            noise = uniforms[:, :, row, column, None, None]
            drawn = mean + temperature * log_scale.clamp(-7, 7).exp() * noise
        else:
            part = slice(argument, argument + 1)
            drawn = categorical_draw(
                parameters,
                uniforms[:, part, row, column, None, None],
                n_levels=n_levels,
                temperature=temperature,
            )
        target = levels[:, part, row, column]
        keep = torch.full_like(target, row < first_row, dtype=torch.bool)
        if known is not None:
            first = part.start  # the pixel of a mixture or a Gaussian is known as a whole
            keep = keep | known[:, first : first + 1, row, column]
        target.copy_(torch.where(keep, target, drawn[:, :, 0, 0]))
        seen = target
        if step["kind"] != GAUSSIAN:
            seen = 2 * target.to(weights.dtype) / (n_levels - 1) - 1
        maps[image][row, column, :, part] = seen

    for row in range(height if last_row is None else last_row):
        for step in row_steps:
            stride = nodes[step["dst"]]["stride"]
            if row % stride == 0:
                for column in range(0, width, stride):
                    run(step, row // stride, column // stride)
        for column in range(width):
            for step in pixel_steps:
                stride = nodes[step["dst"]]["stride"]
                if step["kind"] >= CATEGORICAL:
                    draw(step, row, column)
                elif row % stride == 0 and column % stride == 0:
                    run(step, row // stride, column // stride)


def _pointwise(kind: int, a: Tensor, b: Tensor | None, factors: Tensor) -> Tensor:
    if kind == AFFINE:
        scale, shift = factors.view(2, -1)
        return scale * a + shift
    return {
        COPY: lambda: a,
        RELU: lambda: a.relu(),
        ELU: lambda: F.elu(a),
        NEGATIVE_ELU: lambda: F.elu(-a),
        TANH: lambda: a.tanh(),
        SIGMOID: lambda: a.sigmoid(),
        ADD: lambda: a + b,
        SUBTRACT: lambda: a - b,
        MULTIPLY: lambda: a * b,
        GATE: lambda: a.tanh() * b.sigmoid(),
        SIGMOID_GATE: lambda: a * b.sigmoid(),
    }[kind]()


def _decoded(program: Tensor) -> tuple[int, list[dict], ...]:
    words = program.tolist()
    *counts, image, _, _ = words[:8]
    position, parts = 8, []
    for count, fields in zip(counts, (NODE, STEP, STEP, TERM, TAP), strict=True):
        part = []
        for _ in range(count):
            part.append(dict(zip(fields, words[position : position + len(fields)], strict=True)))
            position += len(fields)
        parts.append(part)
    return image, *parts
