"""normflows' own tests of its flows, as it installs them, with every flow accelerated before use."""

from __future__ import annotations

import importlib
import unittest
import warnings

import pytest
import torch

from deepgen_ext import accelerate
from deepgen_ext.compat.accelerated import Accelerated

SUITES = {
    "affine.glow_test": "GlowBlock",
    "affine.autoregressive_test": "MaskedAffineAutoregressive",
    "neural_spline.coupling_test": "PiecewiseRationalQuadraticCoupling",
    "neural_spline.wrapper_test": "PiecewiseRationalQuadraticCoupling",
    "residual_test": "iResBlock",
}


@pytest.mark.parametrize("suite", list(SUITES))
def test_passes(suite: str, monkeypatch) -> None:
    pytest.importorskip("normflows", reason="normflows is not installed")
    tests = pytest.importorskip(
        f"normflows.flows.{suite}", reason="this normflows is installed without its tests"
    )
    generic = importlib.import_module("normflows.flows.flow_test").FlowTest
    replaced = set()

    def accelerated(check):
        def run(self, flow, *args, **options):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                flow = accelerate(flow, inplace=True)
            parts = [part for part in flow.modules() if isinstance(part, Accelerated)]
            replaced.update(type(part).__name__ for part in parts)
            return check(self, flow, *args, **options)

        return run

    for check in ("checkForward", "checkInverse", "checkForwardInverse"):
        monkeypatch.setattr(generic, check, accelerated(getattr(generic, check)))
    torch.manual_seed(0)
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unittest.defaultTestLoader.loadTestsFromModule(tests).run(result)
    assert result.testsRun > 0
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert SUITES[suite] in replaced
