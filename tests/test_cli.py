"""The command line: what works, and one red sentence with exit code 2 for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason='needs pip install "deepgen_ext[recipes]"')

from PIL import Image
from typer.testing import CliRunner, Result

from deepgen_ext import cli
from deepgen_ext.cli import training

TINY = [
    "--set",
    "levels=1",
    "--set",
    "steps=1",
    "--set",
    "hidden_channels=8",
    "--batch-size",
    "16",
    "--accelerator",
    "cpu",
]


def _run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = _run("train", "glow", "--data", "digits", "--out", out, "--max-steps", 3, *TINY)
    assert result.exit_code == 0, result.output
    assert "step 3/3" in result.output
    assert "bits/dim" in result.output
    return out


def _assert_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    sentence = " ".join(result.stderr.split())
    for word in words:
        assert word in sentence
    assert "Traceback" not in result.output
    assert not isinstance(result.exception, Exception)  # SystemExit and nothing else


@pytest.mark.parametrize(
    "command",
    [
        *("train", "sample", "translate", "evaluate", "energies-table", "hybrid-table"),
        *("divergences", "vanishing-gradient", "mode-coverage", "lipschitz", "loss-and-quality"),
        *("demo", "info"),
    ],
)
def test_help_fits_eighty_columns(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output  # nothing cut off
    assert command in _run("--help").output


def test_help_does_not_wait_for_torch() -> None:
    """The commands import what they need when they run; only the package itself may import
    torch.
    """
    script = (
        "import sys, deepgen_ext; before = set(sys.modules)\n"
        "import deepgen_ext.cli\n"
        "late = {'torch', 'numpy', 'lightning_fabric', 'matplotlib', 'sklearn', 'PIL'} & "
        "(set(sys.modules) - before)\n"
        "assert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_the_extras() -> None:
    """The package imports, and the command says what to install."""
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'typer', 'rich', 'lightning_fabric', 'PIL'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import deepgen_ext\n"
        "import deepgen_ext.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == 'deepgen needs typer: pip install "deepgen_ext[recipes]"'


def test_sample(run_folder: Path, tmp_path: Path) -> None:
    grids = {}
    for name, seed, temperature in (("a", 0, 1.0), ("b", 0, 1.0), ("c", 1, 1.0), ("d", 0, 0.5)):
        out = tmp_path / f"{name}.png"
        result = _run(
            "sample",
            run_folder,
            "--n",
            4,
            "--seed",
            seed,
            "--temperature",
            temperature,
            "--out",
            out,
        )
        assert result.exit_code == 0, result.output
        grids[name] = np.asarray(Image.open(out))
    assert np.array_equal(grids["a"], grids["b"])
    assert not np.array_equal(grids["a"], grids["c"])
    assert not np.array_equal(grids["a"], grids["d"])
    assert _run("sample", run_folder, "--n", 300, "--out", tmp_path / "x.npy").exit_code == 0
    levels = np.load(tmp_path / "x.npy")
    assert levels.shape == (300, 1, 8, 8)
    assert levels.min() >= 0
    assert levels.max() <= 16
    assert (
        len(np.unique(levels[:256].reshape(256, -1), axis=0)) > 200
    )  # chunks do not repeat one another
    assert not np.array_equal(levels[:44], levels[256:])


def test_evaluate(run_folder: Path, tmp_path: Path) -> None:
    result = _run("evaluate", run_folder, "--picture", tmp_path / "pair.png")
    assert result.exit_code == 0, result.output
    for words in (
        "bits/dim",
        "standard error",
        "300 samples",
        "uniform",
        "inverse(forward(x))",
        "step 3",
    ):
        assert words in " ".join(result.output.split())
    assert max(map(len, result.output.splitlines())) <= 80
    assert (tmp_path / "pair.png").exists()
    assert "1497 samples" in _run("evaluate", run_folder, "--split", "train").output
    _assert_sentence(
        _run("evaluate", run_folder, "--data", "two-moons"),
        "was trained on samples of shape (1, 8, 8)",
    )
    _assert_sentence(
        _run("evaluate", run_folder, "--split", "valid"), "--split must be test or train"
    )


def test_resume(run_folder: Path) -> None:
    again = ("train", "glow", "--data", "digits", "--out", run_folder)
    _assert_sentence(_run(*again), "holds a run already", "--resume")
    _assert_sentence(_run(*again, "--resume", "--seed", 4), "--seed 0, not 4")
    _assert_sentence(_run(*again, "--resume", "--set", "levels=2"), "--set levels=1")
    result = _run("train", "glow", "--out", run_folder, "--resume")
    assert result.exit_code == 0
    assert "is at step 3 already" in " ".join(result.output.split())


def test_vectors(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--data", "8-gaussians", "--out", out, "--max-steps", 3, "--accelerator", "cpu")
    assert _run("train", "realnvp", *arguments).exit_code == 0
    assert "nats" in _run("evaluate", out).output
    assert _run("sample", out, "--out", tmp_path / "x.png").exit_code == 0
    assert Image.open(tmp_path / "x.png").size[0] > 800
    assert _run("sample", out, "--n", 7, "--out", tmp_path / "x.npy").exit_code == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    _assert_sentence(
        _run("evaluate", out, "--picture", tmp_path / "y.png"), "these data are vectors"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nowhere"), ("no data called 'nowhere'", "digits")),
        ((), ("--data is missing",)),
        (("--data", "digits", "--set", "depth"), ("--set depth: expected KEY=VALUE",)),
        (("--data", "digits", "--set", "depth=3"), ("no option 'depth'", "its options are")),
        (("--data", "digits", "--set", "levels=4"), ("use --set levels=3",)),
        (("--data", "digits", "--precision", "8"), ("--precision must be one of",)),
        (("--data", "digits", "--max-steps", "0"), ("--max-steps must be at least 1",)),
        (("--data", "digits", "--max-steps", "many"), ("--max-steps",)),
        (("--data", "digits", "--accelerator", "tpu"), ("--accelerator must be one of",)),
        (("--data", "two-moons"), ("glow is a model of images", "realnvp")),
        (("--data", "digits", "--resume"), ("no checkpoint to resume",)),
    ],
)
def test_mistakes_in_train(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    _assert_sentence(_run("train", "glow", "--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


def test_other_mistakes(run_folder: Path, tmp_path: Path) -> None:
    _assert_sentence(
        _run("train", "glwo", "--data", "digits", "--out", tmp_path / "x"), "did you mean glow"
    )
    _assert_sentence(_run("sample", tmp_path / "none"), "no such folder")
    _assert_sentence(_run("sample", tmp_path), "no config.json")
    _assert_sentence(_run("sample", run_folder, "--out", "x.jpg"), ".png or .npy")
    _assert_sentence(
        _run("sample", run_folder, "--accelerator", "tpu"), "--accelerator must be one of"
    )
    (tmp_path / "file").write_text("")
    _assert_sentence(
        _run("sample", run_folder, "--out", tmp_path / "file" / "x.png"), "cannot be written"
    )


def test_a_flow_is_fitted_to_an_energy(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--set", "length=4", "--batch-size", 32, "--accelerator", "cpu")
    result = _run("train", "planar", "--data", "u1", "--out", out, "--max-steps", 3, *options)
    assert result.exit_code == 0, result.output
    assert "on the energy u1, by reverse KL" in result.output
    three_panels = np.asarray(Image.open(out / "samples-000003.png"))
    assert three_panels.shape[1] > 2.5 * three_panels.shape[0]
    picture = tmp_path / "again.png"
    assert _run("sample", out, "--n", 9, "--out", picture).exit_code == 0
    assert np.asarray(Image.open(picture)).shape == three_panels.shape
    assert "KL(p||q), KL(q||p)" in _run("evaluate", out).output
    image = _run("train", "glow", "--data", "u1", "--out", tmp_path / "x")
    _assert_sentence(image, "glow is a model of images")


def test_energies_table(tmp_path: Path) -> None:
    arguments = ("--steps", 2, "--seeds", 2, "--batch-size", 8, "--jobs", 1)
    choice = ("--energy", "u2", "--flow", "planar", "--flow", "coupling", "--length", 2)
    for suffix in ("csv", "md"):
        out = tmp_path / "new" / f"table.{suffix}"
        result = _run("energies-table", *arguments, *choice, "--out", out)
        assert result.exit_code == 0, result.output
        assert "2.200167" in result.output  # log Z
    header, *rows = (tmp_path / "new" / "table.csv").read_text().splitlines()
    assert header == "energy,flow,length,seed,steps,batch_size,kl,standard_error,seconds,log_z"
    assert [row.split(",")[:4] for row in rows] == [
        ["u2", flow, "2", seed] for seed in "01" for flow in ("planar", "coupling")
    ]
    lines = (tmp_path / "new" / "table.md").read_text().splitlines()
    assert lines[0] == "| flow | K | steps | u2 |"
    values = [float(row.split(",")[6]) for row in rows[::2]]
    assert lines[2].startswith(f"| planar | 2 | 2 | {sum(values) / 2:.3f} ± ")
    _assert_sentence(_run("energies-table", "--flow", "glow"), "--flow must be one of planar")
    _assert_sentence(_run("energies-table", "--energy", "u5"), "--energy must be one of u1")
    _assert_sentence(_run("energies-table", "--out", "x.png"), ".csv or .md")


def test_hybrid_table(tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.csv"
    arguments = ("--steps", 1, "--seeds", 1, "--batch-size", 8, "--jobs", 1, "--out", out)
    result = _run("hybrid-table", *arguments, "--body", "coupling", "--weight", "1/D")
    assert result.exit_code == 0, result.output
    assert "lambda=1/D" in result.output
    header, row = out.read_text().splitlines()
    assert header == "data,body,weight,seed,steps,batch_size,accuracy,bits_per_dim,seconds"
    assert row.startswith("digits,coupling,1/D,0,1,8,")
    _assert_sentence(_run("hybrid-table", "--body", "maf"), "--body must be one of coupling")
    _assert_sentence(_run("hybrid-table", "--out", "x.png"), ".csv or .md")


def test_residual_flows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ("--set", "blocks=1", "--set", "hidden=4", "--batch-size", 8, "--max-steps", 2)
    result = _run("train", "residual-flow", "--data", "digits", "--out", out, *small)
    assert result.exit_code == 0, result.output
    assert _run("sample", out, "--n", 4, "--out", tmp_path / "s.png").exit_code == 0
    words = " ".join(_run("evaluate", out).output.split())
    assert "unbiased, 10 terms" in words
    assert "mean of 4 estimates, +-" in words


def test_a_bug_keeps_its_traceback(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("deepgen_ext.recipes.trained.load_model", broken)
    assert isinstance(_run("evaluate", run_folder).exception, KeyError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("additive", "additive"),
        ("true", True),
        ("None", None),
        ("(1, 2)", [1, 2]),
        ("a=b", "a=b"),
    ],
)
def test_values_of_set(text: str, value: object) -> None:
    assert training._options([f"key={text}"]) == {"key": value}


def test_info(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepgen_ext

    facts = {
        "torch": "2.13.0",
        "nvcc": None,
        "cuda_architectures": ["sm_80", "sm_90"],
        "ops": {"affine_coupling": ["cpu"]},
    }
    monkeypatch.setattr(deepgen_ext, "build_info", lambda: facts, raising=False)
    lines = [" ".join(line.split()) for line in _run("info").output.splitlines()]
    assert "torch 2.13.0" in lines
    assert "nvcc none" in lines
    assert "cuda architectures sm_80, sm_90" in lines
    assert "affine_coupling yes -" in lines
    assert "ops" in facts  # the caller's dictionary is left alone


def test_adversarial_models_on_the_command_line(tmp_path: Path) -> None:
    """Trained by the alternating loop, sampled, refused a likelihood in one sentence."""
    common = ("--max-steps", 1, "--batch-size", 8, "--set", "width=4", "--accelerator", "cpu")
    out = tmp_path / "gan"
    assert _run("train", "gan", "--data", "digits", "--out", out, *common).exit_code == 0
    assert (out / "losses.png").exists()
    result = _run("sample", out, "--n", 4, "--out", tmp_path / "s.npy")
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "s.npy").shape == (4, 1, 8, 8)
    _assert_sentence(_run("evaluate", out), "gan is an adversarial model", "no likelihood")
    again = _run("train", "gan", "--out", out, "--resume", "--max-steps", 2, "--set", "width=4")
    assert again.exit_code == 0, again.output
    out = tmp_path / "cyclegan"
    domains = ("--data", "digits:1", "--data-b", "digits:7")
    result = _run("train", "cyclegan", *domains, "--out", out, *common)
    assert result.exit_code == 0, result.output
    assert "digits:1" in result.output
    result = _run("translate", out, "--direction", "b-to-a", "--out", tmp_path / "t.png")
    assert result.exit_code == 0, result.output
    assert "there and back" in result.output
