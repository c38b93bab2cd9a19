"""The scaling curves: what is measured at each point, and how it should grow.

Where time is measured, it is in units of one fixed piece of work that runs in the same rounds, so
that points hold on a busy machine and still show the growth; and of one piece as large as the point.
Counts (evaluations, bytes) are what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks import glow_memory, peers
from benchmarks.fixed_point_peers import loosest, picard, solvers
from benchmarks.harness import Case, Rival, Setting
from benchmarks.ops import (
    affine_coupling,
    ancestral_sample,
    autoregressive_inverse,
    power_iteration,
)
from deepgen_ext.models import PixelCNN
from deepgen_ext.nn import fixed_point_inverse

UNIT = "unit"  # the name of the fixed piece of work
ONE_THREAD = "ours, one thread"
ROW = 4 * 4 * 64 + 4  # bytes of a coupling's row: three inputs, an output, a log-det
ERROR = 1e-6  # of the inverses that are counted


@dataclass(frozen=True)
class Scaling:
    """One curve. `case` gives what is timed at x, `count` gives series -> figure instead.

    `theory` says of some series with which power of x they grow. `unit` names the fixed work, `same`
    the work of the point's own size. `above`: x from which growth is fitted.
    """

    name: str
    title: str
    x_label: str
    xs: Sequence[float]
    theory: dict[str, float]
    case: Callable[[float, Setting], Case] | None = None
    count: Callable[[float], dict[str, float]] | None = None
    unit: str = ""
    same: str = ""
    above: float = 0.0
    budget: float = 1.5  # seconds a point
    notes: str = ""
    counted: dict[str, Callable[[float], float]] = field(default_factory=dict)  # in units of `same`


def _timed(case: Case, unit: Rival, keep: Sequence[str] = (), one_thread: bool = True) -> Case:
    """The case with its first floor, the unit, ours on one thread and the rivals to keep."""
    rivals = [r for r in case.rivals if any(r.name.startswith(word) for word in keep)]
    if one_thread and torch.get_num_threads() > 1:

        def alone():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return case.ours()
            finally:
                torch.set_num_threads(threads)

        rivals.insert(0, Rival(ONE_THREAD, alone))
    floors = [dataclasses.replace(case.floors[0], expected=None), unit]
    return dataclasses.replace(case, rivals=rivals, floors=floors)


def _inverse(dimensions: int, batch: int, hidden: int, unit: tuple[int, int, int], s: Setting):
    """The masked inverse against one pass of its net; the D-pass loop where it is short."""

    def case(dimensions: int, batch: int, hidden: int) -> Case:
        sizes = (hidden, hidden)
        return autoregressive_inverse.case(int(dimensions), int(batch), s, sizes)

    fixed = case(*unit).floors[0]
    keep = ["eager incremental"] if batch <= 256 else []
    keep += ["nflows"] if dimensions <= 48 else []
    return _timed(case(dimensions, batch, hidden), Rival(UNIT, fixed.run), keep)


def _image(side: int, channels: int, batch: int, unit: tuple[int, int, int], s: Setting) -> Case:
    def case(side: int, channels: int, batch: int) -> Case:
        options = {"layers": 5, "channels": int(channels), "n_levels": 64}
        shape = (1, int(side), int(side))
        return ancestral_sample.case(PixelCNN, options, shape, int(batch), side <= 8, s)

    keep = ["eager incremental"] if side <= 32 else []
    keep += ["naive"] if side <= 8 else []
    return _timed(case(side, channels, batch), Rival(UNIT, case(*unit).floors[0].run), keep)


def _coupling(size: float, setting: Setting) -> Case:
    case = affine_coupling.case((int(size) // ROW, 64), "exp", setting)
    unit = affine_coupling.case((4096, 64), "exp", setting).floors[0]
    return _timed(case, Rival(UNIT, unit.run), ["eager", "torch.compile", "nflows"])


def _spectral(layers: float, setting: Setting) -> Case:
    """Norms and W / sigma of layers of 128 -> 128 channels, 3x3."""
    channels = [(128, 128)] * int(layers)
    case = power_iteration.case(False, setting, channels)
    unit = power_iteration.case(False, setting, channels[:1]).floors[0]
    keep = ["eager", "torch.compile", "torch's parametrization"]
    return _timed(case, Rival(UNIT, unit.run), [*keep[:1], *keep[2:]])


def _evaluations(distance: float) -> dict[str, float]:
    """Evaluations of g, of contraction 1 - 1 / distance, to a true error of ERROR."""
    lipschitz = 1 - 1 / distance
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(64, 64, generator=generator).double())[0]
    x = torch.randn(100, 64, generator=generator).double()
    calls = 0

    def g(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return lipschitz * torch.tanh(x @ q.T) @ q

    y = x + g(x)
    counts = {}
    found = [s for s in solvers() if not isinstance(s, peers.NotInstalled)]
    ways = {"ours": None, "plain iteration": picard} | {s.name: s.solve for s in found}
    for name, solve in ways.items():
        try:
            with torch.no_grad():
                if solve is None:
                    calls = 0
                    fixed_point_inverse(g, y, lipschitz=lipschitz, tol=ERROR)
                else:
                    tol, error = loosest(partial(solve, g, y), x, ERROR)
                    if not error <= ERROR:
                        continue
                    calls = 0
                    solve(g, y, tol)
        except RuntimeError:  # torchdeq's solves are singular here and there
            continue
        counts[name] = calls
    return counts


def _memory(depth: float) -> dict[str, float]:
    """MB that autograd keeps in one step of a Glow on (16, 3, 32, 32)."""
    return {
        "every layer stored": glow_memory.measure_memory("stored", int(depth), False)[0],
        "ours, reversible": glow_memory.measure_memory("reversible", int(depth), False)[0],
    }


CURVES = [
    Scaling(
        "maf-dimensions",
        "Samples of a masked flow, by its dimensions D (batch 16, two hidden layers of D)",
        "dimensions D",
        (16, 48, 128, 384, 784, 1536, 3072),
        {"ours": 2, "a pass": 2, "eager incremental": 2, "D passes": 3},
        lambda x, s: _inverse(x, 16, x, (384, 16, 384), s),
        unit="a pass at D = 384",
        same="a pass",
        above=300,
        counted={"D passes": lambda x: x},
        notes="Of the two parts of ours, D steps that wait for one another and half of a pass's "
        "multiply-adds, the first is the larger up to about D = 1000.",
    ),
    Scaling(
        "maf-batch",
        "Samples of a masked flow of 784 dimensions, by their number (hidden layers 512x2)",
        "samples",
        (1, 4, 16, 64, 256, 1024, 4096),
        {"ours": 1, "a pass": 1, "eager incremental": 1},
        lambda x, s: _inverse(784, x, 512, (784, 64, 512), s),
        unit="a pass of 64 samples",
        same="a pass",
        above=16,
        counted={"784 passes": lambda x: 784},
    ),
    Scaling(
        "pixelcnn-side",
        "One image of a PixelCNN of 5 layers, 32 channels, by its side",
        "side of the image",
        (8, 16, 32, 64, 128),
        {"ours": 2, "a pass": 2, "eager incremental": 2, "a pass a pixel": 4},
        lambda x, s: _image(x, 32, 1, (32, 32, 1), s),
        unit="a pass of 32x32 pixels",
        same="a pass",
        above=16,
        counted={"a pass a pixel": lambda x: x * x},
    ),
    Scaling(
        "pixelcnn-channels",
        "Four images of 16x16 pixels of a PixelCNN of 5 layers, by its channels",
        "channels",
        (16, 32, 64, 128, 256),
        {"ours": 2, "a pass": 2, "eager incremental": 2},
        lambda x, s: _image(16, x, 4, (16, 64, 4), s),
        unit="a pass of 64 channels",
        same="a pass",
        above=64,
        counted={"a pass a pixel": lambda x: 256},
    ),
    Scaling(
        "coupling-bytes",
        "An affine coupling (exp, rows of 64), by the bytes it has to move",
        "bytes to read and write",
        tuple(ROW * rows for rows in (16, 128, 1024, 8192, 65536, 524288)),
        {"ours": 1, "a copy": 1, "eager": 1},
        _coupling,
        unit="a copy of 4.2 MB",
        same="a copy",
        above=8e6,
        notes="Rows of 64 numbers. Below a megabyte the cost is that of a call.",
    ),
    Scaling(
        "spectral-layers",
        "Norms and W / sigma of layers of 128 channels, 3x3, in one call, by their number",
        "layers",
        (1, 2, 4, 8, 16, 32, 64),
        {"ours": 1, "a copy": 1, "eager": 1},
        _spectral,
        unit="a copy for one layer",
        same="a copy",
        above=4,
        notes="A copy: as many bytes as reading W twice and writing it once.",
    ),
    Scaling(
        "inverse-contraction",
        f"Evaluations of g to invert x + g(x) to {ERROR:.0e}, by its contraction L",
        "1 / (1 - L)",
        tuple(1 / (1 - value) for value in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)),
        {"plain iteration": 1},
        count=_evaluations,
        unit="evaluations",
        above=5,
        notes="L = 0.1 ... 0.99; g = L Q'tanh(Qx) of 64 dimensions, 100 samples, float64. Ours stops "
        "by its bound, the others with the loosest tolerance that suffices.",
    ),
    Scaling(
        "glow-memory",
        "Memory that a training step of a Glow keeps for its gradient, by depth",
        "steps of flow",
        (4, 8, 16, 32, 64),
        {"every layer stored": 1, "ours, reversible": 0},
        count=_memory,
        unit="MB",
        above=8,
        notes="(16, 3, 32, 32), hidden 64; most bytes that autograd keeps at once.",
    ),
]
NAMES = {"pass": "a pass", "one pass, masks applied": "a pass", "copy": "a copy"}
