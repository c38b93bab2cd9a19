"""Masked convolutions that people wrote themselves: an nn.Conv2d with a mask multiplied into its weight.

    class MaskedConv2d(nn.Conv2d):
        def forward(self, x):
            self.weight.data *= self.mask
            return super().forward(x)

Such a class has no library and no name to know it by. It is known by its buffer, a raster mask in
the shape of the weight, and by what it does: its outputs and gradients on random weights. So this
comparison is made before anything is replaced, whatever `verify` says.

Two of them differ in what is left of the hidden weights, and keep that. One that writes masks into
`weight.data` shows the gradient a convolution without mask, so that hidden weights get one, which
counts in its norm and is masked away with the next forward. One that multiplies, conv2d(x,
weight * mask), gives them no gradient and leaves them alone.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepgen_ext.nn.masked_conv2d import Raster, RasterMasked
from deepgen_ext.ops import masked_conv2d
from deepgen_ext.ops.autocast import to_autocast_dtype

from .accelerated import Accelerated
from .verification import TOLERANCE


class Habit(NamedTuple):
    """What a class does with the weights that its mask hides."""

    are_zeroed: bool  # by each forward, in `weight.data`
    have_gradients: bool


class MaskedConvolution(Accelerated, RasterMasked):
    """Mixed into the user's class by `class_of`."""

    gain = "masked taps are neither read nor multiplied; nn.AncestralSampler can draw from it"
    keeps = "_mask_name", "_raster", "_habit", "_seen"

    @classmethod
    def why_not(cls, module: Any) -> str:
        found = _known(module)
        return found if isinstance(found, str) else ""

    def prepare(self) -> None:
        cls = type(self)
        self.__class__ = self.replaces  # whose forward is looked at
        found = _known(self)
        self.__class__ = cls
        assert not isinstance(found, str), found
        self._mask_name, self._raster, self._habit = found
        self._seen = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = (*args, *kwargs.values())
        raster = self.raster()
        is_known = raster is not None and not self._hides_nothing()
        if not is_known or len(given) != 1 or self._is_foreign(given[0]):
            return super().forward(*args, **kwargs)
        mask = self._buffers[self._mask_name]
        if self._habit.are_zeroed:
            self.weight.data.mul_(mask)
        x, weight, bias = to_autocast_dtype(given[0].device.type, *given, self.weight, self.bias)
        dilation = self.dilation[0]
        if self._habit.have_gradients and weight.requires_grad and torch.is_grad_enabled():
            return _OfAllWeights.apply(x, weight, bias, raster, dilation)
        return _convolve(x, weight, bias, raster, dilation)

    def raster(self) -> Raster | None:
        mask = self._buffers[self._mask_name]
        if not torch.compiler.is_compiling() and not self._is_seen(mask):
            self._raster = raster_of(mask, self.weight.shape)
            self._seen = mask, _version(mask)
        return self._raster

    def _is_seen(self, mask: Tensor) -> bool:
        """Whether the mask is what it was: a checkpoint may bring another."""
        return self._seen is not None and self._seen[0] is mask and self._seen[1] == _version(mask)

    def _hides_nothing(self) -> bool:
        """Where a convolution without a mask is as good."""
        return self._raster == Raster("B", 1) and self.kernel_size == (1, 1)

    def _is_foreign(self, x: Any) -> bool:
        """What the original answers: torch.func, one image without a batch, and what it refuses."""
        return (
            not isinstance(x, Tensor)
            or x.dim() != 4
            or x.shape[1] != self.in_channels
            or (x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type))
            or (not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active())
        )

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class is made here, and has no name that pickle could look up.
        _, args, state, *rest = super().__reduce_ex__(max(int(protocol), 2))
        return _new, (self.replaces, *args[1:]), {**state, "_seen": None}, *rest

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        for twin in (original, self):
            # On all ones where the mask hides: it must be seen to be hidden.
            twin.weight.data += (twin._buffers[self._mask_name] == 0).to(twin.weight)
        x = _images(self)
        yield "the convolution", original(x), self(x)
        yield "the weight after it", original.weight, self.weight


class _OfAllWeights(torch.autograd.Function):
    """masked_conv2d with the gradient of an unmasked convolution's weight."""

    @staticmethod
    def forward(ctx, x, weight, bias, raster, dilation):
        ctx.save_for_backward(x, weight)
        ctx.options = *raster, dilation
        return _convolve(x, weight, bias, raster, dilation)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # To be differentiated again, where hidden weights count once more.
            mask = of_x, of_weight, of_bias
            return *_dense_backward(grad, x, weight, ctx.options[-1], mask), None, None
        by_x, _, by_bias = torch.ops.deepgen_ext.masked_conv2d_backward(
            grad, x, weight, *ctx.options, (of_x, False, of_bias)
        )
        by_weight = None
        if of_weight:
            mask = False, True, False
            by_weight = _dense_backward(grad, x, weight, ctx.options[-1], mask)[1]
        return by_x if of_x else None, by_weight, by_bias if of_bias else None, None, None


def _dense_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias of a convolution without a mask."""
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    strides, nothing = [1, 1], [0, 0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], strides, padding, [dilation] * 2, False, nothing, 1, wanted
    )


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, raster: Raster, dilation: int
) -> Tensor:
    mask_type, groups = raster
    return masked_conv2d(
        x, weight, bias, mask_type=mask_type, groups_in_order=groups, dilation=dilation
    )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


@cache
def class_of(cls: type[nn.Conv2d]) -> type[MaskedConvolution]:
    """The user's class, computed by our op."""
    return type(cls.__name__, (MaskedConvolution, cls), {"replaces": cls})


