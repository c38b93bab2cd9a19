"""Any causal network of known layers, compiled to draw images in the time of one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from deepgen_ext.nn.pixel_distributions import Categorical
from deepgen_ext.ops import ancestral_sample

from .builder import Builder
from .conditions import Conditions, ConditionValues
from .draws import Distribution
from .lowering import Lowering
from .program import Packing
from .recording import record

MAX_TILE = 16  # samples of a tile on the CPU: more of them leave the caches' caches


@dataclass
class Compiled:
    """A program for one form of condition, and the weights that it was last run with."""

    words: Tensor
    packings: Sequence[Packing]
    length: int  # of the packed weights
    cache_per_sample: int
    ones: int  # how many conditions are a channel of ones
    packed: Tensor | None = None
    state: Sequence[Tensor] = ()  # of the network, when they were packed


class AncestralSampler:
    """Draws images from a network pixel by pixel, computing each activation once.

    The network maps images x, (n, C, H, W) in [-1, 1], to the parameters (n, P, H, W) of
    `distribution` at each pixel, which may depend on earlier pixels alone (raster order; in a pixel
    on earlier channel groups where the distribution has groups_in_order > 1). All its layers are
    compiled into one program (see `ops.ancestral_sample`): a full image costs less than one forward
    pass, not one pass a pixel. Layers that can be compiled: `MaskedConv2d`, `ShiftedConv2d`,
    `ShiftedConvTranspose2d`, `Shift`, `Gate`, `GatedSigmoid`, `ConcatELU`, `AppendOnes`,
    masked convolutions that `deepgen_ext.accelerate` has recognised, `nn.Conv2d` with kernel_size=1,
    `nn.BatchNorm2d` (as in evaluation), `nn.Dropout` (as in evaluation), ReLU, ELU, Tanh, Sigmoid as
    modules or functions, +, -, * of feature maps or with numbers, `torch.cat` and `chunk` of
    channels. What depends on the condition alone may be anything: it is run as it is, once an image.

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = MaskedConv2d(1, 32, 7, mask_type="A")
                self.second = MaskedConv2d(32, 32, 3)
                self.last = nn.Conv2d(32, 256, 1)

            def forward(self, x, condition=None):
                h = self.first(x).relu()
                return self.last(h + self.second(h).relu())

        sampler = AncestralSampler(Network(), (1, 28, 28), Categorical(1, 256))
        levels = sampler(torch.rand(16, 1, 28, 28))

    The weights are read at each call; they may have changed. Half types are computed in float32.

    Args:
        network: called as network(x) or network(x, condition).
        image_shape: (C, H, W).
        distribution: `Categorical` or `DiscretizedLogisticMixture`; or `DiagonalGaussian`: then what
            is called levels below are real numbers of the weights' dtype, seen by the network as
            they are, and what is called uniforms are standard normal numbers.

    Raises:
        TypeError: a layer that cannot be compiled or is not causal, named.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: Sequence[int],
        distribution: Distribution,
    ) -> None:
        self.network = network
        self.image_shape = tuple(image_shape)
        self.distribution = distribution
        self._recorded: dict[bool, tuple[fx.Graph, set[fx.Node]]] = {}
        self._compiled: dict[Any, Compiled] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recorded": {}, "_compiled": {}}  # made again where needed

    @torch.no_grad()
    def __call__(
        self,
        uniforms: Tensor,
        condition: Tensor | None = None,
        *,
        temperature: float = 1.0,
        levels: Tensor | None = None,
        known: Tensor | None = None,
        on_row: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Levels (n, C, H, W), int64, drawn with `uniforms`, of the same shape, in [0, 1).

        Args:
            uniforms: one number a level; the same numbers draw the same image.
            condition: what the network's forward takes, for n samples or for one.
            temperature: divides logits, multiplies scales; 1 samples the model.
            levels, known: where the bool tensor `known` is true, the level is taken from `levels`.
            on_row: called with the number of finished rows after each row.

        Raises:
            ValueError: uniforms of another shape, a condition that does not fit the image.
            TypeError: a layer that cannot be compiled, named.
        """
        if uniforms.shape[1:] != self.image_shape:
            c, h, w = self.image_shape
            raise ValueError(f"uniforms: expected (n, {c}, {h}, {w}), got {tuple(uniforms.shape)}")
        if (known is None) != (levels is None):
            raise ValueError("levels and known: expected both or neither")
        n, _, height, _ = uniforms.shape
        dtype, device = self._dtype_and_device(uniforms)
        conditions = self._conditions(condition, n, dtype)
        compiled = self._compile(condition is not None, conditions, dtype)
        weights = self._packed(compiled, dtype, device)
        ones = [torch.ones(n, 1, dtype=dtype, device=device)] * compiled.ones
        kind = dtype if self.distribution.n_levels is None else torch.int64
        if known is None:
            drawn = torch.zeros(uniforms.shape, dtype=kind, device=device)
        else:
            known = known.to(device).expand(uniforms.shape).contiguous()
            drawn = levels.to(device, kind, copy=True).expand(uniforms.shape).contiguous()
        caches = torch.zeros(n * compiled.cache_per_sample, dtype=dtype, device=device)
        uniforms = uniforms.to(device, dtype).contiguous()
        step = height if on_row is None else 1
        for row in range(0, height, step):
            ancestral_sample(
                compiled.words,
                weights,
                conditions.tensors + ones,
                uniforms,
                drawn,
                caches,
                known=known,
                tile=tile_of(n, device),
                n_levels=self.distribution.n_levels or 2,  # of real numbers it is not read
                temperature=temperature,
                first_row=row,
                last_row=row + step,
            )
            if on_row is not None:
                on_row(row + 1)
        return drawn

    @torch.no_grad()
    def cache_bytes(self, condition: Tensor | None = None) -> int:
        """Of the activations that are kept for one sample."""
        dtype, _ = self._dtype_and_device(torch.empty(0))
        conditions = self._conditions(condition, 1, dtype)
        compiled = self._compile(condition is not None, conditions, dtype)
        return compiled.cache_per_sample * dtype.itemsize

    def _dtype_and_device(self, uniforms: Tensor) -> tuple[torch.dtype, torch.device]:
        for parameter in self.network.parameters():
            double = parameter.dtype == torch.float64
            return torch.float64 if double else torch.float32, parameter.device
        return torch.float32, uniforms.device

    def _packed(self, compiled: Compiled, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weights as the program reads them.

        Packed anew unless all that the network holds is what it was: on the CPU that is compared,
        value by value, in a tenth of the time.
        """
        state = [*self.network.parameters(), *self.network.buffers()]
        if compiled.packed is not None and device.type == "cpu" and _same(state, compiled.state):
            return compiled.packed
        weights = torch.zeros(compiled.length, dtype=dtype, device=device)
        for packing in compiled.packings:
            packing.write(weights)
        if device.type == "cpu":
            compiled.state, compiled.packed = [tensor.detach().clone() for tensor in state], weights
        return weights

    def _record(self, has_condition: bool) -> tuple[fx.Graph, set[fx.Node]]:
        if has_condition not in self._recorded:
            self._recorded[has_condition] = record(self.network, has_condition)
        return self._recorded[has_condition]

    def _conditions(self, condition: Tensor | None, n: int, dtype: torch.dtype) -> Conditions:
        """What the network makes of the condition, as the kernels read it."""
        graph, of_image = self._record(condition is not None)
        values = ConditionValues(self.network, graph, of_image)
        return values.of(condition, n, self.image_shape[1:], dtype)

    def _compile(self, has_condition: bool, conditions: Conditions, dtype: torch.dtype) -> Compiled:
        key = (has_condition, conditions.key, dtype)
        if key not in self._compiled:
            graph, of_image = self._record(has_condition)
            categorical = isinstance(self.distribution, Categorical)
            groups = self.distribution.groups_in_order if categorical else 1
            builder = Builder(self.image_shape[0], groups)
            lowering = Lowering(self.network, builder, conditions)
            parameters = lowering.run(graph, of_image)
            builder.draw(parameters, self.distribution)
            program = builder.finish()
            words, packings = program.encode(self.image_shape[2], dtype)
            length = max((p.begin + p.length for p in packings), default=0)
            self._compiled[key] = Compiled(
                words, packings, length, program.cache_per_sample, lowering.ones
            )
        return self._compiled[key]


def _same(state: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    return len(state) == len(before) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(state, before, strict=True)
    )


def tile_of(n: int, device: torch.device) -> int:
    """Samples that share a fetched weight: so many that every thread, or multiprocessor, has some."""
    if n == 0:
        return 1
    if device.type == "cuda":
        blocks = torch.cuda.get_device_properties(device).multi_processor_count
        return min(8, math.ceil(n / blocks))
    threads = torch.get_num_threads()
    tiles = math.ceil(n / MAX_TILE)
    if n >= threads:
        tiles = math.ceil(tiles / threads) * threads
    return math.ceil(n / tiles)
