"""The measured tables of the READMEs: which entry and which rows each of their numbers is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import partial

from benchmarks.measured_tables import Excerpt, Ratio, Table

DEVICE = "intel-xeon"  # as the names of its records begin
PASS = "one pass, masks applied"
_drawn = partial(Ratio, to=PASS)
PEERS = ("nflows", "normflows", "FrEIA", "zuko")
_COUPLING_ROWS = ("torch.compile", "eager", *PEERS)
_COUPLING_HEAD = ("", "ours", "torch.compile", "eager torch", *PEERS)


def _filtered(words: str) -> tuple[str, str]:
    """The record of the entries whose names contain the words, and the command that writes it."""
    record = re.sub(r"[^a-z0-9]+", "-", f"{DEVICE} {words}".lower())
    return record, f"python benchmarks/run.py --filter {shlex.quote(words)} --save".replace(
        "'", '"'
    )


def _sampling(label: str, entry: str, passes: int, incremental: bool) -> tuple[str, list]:
    rival = _drawn(entry, "eager incremental") if incremental else ""
    return label, [_drawn(entry, bold=True), rival, f"{passes} passes"]


def _against(label: str, entry: str, without: Sequence[str] = (), to: str = "copy") -> tuple:
    rivals = ["" if r in without else Ratio(entry, r, to) for r in _COUPLING_ROWS]
    return label, [Ratio(entry, to=to, bold=True), *rivals]


def _layer(label: str, kind: str) -> tuple[str, list[Ratio]]:
    entry = f"half_coupling image {kind}"
    rivals = "ours: chunk, affine_coupling, cat", "torch.compile", "eager"
    return label, [Ratio(entry, bold=True), *(Ratio(entry, rival) for rival in rivals)]


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


def _before(entry: str) -> Ratio:
    return Ratio(f"accelerate {entry}", "before", "ours", spread=True)


def _flow(label: str, name: str, calls: Sequence[str]) -> tuple[str, list[Ratio]]:
    return label, [_before(f"{name} {call}") for call in calls]


def _norms(label: str, name: str, has_eval: bool = True) -> tuple[str, list[Ratio | str]]:
    passes = [_before(f"spectral norm {name} {kind}") for kind in ("forward", "forward+backward")]
    return label, [*passes, _before(f"spectral norm {name} eval") if has_eval else ""]


def _step(label: str, entry: str) -> tuple[str, list[Ratio]]:
    rivals = (
        "ours, reversible",
        "eager: the same, ops in plain torch",
        "torch.compile of that",
    )
    return label, [
        Ratio(entry, to=NETS, bold=True, spread=True),
        *(Ratio(entry, rival, NETS, spread=True) for rival in rivals),
    ]


NETS = "convolutions, channels first"
VECTORS = "log prob", "sample", "training step"
PICTURES = "inverse", "forward", "step to z"
GRAY = "PixelCNN 7x64 sampling, batch"
_accelerate = Table(
    *_filtered("accelerate"),
    ("", "nflows", "normflows", "zuko"),
    [_accelerated(784), _accelerated(64)],
)
TABLES: dict[str, Table | Excerpt] = {
    "sampling": Table(
        *_filtered("PixelCNN"),
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
        *_filtered("affine_coupling image"),
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
    "layers": Table(
        *_filtered("half_coupling image"),
        ("", "ours", "`affine_coupling` apart", "torch.compile", "eager torch"),
        [
            _layer("exp, forward", "exp forward"),
            _layer("exp, forward + backward", "exp forward+backward"),
            _layer("sigmoid, forward", "sigmoid forward"),
            _layer("sigmoid, forward + backward", "sigmoid forward+backward"),
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
    "glow": Table(
        *_filtered("glow step"),
        ("", "ours", "ours, reversible", "eager torch", "torch.compile"),
        [
            _step("digits, 8x8, hidden 64, batch 64", "glow step digits"),
            _step("3x32x32, hidden 128, batch 16", "glow step 3x32x32"),
        ],
    ),
    "flows": Table(
        *_filtered("accelerate"),
        ("", "log-density, or to z", "sampling, or to x", "training step"),
        [
            _flow("nflows, affine couplings", "nflows affine couplings", VECTORS),
            _flow("nflows, spline couplings", "nflows spline couplings", VECTORS),
            _flow("normflows, affine couplings", "normflows affine couplings", VECTORS),
            _flow("normflows, spline couplings", "normflows spline couplings", VECTORS),
            _flow("FrEIA, `GLOWCouplingBlock`", "FrEIA GLOW", VECTORS),
            _flow("FrEIA, `AllInOneBlock`", "FrEIA AllInOne", VECTORS),
            _flow(
                "the same, learned permutations", "FrEIA AllInOne, learned permutations", VECTORS
            ),
            _flow("zuko, NICE", "zuko NICE affine", VECTORS),
            _flow("zuko, NICE with splines", "zuko NICE spline", VECTORS),
            _flow("normflows, `GlowBlock`, 8x8", "normflows Glow 8x8", PICTURES),
            _flow("normflows, `GlowBlock`, 16x16", "normflows Glow 16x16", PICTURES),
            (
                "normflows, `Residual` of an MLP, in eval mode",
                ["", _before("normflows residual inverse MLP"), ""],
            ),
            (
                "the same, convolutions",
                ["", _before("normflows residual inverse convolutions"), ""],
            ),
        ],
    ),
    "norms": Table(
        *_filtered("accelerate"),
        ("", "forward", "forward + backward", "eval mode"),
        [
            _norms("parametrization, 20 `Linear` 64", "parametrization 20 Linear 64"),
            _norms(
                "parametrization, 20 convolutions of 16 channels", "parametrization 20 convs 16"
            ),
            _norms("parametrization, critic of 3 M weights", "parametrization critic"),
            _norms(
                "parametrization, 20 convolutions, 11 M weights", "parametrization 20 convs 11 M"
            ),
            _norms("hook, 20 `Linear` 64", "hook 20 Linear 64", False),
            _norms("hook, 20 convolutions of 16 channels", "hook 20 convs 16", False),
            _norms("hook, critic of 3 M weights", "hook critic", False),
            _norms("hook, 20 convolutions, 11 M weights", "hook 20 convs 11 M", False),
        ],
    ),
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
