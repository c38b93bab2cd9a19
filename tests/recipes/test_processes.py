"""Runs in processes of their own: two of them train the same model as one, and a killed one is
continued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deepgen_ext.recipes import checkpoint
from deepgen_ext.recipes.run import Settings
from deepgen_ext.recipes.train import train

COMMAND = [
    *(
        sys.executable,
        "-m",
        "deepgen_ext.cli",
        "train",
        "glow",
        "--data",
        "digits",
        "--accelerator",
        "cpu",
    ),
    *("--set", "levels=1", "--set", "steps=1", "--set", "hidden_channels=8"),
    *("--batch-size", "16", "--warmup-steps", "5", "--log-every", "5"),
]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same number of threads there and here, without which bitwise comparison would ask for too
    much.
    """
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def test_two_processes_train_the_model_of_one(
    tiny: Callable[..., Settings], tmp_path: Path, screen: Console, environment: dict[str, str]
) -> None:
    train(tiny(max_steps=12, precision="64"), tmp_path / "one", console=screen)
    arguments = [
        "--max-steps",
        "12",
        "--precision",
        "64",
        "--devices",
        "2",
        "--out",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(
        COMMAND + arguments, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 x cpu") == 1  # only the first process speaks
    one, two = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert len(two["random"]) == 2
    for key, value in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_a_mistake_ends_both_processes(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--max-steps", "2", "--devices", "2", "--out", str(tmp_path / "file" / "run")]
    done = subprocess.run(
        COMMAND + arguments, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("cannot be made") == 1
    assert "Traceback" not in done.stderr


KILLED_WHILE_SAVING = """
import os, signal, sys
from deepgen_ext import cli
from deepgen_ext.recipes import checkpoint

write, saves = checkpoint._write, 0

def killed_at_the_third(file, content):
    global saves
    saves += 1
    if saves == 3:
        file.write(content[: len(content) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, content)

checkpoint._write = killed_at_the_third
cli.app(sys.argv[1:])
"""


def test_sigkill_while_saving_and_resume(
    tiny: Callable[..., Settings], tmp_path: Path, screen: Console, environment: dict[str, str]
) -> None:
    arguments = ["--max-steps", "1000", "--checkpoint-every", "4"]
    arguments += ["--out", str(tmp_path / "killed")]
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, *COMMAND[3:], *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.pt")["step"] == 8
    settings = tiny(max_steps=15, checkpoint_every=1000)
    train(settings, tmp_path / "killed", resume=True, console=screen)
    train(settings, tmp_path / "whole", console=screen)
    killed, whole = (
        checkpoint.load(tmp_path / name / "checkpoint.pt")["parameters"]
        for name in ("killed", "whole")
    )
    for key, value in whole.items():
        assert torch.equal(killed[key], value), key
    leftovers = list((tmp_path / "killed").glob("*.partial"))
    assert leftovers == []
