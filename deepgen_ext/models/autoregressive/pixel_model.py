"""What every autoregressive model of images shares: likelihood, and three ways to sample."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ... import objectives
from ...nn import AncestralSampler
from ...nn.condition import check_condition
from .jacobi import jacobi_sample
from .naive import embed, naive_sample
from .sampling_inputs import checked_uniforms, fitting_batch, known_levels

METHODS = ("incremental", "naive", "jacobi")


class PixelModel(nn.Module):
    """p(image) = product over pixels, in raster order, of p(pixel | pixels before it, condition).

    One network gives the parameters of all these distributions in one pass. It sees integer levels
    as x = 2 levels / (n_levels - 1) - 1.

    Args:
        image_shape: (C, H, W).
        network: called with x (n, C, H, W) and a condition or None; returns (n,
            distribution.parameters, H, W), at each pixel a function of the pixels before it. To be
            sampled incrementally it consists of layers that `nn.AncestralSampler` knows.
        distribution: `nn.Categorical` or `nn.DiscretizedLogisticMixture`.
        conditional_channels: K of a condition, (n, K) or a map (n, K, H, W); 0 for none.
        row_multiple: the network gives the same values for an image that is cut to so many rows, or
            a multiple of it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        network: nn.Module,
        distribution: Any,
        *,
        conditional_channels: int = 0,
        row_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.dims = math.prod(self.image_shape)
        self.network = network
        self.distribution = distribution
        self.n_levels = distribution.n_levels
        self.conditional_channels = conditional_channels
        self.row_multiple = row_multiple
        self._compiled: tuple[list[nn.Module], AncestralSampler] | None = None

    def forward(self, levels: Tensor, condition: Tensor | None = None) -> Tensor:
        """The distribution's parameters at every pixel, (n, P, H, W), given the pixels before."""
        objectives.check_levels(levels, self.n_levels)
        if levels.ndim != 4 or tuple(levels.shape[1:]) != self.image_shape:
            raise ValueError(
                f"levels: expected (n, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(levels.shape)}"
            )
        check_condition(condition, self.conditional_channels, levels.shape[0], self.image_shape)
        dtype = next(self.network.parameters()).dtype
        return self.network(embed(levels, self.n_levels, dtype), condition)

    def log_prob(self, levels: Tensor, condition: Tensor | None = None) -> Tensor:
        """ln p(levels | condition) in nats, exact, (n,), of integer levels (n, C, H, W)."""
        parameters = self(levels, condition)
        levels = levels if levels.dtype == torch.uint8 else levels.long()
        return self.distribution.log_prob(parameters, levels)

    def bits_per_dim(
        self,
        levels: Tensor,
        condition: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """-log2 p(levels | condition) / (C H W), (n,).

        `noise` and `generator` are accepted, so that all likelihood models of images are scored by
        one call, and have no effect: levels are modelled as they are, not dequantised.
        """
        return objectives.bits_per_dim(self.log_prob(levels, condition), self.dims, 1)

    def loss(
        self,
        levels: Tensor,
        condition: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean bits per dimension; the arguments are those of `bits_per_dim`."""
        return self.bits_per_dim(levels, condition).mean()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        method: str = "incremental",
        uniforms: Tensor | None = None,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        given: Tensor | tuple[Tensor, Tensor] | None = None,
        on_row: Callable[[int, int], Any] | None = None,
        max_batch: int | None = None,
        block_rows: int | None = None,
        return_sweeps: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """n images, int64 levels (n, C, H, W), drawn in evaluation mode.

        The levels are a deterministic function of the uniforms, and the same one for each method:
        "incremental" computes each activation once (`nn.AncestralSampler`), "jacobi" iterates on
        rows in parallel (`jacobi_sample`), "naive" runs the network for every pixel.

        Args:
            n: number of images.
            method: "incremental", "jacobi" or "naive".
            uniforms: (n, C, H, W) in [0, 1), one for each level; drawn from `generator` when None.
            condition: (n, K) or (n, K, H, W) where the model has conditional_channels=K.
            generator: source of the uniforms, on the model's device.
            temperature: of the draw of each pixel: logits are divided by it; see the distribution.
            given: what is completed: levels of the first rows, (n or 1, C, rows, W); or levels (n
                or 1, C, H, W) and a bool mask that broadcasts to them, true where they are known.
                Known pixels are returned as they are. A pixel is drawn given the pixels before it,
                so known pixels below it have no influence on it.
            on_row: called with (rows done, rows in all) as rows are finished.
            max_batch: so many images are sampled at a time. When None, as many as fit into
                1 GiB by an estimate of what one takes; where that is fewer than n a warning says
                so.
            block_rows: of `jacobi_sample`.
            return_sweeps: return also the number of sweeps of each image, (n,): method "jacobi".

        Raises:
            ValueError: an argument that is not as above.
        """
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: expected a positive number, got {max_batch}")
        if method != "jacobi" and (return_sweeps or block_rows is not None):
            raise ValueError(f"return_sweeps, block_rows: only method 'jacobi' has them: {method}")
        check_condition(condition, self.conditional_channels, n, self.image_shape)
        like = next(self.network.parameters())
        uniforms = checked_uniforms((n, *self.image_shape), uniforms, generator, like)
        levels = known = None
        if given is not None:
            levels, known = known_levels((n, *self.image_shape), given, self.n_levels, like.device)
            if hasattr(self.distribution, "mixtures") and not (known == known[:, :1]).all():
                raise ValueError(
                    "given[1]: a mixture draws the channels of a pixel together: expected a mask "
                    "that is the same for all of them"
                )
        if condition is not None:
            condition = condition.to(like)

        if n == 0:
            empty = uniforms.long()
            return (empty, empty.new_zeros(0)) if return_sweeps else empty
        with _evaluating(self), parametrize.cached():
            sampler, bytes_per_sample = self._sampler(method, block_rows, condition)
            chunk = max_batch or fitting_batch(n, bytes_per_sample)
            height, done = self.image_shape[1], 0
            rows = height * -(-n // chunk)

            def count_row(*_: int) -> None:
                nonlocal done
                done += 1
                on_row(done, rows)

            parts, sweeps = [], []
            for start in range(0, n, chunk):
                part = slice(start, start + chunk)
                result = sampler(
                    uniforms[part],
                    condition=None if condition is None else condition[part],
                    temperature=temperature,
                    levels=None if levels is None else levels[part],
                    known=None if known is None else known[part],
                    on_row=None if on_row is None else count_row,
                )
                if method == "jacobi":
                    result, counts = result
                    sweeps.append(counts)
                parts.append(result)
        drawn = torch.cat(parts)
        return (drawn, torch.cat(sweeps)) if return_sweeps else drawn

    def _compiled_sampler(self) -> AncestralSampler:
        """It reads the weights anew at each call, but its program holds for these layers alone."""
        layers = list(self.network.modules())
        if self._compiled is None or self._compiled[0] != layers:
            sampler = AncestralSampler(self.network, self.image_shape, self.distribution)
            self._compiled = layers, sampler
        return self._compiled[1]

    def _sampler(
        self, method: str, block_rows: int | None, condition: Tensor | None
    ) -> tuple[Callable[..., Any], int]:
        """What draws a batch, and the bytes that one image takes in it."""
        if method == "incremental":
            sampler = self._compiled_sampler()
            return sampler, sampler.cache_bytes(None if condition is None else condition[:1])

        def sampler(uniforms: Tensor, **arguments: Any) -> Any:
            if method == "naive":
                return naive_sample(self.network, self.distribution, uniforms, **arguments)
            return jacobi_sample(
                self.network,
                self.distribution,
                uniforms,
                row_multiple=self.row_multiple,
                **({} if block_rows is None else {"block_rows": block_rows}),
                **arguments,
            )

        # A full pass holds a few maps at a time: of the widest layer, and of the output.
        widest = max(
            [self.distribution.parameters]
            + [getattr(layer, "out_channels", 0) for layer in self.network.modules()]
        )
        pixels = self.image_shape[1] * self.image_shape[2]
        dtype = next(self.network.parameters()).dtype
        return sampler, 4 * widest * pixels * dtype.itemsize


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), or a ValueError."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape: expected (C, H, W), got {tuple(shape)}")
    return tuple(shape)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
