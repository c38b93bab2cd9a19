"""Benchmarks: every entry runs, a wrong rival is not timed, the figures are what they say."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import compare, harness, peers, record, run
from benchmarks.harness import Case, Curve, Entry, Result, Rival, Row, Setting, Summary
from deepgen_ext.profiling import measurement

ROOT = Path(__file__).resolve().parents[1]
TINY = Setting(tiny=True, budget=0.0)
ENTRIES = run.all_entries()
ABOUT = {"device": "A chip (R) 9", "device_type": "cpu", "threads": 2, "dtype": "float32"}
ABOUT |= {"torch": "2", "commit": "abc", "date": "2020-01-01", "tiny": False}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_runs(entry):
    result = harness.measure(entry, TINY)
    text = record.table(entry.name, result, ABOUT)
    assert max(map(len, text.splitlines())) <= record.WIDTH
    if isinstance(result, Curve):
        assert len(result.rows) == 2
        return
    assert result.rows[0].name == "ours"
    # A peer's model that has been accelerated is held against itself before.
    assert result.floors or [row.name for row in result.rows] == ["ours", "before"]
    for row in result.rows:
        known = ("is not installed", "cannot be differentiated twice")
        assert len(row.times) == 2 or row.refused.endswith(known), row.refused


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_checked_too(dtype):
    for name in (
        "affine_coupling image sigmoid forward",
        "channel_affine tabular forward+backward",
    ):
        entry = next(entry for entry in ENTRIES if entry.name == name)
        result = harness.measure(entry, Setting(dtype=dtype, tiny=True))
        assert result.rows[0].times, result.rows[0].refused


def case(rival, floors=()):
    x = torch.arange(1.0, 5.0)
    return Case((4,), lambda: [2 * x], lambda: [2 * x.double()], [rival], floors, bytes=32)


def measured(rival, floors=()):
    return harness.measure(Entry("doubling", lambda _: case(rival, floors)), TINY)


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (lambda x: [2 * x + 1e-2], "off by"),
        (lambda x: [-2 * x], "off by"),
        (lambda x: [x * float("nan")], "off by nan"),
        (lambda x: [2 * x[:3]], "shape"),
        (lambda x: [2 * x, x], "2 results"),
    ],
)
def test_a_wrong_rival_is_refused_and_not_timed(results, reason):
    rival = Rival("wrong", lambda: results(torch.arange(1.0, 5.0)))
    ours, wrong = measured(rival).rows
    assert ours.times
    assert wrong.refused.startswith("WRONG")
    assert reason in wrong.refused
    assert not wrong.times


def test_a_rival_is_held_to_its_own_formula_where_it_has_one():
    threes = [3 * torch.arange(1.0, 5.0)]
    right = Rival("right", lambda: threes, "3 x", lambda: [threes[0].double()])
    wrong = Rival("wrong", lambda: threes, "4 x", lambda: [threes[0].double() * 4 / 3])
    assert measured(right).rows[1].times
    assert not measured(wrong).rows[1].times


def test_nothing_is_timed_where_ours_is_wrong():
    x = torch.ones(4)
    wrong = Case((4,), lambda: [x], lambda: [2 * x], [Rival("right", lambda: [2 * x])], [])
    result = harness.measure(Entry("doubling", lambda _: wrong), TINY)
    assert result.rows[0].refused
    assert not any(row.times for row in result.rows)
    assert "not timed" in record.table("doubling", result, ABOUT)


def test_a_rival_that_breaks_ends_nothing():
    def breaks():
        raise RuntimeError("no compiler\nand more")

    row = measured(Rival("broken", breaks)).rows[1]
    assert row.refused == "failed: RuntimeError: no compiler"


def test_an_entry_that_breaks_ends_nothing():
    def breaks(_):
        raise RuntimeError("no memory")

    result = harness.measure(Entry("broken", breaks), TINY)
    assert "RuntimeError: no memory" in record.table("broken", result, ABOUT)
    kept = record.Record(ABOUT)
    kept.add("broken", result)
    assert "RuntimeError" in json.dumps(kept.as_json())


def test_medians_spreads_and_ratios():
    assert Summary.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Summary(3.0, 2.0)
    ours, floor = Row("ours", [2.0, 6.0, 4.0]), Row("floor", [1.0, 2.0, 4.0], is_floor=True)
    result = Result("entry", (1,), "float32", [ours, floor], bytes=12)
    assert result.ratio(ours, floor) == Summary(2.0, 1.0)  # of 2, 3 and 1: round by round
    assert result.rate(ours) == 3.0
    assert result.ratio(Row("refused"), ours) is None


def test_rounds_are_interleaved_and_rotated(monkeypatch):
    monkeypatch.setattr(measurement, "_cpu_seconds", lambda run, count: (run(), 1.0)[1])
    calls = []
    rows = [(Row(name), partial(calls.append, name)) for name in "abc"]
    measurement._time(rows, TINY)
    assert "".join(calls[-6:]) == "abcbca"


def test_the_copy_floor_moves_the_bytes_it_is_named_for():
    into, fresh = harness.copy_floors(4096, Setting())
    (target,), (copied,) = into.run(), fresh.run()
    assert target.nbytes == copied.nbytes == 2048
    assert torch.equal(target, copied)
    assert copied.std() > 0.5


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda peer: False)
    for name in ("affine_coupling small exp forward", "channel_affine tabular forward"):
        entry = next(entry for entry in ENTRIES if entry.name == name)
        result = harness.measure(entry, TINY)
        assert result.rows[0].times
        assert "nflows is not installed" in record.table(name, result, ABOUT)
    layer = next(entry for entry in ENTRIES if entry.name.startswith("glow layer"))
    text = record.table(layer.name, harness.measure(layer, TINY), ABOUT)
    assert "normflows is not installed" in text


def record_of(ours_times, **about):
    rows = [Row("ours", ours_times), Row("copy", [1.0] * len(ours_times), is_floor=True)]
    kept = record.Record(ABOUT | about)
    kept.add("entry", Result("entry", (1,), "float32", rows, bytes=8))
    return kept


def json_of(ours_times, **about):
    return record_of(ours_times, **about).as_json()


def test_saved_and_compared(tmp_path):
    figures, text = record_of([2.0, 2.1, 2.2]).save(tmp_path / "results")
    assert figures.name == "a-chip-r-9.json"
    assert "A chip (R) 9" in text.read_text()
    before = json.loads(figures.read_text())
    assert before["entries"]["entry"]["rows"]["ours"]["ratio_to"]["copy"]["median"] == 2.1
    assert "do not quote" in before["note"]

    assert compare.regressions(json_of([2.0, 2.1, 2.2]), before) == []
    assert compare.regressions(json_of([2.15, 2.25, 2.35]), before) == []  # within the spreads
    assert compare.regressions(json_of([1.0, 1.0, 1.0]), before) == []
    (slower,) = compare.regressions(json_of([2.5, 2.6, 2.7]), before)
    assert slower == "slower: entry, 2.10 -> 2.60 of the floor"
    (faster,) = compare.improvements(json_of([1.5, 1.6, 1.7]), before)
    assert faster == "faster: entry, 2.10 -> 1.60 of the floor"
    assert compare.improvements(json_of([2.05, 2.05, 2.1]), before) == []  # within the spreads
    assert compare.improvements(json_of([2.5, 2.6, 2.7]), before) == []
    assert compare.improvements(json_of([1.0, 1.0], threads=1), before) == []
    (refusal,) = compare.regressions(json_of([9.0, 9.0], threads=1), before)
    assert refusal.startswith("cannot compare: threads")


def test_a_stopped_run_goes_on(tmp_path):
    first = record_of([2.0, 2.1, 2.2])
    first.add("curve", Curve(("x", "y"), [("1", "2")], ("of a note",)))
    first.save(tmp_path, "some")
    on = record.Record(ABOUT | {"date": "2020-01-02"})  # another day is no other record
    on.resume(tmp_path, "some")
    assert on.entries == json.loads(json.dumps(first.entries))
    assert on.texts == first.texts
    others = record.Record(ABOUT)
    others.resume(tmp_path)  # the whole, of which nothing is there
    assert others.entries == {}
    with pytest.raises(ValueError, match="a-chip-r-9-some.json is of another commit, abc, not def"):
        record.Record(ABOUT | {"commit": "def"}).resume(tmp_path, "some")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC", "AMD EPYC"),
        ("Intel(R) Xeon(R) Processor", "Intel Xeon"),
        ("Intel(R) Core(TM) i7-6700 CPU @ 3.40GHz", "Intel Core i7-6700"),
    ],
)
def test_a_processor_is_called_by_its_name(model, name, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"model name\t: {model}\n")
    assert record._cpu_name() == name


@pytest.mark.parametrize(
    "given",
    [["--save", "--tiny"], ["--resume"], ["--threads", "0"], ["--compare", "nowhere.json"]],
)
def test_options_that_make_no_sense_are_refused(given):
    with pytest.raises(SystemExit):
        run.arguments(given)


def test_the_command():
    command = [sys.executable, "benchmarks/run.py", "--tiny", "--filter"]
    done = subprocess.run([*command, "small exp forward"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "affine_coupling small exp forward" in done.stdout
    unknown = subprocess.run([*command, "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "glow step digits" in unknown.stdout


def test_only_peers_imports_peers():
    names = ("nflows", "normflows", "FrEIA", "zuko", "torchdeq", "memcnn")
    found = [
        path.name
        for folder in ("benchmarks", "deepgen_ext")
        for path in (ROOT / folder).rglob("*.py")
        if any(f"import {n}" in path.read_text() or f"from {n}" in path.read_text() for n in names)
    ]
    assert set(found) == {
        "all_in_one_block.py",
        "chain_peers.py",
        "compat_flows.py",
        "coupling.py",
        "fixed_point_peers.py",
        "freia.py",
        "freia_coupling.py",
        "glow.py",
        "lipschitz_block.py",
        "masked_peers.py",
        "nflows.py",
        "normflows.py",
        "peers.py",
        "residual_peers.py",
        "reversible_peers.py",
        "spline_peers.py",
        "zuko.py",
        "zuko_coupling.py",
        "zuko_univariate.py",
    }
