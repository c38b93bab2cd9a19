"""What only a GPU shows, of every op as its benchmark calls it: streams, waiting, CUDA graphs, sizes.

The formulas are tested in tests/ops, the kernels' source in emulation. `make gpu` runs these, once more under each
tool of compute-sanitizer, and measures.
"""

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from deepgen_ext import ops
from deepgen_ext.profiling import measurement

FILES = Path(__file__).resolve().parents[1].glob("benchmarks/ops/[!_]*.py")
OPS = sorted(path.stem for path in FILES)
ENTRIES = [e for op in OPS for e in importlib.import_module(f"benchmarks.ops.{op}").ENTRIES]
DTYPES = (torch.float32, torch.float64)

pytestmark = pytest.mark.gpu
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


@pytest.fixture(params=DTYPES, ids=str)
def setting(request):
    return harness.Setting(torch.device("cuda"), request.param, tiny=True, budget=0.0)


def of_tensors(entry, setting):
    """The entry's case; one that measures itself has no call to look at."""
    case = entry.build(setting)
    if isinstance(case, harness.Curve):
        pytest.skip("a table of its own")
    return case


def assert_expected(results, case, setting):
    tolerance = case.tolerance or harness.TOLERANCE[setting.dtype]
    assert measurement.difference(results, case.expected(), tolerance) == ""


@each_entry
def test_works_on_the_stream_of_its_caller(entry, setting):
    # Inputs come late on a stream of their own: what runs on another one reads them too early.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        case = of_tensors(entry, setting)
        results = case.ours()
    stream.synchronize()
    assert_expected(results, case, setting)


@each_entry
def test_never_waits_for_the_device(entry, setting):
    case = of_tensors(entry, setting)
    case.ours()  # what is made once, plans and packed weights, may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = case.ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_expected(results, case, setting)


@each_entry
def test_replays_from_a_cuda_graph(entry, setting):
    case = of_tensors(entry, setting)
    graphed = measurement.graphed(harness.Rival(harness.OURS, case.ours))
    assert not graphed.missing
    for result in graphed.run():
        result.detach().zero_()
    assert_expected(graphed.run(), case, setting)


@each_entry
def test_works_on_the_second_device(entry):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device only")
    setting = harness.Setting(torch.device("cuda:1"), torch.float32, tiny=True, budget=0.0)
    case = of_tensors(entry, setting)
    results = case.ours()
    assert {result.device for result in results} == {setting.device}
    assert_expected(results, case, setting)


ROWS = 2**23 + 3  # of 257 elements: beyond 2^31


@pytest.fixture
def long_batch():
    """A batch of more than 2^31 elements that ends with three rows of its own, and these."""
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(ROWS, 257, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(3)
    ]
    return tensors, [tensor[-3:].clone() for tensor in tensors]


def test_coupling_of_more_than_2_to_the_31_elements(long_batch):
    tensors, ends = long_batch
    y, log_det = ops.affine_coupling(*tensors, scale_map="tanh")
    expected, expected_log_det = ops.affine_coupling(*ends, scale_map="tanh")
    torch.testing.assert_close(y[-3:], expected, rtol=0, atol=0)
    torch.testing.assert_close(log_det[-3:], expected_log_det)


def test_channel_affine_of_more_than_2_to_the_31_elements(long_batch):
    (x, *_), (end, *_) = long_batch
    scale, shift = torch.randn(2, 257, device="cuda", dtype=torch.bfloat16).unbind()
    y = ops.channel_affine(x, scale, shift)[0]
    torch.testing.assert_close(y[-3:], ops.channel_affine(end, scale, shift)[0], rtol=0, atol=0)
