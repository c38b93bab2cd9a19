"""`pytest benchmarks --benchmark-only`: the entries as pytest-benchmark shows them.

An ordinary run of pytest collects nothing here: benchmarks are no tests.
"""

import os

import pytest

# The OpenMP runtime reads these once, when torch is imported: see benchmarks/run.py.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepgen_ext")
    group.addoption("--filter", default="", help="only entries whose name contains this")
    group.addoption("--tiny", action="store_true", help="small shapes: do the entries run?")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu")
    group.addoption(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32"
    )
    group.addoption("--threads", type=int, default=2, help="of the CPU (default: 2)")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("benchmark_only", False) else True
