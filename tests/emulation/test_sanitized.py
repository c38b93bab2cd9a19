"""The project's own kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the CPU.

Run as a script, in `build.sanitized_environment()`, it is the program that the test starts.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulation import build
from tests.emulation.kernel_runs import RUNS


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