def _new(cls: type[nn.Conv2d], *args: Any) -> MaskedConvolution:
    fast = class_of(cls)
    return fast.__new__(fast, *args)


def mask_of(module: Any) -> str:
    """The name of what looks like the mask of a class of nn.Conv2d with a forward of its own."""
    if not isinstance(module, nn.Conv2d) or isinstance(module, RasterMasked):
        return ""
    kind = type(module)
    if (kind.forward, kind._conv_forward) == (nn.Conv2d.forward, nn.Conv2d._conv_forward):
        return ""
    weight = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    names = [name for name, b in module._buffers.items() if b is not None and _fits(b, weight)]
    return names[0] if len(names) == 1 else ""


def _fits(buffer: Tensor, weight: tuple[int, ...]) -> bool:
    shape = (1,) * (4 - buffer.dim()) + tuple(buffer.shape)
    return (
        buffer.dim() in (2, 3, 4)
        and shape[2:] == weight[2:]
        and all(a in (1, b) for a, b in zip(shape, weight, strict=True))
    )


def raster_of(mask: Tensor, shape: torch.Size) -> Raster | None:
    """Which raster mask of a weight of this shape it is; None if none."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        return None
    shown = (mask != 0).expand(shape)
    channels = math.gcd(*shape[:2])
    for groups in (n for n in range(1, channels + 1) if channels % n == 0):
        for mask_type in ("A", "B"):
            raster = Raster(mask_type, groups)
            if torch.equal(shown, raster.mask(shape, mask.device)):
                return raster
    return None


def _known(module: Any) -> tuple[str, Raster, Habit] | str:
    """Mask and habit of a module of the user's class, or why it stays."""
    name = mask_of(module)
    half = [d * (k // 2) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if parametrize.is_parametrized(module) or set(module._parameters) != {"weight", "bias"}:
        return "its parameters are not weight and bias alone"
    if module.weight is None or not module.weight.is_floating_point():
        return "its weight is not one of real numbers"
    if module.stride != (1, 1) or module.groups != 1:
        return f"stride {module.stride}, groups {module.groups}: only 1 is known"
    if module.dilation[0] != module.dilation[1]:
        return f"dilation {module.dilation}: only one for both directions is known"
    if any(size % 2 == 0 for size in module.kernel_size):
        return f"an even kernel {module.kernel_size}, which has no centre"
    is_same = module.padding == "same" or module.padding == tuple(half)
    if not is_same or module.padding_mode != "zeros":
        return "its padding is not that of zeros which keeps the image's size"
    raster = raster_of(module._buffers[name], module.weight.shape)
    if raster is None:
        return f"its buffer {name!r} is not a raster mask, A or B, of channels in contiguous groups"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return "its forward takes more than one tensor"
    devices = [module.weight.device] if module.weight.is_cuda else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        try:
            habit = _habit_of(module, raster)
        except Exception as error:  # whatever a class does, the model keeps what it had
            return f"its forward was tried: {type(error).__name__}: {error}"
    return habit if isinstance(habit, str) else (name, raster, habit)


def _habit_of(module: Any, raster: Raster) -> Habit | str:
    """What the module does on random weights and images, in float64; or that it is something else."""
    twin = copy.deepcopy(module).double()
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks, twin._backward_hooks):
        hooks.clear()
    mask = raster.mask(twin.weight.shape, twin.weight.device)
    habits = set()
    for mode in (True, False):
        twin.train(mode)
        parameters = [p.requires_grad_() for p in (twin.weight, twin.bias) if p is not None]
        for parameter in parameters:
            nn.init.normal_(parameter)
        before = twin.weight.detach().clone()
        x = _images(twin).requires_grad_()
        y = twin(x)
        leaves = [t.detach().clone().requires_grad_() for t in (x, before, *parameters[1:])]
        bias = leaves[2] if len(leaves) == 3 else None
        expected = _convolve(*leaves[:2], bias, raster, twin.dilation[0])
        if y.shape != expected.shape or _differ(y, expected):
            return "its forward is not a convolution with the weight times the mask"
        after = twin.weight.detach().clone()
        are_zeroed = not torch.equal(after, before)
        if are_zeroed and not torch.equal(after, before * mask):
            return "its forward writes something else than its mask into the weight"
        cotangent = torch.randn_like(y)
        by_x, by_weight, *by_bias = torch.autograd.grad(y, [x, *parameters], cotangent)
        wanted = torch.autograd.grad(expected, leaves, cotangent)
        pairs = zip((by_x, by_weight * mask, *by_bias), wanted, strict=True)
        if any(_differ(found, gradient) for found, gradient in pairs):
            return "its gradient is not that of a convolution with the weight times the mask"
        of_weight = False, True, False
        dense = _dense_backward(cotangent, x.detach(), before, twin.dilation[0], of_weight)[1]
        of_hidden = by_weight * ~mask
        have_gradients = bool(of_hidden.any())
        if have_gradients and _differ(of_hidden, dense * ~mask):
            return "the gradient of its hidden weights is neither zero nor a convolution's"
        habits.add(Habit(are_zeroed, have_gradients))
    return (
        habits.pop() if len(habits) == 1 else "its train and eval modes treat weights differently"
    )


def _images(module: Any) -> Tensor:
    sides = [d * (k - 1) + 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return module.weight.new_empty(2, module.in_channels, *sides).normal_()


def _differ(found: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp_min(1.0)
    return not bool((found - expected).abs().max() <= TOLERANCE * scale)
