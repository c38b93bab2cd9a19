"""What autograd keeps of a Glow training step, stored and reversible, as the number of steps grows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import Curve, Entry, Setting
from benchmarks.models import make_batch, make_glow

DEPTHS = (4, 8, 16, 32)
ROOT = Path(__file__).resolve().parents[1]


def _memory(setting: Setting) -> Curve:
    """Peak memory of a training step as the number of steps grows, each in its own process."""
    rows = []
    for depth in (1, 2) if setting.tiny else DEPTHS:
        cells = [str(depth)]
        for mode in ("stored", "reversible"):
            command = [sys.executable, "-m", "benchmarks.glow_memory", mode, str(depth)]
            command += ["tiny" if setting.tiny else "full"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{mode}, {depth} steps: {done.stderr.strip().splitlines()[-1]}")
            kept, resident = done.stdout.split()[-2:]
            cells += [kept, resident]
        rows.append(tuple(cells))
    columns = ("steps", "stored: graph MB", "process MB", "reversible: graph MB", "process MB")
    notes = (
        "graph: most bytes that autograd keeps at once, parameters excluded;",
        "process: growth of the peak resident size over one training step.",
        "(3, 32, 32), levels=1, hidden 64, batch 16.",
    )
    return Curve(columns, rows, notes)


class KeptBytes:
    """Most bytes that autograd keeps alive at once, each storage counted once."""

    def __init__(self, model: nn.Module) -> None:
        self.excluded = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.users: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor.detach() if tensor.is_leaf else tensor)

    def add(self, storage: torch.UntypedStorage, change: int) -> None:
        key = storage.data_ptr()
        if key in self.excluded:
            return
        before = self.users.get(key, 0)
        self.users[key] = before + change
        if before == 0 or self.users[key] == 0:
            self.now += change * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Kept:
    def __init__(self, counter: KeptBytes, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        counter.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.counter.add(self.tensor.untyped_storage(), -1)


def measure_memory(mode: str, depth: int, tiny: bool) -> tuple[float, float]:
    """(MB that autograd keeps, MB by which this process grows) in one training step."""
    size = {"shape": (3, 32, 32), "levels": 1, "steps": depth, "hidden": 64, "batch": 16}
    if tiny:
        # images still large beside the C x C matrices of the steps, which are kept in either mode
        size |= {"shape": (1, 8, 8), "hidden": 4, "batch": 32}
    model = make_glow(size, Setting(), reversible=mode == "reversible")
    levels, noise = make_batch(size, Setting())
    model.initialize(levels, noise=noise)
    parameters = list(model.parameters())

    def step() -> None:
        torch.autograd.grad(model.loss(levels, noise=noise), parameters)

    before = resident_megabytes("VmRSS")
    step()
    grown = resident_megabytes("VmHWM") - before
    counter = KeptBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda kept: kept.tensor):
        step()
    return counter.peak / 1e6, grown


def resident_megabytes(field: str) -> float:
    """MB, of this process alone (getrusage would report the parent's peak); nan where unknown."""
    path = Path("/proc/self/status")
    if not path.exists():
        return float("nan")
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def _main(mode: str, depth: str, tiny: str) -> None:
    print("{:.1f} {:.0f}".format(*measure_memory(mode, int(depth), tiny == "tiny")))


ENTRIES = [Entry("glow memory with depth", _memory)]

if __name__ == "__main__":
    _main(*sys.argv[1:])
