"""What is handed to a sampler, checked once: uniforms, known pixels, how many at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import objectives

SAMPLING_BYTES = 2**30  # that a batch may take while it is sampled


def checked_uniforms(
    shape: Sequence[int],
    uniforms: Tensor | None,
    generator: torch.Generator | None,
    like: Tensor,
) -> Tensor:
    """One number in [0, 1) for each level: float64 for a model of that dtype, else float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if uniforms is None:
        return torch.rand(shape, generator=generator, device=like.device, dtype=dtype)
    if tuple(uniforms.shape) != tuple(shape):
        raise ValueError(f"uniforms: expected {tuple(shape)}, got {tuple(uniforms.shape)}")
    if not uniforms.is_floating_point():
        raise TypeError(f"uniforms: expected a floating-point tensor, got {uniforms.dtype}")
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        low, high = (bound.item() for bound in uniforms.aminmax())
        raise ValueError(f"uniforms: expected values in [0, 1), got {low} to {high}")
    # Rounded to a coarser type, the largest ones would become 1.
    return uniforms.to(like.device, dtype).clamp(max=1 - torch.finfo(dtype).eps / 2)


def known_levels(
    shape: Sequence[int],
    given: Tensor | tuple[Tensor, Tensor],
    n_levels: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Levels (n, C, H, W), and where they are known, of what `PixelModel.sample` calls given."""
    n, channels, height, width = shape
    if isinstance(given, Tensor):
        got = tuple(given.shape)
        rows = got[2] if len(got) == 4 else -1
        wanted = [(m, channels, rows, width) for m in (1, n)]
        if not 0 <= rows <= height or got not in wanted:
            raise ValueError(
                f"given: expected (n or 1, {channels}, rows, {width}) with n = {n} and up to "
                f"{height} rows, got {got}"
            )
        objectives.check_levels(given, n_levels)
        levels = torch.zeros(*shape, dtype=torch.int64, device=device)
        levels[:, :, :rows] = given.to(device)
        known = torch.zeros(*shape, dtype=torch.bool, device=device)
        known[:, :, :rows] = True
        return levels, known

    levels, known = given
    if tuple(levels.shape) not in [(m, channels, height, width) for m in (1, n)]:
        raise ValueError(
            f"given[0]: expected levels (n or 1, {channels}, {height}, {width}) with n = {n}, "
            f"got {tuple(levels.shape)}"
        )
    objectives.check_levels(levels, n_levels)
    if known.dtype != torch.bool:
        raise TypeError(f"given[1]: expected a bool mask, got {known.dtype}")
    try:
        known = known.to(device).expand(*shape)
    except RuntimeError:
        raise ValueError(
            f"given[1]: expected a mask that broadcasts to {tuple(shape)}, got {tuple(known.shape)}"
        ) from None
    levels = levels.to(device, torch.int64).expand(*shape)
    return levels.contiguous(), known.contiguous()


def fitting_batch(n: int, bytes_per_sample: int) -> int:
    """How many of n images are sampled at a time; warns where it is not all of them."""
    chunk = max(1, SAMPLING_BYTES // max(1, bytes_per_sample))
    if chunk >= n:
        return max(1, n)
    warnings.warn(
        f"sampling {n} images at once would take {n * bytes_per_sample / 2**30:.1f} GiB: {chunk} "
        f"are sampled at a time; max_batch sets another number",
        stacklevel=4,
    )
    return chunk
