"""The structure that DESIGN promises: imports point one way, every op has all its rooms."""

import ast
import re
from pathlib import Path

import pytest

import deepgen_ext

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepgen_ext"
# Ops of csrc/cpu_only are the vendor's operations on CUDA, called by their glue.
CPU_ONLY = {path.stem for path in (ROOT / "csrc/cpu_only").glob("*.cpp")}
OPS = sorted({path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")} | CPU_ONLY)

# What each part may import of the package. reference is a leaf that nothing shipped imports, but for
# measurements, which compare with it: the demo's and those of profiling.
MAY_IMPORT = {
    "_extension": set(),
    "reference": set(),
    "ops": {"_extension"},
    "objectives": {"ops"},
    "nn": {"ops"},
    "compat": {"ops", "nn"},
    "models": {"ops", "nn", "objectives"},
    "profiling": {"ops", "nn", "reference", "_extension"},
    "recipes": {"ops", "nn", "objectives", "models", "_extension"},
    "cli": {"recipes", "profiling", "_extension"},
}
EXCEPTIONS = {("recipes/demo.py", "reference")}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in the file it does so."""
    module = ["deepgen_ext", *path.relative_to(PACKAGE).with_suffix("").parts]
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        for name in names:
            words = name.split(".")
            if words[0] == "deepgen_ext" and len(words) > 1:
                parts.add(words[1])
    return parts


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} has no place in the order of imports"
    allowed = MAY_IMPORT[part] | {part}
    known = set(MAY_IMPORT)
    name = str(path.relative_to(PACKAGE))
    upward = {
        other
        for other in imported_parts(path) & known
        if other not in allowed and (name, other) not in EXCEPTIONS
    }
    assert not upward, f"{name} imports {upward}"


def test_the_importer_is_read_correctly():
    """The check itself sees relative and nested imports."""
    assert {"ops"} <= imported_parts(PACKAGE / "nn/transforms/coupling.py")
    assert {"nn", "objectives"} <= {
        part for path in (PACKAGE / "models").rglob("*.py") for part in imported_parts(path)
    }


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_all_its_rooms(op):
    for room in (
        f"csrc/{op}.h",
        f"csrc/{op}.cpp",
        *([] if op in CPU_ONLY else [f"csrc/cpu/{op}.cpp", f"csrc/cuda/{op}.cu"]),
        f"deepgen_ext/ops/{op}.py",
        f"deepgen_ext/reference/{op}.py",
        f"tests/ops/test_{op}.py",
        f"benchmarks/ops/{op}.py",
    ):
        assert (ROOT / room).is_file(), f"{op} has no {room}"
    schemas = (ROOT / "csrc/library.cpp").read_text()
    assert f'"{op}(' in schemas
    from deepgen_ext import ops, reference

    assert callable(getattr(ops, op))
    assert callable(getattr(reference, op))
    assert op in ops.__all__


SHARED_HEADERS = {
    "call_record",
    "choice",
    "elementary",
    "flow_chain",
    "flow_chain_glue",
    "glue",
    "gradient",
    "host_device",
    "operand",
    "rational_quadratic_spline_element",
    "rational_quadratic_spline_gradient",
    "rational_quadratic_spline_interval",
    "vendor_convolution",
    "vendor_product",
}


def test_no_room_without_an_op():
    for folder, suffix, shared in (
        ("csrc", ".h", SHARED_HEADERS),
        ("csrc/cuda", ".cu", set()),
        ("deepgen_ext/ops", ".py", {"__init__", "autocast", "flow_chain"}),
        ("deepgen_ext/reference", ".py", {"__init__", "accumulation"}),
        ("benchmarks/ops", ".py", {"__init__"}),
    ):
        found = {path.stem for path in (ROOT / folder).glob(f"*{suffix}")}
        without = CPU_ONLY if suffix == ".cu" else set()
        assert found - shared == set(OPS) - without, folder


def test_kernels_are_light():
    """Kernels on raw pointers compile in seconds; torch's large headers take minutes and gigabytes."""
    heavy = re.compile(r"#include <torch/(extension|all|torch)\.h>|#include <ATen/ATen\.h>")
    torch_in_kernel = re.compile(
        r"#include <(torch/|ATen/(?!Parallel\.h)|c10/(?!util/(BFloat16|Half)\.h))"
    )
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        text = path.read_text()
        assert not heavy.search(text), path
        if path.parent.name in {"cpu", "cuda"}:
            assert not torch_in_kernel.search(text), path


def test_the_core_imports_torch_and_numpy_alone():
    """What the recipes need on top is imported by nothing below them."""
    optional = {"typer", "rich", "matplotlib", "sklearn", "PIL", "lightning_fabric", "lightning"}
    for path in FILES:
        if part_of(path) in {"recipes", "cli"} or path == PACKAGE / "profiling/pictures.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            assert not {name.split(".")[0] for name in names} & optional, path


def test_build_info_lists_the_ops():
    info = deepgen_ext.build_info()
    assert set(info["ops"]) == set(OPS)
    assert not any("cuda" in info["ops"][op] for op in CPU_ONLY)
    assert info["simd"]
