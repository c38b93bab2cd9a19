"""FlowVAE: its density by determinants and quadrature, a VAE without a flow, its two players."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import objectives
from deepgen_ext.models import VAE, FlowVAE, Glow, RealNVP
from deepgen_ext.models.latent.decoder_distributions import Gaussian
from deepgen_ext.models.latent.feature_space import FeatureSpace
from deepgen_ext.models.latent.flow_vae import ABLATION
from deepgen_ext.nn.transforms import ActNorm, Inverse, Sequential, Squeeze
from tests.checks import randomize
from tests.latent_checks import build, images, log_likelihood

SMALL = {"flow_depth": 1, "flow_channels": 4}
SHAPE = (1, 4, 4)


def _model(**options) -> FlowVAE:
    torch.manual_seed(0)
    options = {"hidden_features": (6,), "critic": "mlp", "critic_channels": 5} | SMALL | options
    model = randomize(FlowVAE(SHAPE, 3, n_levels=5, **options), 0.1).double()
    return model.eval()


def _levels(n: int = 6) -> Tensor:
    return torch.randint(0, 5, (n, *SHAPE), generator=torch.Generator().manual_seed(2))


def _flow(kind: str, shape: tuple[int, int, int]) -> FeatureSpace:
    torch.manual_seed(1)
    if kind == "realnvp":
        flow = RealNVP(shape, 2, 1, 4, blocks=1, n_levels=5)
    elif kind == "realnvp, three levels":
        flow = RealNVP(shape, 3, 1, 4, blocks=1, n_levels=5)
    else:
        flow = Glow(shape, 2, 2, 4, n_levels=5)
    return FeatureSpace(randomize(flow, 0.1).double().eval())


@pytest.mark.parametrize("kind", ["realnvp", "realnvp, three levels", "glow"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 8)])
def test_feature_space_is_the_flow_rearranged(kind: str, shape: tuple[int, int, int]) -> None:
    space = _flow(kind, shape)
    x = torch.rand(3, *shape, dtype=torch.float64)
    y, log_det = space(x)
    assert y.shape == x.shape
    latents, expected = space.flow(x)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=0)
    flat = torch.cat([latent.flatten(1) for latent in latents], 1)
    assert torch.equal(y.flatten(1).sort(1).values, flat.sort(1).values)
    again, inverse_log_det = space.inverse(y)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    jacobian = torch.autograd.functional.jacobian(lambda v: space(v[None])[0][0], x[0])
    size = math.prod(shape)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian.view(size, size))[1])


def test_a_latent_stays_in_its_place() -> None:
    """A latent of the finest scale moves features of its own 2x2 square alone."""
    space = _flow("realnvp", (1, 4, 4))
    y, _ = space(torch.rand(1, 1, 4, 4, dtype=torch.float64))
    y.requires_grad_()
    shapes = space.flow.latent_shapes
    assert shapes == ((2, 2, 2), (2, 2, 2))
    space.flow.inverse = lambda latents: (latents, None)
    latents, _ = space.inverse(y)
    (gradient,) = torch.autograd.grad(latents[0][0, :, 0, 1].sum(), y)
    touched = gradient[0, 0] != 0
    assert touched.sum() == 2
    assert touched[:2, 2:].sum() == 2
    with pytest.raises(ValueError, match="expected one of images"):
        FeatureSpace(RealNVP((4,)))


@pytest.mark.parametrize("flow", ["realnvp", "glow", "transform"])
def test_density_given_the_latents_by_slogdet(flow: str) -> None:
    """ln p(x|z) = ln N(f(x); mean, scale) + ln |det df/dx|, the Jacobian by autograd."""
    if flow == "transform":
        flow = Sequential(ActNorm(1), Squeeze(), ActNorm(4), Inverse(Squeeze()))
    model = _model(flow=flow)
    x = model.target(_levels(2), torch.rand(2, *SHAPE, dtype=torch.float64))
    z = torch.randn(2, 3, 3, dtype=torch.float64)
    found = model.log_likelihood_of_latents(x, z)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.flow(v[None])[0][0], x[i])
        log_det = torch.linalg.slogdet(jacobian.view(16, 16))[1]
        assert log_det.abs() > 0.1
        means, log_scales = model.decode(z[i]).chunk(2, 1)
        y = model.flow(x[i : i + 1])[0]
        normal = torch.distributions.Normal(means, log_scales.exp()).log_prob(y)
        torch.testing.assert_close(found[i], normal.flatten(1).sum(1) + log_det)


@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("flow", ["realnvp", None])
def test_bound_is_below_the_likelihood(likelihood: bool, flow: str | None) -> None:
    """By quadrature over both latents; 2x2 pixels, 3 levels."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
    game = {} if likelihood else {"likelihood": False, "adversarial": True, "critic": critic}
    model = build(FlowVAE, flow=flow, flow_depth=1, flow_channels=4, **game)
    model.eval()
    if not likelihood:
        nn.init.constant_(model.shared_scale.log_scale, -0.4)  # wide enough for the estimate
    levels, noise = images(4)
    exact = log_likelihood(model, model.target(levels, noise))
    eps = torch.randn(4, 4000, 2, dtype=torch.float64)
    with torch.no_grad():
        bound = model.bound(levels, 4000, noise=noise, eps=eps)
    gap = exact - bound
    assert (gap > 0.01).all(), gap
    estimate = model.log_likelihood(levels, 4000, chunk=1500, noise=noise)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)
    bits = model.bits_per_dim(levels, 4000, noise=noise, eps=eps)
    torch.testing.assert_close(bits, math.log2(3) - bound / (4 * math.log(2)))


