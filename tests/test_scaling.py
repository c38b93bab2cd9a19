"""Scaling curves: exponents are right, measured points are kept, every curve runs and is drawn."""

import math

import pytest
import torch

from benchmarks import scaling, scaling_pictures
from benchmarks.scaling_curves import CURVES, Scaling

PLACE = {"device": "A chip", "threads": 2, "torch": "2", "commit": "abc", "date": "2020-01-01"}
XS = (1, 2, 4, 8, 16)


def curve_of(**options):
    given = {"unit": "evaluations", "above": 2} | options
    return Scaling("doubling", "Doubling", "size", XS, {"ours": 2}, **given)


def measured(curve, xs=XS):
    return [line for x in xs for line in scaling.measured(curve, x, None, PLACE)]


def counts(x):
    return {"ours": 3 * x**2 + (x < 2) * 100, "rival": 5 * x**3}


def test_exponents_are_fitted_above_the_start():
    lines = measured(curve_of(count=counts))
    ours, rival = (scaling_pictures.points(lines, name, "in_units") for name in ("ours", "rival"))
    assert scaling_pictures.exponent(ours, 2) == pytest.approx(2)
    assert scaling_pictures.exponent(rival, 2) == pytest.approx(3)
    assert scaling_pictures.exponent(ours, 0) < 1.5  # the first point lies far above the line
    assert scaling_pictures.exponent(ours, 9) is None  # one point has no slope


def test_a_point_of_the_same_code_and_device_is_measured_once(tmp_path):
    lines = measured(curve_of(count=counts), (1, 2))
    scaling.write(tmp_path / "doubling.csv", lines)
    again = scaling.read(tmp_path / "doubling.csv")
    assert again == lines
    assert scaling.has(again, 2, PLACE)
    assert not scaling.has(again, 4, PLACE)
    for key in ("device", "torch", "commit"):
        assert not scaling.has(again, 2, PLACE | {key: "another"})


def test_the_summary_holds_growth_against_theory(tmp_path):
    curve = curve_of(count=counts)
    scaling.write(tmp_path / "doubling.csv", measured(curve, (2, 4, 8)))
    text = scaling_pictures.summary([(curve, "doubling")], tmp_path, scaling.read)
    assert "| ours | x^2.00 | x^2 | 192 |" in text
    assert "| rival | x^3.00 |  | 2.56e+03 |" in text
    assert "Not measured: 1, 16." in text
    assert "A chip, 2 threads, torch 2, commit abc." in text


def test_the_picture_shows_each_series(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curve = curve_of(count=counts)
    scaling_pictures.draw(curve, measured(curve), tmp_path / "doubling.png")
    (axis,) = plt.gcf().axes
    monkeypatch.undo()
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    plt.close("all")
    assert labels == ["ours:  x^2.00 (theory x^2)", "rival:  x^3.00"]
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert (tmp_path / "doubling.png").stat().st_size > 5000


def test_timed_points_are_ratios_within_rounds(tmp_path):
    """Every curve that is timed, with tiny shapes: what is needed of a point is there."""
    from benchmarks.harness import Setting

    tiny = Setting(tiny=True, budget=0.0)
    threads = torch.get_num_threads()
    for curve in CURVES:
        if curve.count:
            continue
        lines = {line["series"]: line for line in scaling.measured(curve, curve.xs[1], tiny, PLACE)}
        assert curve.same in lines
        assert set(curve.counted) | {"ours"} <= set(lines)
        assert float(lines[curve.same]["in_same"]) == 1.0
        ratio = float(lines["ours"]["in_units"]) / float(lines[curve.same]["in_units"])
        assert math.isfinite(ratio)
        for name, passes in curve.counted.items():
            assert float(lines[name]["in_same"]) == passes(curve.xs[1])
    assert torch.get_num_threads() == threads


def test_counted_points_are_counts():
    by_name = {curve.name: curve for curve in CURVES}
    few, many = (by_name["inverse-contraction"].count(1 / (1 - c)) for c in (0.5, 0.9))
    assert few["ours"] < many["ours"] < many["plain iteration"]
    assert many["plain iteration"] > 3 * few["plain iteration"]
    shallow, deep = (by_name["glow-memory"].count(depth) for depth in (2, 4))
    assert deep["every layer stored"] > 1.8 * shallow["every layer stored"]
    assert deep["ours, reversible"] < 1.1 * shallow["ours, reversible"]


def test_theory_names_series_and_is_the_issues_range():
    ends = {curve.name: (curve.xs[0], curve.xs[-1]) for curve in CURVES}
    assert ends["maf-dimensions"] == (16, 3072)
    assert ends["maf-batch"] == (1, 4096)
    assert ends["pixelcnn-side"] == (8, 128)
    assert ends["inverse-contraction"] == pytest.approx((1 / 0.9, 100))
    assert ends["glow-memory"] == (4, 64)
    assert all(curve.theory for curve in CURVES)


def test_what_is_kept_and_what_is_refused(tmp_path, capsys):
    assert scaling.main(["--curve", "nothing"]) == 2
    assert "maf-batch" in capsys.readouterr().err
    for given in (["--threads", "0"], ["--tiny"]):
        with pytest.raises(SystemExit):
            scaling.arguments(given)
