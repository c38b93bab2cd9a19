"""An image drawn pixel by pixel costs the multiply-adds of one pass, and no pixel allocates."""

import pytest
import torch

from deepgen_ext.models import PixelCNN, PixelCNNPlusPlus
from deepgen_ext.nn.ancestral import sampler as sampling
from tests.counts import counted
from tests.counts.pixel_plans import pass_of, plan_of
from tests.counts.test_flow_work import calls_of
from tests.emulation.build import EmulationUnavailable

GRAY = {"layers": 3, "channels": 16, "kernel_size": 5, "n_levels": 16}
MODELS = {
    "plain": lambda side: PixelCNN((1, side, side), **GRAY),
    "colours": lambda side: PixelCNN((3, side, side), **(GRAY | {"channels": 24})),
    "gated": lambda side: PixelCNN((1, side, side), gated=True, **GRAY),
    "plus plus": lambda side: PixelCNNPlusPlus((3, side, side), resnets=1, filters=16, mixtures=3),
}
ROWS = 6  # pixels of a row step that share one read of a weight


@pytest.fixture(autouse=True, scope="module")
def _built():
    try:
        counted.library()
    except EmulationUnavailable as missing:
        pytest.skip(str(missing))


def op_of(model, n, monkeypatch):
    """The arguments of the one op that draws n images, and what it draws."""
    calls = []

    def record(program, weights, conditions, uniforms, levels, caches, **options):
        calls.append(
            {
                "program": program,
                "weights": weights,
                "conditions": conditions,
                "uniforms": uniforms,
                "levels": levels,
                "caches": caches.clone(),
                **options,
            }
        )
        ancestral_sample(program, weights, conditions, uniforms, levels, caches, **options)

    ancestral_sample = sampling.ancestral_sample
    monkeypatch.setattr(sampling, "ancestral_sample", record)
    drawn = model.sample(n, uniforms=torch.rand(n, *model.image_shape))
    monkeypatch.undo()
    (call,) = calls
    assert (call["first_row"], call["last_row"]) == (0, model.image_shape[1])
    return call, drawn


@pytest.mark.parametrize("kind", MODELS)
def test_the_plan_of_an_image_is_one_pass(kind, monkeypatch):
    model = MODELS[kind](8).eval()
    call, _ = op_of(model, 1, monkeypatch)
    plan = plan_of(call["program"], 8, 8)
    dense = pass_of(model.network, model.image_shape)
    assert 0.95 * dense <= plan.needed <= 1.05 * dense


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_the_kernel_does_what_the_plan_says(kind, threads, monkeypatch):
    """Two runs of it: a single image, whose columns the threads share, and tiles of samples."""
    model = MODELS[kind](8).eval()
    for n in (1, 5):
        call, drawn = op_of(model, n, monkeypatch)
        work, levels = counted.ancestral_sample(threads, call)
        assert (levels == drawn).float().mean() > 0.99  # another compiler may round otherwise
        plan = plan_of(call["program"], 8, 8)
        assert work.weights_read <= 1.05 * n * plan.packed
        assert work.weights_read >= plan.needed / ROWS
        if n > 1:  # samples share reads
            alone, _ = counted.ancestral_sample(threads, op_of(model, 1, monkeypatch)[0])
            assert work.weights_read <= 0.8 * n * alone.weights_read


@pytest.mark.parametrize("kind", MODELS)
def test_four_times_the_pixels_are_four_times_the_work(kind, monkeypatch):
    """A pass a pixel would make it sixteen; and not one allocation more."""
    small, large = (
        counted.ancestral_sample(1, op_of(MODELS[kind](side).eval(), 1, monkeypatch)[0])[0]
        for side in (8, 16)
    )
    assert large.weights_read <= 4.2 * small.weights_read
    assert large.accesses <= 4.2 * small.accesses
    assert large.allocations == small.allocations


@pytest.mark.parametrize("kind", MODELS)
def test_a_sampler_calls_the_same_ops_whatever_the_image(kind):
    counts = []
    for side in (8, 16):
        model = MODELS[kind](side).eval()
        model.sample(2)
        counts.append(calls_of(lambda model=model: model.sample(2)))
    assert counts[0] == counts[1]
    assert counts[0]["deepgen_ext::ancestral_sample"] == 1
