"""The only loader of the compiled half, `deepgen_ext._C`. Says in one sentence what is wrong when it does not load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall ."


def _build_record() -> dict[str, Any]:
    path = Path(__file__).with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def _load() -> Any:
    built_with = _build_record().get("torch")
    # torch keeps no binary interface between minor versions: the loader would only say `undefined symbol`.
    if built_with and _minor(built_with) != _minor(torch.__version__):
        raise ImportError(
            f"deepgen_ext was built with torch {built_with}, but torch {torch.__version__} is running: "
            f"build it again from its source folder with `{_REBUILD}`"
        )
    try:
        from deepgen_ext import _C
    except ImportError as error:
        if not list(Path(__file__).parent.glob("_C.*.so")):
            raise ImportError(
                "the compiled half of deepgen_ext is missing: build it in its source folder with "
                "`make build`, or `pip install --no-build-isolation .` (a source folder in the current "
                "directory hides an installed copy)"
            ) from None
        raise ImportError(
            f"the compiled half of deepgen_ext (built with torch {built_with}) does not load under torch "
            f"{torch.__version__}: {error}. Build it again with `{_REBUILD}`"
        ) from error
    return _C


_C = _load()
library = torch.ops.deepgen_ext


def build_info() -> dict[str, Any]:
    """What was built and what this machine runs: the content of `deepgen info`.

    Keys: `torch` and `built_with_torch` (versions), `compiler`, `nvcc` (version or None), `no_cuda_because`,
    `cuda_archs` (list of "80", "90", the last also as PTX), `cuda_runtime` (version or None), `simd` (instruction
    set of the CPU kernels here), `threads`, `devices` (names), `ops` (op -> list of "cpu", "cuda").
    """
    record = _build_record()
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [
            f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
        ]
    runtime = _C.cuda_runtime_version()
    return {
        "torch": torch.__version__,
        "built_with_torch": record.get("torch"),
        "compiler": record.get("compiler"),
        "nvcc": record.get("nvcc"),
        "no_cuda_because": record.get("no_cuda_because"),
        "cuda_archs": record.get("cuda_archs", []),
        "cuda_runtime": f"{runtime // 1000}.{runtime % 1000 // 10}" if runtime else None,
        "simd": _C.simd_level(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "ops": record.get("ops", {}),
    }
