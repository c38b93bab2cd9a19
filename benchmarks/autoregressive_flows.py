"""MADE against the same net without masks, in evaluation and training; MAF sampling against a pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import masked_peers, peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import reference
from deepgen_ext.nn import MADE
from deepgen_ext.nn.transforms import MaskedAutoregressive

UNMASKED = "the net without masks"
HIDDEN = 512
GRADIENT_TOLERANCE = 2e-3  # of a gradient's largest entry: float32, through three layers


def _networks(
    features: int, batch: int, setting: Setting
) -> tuple[MADE, nn.Sequential, Tensor, Tensor]:
    """Ours, the same without masks, an input and a cotangent."""
    features, hidden, batch = (6, 8, 2) if setting.tiny else (features, HIDDEN, batch)
    torch.manual_seed(0)
    made = MADE(features, (hidden, hidden)).to(setting.device, setting.dtype)
    plain = nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 2 * features),
    ).to(setting.device, setting.dtype)
    x = setting.random(batch, features, seed=1)
    return made, plain, x, setting.random(batch, 2 * features, seed=2)


def _masked(made: MADE, x: Tensor) -> Tensor:
    """The plain way: each weight is multiplied by its mask in each call."""
    for layer in made.layers[:-1]:
        x = F.relu(F.linear(x, layer.weight * layer.mask, layer.bias))
    last = made.layers[-1]
    return F.linear(x, last.weight * last.mask, last.bias)


def _pass(features: int, batch: int, setting: Setting) -> Case:
    made, plain, x, _ = _networks(features, batch, setting)
    made.eval()

    def quietly(function: Callable[[Tensor], Tensor]) -> Callable[[], Results]:
        def run() -> Results:
            with torch.no_grad():
                return [function(x)]

        return run

    rivals = [
        Rival("eager: masks in each call", quietly(partial(_masked, made))),
        Rival(
            "torch.compile: masks in each call",
            quietly(setting.compiled(lambda x: _masked(made, x))),
        ),
    ]
    for peer in masked_peers.masked_networks(x.shape[1], made.hidden_features[0]):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
            continue
        peer.net.to(x)
        double = copy.deepcopy(peer)
        double.net.double()
        rivals.append(
            Rival(
                peer.name,
                quietly(peer.net),
                "its own degrees",
                lambda double=double: [double.formula(x.double())],
            )
        )
    return Case(
        tuple(x.shape),
        quietly(lambda x: made(x).flatten(1)),
        lambda: [_masked(copy.deepcopy(made).double(), x.double())],
        rivals,
        [Rival(UNMASKED, quietly(plain))],
    )


def _training_step(features: int, batch: int, setting: Setting) -> Case:
    """The pass and all gradients; every call is the first one after an optimiser's step."""
    made, plain, x, cotangent = _networks(features, batch, setting)

    def step(net: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor = x) -> Results:
        y = function(x)
        return y, *torch.autograd.grad(y, list(net.parameters()), cotangent.to(y.dtype))

    def ours() -> Results:
        for layer in made.layers:
            layer.forget_masked_weight()
        return step(made, lambda x: made(x).flatten(1))

    def expected(net: nn.Module, function: Callable) -> Results:
        net = copy.deepcopy(net).double()
        return step(net, partial(function, net), x.double())

    rivals = [
        Rival("eager: masks in each call", lambda: step(made, partial(_masked, made))),
        Rival(
            "torch.compile: masks in each call",
            partial(step, made, setting.compiled(lambda x: _masked(made, x))),
        ),
    ]
    for peer in masked_peers.masked_networks(x.shape[1], made.hidden_features[0]):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
            continue
        peer.net.to(x)

        def own(peer: masked_peers.MaskedNetwork = peer) -> Results:
            double = copy.deepcopy(peer)
            double.net.double()
            return step(double.net, double.formula, x.double())

        rivals.append(Rival(peer.name, partial(step, peer.net, peer.net), "its own degrees", own))
    return Case(
        tuple(x.shape),
        ours,
        lambda: expected(made, _masked),
        rivals,
        [Rival(UNMASKED, partial(step, plain, plain))],
        tolerance=GRADIENT_TOLERANCE,
    )


def _sampling(features: int, batch: int, setting: Setting) -> Case:
    """From noise to samples through one layer; each z is made of known samples, which must return."""
    made, plain, x, _ = _networks(features, batch, setting)
    layer = MaskedAutoregressive(x.shape[1], made.hidden_features).to(x).eval()
    with torch.no_grad():
        layer.made.layers[-1].weight.copy_(0.5 * made.layers[-1].weight)
        raw, shift = (
            _masked(copy.deepcopy(layer.made).double(), x.double()).view(*x.shape, 2).unbind(2)
        )
    z, log_det = reference.affine_coupling(x.double(), raw, shift, scale_map="tanh")
    z = z.to(x)
    known = [x.double(), -log_det]

    def run() -> Results:
        with torch.no_grad():
            return layer.inverse(z)

    rivals = []
    if features <= 64:  # D passes take seconds beyond
        rivals.append(_nflows_sampling(made.hidden_features[0], x))
    return Case(
        tuple(x.shape),
        run,
        lambda: known,
        rivals,
        [Rival(UNMASKED, lambda: [plain(z).detach()])],
        tolerance=1e-3,
    )


def _nflows_sampling(hidden: int, x: Tensor) -> Rival:
    if not peers.is_installed("nflows"):
        return Rival("nflows", missing=peers.NotInstalled("nflows").reason)
    layer, net = masked_peers.nflows_maf(x.shape[1], hidden)
    layer.to(x)
    double = copy.deepcopy(net)
    double.net.double()
    with torch.no_grad():
        raw, shift = double.formula(x.double()).view(*x.shape, 2).unbind(2)
        scale = F.softplus(raw) + 1e-3
        z = (x.double() * scale + shift).to(x)

    def run() -> Results:
        with torch.no_grad():
            return layer.inverse(z)

    known = [x.double(), -scale.log().sum(1)]
    return Rival("nflows, D passes", run, "s = softplus(raw) + 0.001", lambda: known)


ENTRIES = [
    *(
        Entry(f"made pass D={features} batch {batch}", partial(_pass, features, batch))
        for features, batch in ((784, 64), (784, 256), (784, 1024), (64, 64))
    ),
    *(
        Entry(
            f"made training step D={features} batch {batch}",
            partial(_training_step, features, batch),
        )
        for features, batch in ((784, 64), (784, 256), (784, 1024))
    ),
    *(
        Entry(f"maf sampling D={features} batch {batch}", partial(_sampling, features, batch))
        for features, batch in ((784, 64), (784, 1), (64, 64))
    ),
]
