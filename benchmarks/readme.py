"""Writes the measured tables of the READMEs from benchmarks/results: `python benchmarks/readme.py`.

A table stands between `<!-- measured: NAME -->` and `<!-- end of NAME -->`. Which record, entry and
row each of its numbers is, TABLES says; the line below a table says where and how it was measured.
`--check` writes nothing and exits 1 where a table is not what the records give.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results")
READMES = (Path("README.md"), Path("deepgen_ext/compat/README.md"))


class StaleTable(ValueError):
    """A table that cannot be written: the message says which, and what it lacks."""


@dataclass(frozen=True)
class Ratio:
    """A row's time over another row's in an entry of a table's record."""

    entry: str
    row: str = "ours"
    to: str = "copy"
    bold: bool = False
    spread: bool = False

    def text(self, record: dict[str, Any]) -> str:
        try:
            ratio = record["entries"][self.entry]["rows"][self.row]["ratio_to"][self.to]
        except KeyError as missing:
            raise StaleTable(f"no {missing} for {self.row!r} of {self.entry!r}") from None
        number = _number(ratio["median"])
        number = f"**{number}**" if self.bold else number
        return number + (f" ± {_spread(ratio)}" if self.spread else "")


@dataclass(frozen=True)
class Table:
    """Lines of a label and cells, each a Ratio of this record or a text that nobody measures."""

    record: str  # benchmarks/results/RECORD.json
    command: str
    head: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Ratio | str]]]

    def cells(self, root: Path) -> list[list[str]]:
        record = _read(root, f"{self.record}.json")
        return [
            [label, *(cell if isinstance(cell, str) else cell.text(record) for cell in cells)]
            for label, cells in self.lines
        ]

    def caption(self, root: Path, link: str) -> str:
        about = _read(root, f"{self.record}.json")["about"]
        place = about["device"]
        if about["device_type"] == "cpu":
            place += f", {about['threads']} threads"
        place += f", {about['dtype']}, torch {about['torch']}, commit {about['commit']}"
        return f"{place}: `{self.command}`; [record]({link}/{self.record}.md), with spreads."


@dataclass(frozen=True)
class Excerpt:
    """Rows and columns of a table that a command of `deepgen` writes as Markdown itself."""

    record: str  # benchmarks/results/RECORD.md
    command: str
    head: Sequence[str]
    keys: dict[str, str]  # how the row begins in the record -> its label here
    first: int = 1  # columns of the record before this one are keys

    def cells(self, root: Path) -> list[list[str]]:
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in _read(root, f"{self.record}.md").splitlines()
            if line.startswith("|")
        ]
        known = {" ".join(row[: self.first]).strip("| "): row[self.first :] for row in rows}
        absent = sorted(set(self.keys) - set(known))
        if absent:
            raise StaleTable(f"{self.record}.md has no row {absent[0]!r}")
        return [[label, *(c.strip("| ") for c in known[key])] for key, label in self.keys.items()]

    def caption(self, root: Path, link: str) -> str:
        _, _, note = _read(root, f"{self.record}.md").rpartition("\n\n")
        seeds = re.search(r"mean ± standard deviation of (\d+) seeds", note)
        if not seeds:
            raise StaleTable(f"{self.record}.md does not say how many seeds it has")
        return (
            f"Mean ± standard deviation of {seeds[1]} seeds: `{self.command}`; "
            f"[record]({link}/{self.record}.md)."
        )


def _read(root: Path, name: str) -> Any:
    path = root / RESULTS / name
    if not path.is_file():
        raise StaleTable(f"there is no {RESULTS / name}")
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text


