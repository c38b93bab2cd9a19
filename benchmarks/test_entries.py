"""Every row of every entry as a benchmark, grouped by entry: run.py's view for pytest-benchmark.

    pytest benchmarks --benchmark-only --filter coupling --benchmark-columns=median,iqr,rounds

Each result is checked before it is timed, as run.py does. Rows are timed one after another, not in
interleaved rounds, so that a busy neighbour disturbs ratios: figures that are quoted are run.py's.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable

import pytest
import torch

from benchmarks import harness, run
from benchmarks.harness import OURS, Case, Entry, Results, Rival, Setting

CURVES = ("memory", "evaluations")  # in the names of entries that are tables of their own


def setting_of(config: pytest.Config, tiny: bool) -> Setting:
    option = config.getoption
    return Setting(torch.device(option("--device")), getattr(torch, option("--dtype")), tiny, 0.0)


def contenders(case: Case) -> dict[str, Rival]:
    return {r.name: r for r in [Rival(OURS, case.ours), *case.floors, *case.rivals]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The names of an entry's rows come from building it with tiny shapes."""
    config = metafunc.config
    torch.set_num_threads(config.getoption("--threads"))
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    chosen = [e for e in run.all_entries() if config.getoption("--filter") in e.name]
    chosen = [e for e in chosen if not any(word in e.name for word in CURVES)]
    if not chosen:
        raise pytest.UsageError(
            f"--filter {config.getoption('--filter')}: no entry has it in its name"
        )
    tiny = setting_of(config, tiny=True)
    rows = [(entry, name) for entry in chosen for name in contenders(entry.build(tiny))]
    names = [f"{entry.name}: {row}" for entry, row in rows]
    metafunc.parametrize(("entry", "row"), rows, ids=names)


@functools.lru_cache(maxsize=1)  # rows of one entry come one after another
def built(entry: Entry, setting: Setting) -> Case:
    gc.collect()
    return entry.build(setting)


def refusal(case: Case, rival: Rival, setting: Setting) -> str:
    """Why the row must not be timed, or nothing: the harness measures it as if it were ours."""
    expected = rival.expected
    if expected is None and rival.name not in {floor.name for floor in case.floors}:
        expected = case.expected
    if expected is None:
        return ""
    alone = Case(case.shape, rival.run, expected, [], [], tolerance=case.tolerance)
    quick = Setting(setting.device, setting.dtype, tiny=True, budget=0.0)
    return harness.measure(Entry(rival.name, lambda _: alone), quick).rows[0].refused


def synchronised(function: Callable[[], Results], device: torch.device) -> Callable[[], Results]:
    if device.type == "cpu":
        return function

    def finished() -> Results:
        results = function()
        torch.cuda.synchronize()
        return results

    return finished


def test_entry(entry: Entry, row: str, benchmark, request: pytest.FixtureRequest) -> None:
    setting = setting_of(request.config, request.config.getoption("--tiny"))
    case = built(entry, setting)
    rival = contenders(case)[row]
    if rival.missing:
        pytest.skip(rival.missing)
    refused = refusal(case, rival, setting)
    if refused:
        pytest.fail(refused)
    benchmark.group = f"{entry.name}  {tuple(case.shape)}"
    benchmark.name = row
    benchmark.extra_info.update(bytes=case.bytes, arithmetic=rival.arithmetic)
    function = synchronised(rival.run, setting.device)
    if setting.tiny:
        benchmark.pedantic(function, rounds=2, iterations=1)
    else:
        benchmark(function)
