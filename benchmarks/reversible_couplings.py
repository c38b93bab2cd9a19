"""A chain of couplings that rebuilds its activations: ours and memcnn's, in time and in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.glow_memory import ROOT, resident_megabytes
from benchmarks.harness import Case, Curve, Entry, Results, Rival, Setting
from benchmarks.peers import NotInstalled, is_installed
from benchmarks.reversible_peers import couplings_of_memcnn
from deepgen_ext.nn.transforms import AffineCoupling, Sequential

SIZE = {"shape": (16, 12, 16, 16), "hidden": 64, "layers": 16}
TINY = {"shape": (2, 4, 4, 4), "hidden": 4, "layers": 4}
DEPTHS = (8, 32, 128)
MEMCNN = "memcnn"
TOLERANCE = 2e-3  # of a gradient's largest entry: float32, through inverses


def make_networks(size: dict, setting: Setting) -> list[nn.Module]:
    """With ELUs: in float32 a rebuilt activation may lie on the other side of a ReLU's kink."""
    torch.manual_seed(0)
    half, hidden = size["shape"][1] // 2, size["hidden"]
    networks = []
    for _ in range(size["layers"]):
        network = nn.Sequential(
            nn.Conv2d(half, hidden, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.ELU(inplace=True),
            nn.Conv2d(hidden, 2 * half, 3, padding=1),
        )
        networks.append(network.to(setting.device, setting.dtype))
    return networks


def ours(networks: list[nn.Module], reversible: bool) -> Sequential:
    layers = [
        AffineCoupling(network, swap=index % 2 == 0, scale_map="sigmoid")
        for index, network in enumerate(networks)
    ]
    return Sequential(*layers, reversible=reversible)


def step(chain: nn.Module, networks: list[nn.Module], x: Tensor, cotangent: Tensor) -> Results:
    """y, and the gradients of x and of all parameters; by `backward`, which memcnn insists on.

    Of a copy of x: memcnn empties what it is given, and adds its gradient twice to a leaf's.
    """
    chain.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = chain(x.clone())
    y = y[0] if isinstance(y, tuple) else y
    kept = y.detach().clone()  # memcnn empties y too
    y.backward(cotangent)
    return kept, x.grad, *(parameter.grad for net in networks for parameter in net.parameters())


def case(setting: Setting) -> Case:
    size = TINY if setting.tiny else SIZE
    networks = make_networks(size, setting)
    x = setting.random(*size["shape"], seed=1)
    cotangent = setting.random(*size["shape"], seed=2)
    theirs = copy.deepcopy(networks)
    peer = couplings_of_memcnn(theirs)
    missing = peer.reason if isinstance(peer, NotInstalled) else ""

    def expected() -> Results:
        doubles = [copy.deepcopy(network).double() for network in networks]
        return step(ours(doubles, reversible=False), doubles, x.double(), cotangent.double())

    def run(reversible: bool) -> Callable[[], Results]:
        return partial(step, ours(networks, reversible), networks, x, cotangent)

    def networks_alone(times: int) -> Results:
        half = x.shape[1] // 2
        results = []
        for network in networks:
            with torch.no_grad():
                for _ in range(times - 1):
                    network(x[:, :half])
            leaf = x[:, :half].detach().requires_grad_()
            weights = [leaf, *network.parameters()]
            results += torch.autograd.grad(network(leaf), weights, cotangent)
        return results

    return Case(
        (size["layers"], *size["shape"]),
        run(reversible=True),
        expected,
        [
            Rival("ours, activations stored", run(reversible=False)),
            Rival(MEMCNN, missing=missing)
            if missing
            else Rival(MEMCNN, partial(step, peer, theirs, x, cotangent)),
        ],
        [
            Rival("its conv nets", partial(networks_alone, 1)),
            Rival("with their forward twice", partial(networks_alone, 2)),
        ],
        tolerance=TOLERANCE,
        notes=(
            "y and the gradients of x and of all parameters; ours computes the log-det besides, "
            "which memcnn does not have",
        ),
    )


def memory(setting: Setting) -> Curve:
    """Growth of the peak resident size over one step, each in a process of its own."""
    modes = ("stored", "reversible", *([MEMCNN] if is_installed(MEMCNN) else []))
    rows = []
    for depth in (2, 4) if setting.tiny else DEPTHS:
        cells = [str(depth)]
        for mode in modes:
            command = [sys.executable, "-m", "benchmarks.reversible_couplings", mode, str(depth)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{mode}, {depth}: {done.stderr.strip().splitlines()[-1]}")
            cells.append(done.stdout.split()[-1])
        rows.append(tuple(cells))
    columns = ("couplings", *(f"{mode}: MB" for mode in modes))
    note = f"growth of the process in one training step, gradients of parameters included; {SIZE}"
    return Curve(columns, rows, (note,))


def main(mode: str, depth: str) -> None:
    size = SIZE | {"layers": int(depth)}
    networks = make_networks(size, Setting())
    x, cotangent = (Setting().random(*size["shape"], seed=seed) for seed in (1, 2))
    chain = (
        couplings_of_memcnn(networks) if mode == MEMCNN else ours(networks, mode == "reversible")
    )
    before = resident_megabytes("VmRSS")
    step(chain, networks, x, cotangent)
    print(f"{resident_megabytes('VmHWM') - before:.0f}")


ENTRIES = [
    Entry("reversible couplings step", case),
    Entry("reversible couplings memory", memory),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
