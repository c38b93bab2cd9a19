"""The view for pytest-benchmark: every row is a benchmark of its entry's group, checked before it runs."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import harness, run, test_entries
from benchmarks.harness import Case, Curve, Rival, Setting
from tests.emulation.build import ROOT

TINY = Setting(tiny=True, budget=0.0)


def pytest_in_a_process(*words):
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_an_ordinary_run_collects_no_benchmark():
    done = pytest_in_a_process("--collect-only")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout + done.stderr


def test_rows_are_benchmarks_grouped_by_entry(tmp_path):
    pytest.importorskip("pytest_benchmark", reason='needs pip install "deepgen_ext[test]"')
    path = tmp_path / "figures.json"
    words = ("--tiny", "--filter", "affine tabular", f"--benchmark-json={path}")
    done = pytest_in_a_process("--benchmark-only", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())["benchmarks"]
    groups = {}
    for figure in figures:
        groups.setdefault(figure["group"].partition("  ")[0], set()).add(figure["name"])
    assert set(groups) == {e.name for e in run.all_entries() if "affine tabular" in e.name}
    for names in groups.values():
        assert {"ours", "copy", "eager", "torch.compile"} <= names
    unknown = pytest_in_a_process("--benchmark-only", "--filter", "nothing at all")
    assert unknown.returncode == pytest.ExitCode.INTERRUPTED
    assert "no entry has it in its name" in unknown.stderr + unknown.stdout


def test_what_is_wrong_is_not_timed():
    x = torch.arange(1.0, 5.0)
    right, wrong = Rival("right", lambda: [2 * x]), Rival("wrong", lambda: [2 * x + 0.01])
    own = Rival("own", lambda: [3 * x], "3 x", lambda: [3 * x.double()])
    copy = Rival("copy", lambda: [x])
    case = Case((4,), right.run, lambda: [2 * x.double()], [right, wrong, own], [copy])
    assert list(test_entries.contenders(case)) == ["ours", "copy", "right", "wrong", "own"]
    refusals = {
        name: test_entries.refusal(case, rival, TINY)
        for name, rival in test_entries.contenders(case).items()
    }
    assert refusals.pop("wrong").startswith("WRONG")
    assert set(refusals.values()) == {""}


def test_entries_without_rows_are_known_by_their_names():
    """Only those are left out."""
    for entry in run.all_entries():
        named = any(word in entry.name for word in test_entries.CURVES)
        if named and "with depth" not in entry.name:  # processes: test_benchmarks.py runs them
            assert isinstance(harness.measure(entry, TINY), Curve), entry.name
