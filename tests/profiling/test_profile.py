"""profile(): which ops ran, how often, what they moved, and that none of it costs anything when off."""

import csv
import json
import math
import threading

import pytest
import torch

import deepgen_ext
from deepgen_ext import ops
from deepgen_ext._extension import _C
from deepgen_ext.profiling import cases
from deepgen_ext.profiling.measurement import Setting
from deepgen_ext.profiling.work import FORMULAS

N, C, H = 8, 6, 4
ELEMENTS = N * C * H * H


def coupling_inputs(**options):
    return [torch.randn(N, C, H, H, **options) for _ in range(3)]


def rows_of(p):
    return {row.name: row for row in p.rows}


def test_counts_and_bytes_of_a_small_program():
    leaves = [t.requires_grad_() for t in coupling_inputs()]
    with deepgen_ext.profile() as p:
        for _ in range(3):
            y, log_det = ops.affine_coupling(*leaves)
            torch.autograd.grad((y, log_det), leaves, (torch.ones_like(y), torch.ones(N)))
        with torch.no_grad():
            ops.affine_coupling(*leaves, inverse=True)
    rows = rows_of(p)
    assert {name: row.calls for name, row in rows.items()} == {
        "affine_coupling": 3,  # though it passes the dispatcher twice, above and below autograd
        "affine_coupling backward": 3,
        "affine_coupling inverse": 1,
    }
    # x, raw scale and shift in, y and log_det out.
    assert rows["affine_coupling"].bytes == 3 * 4 * (4 * ELEMENTS + N)
    assert rows["affine_coupling inverse"].bytes == 4 * (4 * ELEMENTS + N)
    # The gradients of y and log_det, x and raw scale in; two out, the shift's is that of y.
    assert rows["affine_coupling backward"].bytes == 3 * 4 * (5 * ELEMENTS + N)
    assert rows["affine_coupling"].operations == 3 * 5 * ELEMENTS


def test_an_expanded_tensor_is_read_once():
    x, raw, _ = coupling_inputs()
    with deepgen_ext.profile() as p:
        ops.affine_coupling(x, raw, torch.randn(1, C, 1, 1).expand_as(x))
    assert p.rows[0].bytes == 4 * (3 * ELEMENTS + C + N)


@pytest.mark.parametrize(("mask_type", "groups", "centre"), [("B", 1, 1), ("A", 1, 0), ("B", 2, 0.75),
                                                             ("A", 2, 0.25)])  # fmt: skip
def test_masked_taps_do_not_count(mask_type, groups, centre):
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    with deepgen_ext.profile() as p:
        ops.masked_conv2d(x, weight, mask_type=mask_type, groups_in_order=groups)
    used = 6 * 4 * (3 + 1 + centre)  # the row above, the left tap, and what the centre sees
    assert p.rows[0].operations == 2 * 2 * 25 * used
    assert p.rows[0].bytes == 4 * (x.numel() + 2 * 6 * 25 + used)


def test_gradients_that_are_not_wanted_do_not_count():
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3, requires_grad=True)
    used = 6 * 4 * 5
    with deepgen_ext.profile() as p:
        ops.masked_conv2d(x, weight).sum().backward()
    backward = rows_of(p)["masked_conv2d backward"]
    assert backward.operations == 2 * 2 * 25 * used
    # The gradient is a broadcast one, one number; x is read, the weight's gradient written whole.
    assert backward.bytes == 4 * (1 + x.numel() + weight.numel())


def test_weights_that_degrees_mask_do_not_count():
    z, degrees = torch.randn(3, 2), [torch.tensor([0, 1, 1])]
    weights, biases = [torch.randn(3, 2), torch.randn(4, 3)], [torch.randn(3), torch.randn(4)]
    with deepgen_ext.profile() as p:
        ops.autoregressive_inverse(z, weights, biases, degrees)
    # Units of degree 1 see x_0: 2 weights; parameters of 0 see one unit, those of 1 all three.
    used = 2 + 2 * 1 + 2 * 3
    assert p.rows[0].name == "autoregressive_inverse inverse"
    assert p.rows[0].operations == 2 * 3 * used
    assert p.rows[0].bytes == 4 * (used + 3 + 4 + 6 + 6 + 3) + 8 * 3


