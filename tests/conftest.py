"""What all tests share: few threads, the emulation of CUDA, and the marker of tests that need a GPU."""

import os

# Without it a busy neighbour stalls every parallel region by a scheduler tick.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import pytest
import torch

from tests.emulation import build


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="no CUDA device: the emulation runs the same kernels")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def emulated():
    """The CUDA kernels compiled for the CPU: torch.ops.deepgen_ext_emulated."""
    try:
        build.load()
    except build.EmulationUnavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
