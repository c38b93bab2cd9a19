"""An IWAE training step against its networks alone, in time and in what the graph keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.glow_memory import KeptBytes
from benchmarks.harness import Case, Curve, Entry, Results, Rival, Setting
from benchmarks.models import GRADIENT_TOLERANCE
from deepgen_ext.models import IWAE

SIZE = {"shape": (1, 28, 28), "latents": 50, "hidden": (200, 200), "batch": 20, "k": 50}
TINY = {"shape": (1, 4, 4), "latents": 3, "hidden": (6,), "batch": 2, "k": 3}
MEMORY_K = (5, 50)
NETWORKS = "its networks, k latents an image"


def _training_step(network: str, setting: Setting) -> Case:
    """Loss and all gradients, the binarisation and the draws of the latents included."""
    size = TINY if setting.tiny else SIZE
    model = _model(size, setting, network=network)
    resampled = _model(size, setting, network=network, gradient="resampled")
    dreg = _model(size, setting, network=network, gradient="dreg")
    for other in (resampled, dreg):
        other.load_state_dict(model.state_dict())
    levels, noise, eps = _batch(size, setting)
    parameters = list(model.parameters())

    def ours() -> Results:
        loss = model.loss(levels, noise=noise, eps=eps)
        return loss, *torch.autograd.grad(loss, parameters)

    def other_gradient(other: IWAE) -> Rival:
        """The same loss; its gradient, the same in expectation, is held to no single draw's."""

        def run() -> Results:
            generator = torch.Generator(setting.device).manual_seed(0)
            loss = other.loss(levels, noise=noise, eps=eps, generator=generator)
            torch.autograd.grad(loss, list(other.parameters()))
            return [loss]

        loss = [model.loss(levels, noise=noise, eps=eps).detach().double()]
        name = f"ours, gradient={other.gradient!r}"
        return Rival(name, run, "another estimate of the gradient", lambda: loss)

    def repeated_loss(net: IWAE, dtype: torch.dtype) -> Tensor:
        """As it is written in most places: the image repeated k times, weights by softmax."""
        k = size["k"]
        bits = (noise * (net.n_levels - 1) < levels).to(dtype)
        x = bits.repeat_interleave(k, 0)
        mean, log_scale = net.posterior.base(net.encoder(2 * x - 1))
        q = torch.distributions.Normal(mean, log_scale.exp())
        z = mean + log_scale.exp() * eps.to(dtype).flatten(0, 1)
        prior = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        nats = F.binary_cross_entropy_with_logits(net.decoder(z), x, reduction="none")
        log_w = prior.log_prob(z).sum(1) - q.log_prob(z).sum(1) - nats.flatten(1).sum(1)
        return -(torch.logsumexp(log_w.view(-1, k), 1) - math.log(k)).mean()

    def repeated(
        net: IWAE, dtype: torch.dtype, function: Callable[..., Tensor] = repeated_loss
    ) -> Results:
        loss = function(net, dtype)
        return loss, *torch.autograd.grad(loss, list(net.parameters()))

    compiled = setting.compiled(repeated_loss)
    return Case(
        (size["batch"], size["k"], *size["shape"]),
        ours,
        lambda: repeated(copy.deepcopy(model).double(), torch.float64),
        [
            other_gradient(resampled),
            other_gradient(dreg),
            Rival("eager: images repeated k times", partial(repeated, model, setting.dtype)),
            Rival("torch.compile of that", partial(repeated, model, setting.dtype, compiled)),
        ],
        [Rival(NETWORKS, _networks_alone(model, levels, noise, eps))],
        tolerance=GRADIENT_TOLERANCE,
        notes=(
            f"{network}, hidden {size['hidden']}, {size['latents']} latents, batch {size['batch']}, "
            f"k={size['k']}, bernoulli;",
            "floor: encoder of the batch, decoder of all latents in one batch, forward and backward.",
        ),
    )


def _networks_alone(model: IWAE, levels: Tensor, noise: Tensor, eps: Tensor):
    """Encoder and decoder, forward and backward, on the inputs that the step gives them."""
    target = model.target(levels, noise)
    x = model.embed(target)
    h = model.encode(target)
    z = model.posterior.draw(h, eps).z.flatten(0, 1).detach().requires_grad_()
    networks = (*model.encoder.parameters(), *model.decoder.parameters())
    cotangents = torch.randn_like(h), torch.randn_like(model.decode(z))

    def run() -> Results:
        return torch.autograd.grad([model.encoder(x), model.decode(z)], [z, *networks], cotangents)

    return run


def _memory(setting: Setting) -> Curve:
    """What autograd keeps of a step, beside what it keeps of the decoder and its output."""
    size = TINY if setting.tiny else SIZE
    rows = []
    for k in MEMORY_K:
        of_step, of_decoder = measure_memory(size | {"k": k}, setting)
        ratio = f"{of_step / of_decoder:.3f}"
        rows.append((str(k), f"{of_step / 1e6:.2f}", f"{of_decoder / 1e6:.2f}", ratio))
    columns = ("k", "step: graph MB", "decoder: graph and output MB", "ratio")
    return Curve(columns, rows, ("graph: most bytes that autograd keeps, parameters excluded.",))


def measure_memory(size: dict, setting: Setting) -> tuple[int, int]:
    """(bytes kept of a training step, bytes kept of its decoder's forward and its output)."""
    model = _model(size, setting)
    levels, noise, eps = _batch(size, setting)
    z = torch.randn(size["batch"] * size["k"], size["latents"]).to(setting.device, setting.dtype)
    whole, alone = KeptBytes(model), KeptBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(whole.pack, lambda kept: kept.tensor):
        loss = model.loss(levels, noise=noise, eps=eps)
    with torch.autograd.graph.saved_tensors_hooks(alone.pack, lambda kept: kept.tensor):
        parameters = model.decode(z.requires_grad_())
    del loss
    return whole.peak, alone.peak + parameters.untyped_storage().nbytes()


def _model(size: dict, setting: Setting, **options: str) -> IWAE:
    torch.manual_seed(0)
    model = IWAE(
        size["shape"], size["latents"], k=size["k"], hidden_features=size["hidden"], **options
    )
    return model.to(setting.device, setting.dtype)


def _batch(size: dict, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size["batch"], *size["shape"])
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.rand(shape, generator=generator)
    eps = torch.randn(size["batch"], size["k"], size["latents"], generator=generator)
    return (
        levels.to(setting.device),
        noise.to(setting.device),
        eps.to(setting.device, setting.dtype),
    )


ENTRIES = [
    Entry("iwae step dense", partial(_training_step, "dense")),
    Entry("iwae step conv", partial(_training_step, "conv")),
    Entry("iwae memory", _memory),
]
