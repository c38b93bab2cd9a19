"""The compiler's report about CUDA kernels: read from cuobjdump's words, of this very build too."""

import math
import shutil

import pytest

import deepgen_ext
from deepgen_ext.profiling import kernel_resources
from deepgen_ext.profiling.kernel_resources import Kernel, kernels_of_this_build, parse, table

NAME = "_ZN7deepgen4cuda51_GLOBAL__N__4f133a39_18_affine_coupling_cu_4b8835f215backward_kernelI6__halfLi1EEEvNS_22AffineCouplingBackwardENS0_4PlanE"  # noqa: E501
CHAIN = "_ZN7deepgen4cuda12chain_kernelINS_10PlanarStepEfEEvNS_9FlowChainEii"
SAID = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {NAME}:
  REG:56 STACK:0 SHARED:0 LOCAL:0 CONSTANT[2]:28 CONSTANT[0]:736 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
 Function {NAME}:
  REG:128 STACK:24 SHARED:4096 LOCAL:8 CONSTANT[0]:736 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {CHAIN}:
  REG:32 STACK:0 SHARED:100000 LOCAL:0 CONSTANT[0]:736 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_what_cuobjdump_says():
    first, second, chain = parse(SAID)
    assert first == Kernel("sm_80", NAME, 56, 0, 0)
    assert second == Kernel("sm_90", NAME, 128, 4096, 32)
    assert (first.op, chain.op) == ("affine_coupling", "planar_chain")


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "expected"),
    [
        (32, 0, 256, 1.0),  # 8 blocks of 8 warps
        (33, 0, 256, 0.75),  # rounded up to 40 registers: 6 blocks
        (128, 0, 256, 0.25),  # 2 blocks
        (32, 100_000, 256, 0.25),  # 2 blocks: shared memory
        (255, 0, 512, 0.0),  # not one block fits
    ],
)
def test_occupancy(registers, shared, threads, expected):
    assert Kernel("sm_90", NAME, registers, shared, 0).occupancy(threads) == expected
    assert math.isnan(Kernel("sm_10", NAME, registers, shared, 0).occupancy(threads))


def test_the_table_names_kernels_in_words():
    rows = table(list(parse(SAID)), ["affine_coupling"])
    assert len(rows) == 3
    assert rows[1][0] == "affine_coupling"
    assert {row[2] for row in rows[1:]} == {"56", "128"}
    if shutil.which("c++filt"):
        assert rows[1][1] == "backward_kernel<__half, 1>"


def test_without_the_tool_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    said = kernels_of_this_build()
    assert isinstance(said, str)
    assert "cuobjdump" in said or "no CUDA kernels" in said
    assert kernel_resources.readable([NAME]) == [NAME]


@pytest.mark.skipif(shutil.which("cuobjdump") is None, reason="needs cuobjdump of a CUDA toolkit")
def test_of_this_build():
    """Every op's kernels are found, and not one has spilled most of a register file."""
    if not deepgen_ext.build_info()["cuda_archs"]:
        pytest.skip("built without CUDA kernels")
    kernels = kernels_of_this_build()
    on_cuda = {op for op, where in deepgen_ext.build_info()["ops"].items() if "cuda" in where}
    assert {kernel.op for kernel in kernels} - {""} == on_cuda
    assert all(0 < kernel.registers <= 255 for kernel in kernels)
