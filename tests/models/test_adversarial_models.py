"""GAN, WGAN, WGAN-GP, SN-GAN: the two players, their bounds, the averaged generator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepgen_ext.models import GAN, SNGAN, WGAN, WGANGP, BiGAN
from deepgen_ext.models.adversarial.networks import halvings

MODELS = [GAN, WGAN, WGANGP, SNGAN]
SMALL = {"n_levels": 17, "width": 4, "latent_features": 8}


def descend(loss, optimizer):
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def play(model, batches, rate=1e-3, seed=0):
    """The loop as the base class states it; the critic's terms of the last step."""
    noise = torch.Generator().manual_seed(seed)
    critic = model.optimizer(model.critic_parameters(), rate)
    players = critic, model.optimizer(model.generator_parameters(), rate)
    for x in batches:
        for _ in range(model.n_critic):
            terms = model.critic_terms(x, generator=noise)
            descend(terms.loss, players[0])
            model.after_critic_step()
        descend(model.generator_loss(x, generator=noise), players[1])
        model.after_generator_step()
    return terms


def digits(n=6):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("network", ["dcgan", "resnet", "mlp"])
@pytest.mark.parametrize("n_classes", [0, 3])
def test_each_loss_is_of_one_player(kind, network, n_classes):
    shape = (2,) if network == "mlp" else (1, 8, 8)
    options = {**SMALL, "n_levels": None if network == "mlp" else 17}
    model = kind(shape, network=network, n_classes=n_classes, **options)
    x = torch.randn(6, 2) if network == "mlp" else digits()
    labels = torch.arange(6) % 3 if n_classes else None
    model.critic_loss(x, labels).backward()
    assert all(p.grad is None for p in model.generator_parameters())
    # The bias of the last layer shifts both means alike: of the Wasserstein losses it has no say.
    assert all(p.grad is not None for p in model.critic_parameters())
    model.zero_grad(set_to_none=True)
    model.generator_loss(x, labels).backward()
    assert all(p.grad is None for p in model.critic_parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.generator_parameters()), kind
    assert all(p.requires_grad for p in model.critic_parameters())
    samples = model.sample(5, labels=None if labels is None else labels[:5])
    assert samples.shape == (5, *shape)
    assert model.sample(0).shape == (0, *shape)
    if network != "mlp":
        assert samples.min() >= 0
        assert samples.max() <= 1


@pytest.mark.parametrize(
    ("shape", "times"), [((1, 28, 28), 2), ((3, 32, 32), 3), ((3, 64, 64), 4), ((1, 8, 8), 2)]
)
def test_sides(shape, times):
    assert halvings(shape) == times
    for network in ("dcgan", "resnet"):
        model = SNGAN(shape, n_levels=256, network=network, width=2)
        assert model.sample(2).shape == (2, *shape)
    with pytest.raises(ValueError, match="even sides of 4 or more, got 7x8"):
        halvings((1, 7, 8))


@pytest.mark.parametrize(
    ("kind", "rate", "n_critic"), [(GAN, 2e-3, 1), (SNGAN, 2e-3, 2), (WGANGP, 5e-4, 4)]
)
def test_samples_find_the_data(kind, rate, n_critic):
    """A normal distribution far from where samples start is found, to within what such short games
    swing by.
    """
    data = torch.Generator().manual_seed(1)
    model = kind((2,), width=32, latent_features=4, ema=0.97, n_critic=n_critic)
    mean, deviation = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    batches = (mean + deviation * torch.randn(128, 2, generator=data) for _ in range(150))
    play(model, batches, rate=rate)
    samples = model.sample(4000, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.6)
    ratio = samples.std(0) / deviation
    assert ratio.min() > 0.25
    assert ratio.max() < 2.5


def test_clipping_holds():
    model = WGAN((1, 8, 8), clip=0.02, **SMALL)
    largest = max(p.abs().max().item() for p in model.critic_parameters())
    assert largest <= 0.02  # from the start
    play(model, [digits()] * 3, rate=1e-2)
    largest = max(p.abs().max().item() for p in model.critic_parameters())
    assert largest == pytest.approx(0.02)  # reached, not passed
    assert max(p.abs().max().item() for p in model.generator_parameters()) > 0.02