@pytest.mark.parametrize("identity", [None, Sequential()])
def test_without_a_flow_it_is_the_vae(identity: Sequential | None) -> None:
    vae = build(VAE, decoder=Gaussian(1, 3))
    model = build(FlowVAE, flow=identity)
    model.load_state_dict(vae.state_dict())
    levels, noise = images(5)
    eps = torch.randn(5, 3, 2, dtype=torch.float64)
    terms = [m.terms(levels, 3, noise=noise, eps=eps) for m in (vae, model)]
    for found, expected in zip(*terms, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    draws = [m.sample(4, generator=torch.Generator().manual_seed(0)) for m in (vae, model)]
    torch.testing.assert_close(*draws)
    rebuilt = [m.reconstruct(levels, noise=noise) for m in (vae, model)]
    torch.testing.assert_close(*rebuilt)


def test_samples_are_the_inverse_of_drawn_features() -> None:
    model = _model()
    noise = model.draw_noise(200)
    means, log_scales = model.decode(noise["latents"]).chunk(2, 1)
    x = model.generate(noise)
    y, _ = model.flow(x)
    torch.testing.assert_close(y, means + log_scales.exp() * noise["features"])
    sample = model.sample(3, generator=torch.Generator().manual_seed(1))
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert sample.shape == (3, *SHAPE)
    mean = model.sample(3, generator=torch.Generator().manual_seed(1), mean=True)
    expected = model.flow.inverse(model.decode(z).chunk(2, 1)[0])[0].clamp(0, 1)
    torch.testing.assert_close(mean, expected)
    cold = model.sample(2, temperature=0.0, mean=True)
    torch.testing.assert_close(cold[0], cold[1])
    # a GAN has no noise but its latents
    gan = _model(likelihood=False, adversarial=True)
    noise = gan.draw_noise(3)
    torch.testing.assert_close(
        gan.generate(noise), gan.flow.inverse(gan.decode(noise["latents"]))[0]
    )


def _gradients(model: FlowVAE, loss: Tensor) -> set[str]:
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


def _names(model: FlowVAE, parameters: list[nn.Parameter]) -> set[str]:
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


@pytest.mark.parametrize("row", ABLATION)
@pytest.mark.parametrize("r1", [0.0, 2.0])
def test_each_loss_trains_its_player_and_nothing_else(row: str, r1: float) -> None:
    model = _model(r1=r1, **ABLATION[row]).train()
    assert (model.flow is not None) == row.endswith("ADE")
    levels = _levels()
    critic = _names(model, model.critic_parameters())
    generator = _names(model, model.generator_parameters())
    inference = _names(model, model.inference_parameters())
    everything = set(dict(model.named_parameters()))
    assert critic.isdisjoint(generator)
    assert critic | generator | inference == everything
    assert bool(critic) == model.adversarial
    assert (inference <= generator) == model.likelihood
    noise = model.draw_noise(6)
    likelihood = model.loss(levels, noise=noise["dequantisation"], eps=noise["posterior"])
    assert _gradients(model, likelihood) == everything - critic
    if not model.adversarial:
        for loss in (model.critic_loss, model.generator_loss):
            with pytest.raises(ValueError, match="adversarial=False: the model has no critic"):
                loss(levels)
        return
    found = _gradients(model, model.critic_loss(levels, noise=noise))
    # the critic's last bias shifts real and fake scores alike, and may cancel in a hinge
    assert found <= critic
    assert {name for name in critic if "weight" in name} <= found
    assert _gradients(model, model.generator_loss(levels, noise=noise)) == generator
    assert all(parameter.requires_grad for parameter in model.critic_parameters())


def test_losses_by_their_formulas() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    model = _model(
        adversarial=True,
        critic=critic,
        objective="non-saturating",
        adversarial_weight=0.3,
        r1=4.0,
    )
    levels, noise = _levels(), model.draw_noise(6)
    real = 2 * objectives.dequantize(levels, 5, noise=noise["dequantisation"]) - 1
    fake = 2 * model.generate(noise).detach() - 1
    terms = model.critic_terms(levels, noise=noise)
    softplus = nn.functional.softplus
    expected = softplus(-critic(real)).mean() + softplus(critic(fake)).mean()
    torch.testing.assert_close(terms.objective, expected)
    torch.testing.assert_close(terms.penalty, 2 * critic[1].weight.square().sum())
    gap = critic(real).mean() - critic(fake).mean()
    torch.testing.assert_close(terms.gap.double(), gap, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.critic_loss(levels, noise=noise), sum(terms[:2]))
    bound = model.bound(levels, noise=noise["dequantisation"], eps=noise["posterior"])
    bits = objectives.bits_per_dim(bound, 16, 5).mean()
    torch.testing.assert_close(
        model.generator_loss(levels, noise=noise), 0.3 * softplus(-critic(fake)).mean() + bits
    )
    gan = _model(likelihood=False, adversarial=True, critic=critic, objective="wasserstein")
    fake = 2 * gan.generate(noise) - 1
    torch.testing.assert_close(gan.generator_loss(levels, noise=noise), -critic(fake).mean())
    before = [model.critic_loss(levels, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    assert torch.equal(*before)


@pytest.mark.parametrize("network", ["dense", "conv"])
def test_a_few_steps_lower_the_losses(network: str) -> None:
    torch.manual_seed(0)
    model = FlowVAE(
        (1, 8, 8), 4, n_levels=5, network=network, channels=4, hidden_features=(16,), **SMALL
    )
    levels = torch.randint(0, 3, (32, 1, 8, 8)) + torch.randint(0, 3, (32, 1, 1, 1))
    noise = model.draw_noise(32)
    given = {"noise": noise["dequantisation"], "eps": noise["posterior"]}
    untouched = model.eval().loss(levels, **given)
    model.initialize(levels, noise=noise["dequantisation"])
    assert all(layer.initialized for layer in model.modules() if isinstance(layer, ActNorm))
    model.train()
    before = model.loss(levels, **given)
    assert before < untouched
    y, _ = model.distribution.features(model.target(levels, noise["dequantisation"]))
    bias = model.decoder.output.bias.detach()
    if network == "dense":
        torch.testing.assert_close(bias[:64], y.mean(0).flatten(), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(bias[0], y.mean(), rtol=1e-4, atol=1e-4)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        loss = model.loss(levels, **given)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < before - 0.1
    game = FlowVAE(
        (1, 8, 8), 4, n_levels=5, adversarial=True, critic="mlp", critic_channels=8, **SMALL
    )
    first = game.critic_loss(levels, noise=noise)
    adam = game.optimizer(game.critic_parameters(), 1e-2)
    for _ in range(10):
        loss = game.critic_loss(levels, noise=noise)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < first - 0.05


@pytest.mark.parametrize("critic", ["dcgan", "resnet", "mlp"])
def test_critics_are_bounded_by_spectral_norms_or_by_the_penalty(critic: str) -> None:
    options = {"adversarial": True, "critic": critic, "critic_channels": 4}
    bounded = FlowVAE((1, 8, 8), 3, n_levels=5, **options, **SMALL)
    assert any("parametrizations" in name for name, _ in bounded.critic.named_parameters())
    free = FlowVAE((1, 8, 8), 3, n_levels=5, r1=1.0, **options, **SMALL)
    assert not any("parametrizations" in name for name, _ in free.critic.named_parameters())
    levels = torch.randint(0, 5, (4, 1, 8, 8))
    for model in (bounded, free):
        assert model.critic_loss(levels).isfinite()
        assert model.critic(torch.zeros(4, 1, 8, 8)).shape == (4,)


def test_copies_are_the_same_model() -> None:
    """What the distribution holds of the flow is the copy's own."""
    model = _model()
    levels, noise = _levels(), _model().draw_noise(6)
    given = {"noise": noise["dequantisation"], "eps": noise["posterior"]}
    expected = model.loss(levels, **given)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _model(hidden_features=(6,))]
    copies[2].load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for other in copies:
        assert torch.equal(other.loss(levels, **given), expected)
        assert other.distribution.flow is other.flow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": False}, "likelihood=False needs adversarial=True"),
        ({"flow": "nice"}, "flow: expected one of realnvp, glow, a Flow, a Transform or None"),
        (
            {"flow": RealNVP((1, 8, 8))},
            r"flow: expected one of images \(1, 4, 4\), got \(1, 8, 8\)",
        ),
        ({"flow_levels": 4}, "needs multiples of 8"),
        ({"adversarial": True, "critic": "none"}, "critic: expected one of dcgan, resnet, mlp"),
        ({"adversarial": True, "objective": "sums"}, "objective: expected one of minimax"),
        ({"adversarial_weight": -1.0}, "adversarial_weight: expected 0 or more"),
        ({"r1": -1.0}, "r1: expected 0 or more"),
        ({"n_critic": 0}, "n_critic: expected an integer of 1 or more, got 0"),
        ({"posterior": "wide"}, "posterior: expected one of"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowVAE(SHAPE, 3, n_levels=5, **options)


def test_mistakes_in_use() -> None:
    with pytest.raises(ValueError, match=r"image_shape: expected \(C, H, W\), got \(4,\)"):
        FlowVAE((4,))
    model = _model(adversarial=True)
    with pytest.raises(ValueError, match=r"levels: expected \(n, 1, 4, 4\)"):
        model.critic_loss(_levels()[..., :2])
    with pytest.raises(ValueError, match="labels: the model has no classes"):
        model.generator_loss(_levels(), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"flow: expected features \(6, 1, 4, 4\), got \(6, 4"):
        _model(flow=Squeeze()).loss(_levels())
