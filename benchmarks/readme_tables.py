"""The measured tables of the READMEs: which entry and which rows each of their numbers is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.measured_tables import Excerpt, Ratio, Table

RECORD = "amd-epyc"  # the device as records are called, of all tables
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
    f"{RECORD}-accelerate",
    "python benchmarks/run.py --filter accelerate --save",
    ("", "nflows", "normflows", "zuko"),
    [_accelerated(784), _accelerated(64)],
)
TABLES: dict[str, Table | Excerpt] = {
    "sampling": Table(
        f"{RECORD}-pixelcnn",
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
        f"{RECORD}-affine-coupling-image",
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
        RECORD,
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