def test_a_step_of_power_iteration_reads_its_weights_once():
    weight, u, v = torch.randn(4, 5), torch.randn(4), torch.randn(5)
    with deepgen_ext.profile() as p:
        ops.power_iteration([weight], [u], [v], n_iterations=3)
        ops.spectral_normalize([weight], [u], [v])
    rows = rows_of(p)
    vectors = 2 * (4 + 5) + 1
    assert rows["power_iteration"].bytes == 4 * (3 * 20 + vectors)
    assert rows["spectral_normalize"].bytes == 4 * (2 * 20 + 20 + vectors)


def test_what_is_written_in_place_counts_once_more():
    with deepgen_ext.profile() as p:
        prepared = cases.OPS["fixed_point_step"].prepare((3, 7), Setting(tiny=True), False)
        prepared.run(ops, *prepared.leaves)
    small = 3 * (5 * 5 * 8 + 4 * 8 + 5 * 4)
    assert p.rows[0].bytes == 4 * 3 * 7 * (2 * 5 + 6) + 2 * small


def test_every_op_is_named():
    """Each op of the library, forward, inverse and backward; and there is a formula for each."""
    with deepgen_ext.profile() as p:
        for name, op in cases.OPS.items():
            for direction in op.directions:
                cases.case_of(name, direction, Setting(tiny=True), None, False).ours()
    schemas = {
        schema.name.removeprefix("deepgen_ext::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("deepgen_ext::")
    }
    assert {call.signature.op for call in p.calls} == schemas == set(FORMULAS)
    assert set(cases.OPS) == set(ops.__all__) - {"scaled_weight_gradients"}
    assert all(row.bytes > 0 and row.seconds > 0 for row in p.rows)
    assert max(map(len, p.table().splitlines())) <= 80


def test_off_it_costs_nothing():
    """No hook of torch's dispatcher is left, which is where all of it hangs."""
    inputs = coupling_inputs()
    assert not _C.dispatcher_is_hooked()
    with deepgen_ext.profile():
        assert _C.dispatcher_is_hooked()
        assert _C.is_recording()
        ops.affine_coupling(*inputs)
    assert not _C.dispatcher_is_hooked()
    assert not _C.is_recording()


def test_shares_add_up():
    inputs = [torch.randn(64, 32, 16, 16) for _ in range(3)]
    with deepgen_ext.profile() as p:
        ops.affine_coupling(*inputs)
        inputs[0].exp()
    assert 0 < p.rows[0].share < 1
    assert p.rows[0].share == pytest.approx(p.rows[0].seconds / p.wall)
    lines = p.table().splitlines()
    shares = [float(line.split()[-1].rstrip("%")) for line in lines if line.endswith("%")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_nested_blocks_each_see_what_ran_within():
    inputs = coupling_inputs()
    with deepgen_ext.profile() as outer:
        ops.affine_coupling(*inputs)
        with deepgen_ext.profile() as inner:
            ops.affine_coupling(*inputs)
        assert inner.rows[0].calls == 1
        ops.affine_coupling(*inputs)
    assert outer.rows[0].calls == 3
    assert [call.start for call in outer.calls] == sorted(call.start for call in outer.calls)


def test_an_exception_ends_the_block_and_a_refused_call_does_not_count():
    x, raw, shift = coupling_inputs()
    with pytest.raises(ValueError, match="shift"), deepgen_ext.profile() as p:  # noqa: PT012
        ops.affine_coupling(x, raw, shift)
        ops.affine_coupling(x, raw, shift[:1])
    assert p.rows[0].calls == 1
    assert not _C.is_recording()


def test_all_threads_are_seen():
    inputs = coupling_inputs()
    with deepgen_ext.profile() as p:
        threads = [
            threading.Thread(target=ops.affine_coupling, args=inputs) for _ in range(3)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ops.affine_coupling(*inputs)
    assert p.rows[0].calls == 4
    assert len({call.thread for call in p.calls}) >= 2


def test_compiled_graphs_are_seen_and_their_tracing_is_not():
    leaves = [t.requires_grad_() for t in coupling_inputs()]
    torch._dynamo.reset()
    compiled = torch.compile(ops.affine_coupling, backend="aot_eager", fullgraph=True)
    with deepgen_ext.profile() as p:
        for _ in range(2):
            y, log_det = compiled(*leaves)
            (y.sum() + log_det.sum()).backward()
    assert {name: row.calls for name, row in rows_of(p).items()} == {
        "affine_coupling": 2,
        "affine_coupling backward": 2,
    }


def test_under_autocast_the_tensors_are_those_that_the_kernel_saw():
    inputs = coupling_inputs(dtype=torch.bfloat16)
    with deepgen_ext.profile() as p, torch.autocast("cpu", dtype=torch.bfloat16):
        ops.affine_coupling(*inputs)
    assert p.rows[0].calls == 1
    assert p.rows[0].bytes == 4 * (4 * ELEMENTS + N)


def test_what_was_chosen_is_said_by_who_chose():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3)
    with deepgen_ext.profile() as p:
        ops.masked_conv2d(x, weight)
        ops.masked_conv2d(x.double(), weight.double())
    chosen = p.rows[0].chosen
    assert "vendor, cropped (float64), 1 of 2 calls" in chosen
    assert len(chosen) == 2
    assert all(text in p.table().replace("\n  ", " ") for text in chosen)


def test_rows_as_csv_and_calls_as_a_trace(tmp_path):
    inputs = coupling_inputs()
    with deepgen_ext.profile() as p:
        ops.affine_coupling(*inputs)
        ops.affine_coupling(*inputs)
    p.to_csv(tmp_path / "rows.csv")
    (row,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert row["op"] == "affine_coupling"
    assert int(row["bytes"]) == p.rows[0].bytes
    p.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events] == ["deepgen_ext::affine_coupling"] * 2
    assert math.fsum(e["dur"] for e in events) == pytest.approx(1e6 * p.rows[0].seconds)
    assert events[0]["ts"] + events[0]["dur"] <= events[1]["ts"] + 1e-3


def test_a_full_trace_is_that_of_torchs_profiler(tmp_path):
    inputs = coupling_inputs()
    with deepgen_ext.profile(trace=True) as p:
        ops.affine_coupling(*inputs)
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
    p.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"deepgen_ext::affine_coupling", "aten::mm"} <= names
    assert p.rows[0].calls == 1
    with torch.profiler.profile(), pytest.raises(RuntimeError, match="running already"):
        deepgen_ext.profile(trace=True).__enter__()


def test_what_cannot_be_read_yet_says_so():
    p = deepgen_ext.profile()
    with pytest.raises(RuntimeError, match="has not ended"):
        p.table()
    with p:
        pass
    assert p.rows == []
    with pytest.raises(RuntimeError, match="one block"):
        p.__enter__()


@pytest.mark.gpu
def test_on_a_gpu_calls_are_timed_on_their_stream_and_nobody_waits():
    inputs = [torch.randn(64, 96, 16, 16, device="cuda", requires_grad=True) for _ in range(3)]
    ops.affine_coupling(*inputs)[0].sum().backward()
    torch.cuda.synchronize()
    with deepgen_ext.profile() as p:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                ops.affine_coupling(*inputs)[0].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    rows = rows_of(p)
    for name in ("affine_coupling", "affine_coupling backward"):
        assert rows[name].device == "cuda"
        assert rows[name].calls == 10
        assert rows[name].untimed == 0
        # No kernel moves its bytes at more than 20 TB/s, nor takes longer than the block.
        assert rows[name].bytes / 20e12 < rows[name].seconds < p.wall


@pytest.mark.gpu
def test_calls_captured_into_a_graph_have_no_time():
    inputs = [torch.randn(4, 4, device="cuda") for _ in range(3)]
    ops.affine_coupling(*inputs)
    torch.cuda.synchronize()
    with deepgen_ext.profile() as p:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            ops.affine_coupling(*inputs)
        ops.affine_coupling(*inputs)
    assert (p.rows[0].calls, p.rows[0].untimed) == (2, 1)
    assert math.isnan(p.rows[0].gigabytes_per_second)
    assert "captured into a CUDA graph" in p.table()
