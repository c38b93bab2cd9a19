"""normflows' residual block x + g(x): its inverse, and its log-det in eval mode.

normflows normalises every weight anew in each evaluation of g, and takes the products of the log-det
through autograd. Here the weights are normalised once a call, with everything that is linear folded
into them: a layer is one product and one SiLU, and a product with the Jacobian's transpose as many.
The steps and their end, the draws and the terms of the series are normflows' own, so the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from normflows.flows import residual
from normflows.nets import lipschitz
from torch import Tensor

from deepgen_ext.nn.residual_log_det import is_spent

from .accelerated import Accelerated, has_hooks

LAYERS = {
    lipschitz.LipschitzMLP: lipschitz.InducedNormLinear,
    lipschitz.LipschitzCNN: lipschitz.InducedNormConv2d,
}
MOST_STEPS = 1000
EXACT_TERMS = 20  # of the log-det in eval mode
SMALLEST_BETA = 1e-6  # x sigmoid(b x) is x / 2 below it, and may be divided by b


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    padding: int | None = None  # of a convolution; None: a matrix

    def __call__(self, x: Tensor) -> Tensor:
        if self.padding is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)

    def transposed(self) -> _Layer:
        if self.padding is None:
            return _Layer(self.weight.t(), None)
        # A convolution again: torch's transposed one takes up to 2.6 times as long on a CPU.
        flipped = self.weight.flip(2, 3).transpose(0, 1).contiguous()
        return _Layer(flipped, None, self.weight.shape[2] - 1 - self.padding)


class _Folded(NamedTuple):
    """g(x) = W_n s(... W_1 s(b x) ...) with s the SiLU: x sigmoid(b x) / 1.1 is s(b x) / (1.1 b), whose
    factors belong to the weights on both sides.
    """

    beta: Tensor
    layers: Sequence[_Layer]

    def __call__(self, x: Tensor) -> Tensor:
        x, in_place = x * self.beta, not torch.is_grad_enabled()
        for layer in self.layers:
            x = layer(F.silu(x, in_place))
        return x

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x), and v -> J'v at x; v may have dimensions before the batch where g is an MLP."""
        h, slopes = x * self.beta, []
        for layer in self.layers:
            gate = torch.sigmoid(h)
            value = h * gate
            slopes.append(torch.addcmul(gate + value, value, gate, value=-1))
            h = layer(value)
        slopes[0] *= self.beta
        steps = [(layer.transposed(), slope) for layer, slope in zip(self.layers, slopes)][::-1]

        def pull_back(v: Tensor) -> Tensor:
            for layer, slope in steps:
                v = layer(v).mul_(slope)
            return v

        return h, pull_back


