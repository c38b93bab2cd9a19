"""The failure of a CycleGAN is measured against translators whose failure is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepgen_ext.models import CycleGAN
from deepgen_ext.recipes.cyclegan_failure import Failure, classes_of, translate_digits, verdict
from deepgen_ext.recipes.data import load


def _measured(monkeypatch: pytest.MonkeyPatch, digit_of) -> Failure:
    """Of translators that make of a digit d the negative of a test image of the digit_of(d), and
    return to the input itself.
    """
    data = load("digits")
    labels = data.labels[1]
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    wanted = torch.tensor([first[digit_of(int(label))] for label in labels])

    def there_and_back(model, levels, direction):
        assert direction == "a-to-b"
        levels, others = (part.float() + 0.5 for part in (levels, 16 - levels[wanted]))
        return others / 17, levels / 17

    monkeypatch.setattr(CycleGAN, "there_and_back", there_and_back)
    return translate_digits(steps=1, seed=0, width=2)


def test_translators_that_permute_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _measured(monkeypatch, lambda digit: (digit + 1) % 10)
    assert torch.equal(found.becomes, torch.eye(10).roll(1, 1))  # rows are of x
    assert found.kept == 0
    assert found.known > 0.95
    assert found.cycle_error == pytest.approx(0, abs=1e-6)
    assert found.counterpart_error > 0.2
    x, there, back, right = found.shown
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(there, right.roll(-1, 0))
    torch.testing.assert_close(x + right, torch.ones_like(x))
    assert "other digits come out" in verdict(found)


def test_translators_that_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _measured(monkeypatch, lambda digit: digit)
    assert torch.equal(found.becomes, torch.eye(10))
    assert found.kept == 1
    data = load("digits")
    x, labels = data.test.float() / 17, data.labels[1]
    drawn = x[[int((labels == label).nonzero()[0]) for label in labels]]
    assert found.counterpart_error == pytest.approx((drawn - x).abs().mean().item(), rel=1e-5)
    assert "stay what they were" in verdict(found)
    assert 0.2 < found.unrelated_error < 0.3
    open_cycle = replace(found, cycle_error=0.6 * found.unrelated_error)
    assert verdict(open_cycle).startswith("the cycle does not close yet")


def test_the_class_of_the_nearest() -> None:
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    labels = torch.tensor([3, 1, 7])
    found = classes_of(torch.tensor([[0.9, 0.8], [9.0, 9.0], [0.1, 0.0]]), known, labels)
    assert found.tolist() == [1, 7, 3]


def test_a_seed_decides() -> None:
    first, again, other = (translate_digits(steps=3, seed=seed, width=2) for seed in (0, 0, 1))
    assert first.cycle_error == again.cycle_error
    assert first.cycle_error != other.cycle_error
