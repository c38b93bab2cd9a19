"""Whole coupling and residual flows of other libraries before and after `deepgen_ext.accelerate`.

Small nets, where what surrounds them counts: a large one hides what is gained beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import accelerate

FEATURES, HIDDEN, LAYERS, BATCH = 16, 32, 4, 128
OWN_NAMES = "FrEIA", "zuko"  # whose layers are not called couplings


def nflows_spline(tiny: bool) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
    )

    def net(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=HIDDEN, num_blocks=1)

    mask = torch.arange(FEATURES) % 2
    layers = []
    for _ in range(1 if tiny else LAYERS):
        layers.append(
            PiecewiseRationalQuadraticCouplingTransform(
                mask, net, num_bins=8, tails="linear", tail_bound=3.0
            )
        )
        layers.append(RandomPermutation(FEATURES))
    return Flow(CompositeTransform(layers), StandardNormal([FEATURES]))


def nflows_affine(tiny: bool) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    def net(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=HIDDEN, num_blocks=1)

    layers = [
        AffineCouplingTransform((torch.arange(FEATURES) + index) % 2, net)
        for index in range(1 if tiny else LAYERS)
    ]
    return Flow(CompositeTransform(layers), StandardNormal([FEATURES]))


def normflows_affine(tiny: bool) -> nn.Module:
    import normflows

    layers = []
    for _ in range(1 if tiny else LAYERS):
        net = normflows.nets.MLP([FEATURES // 2, HIDDEN, HIDDEN, FEATURES])
        layers += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(FEATURES)]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(FEATURES), layers)


def normflows_glow(tiny: bool, channels: int = 12) -> nn.Module:
    """One step, with a net of 32 channels."""
    import normflows

    step = normflows.flows.GlowBlock(channels, HIDDEN)
    step(torch.randn(8, channels, 4, 4))  # its normalisation takes the first batch
    return step


def normflows_spline(tiny: bool) -> nn.Module:
    import normflows

    layers = [
        normflows.flows.CoupledRationalQuadraticSpline(FEATURES, 1, HIDDEN, reverse_mask=odd > 0)
        for odd in (index % 2 for index in range(1 if tiny else LAYERS))
    ]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(FEATURES), layers)


def normflows_residual(tiny: bool, pictures: bool = False) -> nn.Module:
    import normflows

    if pictures:
        net = normflows.nets.LipschitzCNN([3, 32, 32, 3], [3, 1, 3], 0.9, init_zeros=False)
    else:
        net = normflows.nets.LipschitzMLP([FEATURES, 64, 64, FEATURES], 0.9, init_zeros=False)
    flow = normflows.flows.Residual(net, reverse=False).eval()
    if pictures:
        flow(torch.zeros(1, 3, 16, 16))  # its layers learn their sizes
    for layer in net.net[1::2]:
        layer.weight.data.mul_(4)  # trained ones lie at their bound
        layer.compute_weight(update=True, n_iterations=50)
    return flow


class FreiaFlow(nn.Module):
    """What its users write around a SequenceINN: a density and samples."""

    def __init__(self, inn: nn.Module) -> None:
        super().__init__()
        self.inn = inn

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.inn(x)
        return log_det - 0.5 * z.square().sum(1)

    def sample(self, n: int) -> Tensor:
        z = torch.randn(n, FEATURES).to(next(self.parameters()))
        return self.inn(z, rev=True)[0]


def freia(block: str, tiny: bool, **options: Any) -> nn.Module:
    import FrEIA.framework
    import FrEIA.modules

    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

    np.random.seed(0)  # of its permutations
    inn = FrEIA.framework.SequenceINN(FEATURES)
    for _ in range(1 if tiny else LAYERS):
        inn.append(getattr(FrEIA.modules, block), subnet_constructor=net, **options)
    return FreiaFlow(inn)


def zuko_nice(tiny: bool, spline: bool = False) -> nn.Module:
    import zuko

    options = {}
    if spline:
        univariate = zuko.transforms.MonotonicRQSTransform
        options = {"univariate": univariate, "shapes": [(8,), (8,), (7,)]}
    layers = 1 if tiny else LAYERS
    return zuko.flows.NICE(FEATURES, transforms=layers, hidden_features=(HIDDEN,), **options)


def log_prob(flow: nn.Module, x: Tensor) -> Results:
    with torch.no_grad():
        return [density(flow).log_prob(x)]


def sample(flow: nn.Module, x: Tensor) -> Results:
    with torch.no_grad():
        drawn = _drawn(flow, len(x))
    return [drawn if isinstance(drawn, Tensor) else drawn[0]]


def training_step(flow: nn.Module, x: Tensor) -> Results:
    """All but the optimiser's update."""
    flow.zero_grad(set_to_none=True)
    loss = -density(flow).log_prob(x).mean()
    loss.backward()
    return [loss.detach()]