class iResBlock(Accelerated, residual.iResBlock):  # noqa: N801, as normflows has it
    replaces = residual.iResBlock
    gain = "weights are normalised once an inverse; the log-det of eval mode does without autograd"
    caveat = "as accurate as normflows: nn.fixed_point_inverse bounds the error"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        net = module.nnet
        if type(net) not in LAYERS:
            return f"its net is neither LipschitzMLP nor LipschitzCNN, but {type(net).__name__}"
        parts = list(net.net)
        kinds = [type(part) for part in parts]
        if kinds != [lipschitz.Swish, LAYERS[type(net)]] * (len(parts) // 2) or not kinds:
            return "its layers are not those that its net was made with"
        for layer in parts[1::2] if type(net) is lipschitz.LipschitzCNN else ():
            size, padding = layer.kernel_size, layer.padding
            if layer.stride != (1, 1) or size[0] != size[1] or padding != (size[0] // 2,) * 2:
                return "a convolution with a stride, or another kernel than square"
        return "hooks on its layers, which would not be called" if has_hooks(module) else ""

    def _folded(self) -> _Folded | None:
        """With the graph of the weights, where there is to be one; None until convolutions have seen
        their first pictures, of which they learn their norms.
        """
        parts = list(self.nnet.net)
        swishes, layers = parts[0::2], parts[1::2]
        if not all(getattr(layer, "initialized", True) for layer in layers):
            return None
        betas = [F.softplus(swish.beta).clamp_min(SMALLEST_BETA) for swish in swishes]
        folded = []
        for layer, beta, following in zip(layers, betas, [*betas[1:], None], strict=True):
            weight, bias = layer.compute_weight(update=False) / (1.1 * beta), layer.bias
            if following is not None:
                weight = weight * following
                bias = None if bias is None else bias * following
            folded.append(_Layer(weight, bias, getattr(layer, "padding", (None,))[0]))
        return _Folded(betas[0], folded)

    def inverse(self, y: Tensor, logpy: Any = None) -> Any:
        g = self._folded()
        x = self._solved(g, y, 1e-5, 1e-5)
        return x if logpy is None else (x, logpy + self._log_det(g, x)[1])

    def _inverse_fixed_point(self, y: Tensor, atol: float = 1e-5, rtol: float = 1e-5) -> Tensor:
        return self._solved(self._folded(), y, atol, rtol)

    def _solved(self, g: _Folded | None, y: Tensor, atol: float, rtol: float) -> Tensor:
        if g is None:
            return super()._inverse_fixed_point(y, atol, rtol)
        x, before = y - g(y), y
        tolerance = atol + y.detach().abs() * rtol
        for _ in range(MOST_STEPS + 1):
            change = x.detach() - before.detach()
            if bool((change.square_() < tolerance).all()):
                break
            x, before = y - g(x), x
        return x

    def _logdetgrad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._log_det(None if self.training else self._folded(), x)

    def _log_det(self, g: _Folded | None, x: Tensor) -> tuple[Tensor, Tensor]:
        is_plane = x.dim() == 2 and x.shape[1] == 2
        if g is None or self.training or (self.exact_trace and not is_plane):
            return super()._logdetgrad(x)
        # Of eval mode's log-dets the one of a plane has a gradient, the others have none.
        if is_plane and torch.is_grad_enabled():
            return super()._logdetgrad(x)
        if self.n_dist not in ("geometric", "poisson"):
            return super()._logdetgrad(x)
        with torch.no_grad():
            output, pull_back = g.with_pull_back(x)
            if is_plane:
                basis = torch.eye(2, dtype=output.dtype, device=x.device)
                (a, b), (c, d) = (
                    row.unbind(1) for row in pull_back(basis[:, None].expand(2, *x.shape))
                )
                log_det = torch.log(torch.abs((a + 1) * (d + 1) - b * c))
            else:
                log_det = self._series(pull_back, x)
        return g(x) if torch.is_grad_enabled() else output, log_det.view(-1, 1)

    def _series(self, pull_back: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """normflows' estimate: the draws in its order, 20 terms and then those that were drawn."""
        if self.n_dist == "geometric":
            chance = torch.sigmoid(self.geom_p).item()
            counts = residual.geometric_sample(chance, self.n_samples)
        else:
            rate = self.lamb.item()
            counts = residual.poisson_sample(rate, self.n_samples)
        noise = torch.randn_like(x)
        v, total = noise, torch.zeros_like(noise)
        for k in range(1, max(counts) + EXACT_TERMS + 1):
            v = pull_back(v)
            if is_spent(v):
                break
            if self.n_dist == "geometric":
                tail = residual.geometric_1mcdf(chance, k, EXACT_TERMS)
            else:
                tail = residual.poisson_1mcdf(rate, k, EXACT_TERMS)
            weight = sum(counts >= k - EXACT_TERMS) / len(counts) / tail
            total.add_(v, alpha=float((-1) ** (k + 1) / k * weight))
        return total.mul_(noise).flatten(1).sum(1)

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        first = self.nnet.net[1]
        shape = [3, first.weight.shape[1]]
        if first.weight.dim() == 4:
            size = first.spatial_dims.long().tolist() if first.initialized else [4, 4]
            shape += size
        y = torch.randn(shape, dtype=first.weight.dtype, device=first.weight.device)
        state = np.random.get_state()
        try:
            results = []
            for part in (original, self):
                np.random.seed(0)
                torch.manual_seed(0)
                part.nnet(y)  # convolutions draw their norms' vectors
                part.eval()
                results.append((*part.inverse(y, 0), *part.forward(y, 0)))
        finally:
            np.random.set_state(state)
        names = "the inverse", "its log-det", "the result", "its log-det"
        yield from zip(names, *results, strict=True)
