"""The project's own kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the CPU.

Run as a script, in `build.sanitized_environment()`, it is the program that the test starts.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulation import build

# Around the edges of vectors, groups and pieces; rows whose start is not aligned to 16 bytes.
SHAPES = [(0, 3, 2, 2), (1, 1, 1, 1), (3, 5, 3, 3), (2, 8, 24, 24), (70, 8, 1, 1), (2, 3, 41, 40)]


def unaligned(tensor):
    """The same values, each sample one run of memory, but no sample starting at 16 bytes."""
    rows = tensor.new_empty(tensor.shape[0], tensor.shape[1:].numel() + 1)
    return rows[:, 1:].copy_(tensor.flatten(1)).view(tensor.shape)


def run_affine_coupling(ops, dtype, layout):
    for shape in SHAPES:
        x, raw, shift, grad = (torch.randn(shape).to(dtype) for _ in range(4))
        if layout == "chunk":
            raw, shift = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype).chunk(2, 1)
        elif layout == "unaligned":
            x, raw = unaligned(x), unaligned(raw)
        elif layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        sum_type = torch.promote_types(dtype, torch.float32)
        grad_log_det = torch.randn(shape[0], dtype=sum_type)
        mask = torch.rand(shape[-2:]) < 0.5 if layout == "contiguous" else None
        for scale_map, inverse in itertools.product(
            ("exp", "tanh", "sigmoid", "atan"), (False, True)
        ):
            options = (mask, scale_map, 2.0, inverse)
            ops.affine_coupling(x, raw, shift, *options)
            ops.affine_coupling_backward(grad, grad_log_det, x, raw, *options)


def run_channel_affine(ops, dtype, layout):
    for shape in SHAPES:
        x, grad = (torch.randn(shape).to(dtype) for _ in range(2))
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "unaligned":
            x = unaligned(x)
        log_scale, shift = torch.randn(2, shape[1]).to(dtype)
        grad_log_det = torch.randn(shape[0], dtype=torch.promote_types(dtype, torch.float32))
        for inverse in (False, True):
            ops.channel_affine(x, log_scale, shift, inverse)
            ops.channel_affine_backward(grad, grad_log_det, x, log_scale, inverse)


RUNS = {"affine_coupling": run_affine_coupling, "channel_affine": run_channel_affine}


def test_every_kernel_has_a_run():
    kernels = {path.stem for path in (build.ROOT / "csrc/cuda").glob("*.cu")}
    assert kernels == set(RUNS)


def test_kernels_are_clean():
    try:
        build.build(sanitize=True)
    except build.EmulationUnavailable as missing:
        pytest.skip(str(missing))
    process = subprocess.run(
        [sys.executable, "-m", "tests.emulation.test_sanitized"],
        cwd=Path(build.ROOT),
        env=build.sanitized_environment(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-8000:]
    assert process.stdout.split() == sorted(RUNS)


if __name__ == "__main__":
    build.load(sanitize=True)
    for name in sorted(RUNS):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for layout in ("contiguous", "chunk", "channels_last", "unaligned"):
                RUNS[name](torch.ops.deepgen_ext_emulated, dtype, layout)
        print(name)
