"""A Glow training step, and one layer of it, against its networks alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import ops, reference
from deepgen_ext.models import Glow
from deepgen_ext.nn import GlowConvNet
from deepgen_ext.nn.transforms import ActNormConv1x1, AffineCoupling, Split

DIGITS = {"shape": (1, 8, 8), "levels": 2, "steps": 4, "hidden": 64, "batch": 64}
COLOUR = {"shape": (3, 32, 32), "levels": 3, "steps": 8, "hidden": 128, "batch": 16}
TINY = {"shape": (1, 4, 4), "levels": 2, "steps": 1, "hidden": 4, "batch": 2}
NETWORKS = "its conv nets"
GRADIENT_TOLERANCE = 2e-3  # of a gradient's largest entry: float32, through tens of layers


def _training_step(size: dict, setting: Setting) -> Case:
    """Loss and all gradients of it; the optimiser, the same for all, is left out."""
    size = TINY if setting.tiny else size
    levels, noise = make_batch(size, setting)
    stored = make_glow(size, setting)
    stored.initialize(levels, noise=noise)
    _perturb(stored)
    rebuilt = make_glow(size, setting, reversible=True)
    rebuilt.load_state_dict(stored.state_dict())
    # With weights as torch makes them.
    usual = copy.deepcopy(stored).to(memory_format=torch.contiguous_format)

    def step(model: Glow, noise: Tensor = noise) -> Results:
        loss = model.loss(levels, noise=noise)
        return loss, *torch.autograd.grad(loss, list(model.parameters()))

    def expected() -> Results:
        with _plain_ops():
            return step(copy.deepcopy(stored).double(), noise.double())

    def plain() -> Results:
        with _plain_ops():
            return step(usual)

    compiled = setting.compiled(usual.loss)

    def compiled_step() -> Results:
        with _plain_ops():
            loss = compiled(levels, noise=noise)
            return loss, *torch.autograd.grad(loss, list(usual.parameters()))

    def networks(model: Glow) -> Callable[[], Results]:
        return _networks_alone(model, lambda: model.loss(levels, noise=noise))

    return Case(
        levels.shape,
        partial(step, stored),
        expected,
        [
            Rival("ours, reversible", partial(step, rebuilt)),
            Rival("eager: the same, ops in plain torch", plain),
            Rival("torch.compile of that", compiled_step),
        ],
        [
            Rival(NETWORKS, networks(stored)),
            Rival("convolutions, channels first", _plainly(networks(usual))),
        ],
        tolerance=GRADIENT_TOLERANCE,
    )


def _single_step(shape: tuple[int, ...], hidden: int, setting: Setting) -> Case:
    """One step of Glow on (batch, channels, H, W), against a peer's with the same network."""
    n, channels, *sides = (2, 4, 4, 4) if setting.tiny else shape
    hidden = 4 if setting.tiny else hidden
    torch.manual_seed(0)
    half = channels // 2
    ours = nn.ModuleList(
        [
            ActNormConv1x1(channels),
            AffineCoupling(GlowConvNet(half, 2 * half, hidden), scale_map="sigmoid"),
        ]
    ).to(setting.device, setting.dtype)
    x = setting.random(n, channels, *sides, seed=0)
    cotangents = setting.random(*x.shape, seed=1), setting.random(n, seed=2)
    _apply(ours, x)  # initialises
    _perturb(ours)

    def run(
        module: nn.Module, function: Callable, dtype: torch.dtype = setting.dtype
    ) -> Callable[[], Results]:
        """The results and the gradients of x and of all parameters."""
        if dtype != setting.dtype:
            module = copy.deepcopy(module).to(dtype)
        wanted = [x.detach().to(dtype).requires_grad_(), *module.parameters()]
        weights = [cotangent.to(dtype) for cotangent in cotangents]

        def call() -> Results:
            results = function(module, wanted[0])
            return *results, *torch.autograd.grad(results, wanted, weights)

        return call

    def expected(module: nn.Module, function: Callable) -> Results:
        with _plain_ops():
            return run(module, function, torch.float64)()

    usual = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    step = run(usual, setting.compiled(_apply))

    def compiled_step() -> Results:
        with _plain_ops():
            return step()

    peer = peers.normflows_glow_step(channels, copy.deepcopy(ours[1].conditioner))
    name = "normflows GlowBlock, the same net"
    if isinstance(peer, peers.NotInstalled):
        rival = Rival(name, missing=peer.reason)
    else:
        peer = peer.to(setting.device, setting.dtype)
        _perturb(peer)
        rival = Rival(
            name,
            run(peer, nn.Module.__call__),
            "y = (x - shift) s",
            lambda: expected(peer, peers.normflows_glow_step_formula),
        )
    return Case(
        tuple(x.shape),
        run(ours, _apply),
        lambda: expected(ours, _apply),
        [rival, Rival("torch.compile", compiled_step)],
        [Rival(NETWORKS, _networks_alone(ours, lambda: _apply(ours, x)))],
        tolerance=GRADIENT_TOLERANCE,
    )


def _apply(layers: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    x, first = layers[0](x)
    x, second = layers[1](x)
    return x, first + second


def _networks_alone(model: nn.Module, call: Callable[[], object]) -> Callable[[], Results]:
    """Every conditioner of the model, forward and backward, on the inputs that `call` gives it."""
    networks = [m for m in model.modules() if isinstance(m, GlowConvNet)]
    networks += [m.prior for m in model.modules() if isinstance(m, Split) and m.prior is not None]
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        leaf = inputs[0].detach().requires_grad_()  # the view that the model passes, not a copy
        calls.append((network, leaf, torch.randn_like(output)))

    handles = [network.register_forward_hook(note) for network in networks]
    call()
    for handle in handles:
        handle.remove()
    wanted = [leaf for _, leaf, _ in calls]
    wanted += [parameter for network in networks for parameter in network.parameters()]
    cotangents = [cotangent for *_, cotangent in calls]

    def run() -> Results:
        outputs = [network(leaf) for network, leaf, _ in calls]
        return torch.autograd.grad(outputs, wanted, cotangents)

    return run


def make_glow(size: dict, setting: Setting, **options: bool) -> Glow:
    torch.manual_seed(0)
    model = Glow(size["shape"], size["levels"], size["steps"], size["hidden"], **options)
    return model.to(setting.device, setting.dtype)


def make_batch(size: dict, setting: Setting) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size["batch"], *size["shape"])
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.rand(shape, generator=generator)
    return levels.to(setting.device), noise.to(setting.device, setting.dtype)


def _perturb(model: nn.Module) -> None:
    """Away from the start, where the last layers are zero and most gradients too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))


@contextmanager
def _plain_ops() -> Iterator[None]:
    with (
        mock.patch.object(ops, "affine_coupling", reference.affine_coupling),
        mock.patch.object(ops, "half_coupling", reference.half_coupling),
        mock.patch.object(ops, "channel_affine", reference.channel_affine),
        mock.patch.object(ops, "glow_conv_net", reference.glow_conv_net),
    ):
        yield


def _plainly(call: Callable[[], Results]) -> Callable[[], Results]:
    def plain() -> Results:
        with _plain_ops():
            return call()

    return plain


ENTRIES = [
    Entry("glow step digits", partial(_training_step, DIGITS)),
    Entry("glow step 3x32x32", partial(_training_step, COLOUR)),
    Entry("glow layer (64, 4, 4, 4) hidden 64", partial(_single_step, (64, 4, 4, 4), 64)),
    Entry("glow layer (16, 12, 16, 16) hidden 128", partial(_single_step, (16, 12, 16, 16), 128)),
]