def test_spectral_norms_hold():
    """Of every layer, after steps that would have changed them, by singular values."""
    model = SNGAN((1, 8, 8), **SMALL)
    play(model, [digits()] * 10, rate=2e-4)
    for name, tolerance in (("as the last step left them", 0.15), ("at rest", 2e-3)):
        if name == "at rest":
            for _ in range(200):
                model.critic(torch.zeros(1, 1, 8, 8))
        _check_norms(model.eval(), tolerance)
        model.train()
    assert not any(hasattr(m, "parametrizations") for m in model.generator.modules())


def _check_norms(model, tolerance):
    layers = [m for m in model.critic.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 6
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1.0, abs=tolerance)
        original = layer.parametrizations.weight.original.detach().flatten(1)
        assert abs(torch.linalg.matrix_norm(original, 2).item() - 1.0) > 0.05


def test_norms_step_once_for_data_and_samples():
    """One forward pass for both: the next pass gets u and v of one iteration, not of two."""
    model = SNGAN((1, 8, 8), **SMALL)
    twin = copy.deepcopy(model)
    noise = model.draw_noise(6, torch.Generator().manual_seed(0))
    model.critic_loss(digits(), noise=noise)
    twin.critic(torch.zeros(2, 1, 8, 8))
    for ours, once in zip(model.critic.buffers(), twin.critic.buffers(), strict=True):
        assert torch.equal(ours, once)


def test_the_penalty_holds_the_slope():
    """Between data and samples, of a critic whose slope starts near 0. Two sets at distance d: a
    slope of s earns s d and costs 10 (s - 1)^2, so that s = 1 + d / 20.
    """
    model = WGANGP((2,), width=64, n_critic=1)
    fake = torch.randn(256, 2)
    real = fake + torch.tensor([1.2, 1.6])
    critic = model.optimizer(model.critic_parameters(), 2e-3)
    slopes = []
    for _ in range(150):
        noise = {"mix": torch.rand(256)}
        game = model.objective.critic_loss(*model.scores(real, fake))
        penalty = model.penalty(real, fake, None, noise)
        slopes.append(penalty.item() / 10)
        descend(game + penalty, critic)
    assert slopes[0] > 0.5
    assert slopes[-1] < 0.1
    gap = -model.objective.critic_loss(*model.scores(real, fake)).item()
    assert gap == pytest.approx(2 * 1.1, rel=0.1)


@pytest.mark.parametrize("kind", MODELS)
def test_a_seed_decides(kind):
    def trained(seed):
        torch.manual_seed(0)
        model = kind((1, 8, 8), **SMALL)
        play(model, [digits()] * 2, seed=seed)
        return model.state_dict()

    first, again, other = trained(1), trained(1), trained(2)
    tensors = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(first[name], again[name]) for name in tensors)
    assert not all(torch.equal(first[name], other[name]) for name in tensors)
    model = kind((1, 8, 8), **SMALL)
    draws = [model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("kind", [WGANGP, SNGAN, WGAN])
def test_halves_of_a_batch_make_its_loss(kind):
    """Each process gets its rows of the noise: the mean of their losses is the whole batch's."""
    model = kind((2,), width=8).double().eval()
    x = torch.randn(8, 2, dtype=torch.float64)
    noise = model.draw_noise(8, torch.Generator().manual_seed(0))
    for loss in (model.critic_loss, model.generator_loss):
        parts = [
            loss(x[part], noise={name: values[part] for name, values in noise.items()})
            for part in (slice(0, 4), slice(4, 8))
        ]
        torch.testing.assert_close(sum(parts) / 2, loss(x, noise=noise))


def test_the_average_of_the_generator():
    model = GAN((2,), width=4, ema=0.5)
    expected = [p.detach().clone() for p in model.generator_parameters()]
    for t in range(4):
        with torch.no_grad():
            for parameter in model.generator_parameters():
                parameter.add_(torch.randn_like(parameter))
        decay = min(0.5, (1 + t) / (10 + t))
        current = model.generator_parameters()
        expected = [decay * a + (1 - decay) * p for a, p in zip(expected, current, strict=True)]
        model.after_generator_step()
    for average, value in zip(model.averaged("generator").parameters(), expected, strict=True):
        torch.testing.assert_close(average, value.detach())
    z = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.sample(5, generator=z), model.averages["generator"](latents))
    assert not torch.allclose(model.averages["generator"](latents), model.generator(latents))
    without = GAN((2,), width=4, ema=0)
    assert without.averaged("generator") is without.generator
    without.after_generator_step()


