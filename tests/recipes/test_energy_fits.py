"""Fits of flows to energies, and the table of their divergences."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from deepgen_ext.recipes import RecipeError, energies_table, energy_fits
from deepgen_ext.recipes.energies import reverse_kl
from deepgen_ext.recipes.energies_table import fill_table, read_table, table_of
from deepgen_ext.recipes.energy_fits import ENERGIES, FLOWS, Fit, Measured, fit_energy, plan_fits


def made_up(flow: str, length: int, energy: str, seed: int, kl: float, steps: int = 9) -> Measured:
    return Measured(Fit(energy, flow, length, seed, steps, 256), kl, 0.001, 60.0)


@pytest.mark.parametrize("flow", FLOWS)
def test_fitting_lowers_the_divergence(flow: str) -> None:
    (fit,) = plan_fits([flow], ["u2"], [3], seeds=1, steps=150, batch_size=128)
    before = fit_energy(dataclasses.replace(fit, steps=1))
    after = fit_energy(fit)
    assert after.kl < before.kl - 0.5
    assert after.kl > -5 * after.standard_error  # a divergence, not only a bound up to log Z
    assert fit_energy(fit).kl == after.kl


def test_each_seed_starts_elsewhere() -> None:
    fits = plan_fits(["planar"], ["u1"], [2], seeds=2, steps=1, batch_size=4)
    first, second = (fit_energy(fit).kl for fit in fits)
    assert abs(first - second) > 0.05  # one step at a twentieth of the learning rate moves less


def test_two_couplings_leave_the_symmetric_plateau_of_u1() -> None:
    """A round Gaussian over the hole of the ring is 2.9 nats away; from the identity, fits stay
    there."""
    (fit,) = plan_fits(["coupling"], ["u1"], [2], seeds=1, steps=400, batch_size=128)
    assert fit_energy(fit).kl < 2


def test_energy_and_learning_rate_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    betas: list[float] = []

    def noted(model, name, latents, beta=1.0):
        betas.append(beta)
        return reverse_kl(model, name, latents, beta)

    monkeypatch.setattr(energy_fits, "reverse_kl", noted)
    (fit,) = plan_fits(["planar"], ["u1"], [1], seeds=1, steps=20, batch_size=4)
    fit_energy(fit)
    *fitted, scored = betas
    assert fitted == [pytest.approx(min(1, 0.01 + step / 10)) for step in range(20)]
    assert scored == 1.0
    paces = [energy_fits._pace(done / 100) for done in range(101)]
    assert paces[0] < 0.1
    assert max(paces) == paces[5] > 0.98
    assert paces[-1] == pytest.approx(0, abs=1e-9)


def test_a_plan_takes_seed_after_seed() -> None:
    fits = plan_fits(None, None, [2], seeds=2, steps=None, batch_size=8)
    assert len(fits) == len(set(fits)) == 2 * len(ENERGIES) * len(FLOWS)
    assert [fit.seed for fit in fits] == sorted(fit.seed for fit in fits)
    assert {fit.steps for fit in fits if fit.flow == "planar"} == {FLOWS["planar"].steps}
    assert {fit.steps for fit in plan_fits(None, None, None, seeds=1, steps=7, batch_size=8)} == {7}


def test_a_table_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = [made_up("planar", 2, "u1", seed, 0.1).fit for seed in range(3)]
    run: list[Fit] = []

    def fitted(left: list[Fit], **_: object):
        for fit in left:
            if len(run) == 2:
                raise KeyboardInterrupt
            run.append(fit)
            yield Measured(fit, 0.1 * fit.seed, 0.001, 2.0)

    monkeypatch.setattr(energies_table, "run_fits", fitted)
    files = [tmp_path / "new" / "t.csv", tmp_path / "t.md"]
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(KeyboardInterrupt):
        fill_table(fits, files, jobs=1, console=console)
    assert run == fits[:2]
    del run[:]
    fill_table(fits, files, jobs=1, console=console)
    assert run == fits[2:]
    assert "2 of 3 fits are done already" in console.file.getvalue()
    assert [m.fit for m in read_table(files[0])] == fits
    assert "| planar | 2 | 9 | 0.100 ± 0.100 |" in files[1].read_text()


def test_the_table_fits_eighty_columns() -> None:
    results = [
        made_up(flow, length, energy, seed, 0.5 + seed, steps=10_000)
        for flow in FLOWS
        for length in (2, 32)
        for energy in ENERGIES
        for seed in range(2)
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(table_of(results[:-1]))  # a seed is missing
    lines = console.file.getvalue().splitlines()
    assert "…" not in console.file.getvalue()
    assert sum("1.000 ± 0.707" in line for line in lines) == 8
    assert [line.split()[:3] for line in lines if line.startswith("coupling")] == [
        ["coupling", "2", "10000"],
        ["coupling", "32", "10000"],
    ]
    assert "of 2 seeds (one seed where there is no ±)" in " ".join(console.file.getvalue().split())
    assert "1.877502" in console.file.getvalue()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(energies_table.COLUMNS) + "\nu1,planar\n"])
def test_what_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RecipeError, match="t.csv: "):
        fill_table([], [tmp_path / "t.csv"], jobs=1, console=Console(file=io.StringIO()))
