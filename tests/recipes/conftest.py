"""A run small enough to train in a second."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lightning_fabric", reason='needs pip install "deepgen_ext[recipes]"')

from rich.console import Console

from deepgen_ext.recipes.run import Settings

TINY = {"levels": 1, "steps": 1, "hidden_channels": 8}


@pytest.fixture
def tiny() -> Callable[..., Settings]:
    """Settings of a tiny Glow on digits; arguments replace or add to them."""

    def make(**changes: Any) -> Settings:
        given: dict[str, Any] = {
            "model": "glow",
            "data": "digits",
            "options": dict(TINY),
            "batch_size": 16,
            "warmup_steps": 5,
            "max_steps": 20,
            "log_every": 5,
            "accelerator": "cpu",
        }
        return Settings(**{**given, **changes})

    return make


@pytest.fixture
def screen() -> Console:
    """A console that is not a terminal; what was printed is in ``screen.file.getvalue()``."""
    return Console(file=io.StringIO(), width=200)
