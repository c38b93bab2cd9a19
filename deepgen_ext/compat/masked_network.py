"""A peer's masked network as `ops.autoregressive_inverse` wants it: units sorted by degree.

The degree of a unit is found from the masks alone: one more than the position of the last feature
that it sees. So any masks that are autoregressive in some order will do, drawn at random or loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext.ops import autoregressive_inverse

from .accelerated import Accelerated, has_hooks


class NotAutoregressiveError(ValueError):
    """Masks for which no order of the units is a triangular solve."""


@dataclass(frozen=True)
class Network:
    """A masked MLP of a peer.

    layers: of each layer the masked linear modules whose product it is: one, or several without an
        activation between them.
    order: the feature at each position of the autoregressive order.
    outputs: which of the numbers that the peer computes for a feature is the k-th that we need.
    """

    layers: Sequence[tuple[nn.Linear, ...]]
    activation: str
    residual: bool
    order: Tensor
    outputs: Tensor

    def masks(self) -> list[Tensor]:
        return [layer.mask for group in self.layers for layer in group]


@dataclass
class Plan:
    """Where each row and column of the peer's weights goes."""

    key: Any
    rows: list[Tensor]
    columns: list[Tensor]
    degrees: list[Tensor]  # on the CPU
    is_exact: list[bool]  # the mask is what the degrees mask anyway
    order: Tensor | None  # None where it is the natural one
    position: Tensor | None


def plan_of(network: Network) -> Plan:
    """Raises NotAutoregressiveError with the reason."""
    masks = [_mask_of(group).cpu() for group in network.layers]
    order = network.order.cpu()
    features, parameters = len(order), len(network.outputs)
    masks[0] = masks[0][:, :features]  # a context's columns follow
    position = order.argsort()
    below = position + 1
    degrees: list[Tensor] = []
    for index, mask in enumerate(masks[:-1]):
        shares = network.residual and index > 0
        degree = degrees[0] if shares else torch.where(mask, below, 0).amax(1)
        _check_sight(mask, below, degree)
        degrees.append(degree)
        below = degree
    if max(int(degree.max()) for degree in degrees) >= features:
        raise NotAutoregressiveError("a hidden unit sees every feature")
    _check_sight(masks[-1], below, position.repeat_interleave(parameters))

    units = [degree.argsort(stable=True) for degree in degrees]
    last = order[:, None] * parameters + network.outputs.cpu()
    rows = [*units, last.flatten()]
    columns = [order, *units]
    degrees = [degree[unit] for degree, unit in zip(degrees, units, strict=True)]
    steps = torch.arange(features)
    above = [steps + 1, *degrees, steps.repeat_interleave(parameters)]
    is_exact = [
        len(group) == 1 and torch.equal(mask[row][:, column], high[:, None] >= low)
        for group, mask, row, column, (low, high) in zip(
            network.layers, masks, rows, columns, pairwise(above), strict=True
        )
    ]
    device = network.layers[0][0].weight.device
    is_natural = torch.equal(order, steps)
    return Plan(
        key_of(network.masks()),
        [row.to(device) for row in rows],
        [column.to(device) for column in columns],
        degrees,
        is_exact,
        None if is_natural else order.to(device),
        None if is_natural else position.to(device),
    )


def _mask_of(group: tuple[nn.Linear, ...]) -> Tensor:
    mask, *more = (layer.mask != 0 for layer in group)
    for above in more:
        mask = above.float() @ mask.float() > 0
    return mask


def _check_sight(mask: Tensor, below: Tensor, above: Tensor) -> None:
    if (mask & (below > above[:, None])).any():
        raise NotAutoregressiveError("its masks are not those of an autoregressive network")


def key_of(tensors: Sequence[Tensor]) -> Any:
    """What changes when a tensor does; None where nobody can tell."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((t._version, t.data_ptr(), t.dtype, t.device) for t in tensors)


class MaskedInverse(Accelerated):
    """A masked autoregressive module whose inverse is `ops.autoregressive_inverse`, in about half
    the time of one pass instead of a pass a feature, with its gradient.

    Weights sorted by degree are kept between calls without gradients, until a weight or a mask
    changes, which autograd's version counter tells; writing through `.data` is the one change that
    it cannot see: train(), eval(), to() and load_state_dict() drop what is kept.
    """

    def network(self) -> Network:
        raise NotImplementedError

    def element(self) -> dict[str, Any]:
        """Options of the op: the element map."""
        raise NotImplementedError

    @classmethod
    def why_not_network(cls, module: Any) -> str:
        """What of the masks and hooks speaks against it."""
        if has_hooks(module):
            return "hooks on its layers, which would not be called"
        try:
            plan_of(cls.network(module))
        except NotAutoregressiveError as error:
            return str(error)
        return ""

    def prepare(self) -> None:
        self._plan, self._kept = plan_of(self.network()), None

    def invert(
        self, z: Tensor, addends: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x and log_det of z (n, D) -> x; `addends` are added to the layers' biases, a sample each."""
        plan, weights, biases = self._sorted()
        if addends is not None:
            biases = [
                bias if addend is None else bias + addend.index_select(1, rows)
                for bias, addend, rows in zip(biases, addends, plan.rows, strict=True)
            ]
        if plan.order is not None:
            z = z.index_select(1, plan.order)
        network = self.network()
        x, log_det = autoregressive_inverse(
            z,
            weights,
            biases,
            plan.degrees,
            activation=network.activation,
            residual=network.residual,
            **self.element(),
        )
        return x if plan.position is None else x.index_select(1, plan.position), log_det

    def _sorted(self) -> tuple[Plan, list[Tensor], list[Tensor]]:
        network = self.network()
        layers = [layer for group in network.layers for layer in group]
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self._plan, *_gathered(network, self._plan)
        masks = network.masks()
        key = key_of(masks)
        if key is None or key != self._plan.key:
            self._plan, self._kept = plan_of(network), None
        tensors = [t for layer in layers for t in (layer.weight, layer.bias)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return self._plan, *_gathered(network, self._plan)
        key = key_of(tensors)
        if key is None:
            return self._plan, *_gathered(network, self._plan)
        # The tensors themselves are a part of the key: an address may be used again.
        if (
            self._kept is None
            or self._kept[1] != key
            or any(a is not b for a, b in zip(self._kept[0], tensors, strict=True))
        ):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (tensors, key, _gathered(network, self._plan))
        return self._plan, *self._kept[2]

    def train(self, mode: bool = True) -> Any:
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if not any(mask.is_meta for mask in self.network().masks()):
            self.prepare()
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # neither copied nor pickled


def _gathered(network: Network, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases in the order of the plan, masked where the degrees alone do not do it."""
    weights, biases = [], []
    for group, rows, columns, is_exact in zip(
        network.layers, plan.rows, plan.columns, plan.is_exact, strict=True
    ):
        first, *more = group
        weight = first.weight if is_exact else first.weight * first.mask
        bias = first.bias
        for layer in more:
            masked = layer.weight * layer.mask
            weight, bias = masked @ weight, masked @ bias + layer.bias
        weights.append(weight.index_select(0, rows).index_select(1, columns))
        biases.append(bias.index_select(0, rows))
    return weights, biases
