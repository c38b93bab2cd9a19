"""The demo, a second of it: the pictures and the checked timings are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from deepgen_ext import ops
from deepgen_ext.recipes import demo


def test_demo(tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (
        demo._Case("forward", (8, 4, 2), False, moved=4, results=1),
        demo._Case("forward + backward", (8, 4, 2), True, moved=10, results=4),
    )
    timed = demo.time_affine_coupling
    monkeypatch.setattr(demo, "GLOW", {"levels": 1, "steps": 1, "hidden_channels": 4})
    monkeypatch.setattr(demo, "CASES", small)
    monkeypatch.setattr(
        demo, "time_affine_coupling", lambda device: timed(device, rounds=2, compiled=False)
    )
    for _ in range(2):  # a second demo replaces the first
        demo.run_demo(tmp_path, seconds=0.3, console=screen)
    for name in ("samples-0.7.png", "samples-1.0.png", "reconstruction.png", "run/metrics.csv"):
        assert (tmp_path / name).stat().st_size > 100
    text = screen.file.getvalue()
    for words in ("held-out digits", "bits/dim", "forward + backward", "copy of the same bytes"):
        assert words in text


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.affine_coupling

    def wrong(*arguments: object, **options: object) -> tuple[object, object]:
        y, log_det = right(*arguments, **options)
        return y, -log_det

    monkeypatch.setattr(ops, "affine_coupling", wrong)
    monkeypatch.setattr(
        demo, "CASES", (demo._Case("forward", (8, 4, 2), False, moved=4, results=1),)
    )
    with pytest.raises(AssertionError):
        demo.time_affine_coupling("cpu", rounds=1, compiled=False)
