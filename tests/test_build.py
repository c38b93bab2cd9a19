"""Building and loading: each thing that goes wrong on users' machines ends in one clear sentence."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepgen_ext import _extension

ROOT = Path(__file__).resolve().parents[1]


def run_setup(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs setup.py's functions without building: setuptools.setup does nothing."""
    prelude = (
        "import sys, runpy, setuptools\n"
        "setuptools.setup = lambda **options: None\n"
        "def load(): return runpy.run_path('setup.py')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def sentence(process: subprocess.CompletedProcess) -> str:
    assert process.returncode != 0
    assert "Traceback" not in process.stderr
    return " ".join(process.stderr.split())


def fake_program(folder: Path, name: str, output: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_no_torch():
    said = sentence(run_setup("sys.modules['torch'] = None; load()"))
    assert "torch cannot be imported by the Python that builds" in said
    assert "pip install --no-build-isolation ." in said


def test_no_compiler():
    said = sentence(run_setup("load()['check_compiler']()", CXX="no-such-compiler"))
    assert said == (
        "deepgen_ext: no C++ compiler: `no-such-compiler` is not on PATH. Install g++ 11 or newer."
    )


def test_too_old_a_compiler(tmp_path):
    old = fake_program(tmp_path, "old-g++", "9.4.0")
    said = sentence(run_setup("load()['check_compiler']()", CXX=str(old)))
    assert "9.4.0 is too old: C++20 needs g++ 11 or newer" in said


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"DEEPGEN_CUDA": "0"}, "DEEPGEN_CUDA=0"),
        ({"FAKE": "release 11.8, V11.8.89"}, "nvcc 11.8 is older than 12.0"),
        ({"FAKE": "release 13.0, V13.0.88"}, "has no cuda_runtime.h or libcudart_static.a"),
    ],
)
def test_why_there_is_no_cuda(tmp_path, environment, reason):
    if "FAKE" in environment:
        (tmp_path / "bin").mkdir()
        fake_program(tmp_path / "bin", "nvcc", environment["FAKE"])
        environment = {"CUDA_HOME": str(tmp_path)}
    process = run_setup("print(load()['find_nvcc']())", **environment)
    assert process.stdout.startswith("(None, ")
    assert reason in process.stdout


def test_architectures():
    process = run_setup("print(load()['architectures']())", DEEPGEN_CUDA_ARCHS="8.0 90a")
    assert process.stdout == "['80', '90a']\n"
    said = sentence(run_setup("load()['architectures']()", DEEPGEN_CUDA_ARCHS="hopper"))
    assert "must look like \"80;90\", not 'hopper'" in said


def test_parallel_compilers_are_bounded_by_memory(monkeypatch):
    process = run_setup(
        "import os; os.cpu_count = lambda: 64; os.sysconf = lambda name: "
        "{'SC_PAGE_SIZE': 4096}.get(name, 2**21); print(load()['parallel_jobs']())",
        MAX_JOBS="",
    )
    assert process.stdout == "4\n"  # 8 GiB, 2 GiB a compiler


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ("nothing", True),
        ("the header is newer", False),
        ("the header is gone", False),
        ("no note", False),
        ("an empty note", False),
    ],
)
def test_which_cuda_objects_are_current(tmp_path, change, current):
    source, header, target = (tmp_path / name for name in ("a.cu", "a header.h", "a.o"))
    note = tmp_path / "a.d"
    for age, path in enumerate((target, source, header)):
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    note.write_text(f"{target} : {source} \\\n    {tmp_path}/a\\ header.h\n")
    if change == "the header is newer":
        os.utime(header, (2000, 2000))
    elif change == "the header is gone":
        header.unlink()
    elif change == "no note":
        note.unlink()
    elif change == "an empty note":
        note.write_text("")
    process = run_setup(
        f"import pathlib; print(load()['is_newer_than_its_inputs'](pathlib.Path({str(target)!r})))"
    )
    assert process.stdout == f"{current}\n"


def test_torch_changed_since_the_build(monkeypatch):
    monkeypatch.setattr(_extension, "_build_record", lambda: {"torch": "2.11.0+cu130"})
    if torch.__version__.startswith("2.11"):
        monkeypatch.setattr(_extension, "_build_record", lambda: {"torch": "2.13.0"})
    with pytest.raises(
        ImportError, match=r"was built with torch 2\.\d+.* but torch .* is running"
    ) as e:
        _extension._load()
    assert "pip install --no-build-isolation" in str(e.value)


def test_a_patch_release_or_another_flavour_of_torch_is_no_change(monkeypatch):
    minor = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr(_extension, "_build_record", lambda: {"torch": f"{minor}.99+cu999"})
    assert _extension._load() is _extension._C


def test_compiled_half_missing(tmp_path):
    """A source folder that was never built, as on sys.path when one starts Python in it."""
    package = tmp_path / "deepgen_ext"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = (ROOT / "deepgen_ext/_extension.py").read_text()
    (package / "_extension.py").write_text(source)
    # An editable install would find the real one for it.
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
        "import deepgen_ext._extension"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the compiled half of deepgen_ext is missing: build it")


def test_the_wheel_runs_from_an_empty_directory(tmp_path):
    """Built as users build it, installed elsewhere, trained for a step: nothing leans on the source folder."""
    wheels, site, empty = (tmp_path / name for name in ("wheels", "site", "empty"))
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [
        *pip,
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        str(wheels),
        str(ROOT),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import json, torch, deepgen_ext\n"
        "model = deepgen_ext.models.Glow((1, 8, 8), levels=2, steps=1, hidden_channels=8, n_levels=17)\n"
        "model.loss(torch.randint(0, 17, (4, 1, 8, 8))).backward()\n"
        "print(json.dumps([deepgen_ext.__file__, deepgen_ext.build_info()['ops']]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    file, ops = json.loads(process.stdout)
    assert Path(file).is_relative_to(site)
    assert "affine_coupling" in ops


def test_versions_agree():
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    import deepgen_ext

    assert deepgen_ext.__version__ == written
