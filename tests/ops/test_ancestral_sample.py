"""ancestral_sample on programs written by hand, against full networks run once a level.

Both kernels must draw what plain torch draws: the CPU's, and the CUDA kernel in emulation.
"""

import os

import pytest
import torch

import deepgen_ext.ops  # noqa: F401  registers them
from deepgen_ext import reference
from tests.emulation.compare import ORDERS
from tests.ops.ancestral_cases import NETWORKS, Case


def kernels():
    return [
        pytest.param("cpu", id="cpu"),
        *(pytest.param(order, id=f"emulated-{order}") for order in ORDERS),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]


@pytest.fixture(params=kernels())
def kernel(request, monkeypatch):
    """The arguments of Case.draw that choose a kernel."""
    if request.param in ("cpu", "cuda"):
        return {"ops": torch.ops.deepgen_ext, "device": request.param}
    request.getfixturevalue("emulated")
    monkeypatch.setitem(os.environ, "DEEPGEN_EMULATION_ORDER", request.param)
    return {"ops": torch.ops.deepgen_ext_emulated}


@pytest.mark.parametrize("name", NETWORKS)
def test_draws_what_the_full_network_draws(name, kernel):
    case = Case(name)
    assert len(case.expected.unique()) > 3, "a network that draws but one level shows nothing"
    assert case.agrees(case.draw(**kernel)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_known_levels_stay_and_are_seen(name, kernel):
    case = Case(name, some_known=True, temperature=0.7)
    drawn = case.draw(**kernel)
    assert case.agrees(drawn).all()
    assert torch.equal(drawn[case.known], case.levels[case.known])


@pytest.mark.parametrize("name", NETWORKS)
def test_neither_tiles_nor_pauses_matter(name, kernel):
    case = Case(name, n=5, height=4, width=3)
    for tile in (2, 5, 8):
        assert case.agrees(case.draw(tile=tile, **kernel)).all()
    assert case.agrees(case.draw(tile=2, by_row=True, **kernel)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (3, 35)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name, shape, kernel):
    case = Case(name, n=2, height=shape[0], width=shape[1])
    assert case.agrees(case.draw(**kernel)).all()


@pytest.mark.parametrize("hidden", [1, 8, 70])
def test_widths(hidden, kernel):
    case = Case("plain", n=2, height=3, width=4, hidden=hidden)
    assert case.agrees(case.draw(**kernel)).all()


def test_more_to_fetch_than_room(kernel):
    """A tile whose pixel reads more than the GPU's kernel fetches at once."""
    case = Case("plain", n=8, height=2, width=3, hidden=270)
    assert case.agrees(case.draw(tile=8, **kernel)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_beyond_shared_memory(name, kernel):
    case = Case(name, n=2, height=3, width=4)
    assert case.agrees(case.draw(spare=5000, **kernel)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_single_precision(name, kernel):
    """A level on the edge of its interval may fall to the other side, and all after it changes."""
    case = Case(name, n=8, height=4, width=4)
    drawn = case.draw(dtype=torch.float32, **kernel)
    same = case.agrees(drawn, tolerance=1e-4).flatten(1).all(1)
    assert same.sum() >= 6
    alone = case.draw(dtype=torch.float32, samples=slice(3, 4), **kernel)
    assert torch.equal(alone, drawn[3:4]), "a sample depends on its batch"
    tiled = case.draw(dtype=torch.float32, tile=3, **kernel)
    assert torch.equal(tiled, drawn), "a sample depends on its tile"


def test_nothing_to_draw(kernel):
    case = Case("plain", n=2, height=2, width=2)
    assert case.draw(samples=slice(0, 0), **kernel).shape == (0, 1, 2, 2)


# ---------------------------------------------------------------- the registered op


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_draws_the_same(name):
    case = Case(name, n=2, height=4, width=3, some_known=True)
    given = case.arguments()
    reference.ancestral_sample(
        given["program"],
        given["weights"],
        given["conditions"],
        given["uniforms"],
        given["levels"],
        known=given["known"],
        n_levels=given["n_levels"],
        temperature=given["temperature"],
    )
    assert case.agrees(given["levels"]).all()


def test_opcheck():
    torch.library.opcheck(
        torch.ops.deepgen_ext.ancestral_sample.default,
        tuple(Case("plain", n=2, height=3, width=4).arguments().values()),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"program": torch.zeros(9)}, TypeError, "program must be an int32 tensor, got Float"),
        ({"program": torch.ones(9).int()}, ValueError, "program must have .* words by its header"),
        ({"program": torch.zeros(3).int()}, ValueError, "program must have 8 words"),
        ({"weights": torch.zeros(9).half()}, TypeError, "weights must be float32 or float64"),
        (
            {"uniforms": torch.rand(2, 1, 3, 4)},
            TypeError,
            "uniforms must have the dtype of weights",
        ),
        ({"uniforms": torch.rand(2, 3).double()}, ValueError, "uniforms must be \\(n, channels,"),
        ({"levels": torch.zeros(2, 1, 3, 4)}, TypeError, "levels must be an int64 tensor"),
        ({"levels": torch.zeros(2, 1, 4, 3).long()}, ValueError, "levels must be a contiguous"),
        ({"known": torch.zeros(2, 1, 3, 4)}, TypeError, "known must be a bool tensor"),
        ({"caches": torch.zeros(7).double()}, ValueError, "caches must have .* elements a sample"),
        ({"tile": 0}, ValueError, "tile must be at least 1, got 0"),
        ({"n_levels": 1}, ValueError, "n_levels must be at least 2, got 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive, got 0"),
        ({"last_row": 4}, ValueError, "rows .* must lie in \\[0, 3\\), got \\[0, 4\\)"),
    ],
)
def test_bad_arguments(change, error, words):
    given = Case("plain", n=2, height=3, width=4).arguments()
    with pytest.raises(error, match=words):
        torch.ops.deepgen_ext.ancestral_sample(*{**given, **change}.values())


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_real_numbers_have_the_dtype_of_the_weights(dtype):
    given = Case("real", n=2, height=3, width=4).arguments()
    given["levels"] = given["levels"].to(dtype)
    with pytest.raises(
        TypeError, match="levels must be of the dtype of weights, the program draws"
    ):
        torch.ops.deepgen_ext.ancestral_sample(*given.values())
