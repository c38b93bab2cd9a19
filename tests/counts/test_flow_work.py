"""Sampling a masked autoregressive flow reads each visible weight once, whatever the clock says."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from deepgen_ext.models import MAF
from deepgen_ext.nn.transforms import MaskedAutoregressive
from tests.counts import counted
from tests.emulation.build import EmulationUnavailable

LANES = 16  # samples that share one read of a weight


@pytest.fixture(autouse=True, scope="module")
def _built():
    try:
        counted.library()
    except EmulationUnavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bins", [0, 4])
@pytest.mark.parametrize(("dimensions", "units"), [(7, 5), (40, 40), (64, 300)])
def test_one_sample_reads_each_visible_weight_once(threads, bins, dimensions, units):
    """One read is one multiply-add here: (64, 300) is large enough for the second thread."""
    work = counted.autoregressive_inverse(
        threads=threads, batch=1, dimensions=dimensions, units=units, layers=2, bins=bins
    )
    assert work.visible <= work.weights_read <= 1.05 * work.visible


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [2, 16, 33, 100])
def test_a_batch_reads_them_once_for_each_sixteen_samples(threads, batch):
    """Tiles are filled up to whole vectors, and no thread stays without one."""
    work = counted.autoregressive_inverse(
        threads=threads, batch=batch, dimensions=40, units=64, layers=3
    )
    assert work.visible <= work.weights_read <= 1.05 * work.visible * (batch / LANES + 2)


def test_the_adjoint_reads_them_twice():
    """Once for what each layer passes on, once for the cotangents."""
    work = counted.autoregressive_inverse(
        threads=1, batch=16, dimensions=64, units=64, layers=2, adjoint=True
    )
    assert 2 * work.visible <= work.weights_read <= 2.1 * work.visible


@pytest.mark.parametrize("batch", [1, 16])
def test_twice_the_dimensions_are_four_times_the_accesses(batch):
    """Of all memory, not only of the weights: a pass for each dimension would make it eight.

    One thread: two of them wait for each other, and look how long they do.
    """
    small, large = (
        counted.autoregressive_inverse(threads=1, batch=batch, dimensions=d, units=2 * d, layers=2)
        for d in (64, 128)
    )
    assert 2 <= large.accesses / small.accesses <= 4.2
    assert 3.8 <= large.weights_read / small.weights_read <= 4.2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 40])
def test_no_dimension_allocates(threads, batch):
    """A list of blocks grows a few times; all else is taken at once."""
    few, many = (
        counted.autoregressive_inverse(
            threads=threads, batch=batch, dimensions=d, units=400, layers=1
        )
        for d in (32, 512)
    )
    assert many.allocations <= few.allocations + 4


def calls_of(function) -> Counter[str]:
    """Ops that ran, those within ops too: all tensors are allocated by aten::empty and its kin."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    return Counter(event.name for event in recorded.events() if "::" in event.name)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_layer_calls_the_same_ops_whatever_its_dimensions(batch):
    """A loop over dimensions above the kernel would be seen here."""
    counts = []
    for features in (6, 48):
        layer = MaskedAutoregressive(features, (64, 64)).eval()
        z = torch.randn(batch, features)
        with torch.no_grad():
            layer.inverse(z)
            counts.append(calls_of(lambda layer=layer, z=z: layer.inverse(z)))
    assert counts[0] == counts[1]
    assert counts[0]["deepgen_ext::autoregressive_inverse"] == 1
    assert counts[0]["aten::empty"] + counts[0]["aten::empty_strided"] <= 6


def test_a_whole_flow_calls_one_op_a_layer():
    counts = []
    for features in (6, 48):
        flow = MAF(features, 3, (32, 32)).eval()
        flow.sample(4)
        counts.append(calls_of(lambda flow=flow: flow.sample(4)))
    assert counts[0] == counts[1]
    assert counts[0]["deepgen_ext::autoregressive_inverse"] == 3