def _number(value: float) -> str:
    """Two significant digits, or whole numbers."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def _spread(ratio: dict[str, float]) -> str:
    """To two significant digits, and no finer than the median."""
    spread = float(f"{ratio['spread']:.2g}")
    return f"{spread:.0f}" if ratio["median"] >= 9.95 else _number(spread)


def generated(name: str, root: Path, readme: Path) -> str:
    """What stands between the markers."""
    table = TABLES[name]
    up = "../" * (len(readme.parts) - 1)
    try:
        lines = [list(table.head), ["---"] * len(table.head), *table.cells(root)]
        caption = table.caption(root, f"{up}{RESULTS}")
    except StaleTable as error:
        raise StaleTable(f"{name}: {error}") from None
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"\n{text}\n\n{caption}\n"


def rewritten(text: str, root: Path, readme: Path) -> str:
    """The text with each of its tables as the records give it."""
    names = re.findall(r"<!-- measured: (.+?) -->", text)
    for name in names:
        if name not in TABLES:
            raise StaleTable(
                f"{readme}: no table is called {name!r}; there are: {', '.join(TABLES)}"
            )
        begin, end = f"<!-- measured: {name} -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise StaleTable(f"{readme}: {name!r} needs one {begin.strip()} and one {end}")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + generated(name, root, readme) + "\n" + end + after
    return text


def main(given: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where one is stale")
    options = parser.parse_args(given)
    stale = []
    for readme in READMES:
        text = (root / readme).read_text()
        try:
            new = rewritten(text, root, readme)
        except StaleTable as error:
            print(error, file=sys.stderr)
            return 2
        if new == text:
            continue
        stale.append(readme)
        if not options.check:
            (root / readme).write_text(new)
            print(f"wrote {readme}")
    if options.check and stale:
        print(f"stale: {', '.join(map(str, stale))}; run python benchmarks/readme.py")
        return 1
    return 0


# ------------------------------------------------------------------ the tables

PASS = "one pass, masks applied"
_drawn = partial(Ratio, to=PASS)
_COUPLING_ROWS = ("torch.compile", "eager", "nflows", "normflows", "FrEIA", "zuko")
_COUPLING_HEAD = ("", "ours", "torch.compile", "eager torch", *_COUPLING_ROWS[2:])


def _sampling(label: str, entry: str, passes: int, incremental: bool) -> tuple[str, list]:
    rival = _drawn(entry, "eager incremental") if incremental else ""
    return label, [_drawn(entry, bold=True), rival, f"{passes} passes"]


def _against(label: str, entry: str, without: Sequence[str] = (), to: str = "copy") -> tuple:
    rivals = ["" if r in without else Ratio(entry, r, to) for r in _COUPLING_ROWS]
    return label, [Ratio(entry, to=to, bold=True), *rivals]


def _accelerated(features: int) -> tuple[str, list[Ratio]]:
    return f"{features} features", [
        Ratio(
            f"accelerate {peer} D={features} batch 64",
            f"{peer} before",
            "ours",
            bold=True,
            spread=True,
        )
        for peer in ("nflows", "normflows", "zuko")
    ]


GRAY = "PixelCNN 7x64 sampling, batch"
_accelerate = Table(
    "amd-epyc-accelerate",
    "python benchmarks/run.py --filter accelerate --save",
    ("", "nflows", "normflows", "zuko"),
    [_accelerated(784), _accelerated(64)],
)
TABLES: dict[str, Table | Excerpt] = {
    "sampling": Table(
        "amd-epyc-pixelcnn",
        "python benchmarks/run.py --filter PixelCNN --save",
        ("", "ours", "careful incremental torch", "a pass a pixel"),
        [
            _sampling(
                "PixelCNN, 7 layers of 64 channels, 7x7 kernels, 28x28, batch 16",
                f"{GRAY} 16",
                784,
                True,
            ),
            _sampling("the same, one image", f"{GRAY} 1", 784, True),
            _sampling("gated PixelCNN, batch 16", f"gated {GRAY} 16", 784, False),
            _sampling(
                "PixelCNN++, 2 blocks of 40 channels, 32x32x3, batch 16",
                "PixelCNN++ 2x40 sampling, batch 16",
                1024,
                False,
            ),
        ],
    ),
    "couplings": Table(
        "amd-epyc-affine-coupling-image",
        'python benchmarks/run.py --filter "affine_coupling image" --save',
        _COUPLING_HEAD,
        [
            _against("tanh", "affine_coupling image tanh forward", ("normflows", "zuko")),
            _against("exp", "affine_coupling image exp forward"),
            _against("sigmoid", "affine_coupling image sigmoid forward", ("FrEIA", "zuko")),
            _against(
                "exp, forward + backward, from and to the conditioner",
                "affine_coupling image exp forward+backward to the conditioner",
            ),
            _against(
                "the same, sigmoid",
                "affine_coupling image sigmoid forward+backward to the conditioner",
                ("FrEIA", "zuko"),
            ),
        ],
    ),
    "elementwise": Table(
        "amd-epyc",
        "python benchmarks/run.py --save",
        _COUPLING_HEAD,
        [
            _against(
                "affine coupling, exp, (1048576, 8) (of a copy into fresh memory)",
                "affine_coupling tabular exp forward",
                to="copy, fresh output",
            ),
            _against(
                "ActNorm, forward + backward, (64, 96, 16, 16)",
                "channel_affine image forward+backward",
                ("zuko",),
            ),
        ],
    ),
    "ablation": Excerpt(
        "ablation",
        "deepgen ablation",
        ("", "bits/dim", "IS", "FID", "precision", "recall"),
        {
            "GAN": "GAN",
            "VAE": "VAE",
            "V-ADE": "V-ADE: flow",
            "AV-GDE": "AV-GDE: critic",
            "AV-ADE": "AV-ADE: both",
        },
    ),
    "accelerate": _accelerate,
    "energies": Excerpt(
        "energies",
        "deepgen energies-table",
        ("K = 32", "U1", "U2", "U3", "U4"),
        {
            "planar 32 4000": "planar",
            "radial 32 4000": "radial",
            "iaf 32 1500": "inverse autoregressive",
            "coupling 32 1500": "affine coupling",
        },
        first=3,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
