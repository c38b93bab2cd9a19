"""The emulation agrees with numpy on correct kernels, and finds each planted fault.

Kernels are called through ctypes; an entry returns None, or the text of what was thrown.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.emulation import build as emulation

KERNELS = Path(__file__).parent / "kernels"
SOURCES = sorted(KERNELS.glob("*.cu"))
ORDERS = ["ascending", "descending", "random:1", "random:2"]


def built(sanitize: bool) -> Path:
    try:
        return emulation.build(SOURCES, sanitize=sanitize)
    except emulation.EmulationUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(built(sanitize=False)))


@pytest.fixture
def call(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch):
    """``call(entry, *arguments, order=...)`` -> None or the error's text."""

    def run(entry: str, *arguments, order: str = "ascending") -> str | None:
        monkeypatch.setenv("DEEPGEN_EMULATION_ORDER", order)
        function = getattr(library, entry)
        function.restype = ctypes.c_char_p
        text = function(
            *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a
              for a in arguments)
        )  # fmt: skip
        return None if text is None else text.decode()

    return run


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


# ---- correct kernels, in every order --------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_block_reduction(call, random, order: str) -> None:
    x, total = random.standard_normal(1000, np.float32), np.zeros(1, np.float32)
    assert call("block_sum", x, total, x.size, order=order) is None
    assert np.isclose(total[0], x.sum(dtype=np.float64), atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_warp_shuffle_reduction_over_many_blocks(call, random, order: str) -> None:
    x, sums = random.standard_normal((301, 50)), np.zeros(301)
    assert call("warp_row_sum", x, sums, *x.shape, order=order) is None
    assert np.allclose(sums, x.sum(1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lanes", [1, 7, 32])
def test_warp_narrower_than_32_lanes(call, random, order: str, lanes: int) -> None:
    x, sums = random.integers(0, 99, lanes, np.int32), np.zeros(lanes, np.int32)
    assert call("warp_scan", x, sums, lanes, order=order) is None
    assert (sums == x.cumsum()).all()


@pytest.mark.parametrize("order", ORDERS)
def test_transpose_through_dynamic_shared_memory(call, random, order: str) -> None:
    x, y = random.standard_normal((37, 50), np.float32), np.zeros((50, 37), np.float32)
    assert call("transpose", x, y, *x.shape, order=order) is None
    assert (y == x.T).all()


@pytest.mark.parametrize("n", [1, 2, 129])
def test_bfloat16_rounds_to_nearest_even(call, random, n: int) -> None:
    x = random.standard_normal(n, np.float32).view(np.uint32) & 0xFFFF0000
    y = np.zeros(n, np.uint16)
    assert call("bf16_scale", (x >> 16).astype(np.uint16), y, ctypes.c_float(1.7), n) is None
    product = (x.view(np.float32) * np.float32(1.7)).view(np.uint32)
    assert (y == (product + 0x7FFF + (product >> 16 & 1) >> 16).astype(np.uint16)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_of_many_blocks(call, random, order: str) -> None:
    x, counts = random.integers(0, 10, 5000, np.int32), np.zeros(10, np.uint32)
    assert call("histogram", x, counts, x.size, 9, order=order) is None
    assert (counts == np.bincount(x)).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threshold", [-9.0, 0.0, 9.0])
def test_votes_of_block_and_warp(call, random, order: str, threshold: float) -> None:
    x = (random.standard_normal(96) - threshold).astype(np.float32)
    answers = np.zeros(4, np.int32)
    assert call("positive", x, answers, x.size, order=order) is None
    expected = [(x > 0).sum(), (x > 0).any(), (x > 0).all(), (x[:32] > 0).sum()]
    assert answers.tolist() == [int(e) for e in expected]


def test_empty_grid_launches_nothing(call) -> None:
    y = np.zeros(32, np.float32)
    assert call("empty_grid", y) is None
    assert not y.any()


def test_unknown_order_is_refused(call) -> None:
    assert "expected ascending, descending or random:SEED, got sideways" in call(
        "trap", np.zeros(1, np.float32), order="sideways"
    )


# ---- races: wrong numbers in some order -----------------------------------------------------


def wrong(call, entry: str, expected: np.ndarray, *arguments) -> dict[str, int]:
    """How many results are wrong in each order. NaN, the pattern of fresh memory, is wrong."""
    counts = {}
    for order in ORDERS:
        y = np.zeros_like(expected)
        assert call(entry, *arguments[:1], y, *arguments[1:], order=order) is None
        counts[order] = int((y != expected).sum())
    return counts


def test_dropped_barrier_is_seen(call) -> None:
    x = np.arange(64, dtype=np.float32)
    assert all(wrong(call, "dropped_barrier", x[::-1].copy(), x).values())


def test_dropped_barrier_that_one_order_hides(call) -> None:
    x = np.arange(32, dtype=np.float32)
    counts = wrong(call, "dropped_warp_barrier", np.roll(x, -1), x)
    assert counts["descending"] == 0
    assert counts["ascending"] == 31
    assert counts["random:1"] > 0


def test_memory_overwritten_before_all_have_read_it(call) -> None:
    x = np.arange(10, dtype=np.float32)
    counts = wrong(call, "overwritten", np.full(64, 45, np.float32), x, 10)
    assert counts["ascending"] > 0
    assert counts["random:1"] > 0


def test_shared_memory_starts_as_nan(call) -> None:
    y = np.zeros(32, np.float32)
    assert call("uninitialised", y) is None
    assert np.isnan(y).all()


# ---- misused barriers and warp collectives: an error that says so ---------------------------

MISUSE = {
    "divergent_barrier": ["divergent barrier", "__syncthreads at faulty.cu:", "while"],
    "returned_before_barrier": ["divergent barrier", "returned"],
    "skipped_barrier": ["divergent barrier", "returned"],
    "absent_lanes": ["__shfl_xor_sync at faulty.cu:", "do not exist", "the block has 20 threads"],
    "returned_lanes": ["__shfl_down_sync at", "mask 0xffffffff", "returned"],
    "not_in_own_mask": ["__shfl_sync at", "mask 0x0000ffff", "does not name the lane itself"],
    "shuffle_outside_mask": ["reads lane 8", "not in the mask 0x000000ff"],
    "shuffle_against_barrier": ["deadlock", "for lanes 16,17,", "wait in __syncthreads at"],
    "disagreeing_masks": ["deadlock", "with mask 0xffffffff", "with mask 0xfffffffe"],
    "too_much_shared": ["invalid configuration argument"],
    "too_much_static_shared": ["shared memory: 49156 bytes static", "more than a block has"],
    "empty_block": ["invalid configuration argument"],
    "trap": ["__trap() in a kernel"],
    "endless_poll": ["polls for something that never happens"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("entry", MISUSE)
def test_misuse_is_reported(call, random, entry: str, order: str) -> None:
    y = np.zeros(64, np.float32)
    sizes = [40] if entry in ("returned_before_barrier", "skipped_barrier") else []
    text = call(entry, y, *sizes, order=order)
    assert text is not None
    for part in MISUSE[entry]:
        assert part in text
    # The next launch finds a clean device.
    x, total = random.standard_normal(300, np.float32), np.zeros(1, np.float32)
    assert call("block_sum", x, total, x.size, order=order) is None
    assert np.isclose(total[0], x.sum(dtype=np.float64), atol=1e-4)


# ---- memory errors: found by the sanitizers, in a process of their own ------------------------

CALL_ON_HEAP = """
import ctypes, sys
path, entry, floats, offset, *rest = sys.argv[1:]
library, malloc = ctypes.CDLL(path), ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
function = getattr(library, entry)
function.restype = ctypes.c_char_p
y = ctypes.c_void_p(malloc(ctypes.c_size_t(4 * int(floats))))
ctypes.memset(y, 0, 4 * int(floats))
text = function(ctypes.c_void_p(y.value + int(offset)),
                *(y if r == "y" else int(r) for r in rest))
print("returned", text)
"""


@pytest.fixture(scope="session")
def sanitized():
    """``sanitized(entry, floats, offset, *rest)``: runs it on a heap array of so many floats."""
    path = built(sanitize=True)
    environment = emulation.sanitized_environment()

    def run(entry: str, floats: int, offset: int, *rest) -> tuple[int, str]:
        command = [sys.executable, "-c", CALL_ON_HEAP, str(path), entry, str(floats), str(offset)]
        done = subprocess.run(
            [*command, *map(str, rest)], env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    return run


IN_BOUNDS = [
    ("global_overrun", 64, 0, 63),
    ("static_shared_overrun", 1, 0, 33),
    ("dynamic_shared_overrun", 1, 0, 33),
    ("vector_load", 4, 0, "y"),
    ("transpose", 16, 0, "y", 1, 1),
]
FAULTS = [
    (("global_overrun", 63, 0, 63), "heap-buffer-overflow"),
    (("static_shared_overrun", 1, 0, 34), "heap-buffer-overflow"),
    (("dynamic_shared_overrun", 1, 0, 34), "heap-buffer-overflow"),
    (("static_shared_index", 1, 0, 33), "index 33 out of bounds for type 'float [33]'"),
    (("vector_load", 8, 4, "y"), "misaligned address"),
    (("vector_load_of_float_array", 4, 0), "misaligned address"),
]


@pytest.mark.parametrize("arguments", IN_BOUNDS, ids=lambda a: a[0])
def test_sanitizers_accept_what_is_right(sanitized, arguments) -> None:
    code, output = sanitized(*arguments)
    assert code == 0, output
    assert "returned None" in output


@pytest.mark.parametrize(("arguments", "message"), FAULTS, ids=lambda a: a[0])
def test_sanitizers_find_memory_errors(sanitized, arguments, message: str) -> None:
    code, output = sanitized(*arguments)
    assert code != 0, output
    assert message in output
    assert "faulty.cu:" in output


def test_errors_are_thrown_under_the_sanitizers_too(sanitized) -> None:
    code, output = sanitized("divergent_barrier", 64, 0)
    assert code == 0, output
    assert "divergent barrier" in output


def test_stack_overflow_is_a_fault_not_corruption(sanitized) -> None:
    code, output = sanitized("deep_recursion", 1, 0, 100_000)
    assert code != 0
    assert "stack-overflow" in output or "SEGV" in output


# ---- the same sources under nvcc --------------------------------------------------------------


def test_kernels_compile_with_nvcc(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")

    def compile_one(source: Path) -> subprocess.CompletedProcess[str]:
        flags = ["-arch=sm_80", "-std=c++20", "-Werror=all-warnings", f"-I{emulation.ROOT}/csrc"]
        target = str(tmp_path / f"{source.stem}.o")
        return subprocess.run(
            [nvcc, *flags, "-c", str(source), "-o", target], capture_output=True, text=True
        )

    with ThreadPoolExecutor(emulation.JOBS) as pool:
        for done in pool.map(compile_one, SOURCES):
            assert done.returncode == 0, done.stdout + done.stderr
