"""The CPU kernels, built so that every access to memory is counted, and what they count.

    inverse = autoregressive_inverse(threads=2, batch=1, dimensions=64, units=128, layers=2)
    inverse.weights_read, inverse.visible

Counts are the same on a busy machine: these are the tests of speed that can run anywhere.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.emulation.build import JOBS, ROOT, compiler

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "counts"
KERNELS = ("ancestral_sample", "autoregressive_inverse", "fixed_point_mlp", "power_iteration")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
# As under AddressSanitizer there is one instruction set: resolvers run before a library is ready.
TRACED = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
TRACED += ["-D__SANITIZE_ADDRESS__=1"]


class _Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("bytes", "fetched", "accesses", "allocations")]


@dataclass(frozen=True)
class Work:
    """What one call of a kernel did to memory; `weights_read` are float32 numbers of the weights.

    `visible` is how many weights there are to read, `evaluations` what the kernel itself reports.
    """

    weights_read: int
    weights_fetched: int
    accesses: int
    allocations: int
    visible: int = 0
    evaluations: int = 0


def _work(counts: _Counts, **more: int) -> Work:
    return Work(counts.bytes // 4, counts.fetched // 4, counts.accesses, counts.allocations, **more)


@functools.cache
def library() -> ctypes.CDLL:
    """Built where its sources have changed. Raises EmulationUnavailable without g++."""
    cxx = compiler()
    csrc = ROOT / "csrc"
    inputs = [*csrc.glob("*.h"), *csrc.glob("cpu/*"), *HERE.glob("*.*"), *HERE.glob("ATen/*")]
    digest = hashlib.sha256(" ".join([cxx, *FLAGS, *TRACED]).encode())
    for path in sorted(inputs):
        digest.update(path.read_bytes())
    target = BUILD / f"counted-{digest.hexdigest()[:20]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        include = [f"-I{HERE}", f"-I{csrc}", "-isystem", f"{Path(torch.__file__).parent}/include"]
        sources = [(csrc / "cpu" / f"{kernel}.cpp", TRACED) for kernel in KERNELS]
        sources += [(HERE / "memory_trace.cpp", []), (HERE / "counted.cpp", [])]

        def compiled(source: Path, flags: list[str]) -> str:
            part = BUILD / f"{os.getpid()}-{source.stem}.o"
            _run([cxx, *FLAGS, *flags, *include, "-c", str(source), "-o", str(part)])
            return str(part)

        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(lambda source: compiled(*source), sources))
        partial = BUILD / f"{os.getpid()}-{target.name}"
        _run([cxx, *objects, "-shared", "-pthread", "-Wl,-Bsymbolic", "-o", str(partial)])
        for part in objects:
            os.unlink(part)
        os.replace(partial, target)
    loaded = ctypes.CDLL(str(target), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    for name in KERNELS:
        getattr(loaded, f"count_{name}").restype = _Counts
    return loaded


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def autoregressive_inverse(
    *,
    threads: int,
    batch: int,
    dimensions: int,
    units: int,
    layers: int,
    bins: int = 0,
    adjoint: bool = False,
) -> Work:
    """With affine elements, or splines of `bins`; the adjoint alone where it is asked for."""
    visible = ctypes.c_int64()
    sizes = map(ctypes.c_int64, (threads, batch, dimensions, units, layers, bins))
    counts = library().count_autoregressive_inverse(
        *sizes, ctypes.c_bool(adjoint), ctypes.byref(visible)
    )
    return _work(counts, visible=visible.value)


def ancestral_sample(threads: int, arguments: dict[str, object]) -> tuple[Work, Tensor]:
    """What a call of the op with these arguments costs on its own, and the levels that it draws."""
    given = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in given.values())
    conditions: list[Tensor] = list(arguments["conditions"])
    pointers = (ctypes.c_void_p * max(len(conditions), 1))(*(t.data_ptr() for t in conditions))
    levels, caches = torch.zeros_like(given["levels"]), torch.zeros_like(given["caches"])
    counts = library().count_ancestral_sample(
        ctypes.c_int64(threads),
        *map(ctypes.c_void_p, (given["program"].data_ptr(), given["weights"].data_ptr())),
        ctypes.c_int64(given["weights"].numel()),
        pointers,
        *map(ctypes.c_int64, (len(conditions), *levels.shape, arguments["n_levels"])),
        *(ctypes.c_void_p(t.data_ptr()) for t in (given["uniforms"], levels, caches)),
        ctypes.c_int64(arguments["tile"]),
    )
    return _work(counts), levels


def power_iteration(rows: int, columns: int, iterations: int, scaled: bool) -> Work:
    """Of one matrix."""
    sizes = map(ctypes.c_int64, (rows, columns, iterations))
    counts = library().count_power_iteration(*sizes, ctypes.c_bool(scaled))
    return _work(counts, visible=rows * columns)


def fixed_point_mlp(features: int, layers: int, memory: int) -> Work:
    """One sample; memory 0 is plain iteration."""
    evaluations = ctypes.c_int64()
    sizes = map(ctypes.c_int64, (features, layers, memory))
    counts = library().count_fixed_point_mlp(*sizes, ctypes.byref(evaluations))
    return _work(counts, visible=layers * features**2, evaluations=evaluations.value)
