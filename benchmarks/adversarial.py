"""A critic's step: spectral norms in one launch, the gradient penalty, and what each of them costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.models import WGANGP
from deepgen_ext.models.adversarial import DCGANCritic, objective
from deepgen_ext.nn import spectral_norm_all

# The critic of Miyato et al. 2018, table 3, for images of 32x32: 3x3 and 4x4 convolutions with 64
# to 512 channels. Random weights have no direction that stands out: one is added to each, so that u
# and v come to rest and calls that are repeated agree.
SHAPE, CHANNELS = (3, 32, 32), 64
PLAIN = "the critic without norms"
NO_PENALTY = "the step without its penalty"


def _critic(setting: Setting) -> DCGANCritic:
    torch.manual_seed(0)
    shape, channels = ((1, 8, 8), 4) if setting.tiny else (SHAPE, CHANNELS)
    critic = DCGANCritic(shape, channels, between=True)
    for parameter in critic.parameters():
        if parameter.ndim > 1:
            with torch.no_grad():
                columns = parameter[0].numel()
                unit = torch.randn(len(parameter), 1) * torch.randn(1, columns)
                parameter.add_((unit / unit.norm()).view_as(parameter), alpha=3.0)
    return critic.to(setting.device, setting.dtype)


def _with_torch(critic: nn.Module) -> nn.Module:
    for module in critic.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrizations.spectral_norm(module, n_power_iterations=50)
            module.parametrizations.weight[0].n_power_iterations = 1
    return critic


def _at_rest(critic: nn.Module, setting: Setting) -> nn.Module:
    x = setting.random(1, *((1, 8, 8) if setting.tiny else SHAPE), seed=3)
    for _ in range(50):
        critic(x)
    return critic


def _spectral(batch: int, setting: Setting) -> Case:
    """The hinge loss of data and samples, and all gradients; without the optimiser's step."""
    batch = 2 if setting.tiny else batch
    shape = (1, 8, 8) if setting.tiny else SHAPE
    real, fake = (setting.random(batch, *shape, seed=seed).tanh() for seed in (1, 2))
    game = objective("hinge")

    def loss_of(critic: nn.Module, together: bool) -> Tensor:
        scores = (
            critic(torch.cat((real, fake))).split(batch)
            if together
            else (critic(real), critic(fake))
        )
        return game.critic_loss(*scores)

    def step(
        critic: nn.Module, together: bool, function: Callable[..., Tensor] = loss_of
    ) -> Results:
        loss = function(critic, together)
        return loss.detach(), *torch.autograd.grad(loss, list(critic.parameters()))

    ours = _at_rest(spectral_norm_all(_critic(setting)), setting)
    theirs, plain = _with_torch(_critic(setting)), _critic(setting)
    compiled, graph = copy.deepcopy(theirs), setting.compiled(loss_of)
    steps = {name: partial(step, critic, True) for name, critic in
             (("ours", ours), ("torch's parametrization", theirs), (PLAIN, plain))}  # fmt: skip
    wanted = [tensor.double() for tensor in steps["torch's parametrization"]()]
    return Case(
        (2 * batch, *shape),
        steps["ours"],
        lambda: wanted,
        [
            Rival("torch's parametrization", steps["torch's parametrization"]),
            Rival("the same, a pass for each", partial(step, theirs, False)),
            Rival("torch.compile of torch's", partial(step, compiled, True, graph)),
        ],
        [Rival(PLAIN, steps[PLAIN])],
        tolerance=2e-2,  # of gradients in float32: at a kink of ReLU or hinge one unit may differ
        notes=(f"loss and all gradients, {sum(p.numel() for p in plain.parameters()):,} weights",),
    )


def _norms(setting: Setting) -> Case:
    """The normalised weights alone, as a forward pass of a single small image makes them."""
    ours = _at_rest(spectral_norm_all(_critic(setting)), setting)
    theirs = _with_torch(_critic(setting))
    weights = [
        m.weight for m in _critic(setting).modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    group = next(iter(ours._forward_pre_hooks.values())).__self__

    def grouped() -> Results:
        group.begin(ours, ())
        scaled = [layer.weight for layer in group.layers]
        group.end(ours, (), None)
        return [weight.detach() for weight in scaled]

    def each() -> Results:
        layers = (m for m in theirs.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        return [layer.weight.detach() for layer in layers]

    targets = [torch.empty_like(weight) for weight in weights]
    size = sum(weight.numel() * weight.element_size() for weight in weights)

    def copy() -> Results:
        torch._foreach_copy_(targets, weights)
        return targets

    return Case(
        (sum(weight.numel() for weight in weights),),
        grouped,
        lambda: [weight.double() for weight in each()],
        [Rival("torch's parametrization", each)],
        [Rival("copy", copy)],
        bytes=3 * size,  # read twice, written once
        tolerance=1e-3,
        notes=("one step of u and v, and W / sigma, of every layer of the critic",),
    )


def _penalty(batch: int, setting: Setting) -> Case:
    """A critic's step of WGAN-GP, dequantisation and samples included, against the same by hand."""
    batch, shape, width = (2, (1, 8, 8), 4) if setting.tiny else (batch, (1, 28, 28), 32)
    torch.manual_seed(0)
    model = WGANGP(shape, n_levels=256, width=width, ema=0).to(setting.device, setting.dtype)
    for parameter in model.critic.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(256, (batch, *shape), generator=generator).to(setting.device)
    noise = {k: v.to(setting.device, setting.dtype) for k, v in model.draw_noise(batch).items()}
    parameters = model.critic_parameters()

    def ours() -> Results:
        loss = model.critic_loss(levels, noise=noise)
        return loss.detach(), *_gradients(loss, parameters)

    def by_hand(weight: float = 10.0) -> Results:
        with torch.no_grad():
            fake = model.generator(noise["latents"])
        real = (levels + noise["dequantisation"]) / 256 * 2 - 1
        scores = model.critic(torch.cat((real, fake)))
        loss = scores[batch:].mean() - scores[:batch].mean()
        if weight:
            mix = noise["mix"].view(-1, 1, 1, 1)
            x = (mix * real + (1 - mix) * fake).requires_grad_()
            slope = torch.autograd.grad(model.critic(x).sum(), x, create_graph=True)[0]
            loss = loss + weight * (slope.flatten(1).norm(2, dim=1) - 1).square().mean()
        return loss.detach(), *_gradients(loss, parameters)

    wanted = [tensor.double() for tensor in by_hand()]
    return Case(
        levels.shape,
        ours,
        lambda: wanted,
        [
            Rival("eager torch by hand", by_hand),
            Rival("torch.compile", missing="its graphs cannot be differentiated twice"),
        ],
        [Rival(NO_PENALTY, partial(by_hand, 0.0))],
        tolerance=1e-3,
        notes=("loss and all gradients; samples, dequantisation and interpolates included",),
    )


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _entries() -> list[tuple[str, Callable[[Setting], Case]]]:
    sizes = [(f"sn-gan critic step batch {n}", partial(_spectral, n)) for n in (1, 8, 64)]
    return [
        *sizes,
        ("sn-gan norms alone", _norms),
        ("wgan-gp critic step batch 64", partial(_penalty, 64)),
    ]


ENTRIES = [Entry(f"adversarial {name}", build) for name, build in _entries()]