def density(flow: nn.Module) -> Any:
    """zuko's flows give one when called."""
    return flow if hasattr(flow, "log_prob") else flow()


def _drawn(flow: nn.Module, n: int) -> Tensor | tuple[Tensor, ...]:
    return flow.sample(n) if hasattr(flow, "sample") else flow().sample((n,))


def step_to_z(flow: nn.Module, x: Tensor) -> Results:
    """The direction of a density with its gradients, but for the optimiser's update."""
    flow.zero_grad(set_to_none=True)
    z, log_det = flow.inverse(x)
    loss = z.square().mean() - log_det.mean()
    loss.backward()
    return [loss.detach()]


def forward(flow: nn.Module, x: Tensor) -> Results:
    with torch.no_grad():
        return flow(x)


def inverse(flow: nn.Module, x: Tensor) -> Results:
    with torch.no_grad():
        return flow.inverse(x)


def seeded(call: Callable[[nn.Module, Tensor], Results], flow: nn.Module, x: Tensor) -> Results:
    # Not torch.manual_seed: its 160 us, for devices that are not there, are half of a small flow's.
    generator = torch.cuda.default_generators[x.device.index] if x.is_cuda else None
    (generator or torch.default_generator).manual_seed(0)
    if call is inverse:  # of residual flows, which draw their numbers of terms from NumPy
        np.random.seed(0)
    return call(flow, x)


def before_and_after(
    make: Callable[[bool], nn.Module],
    call: Callable[[nn.Module, Tensor], Results],
    shape: tuple[int, ...],
    tolerance: float,
    setting: Setting,
) -> Case:
    """Both on the same weights and draws; `tolerance` in float32 is that of the peer's own rounding."""
    torch.manual_seed(0)
    before = make(setting.tiny).to(setting.device, setting.dtype)
    with torch.no_grad():
        for parameter in before.parameters():
            if parameter.dim() < 2 or not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
    if setting.tiny:
        shape = (3, *shape[1:])
    x = setting.random(*shape, seed=1)
    return Case(
        shape,
        partial(seeded, call, accelerate(before), x),
        partial(seeded, call, before, x),
        [Rival("before", partial(seeded, call, before, x))],
        [],
        tolerance=tolerance,
        notes=["ours: the same flow after deepgen_ext.accelerate", "checked against before"],
    )


def _entries() -> Iterator[Entry]:
    vectors, pictures = (BATCH, FEATURES), (16, 3, 16, 16)
    flows = {
        ("nflows", "spline"): nflows_spline,
        ("normflows", "spline"): normflows_spline,
        ("nflows", "affine"): nflows_affine,
        ("normflows", "affine"): normflows_affine,
        ("FrEIA", "GLOW"): partial(freia, "GLOWCouplingBlock"),
        ("FrEIA", "AllInOne"): partial(freia, "AllInOneBlock"),
        ("FrEIA", "AllInOne, learned permutations"): partial(
            freia, "AllInOneBlock", learned_householder_permutation=3
        ),
        ("zuko", "NICE affine"): zuko_nice,
        ("zuko", "NICE spline"): partial(zuko_nice, spline=True),
    }
    for (name, map_kind), make in flows.items():
        if peers.is_installed(name):
            for call in (log_prob, sample, training_step):
                kind = call.__name__.replace("_", " ")
                build = partial(before_and_after, make, call, vectors, 1e-3)
                layers = "" if name in OWN_NAMES else " couplings"
                yield Entry(f"accelerate {name} {map_kind}{layers} {kind}", build)
    if peers.is_installed("normflows"):
        for batch, side in ((32, 8), (64, 16)):
            for call in (forward, inverse, step_to_z):
                kind = call.__name__.replace("_", " ")
                shape = batch, 12, side, side
                build = partial(before_and_after, normflows_glow, call, shape, 1e-3)
                yield Entry(f"accelerate normflows Glow {side}x{side} {kind}", build)
        for kind, shape in (("MLP", vectors), ("convolutions", pictures)):
            make = partial(normflows_residual, pictures=kind != "MLP")
            build = partial(before_and_after, make, inverse, shape, 1e-3)
            yield Entry(f"accelerate normflows residual inverse {kind}", build)


ENTRIES = list(_entries())