def test_sampling_moves_no_statistics():
    model = GAN((1, 8, 8), **SMALL)
    play(model, [digits()])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.sample(4)
    assert model.generator.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_temperature_scales_the_latents():
    model = WGAN((2,), width=8, ema=0)
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    actual = model.sample(3, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(actual, model.generator(z * 0.5))


def test_levels_become_what_generators_put_out():
    model = GAN((1, 8, 8), **SMALL)
    x = torch.arange(17).repeat(4)[:64].view(1, 1, 8, 8)
    stretched = model.stretch(x, model.middle(x))
    torch.testing.assert_close(model.shrink(stretched), (x + 0.5) / 17)
    noise = model.draw_noise(1)
    torch.testing.assert_close(model.shrink(model.stretch(x, noise)) * 17 - x, noise["dequantisation"],
                               rtol=0, atol=1e-5)  # fmt: skip


def _loud(model):
    """Started from weights of unit gain: of DCGAN's, 0.02, float16 loses gradients below 1e-7."""
    for parameter in (p for p in model.parameters() if p.ndim > 1):
        nn.init.kaiming_normal_(parameter)
    return model


HALVES = {
    "gan": lambda: _loud(GAN((1, 8, 8), **SMALL)),
    "wgan": lambda: WGAN((1, 8, 8), clip=0.1, **SMALL),
    "wgan-gp": lambda: _loud(WGANGP((1, 8, 8), **SMALL)),
    "wgan-gp, residual": lambda: WGANGP((1, 8, 8), network="resnet", **SMALL),
    "wgan-gp, vectors": lambda: WGANGP((2,), width=8),
    "sn-gan": lambda: _loud(SNGAN((1, 8, 8), **SMALL)),
    "bigan, r1": lambda: _loud(BiGAN((1, 8, 8), r1=10.0, **SMALL)),
}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_autocast_is_close(kind, dtype):
    """Losses and gradients of both players, those of penalties, which differentiate twice, too."""
    torch.manual_seed(3)
    model = HALVES[kind]()
    x = torch.randn(6, 2) if model.n_levels is None else digits()
    noise = model.draw_noise(6)
    losses, gradients = [], []
    for enabled in (False, True):
        twin = copy.deepcopy(model)
        with torch.autocast("cpu", dtype, enabled=enabled):
            terms = twin.critic_terms(x, noise=noise)
            loss = twin.generator_loss(x, noise=noise)
        terms.loss.backward()
        loss.backward()
        losses.append(torch.stack((*terms[:2], loss)).detach())
        for players in (twin.critic_parameters(), twin.generator_parameters()):
            gradients.append(torch.cat([p.grad.flatten() for p in players if p.grad is not None]))
    assert losses[1].dtype == torch.float32
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(losses[1], losses[0], rtol=16 * ulp, atol=16 * ulp)
    for exact, half in (gradients[::2], gradients[1::2]):
        assert nn.functional.cosine_similarity(exact, half, dim=0) > 1 - 8 * ulp**0.75
        torch.testing.assert_close(half.norm(), exact.norm(), rtol=16 * ulp, atol=0)


def test_channels_last_is_the_same():
    model = WGANGP((3, 16, 16), n_levels=256, width=4).double()
    x, noise = torch.randint(256, (3, 3, 16, 16)), model.draw_noise(3)
    expected = model.critic_loss(x, noise=noise)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.critic_loss(x, noise=noise), expected)


def test_classes_reach_both_players():
    model = SNGAN((1, 8, 8), n_classes=3, ema=0, network="resnet", **SMALL)
    nn.init.normal_(model.generator.blocks[0].norms[0].embedding.weight)
    z, x = torch.randn(2, 8), torch.randn(2, 1, 8, 8)
    labels = torch.tensor([0, 1])
    assert not torch.allclose(model.generator(z, labels), model.generator(z, labels.flip(0)))
    assert not torch.allclose(model.critic(x, labels), model.critic(x, labels.flip(0)))
    assert "embedding" in dict(model.critic.output.named_modules())
