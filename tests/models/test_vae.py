"""VAE: its bound against quadrature, its gradients, its decoders and posteriors, its use."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from deepgen_ext.models import VAE
from deepgen_ext.models.latent import DECODERS, POSTERIORS, Bernoulli
from tests.checks import randomize
from tests.latent_checks import (
    build,
    check_unbiased,
    elbo,
    gradients,
    images,
    log_likelihood,
)


@pytest.mark.parametrize(
    ("decoder", "posterior"),
    [(name, "gaussian") for name in DECODERS] + [("bernoulli", name) for name in POSTERIORS[1:]],
)
def test_bound_and_estimate_against_quadrature(decoder: str, posterior: str) -> None:
    model = build(VAE, decoder=decoder, posterior=posterior)
    levels, noise = images()
    target = model.target(levels, noise)
    exact = log_likelihood(model, target)
    with torch.no_grad():
        expected = elbo(model, target)
        draws = torch.stack([model.elbo(levels, 200, noise=noise) for _ in range(40)])
    error = draws.std(0) / 40**0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-6).all()
    assert (expected < exact - 1e-3).all()  # the posterior is not exact, so the bound is strict
    assert (error < (exact - expected)).all()
    estimate = model.log_likelihood(levels, 20_000, chunk=50_000, noise=noise)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("posterior", ["gaussian", "planar", "iaf"])
def test_reparametrised_gradient(posterior: str) -> None:
    """Against the gradient of the quadrature, and against score-function estimates."""
    model = build(VAE, posterior=posterior)
    levels, noise = images(2)
    target = model.target(levels, noise)
    exact = gradients(elbo(model, target).sum(), model)
    ours = [gradients(model.elbo(levels, 50, noise=noise).sum(), model) for _ in range(60)]
    check_unbiased(torch.stack(ours), exact, 0.0)

    def by_score() -> torch.Tensor:
        h = model.encode(target)
        z = model.posterior.draw(h, model.draw_eps(2, 2000, None, None)).z.detach()
        log_q = model.posterior(z, h)
        value = model.log_likelihood_of_latents(target, z) - 0.5 * z.square().sum(2)
        weight = (value - log_q).detach()
        weight = weight - weight.mean(1, keepdim=True)
        return gradients((weight * log_q + value).mean(1).sum(), model)

    score = torch.stack([by_score() for _ in range(60)])
    ours = torch.stack(ours)
    check_unbiased(score, ours.mean(0), ours.std(0) / len(ours) ** 0.5)


@pytest.mark.parametrize("posterior", ["gaussian", "realnvp"])
def test_terms_are_kept_apart(posterior: str) -> None:
    model = build(VAE, posterior=posterior)
    levels, noise = images()
    eps = torch.randn(4, 7, 2).double()
    terms = model.terms(levels, 7, noise=noise, eps=eps)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    torch.testing.assert_close(model.elbo(levels, 7, noise=noise, eps=eps), terms.elbo)
    one = [model.terms(levels, noise=noise, eps=eps[:, i : i + 1]) for i in range(7)]
    for name in ("reconstruction", "kl"):
        mean = torch.stack([getattr(part, name) for part in one]).mean(0)
        torch.testing.assert_close(getattr(terms, name), mean)
    target, h = model.target(levels, noise), model.encode(model.target(levels, noise))
    z = model.posterior.draw(h, eps).z
    torch.testing.assert_close(
        terms.reconstruction, model.log_likelihood_of_latents(target, z).mean(1)
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_units(decoder: str) -> None:
    model = build(VAE, decoder=decoder)
    levels, noise = images()
    eps = torch.randn(4, 1, 2).double()
    nats = model.elbo(levels, noise=noise, eps=eps)
    loss = model.loss(levels, noise=noise, eps=eps)
    bits = -nats / (4 * math.log(2)) + (math.log2(3) if decoder == "gaussian" else 0.0)
    torch.testing.assert_close(model.bits_per_dim(levels, noise=noise, eps=eps), bits)
    if decoder == "bernoulli":
        assert model.unit == "nats"
        torch.testing.assert_close(loss, -nats.mean())
    else:
        assert model.unit == "bits/dim"
        torch.testing.assert_close(loss, bits.mean())


@pytest.mark.parametrize("network", ["dense", "conv"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(decoder: str, network: str) -> None:
    for posterior in POSTERIORS:
        torch.manual_seed(0)
        model = VAE(
            (3, 5, 6),
            4,
            decoder=decoder,
            posterior=posterior,
            network=network,
            hidden_features=(8,),
            channels=4,
            flow_steps=2,
            flow_hidden=8,
        )
        randomize(model)
        model.loss(torch.randint(0, 256, (6, 3, 5, 6))).backward()
        silent = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum() > 0
        ]
        assert not silent, (posterior, silent)


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_tells_two_images_apart(decoder: str) -> None:
    """What is left is less than the ln 2 that a model without latents must pay."""
    torch.manual_seed(0)
    two = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    two[0, 0, :2], two[1, 0, 2:] = 4, 4
    levels = two[torch.randint(0, 2, (64,))]
    model = VAE((1, 4, 4), 2, decoder=decoder, n_levels=5, hidden_features=(32,))
    model.initialize(levels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = model.loss(levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < first - (5 if decoder == "bernoulli" else 0.4)
    rebuilt = model.reconstruct(two) * 4
    assert (rebuilt - two).abs().mean() < 0.8


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_batches_dtypes_and_copies(posterior: str) -> None:
    model = build(VAE, posterior=posterior)
    levels, noise = images(5)
    eps = torch.randn(5, 2, 2).double()
    whole = model.elbo(levels, 2, noise=noise, eps=eps)
    assert whole.dtype == torch.float64
    for size in (0, 1):
        few = model.elbo(levels[:size], 2, noise=noise[:size], eps=eps[:size])
        torch.testing.assert_close(few, whole[:size])
        assert model.log_likelihood(levels[:size], 3, noise=noise[:size]).shape == (size,)
        assert model.reconstruct(levels[:size], noise=noise[:size]).shape == (size, 1, 2, 2)
        assert model.sample(size).shape == (size, 1, 2, 2)
    transposed = levels.transpose(2, 3).contiguous().transpose(2, 3)
    assert not transposed.is_contiguous()
    for same in (transposed, levels.to(torch.uint8), levels.int()):
        torch.testing.assert_close(model.elbo(same, 2, noise=noise, eps=eps), whole)
    single = copy.deepcopy(model).float().elbo(levels, 2, noise=noise, eps=eps)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-4, atol=1e-4)
    other = randomize(build(VAE, posterior=posterior), seed=1)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.elbo(levels, 2, noise=noise, eps=eps), whole)
    with torch.autocast("cpu", torch.bfloat16):
        half = copy.deepcopy(model).float().elbo(levels, 2, noise=noise, eps=eps)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("decoder", DECODERS)
def test_samples(decoder: str) -> None:
    model = build(VAE, decoder=decoder)

    def draw(seed: int, n: int = 50, **options) -> torch.Tensor:
        return model.sample(n, generator=torch.Generator().manual_seed(seed), **options)

    samples = draw(5)
    assert torch.equal(samples, draw(5))
    assert not torch.equal(samples, draw(6))
    if decoder == "gaussian":
        assert samples.is_floating_point()
    else:
        assert samples.dtype == torch.int64
        assert samples.min() >= 0
        assert samples.max() <= 2
    means = draw(5, mean=True)
    assert means.is_floating_point()
    assert means.min() >= 0
    assert means.max() <= 1
    # At temperature 0 all latents are the prior's mean, and its scale is the temperature's.
    assert (draw(5, mean=True, temperature=0.0) == draw(6, mean=True, temperature=0.0)).all()
    eps = torch.randn(50, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = model.distribution.mean(model.decode(0.5 * eps))
    torch.testing.assert_close(draw(5, mean=True, temperature=0.5), expected)


def test_samples_come_as_often_as_the_likelihood_says() -> None:
    model = build(VAE)
    model.distribution = Bernoulli(1, 2)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 2, 2)
    p = log_likelihood(model, every).exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-9)
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(samples.flatten(1) @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert ((counts / 20_000 - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_reconstruction_is_of_the_posteriors_mean() -> None:
    model = build(VAE, posterior="iaf")
    levels, noise = images()
    z = model.infer(levels, noise=noise)
    h = model.encode(model.target(levels, noise))
    torch.testing.assert_close(z, model.posterior.draw(h, torch.zeros(4, 1, 2).double()).z[:, 0])
    expected = torch.sigmoid(model.decode(z))
    torch.testing.assert_close(model.reconstruct(levels, noise=noise), expected)


def test_start_at_the_pixels_statistics() -> None:
    levels = torch.randint(0, 3, (200, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    levels[:, :, 0] = 0
    noise = torch.rand(levels.shape)
    for network in ("dense", "conv"):
        model = VAE((1, 2, 2), 2, n_levels=3, network=network, hidden_features=(6,), channels=2)
        before = model.elbo(levels, noise=noise).mean()
        model.initialize(levels, noise=noise)
        assert model.elbo(levels, noise=noise).mean() > before + 0.1
        if network == "dense":
            assert model.sample(500)[:, :, 0].double().mean() < 0.1


def test_compiles() -> None:
    torch._dynamo.reset()
    model = build(VAE, posterior="realnvp")
    levels, noise = images()
    eps = torch.randn(4, 3, 2).double()

    def step() -> torch.Tensor:
        return model.elbo(levels, 3, noise=noise, eps=eps).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), step())
    torch.testing.assert_close(gradients(compiled(), model), gradients(step(), model))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: VAE((2, 2)), ValueError, r"image_shape: expected \(C, H, W\)"),
        (lambda: VAE((1, 2, 2), decoder="normal"), ValueError, "decoder: .*bernoulli, gaussian"),
        (lambda: VAE((1, 2, 2), posterior="maf"), ValueError, "posterior: .*gaussian, planar"),
        (lambda: VAE((1, 2, 2), network="mlp"), ValueError, "network: expected dense or conv"),
        (lambda: VAE((1, 2, 2), activation="selu"), ValueError, "activation: .*relu, elu, tanh"),
        (lambda: VAE((1, 2, 2), hidden_features=()), ValueError, "hidden_features: "),
        (lambda: VAE((1, 2, 2), network="conv", channels=0), ValueError, "channels: .*0"),
        (lambda: VAE((1, 2, 2), latent_features=0), ValueError, "latent_features: .*0"),
        (lambda: VAE((1, 2, 2), n_levels=1), ValueError, "n_levels: "),
        (lambda: build(VAE).elbo(images()[0] + 3), ValueError, r"levels: .*\[0, 3\), got 3 to 5"),
        (lambda: build(VAE).elbo(images()[0].float()), TypeError, "levels: a bernoulli decoder"),
        (
            lambda: build(VAE).elbo(images()[0][:, 0]),
            ValueError,
            r"levels: expected \(n, 1, 2, 2\)",
        ),
        (lambda: build(VAE).elbo(images()[0], 0), ValueError, "k: expected 1 or more, got 0"),
        (
            lambda: build(VAE).elbo(images()[0], 2, eps=torch.zeros(4, 1, 2)),
            ValueError,
            r"eps: expected \(4, 2, 2\), got \(4, 1, 2\)",
        ),
        (lambda: build(VAE).elbo(images()[0], noise=torch.rand(4)), ValueError, "noise: "),
        (lambda: build(VAE).log_likelihood(images()[0], 0), ValueError, "k: .*0"),
        (lambda: build(VAE).log_likelihood(images()[0], 5, chunk=0), ValueError, "chunk: .*0"),
        (lambda: build(VAE).sample(-1), ValueError, "n: .*-1"),
        (lambda: build(VAE).sample(1, temperature=-1.0), ValueError, "temperature: .*-1"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
