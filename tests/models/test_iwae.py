"""IWAE: F_k against quadrature, its three gradients, the likelihood in bounded memory."""

from __future__ import annotations

import math

import pytest
import torch

from deepgen_ext.models import IWAE
from deepgen_ext.models.latent.importance import RunningLogMeanExp, log_mean_exp
from tests.latent_checks import build, check_unbiased, elbo, gradients, images, log_likelihood


@pytest.mark.parametrize("posterior", ["gaussian", "iaf"])
def test_bounds_rise_to_the_likelihood(posterior: str) -> None:
    """F_1 is the ELBO, F_k < F_2k < ln p(x), each by more than its error."""
    model = build(IWAE, posterior=posterior)
    levels, noise = images()
    target = model.target(levels, noise)
    exact = log_likelihood(model, target)
    with torch.no_grad():
        expected = elbo(model, target)
        log_weights = model.log_weights(
            model.encode(target), target, torch.randn(4, 160_000, 2).double()
        )
    means, errors = [], []
    for k in (1, 2, 4, 8, 16):
        values = log_mean_exp(log_weights.view(-1, k)).view(4, -1)
        means.append(values.mean(1))
        errors.append(values.std(1) / values.shape[1] ** 0.5)
    assert ((means[0] - expected).abs() < 5 * errors[0]).all()
    # Summed over images, the steps are many times their errors.
    rises = [(b - a).sum() for a, b in zip(means[:-1], means[1:])]
    noise_of_rises = [(a.square() + b.square()).sum().sqrt() for a, b in zip(errors, errors[1:])]
    assert all(rise > 3 * error for rise, error in zip(rises, noise_of_rises))
    assert (means[-1].sum() < exact.sum() - 3 * errors[-1].norm()).all()


def test_bound_is_the_log_mean_of_the_weights() -> None:
    model = build(IWAE, k=6)
    levels, noise = images()
    target, eps = model.target(levels, noise), torch.randn(4, 6, 2).double()
    h = model.encode(target)
    z, log_q, *_ = model.posterior.draw(h, eps)
    log_w = model.log_likelihood_of_latents(target, z) - log_q
    log_w = log_w + torch.distributions.Normal(0, 1).log_prob(z).sum(2)
    expected = log_w.exp().mean(1).log()
    torch.testing.assert_close(model.bound(levels, noise=noise, eps=eps), expected)
    torch.testing.assert_close(model.loss(levels, noise=noise, eps=eps), -expected.mean())
    one = model.bound(levels, 1, noise=noise, eps=eps[:, :1])
    torch.testing.assert_close(one, log_w[:, 0])


def test_plain_gradient_has_self_normalised_weights() -> None:
    model = build(IWAE, k=5)
    levels, noise = images()
    target, eps = model.target(levels, noise), torch.randn(4, 5, 2).double()
    log_w = model.log_weights(model.encode(target), target, eps)
    weights = (log_w.exp() / log_w.exp().sum(1, keepdim=True)).detach()
    expected = gradients(-(weights * log_w).sum(1).mean(), model)
    actual = gradients(model.loss(levels, noise=noise, eps=eps), model)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("posterior", ["gaussian", "planar", "iaf", "realnvp"])
@pytest.mark.parametrize("gradient", ["resampled", "dreg"])
def test_gradients_agree_in_expectation(gradient: str, posterior: str) -> None:
    plain = build(IWAE, k=4, posterior=posterior)
    other = build(IWAE, k=4, posterior=posterior, gradient=gradient)
    other.load_state_dict(plain.state_dict())
    levels, noise = images(1)
    many = 300  # copies of the image: a step averages over them
    levels, noise = levels.expand(many, -1, -1, -1), noise.expand(many, -1, -1, -1)

    def estimates(model: IWAE) -> torch.Tensor:
        return torch.stack([gradients(model.loss(levels, noise=noise), model) for _ in range(50)])

    expected, actual = estimates(plain), estimates(other)
    error = expected.std(0) / len(expected) ** 0.5
    check_unbiased(actual, expected.mean(0), error)
    encoder = slice(0, sum(p.numel() for p in plain.encoder.parameters()))
    if gradient == "dreg" and posterior == "gaussian":
        assert actual[:, encoder].var(0).sum() < 0.7 * expected[:, encoder].var(0).sum()


@pytest.mark.parametrize("gradient", ["plain", "resampled", "dreg"])
def test_loss_is_the_bound_whatever_its_gradient(gradient: str) -> None:
    model = build(IWAE, k=5, gradient=gradient, posterior="realnvp")
    levels, noise = images()
    eps = torch.randn(4, 5, 2).double()
    expected = -model.bound(levels, noise=noise, eps=eps).mean()
    torch.testing.assert_close(model.loss(levels, noise=noise, eps=eps), expected)
    assert model.loss(levels[:0], noise=noise[:0], eps=eps[:0]).isnan()  # a mean over nothing
    model.loss(levels[:1], noise=noise[:1], eps=eps[:1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_training_with_more_draws_has_the_better_likelihood() -> None:
    """Where the posterior family is poor: one number stands for a mixture of patterns."""
    torch.manual_seed(0)
    levels = torch.randint(0, 2, (256, 1, 3, 3))
    levels[:, :, 1] = levels[:, :, 0]
    results = {}
    for k in (1, 20):
        torch.manual_seed(1)
        model = IWAE((1, 3, 3), 3, k=k, n_levels=2, hidden_features=(24,))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        generator = torch.Generator().manual_seed(0)
        first = model.loss(levels, generator=generator).item()
        for _ in range(250):
            loss = model.loss(levels, generator=generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < first - 0.5
        results[k] = model.log_likelihood(levels, 500, chunk=8000, generator=generator).mean()
    assert results[20] > results[1] + 0.05


def test_running_log_mean_is_that_of_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = 300 * torch.randn(5, 64, generator=generator, dtype=torch.float64)
    log_weights[1, :40] = -math.inf
    log_weights[2] = -math.inf
    log_weights[3] += 2e4
    expected = log_mean_exp(log_weights)
    for sizes in ((64,), (1,) * 64, (10, 50, 4), (63, 1)):
        running = RunningLogMeanExp(5, torch.device("cpu"))
        for part in log_weights.split(sizes, 1):
            running.add(part)
        torch.testing.assert_close(running.value, expected)
    assert expected[2] == -math.inf


@pytest.mark.parametrize(("n", "k", "chunk"), [(4, 50, 7), (4, 3, 7), (4, 50, 1000), (3, 5, 1)])
def test_likelihood_decodes_no_more_than_a_chunk_at_a_time(n: int, k: int, chunk: int) -> None:
    model = build(IWAE)
    levels, noise = images(n)
    rows = []
    model.decoder.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    log_likelihood_ = model.log_likelihood(levels, k, chunk=chunk, noise=noise)
    assert log_likelihood_.shape == (n,)
    assert log_likelihood_.dtype == torch.float64
    assert not log_likelihood_.requires_grad
    assert sum(rows) == n * k
    assert max(rows) <= chunk
    assert len(rows) <= 2 * math.ceil(n * k / chunk) + n  # chunks are filled


def test_likelihood_is_of_each_image_whatever_the_chunk() -> None:
    model = build(IWAE)
    levels, noise = images()
    exact = log_likelihood(model, model.target(levels, noise))
    for chunk in (700, 30_000):
        estimate = model.log_likelihood(levels, 10_000, chunk=chunk, noise=noise)
        torch.testing.assert_close(estimate, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected 1 or more, got 0"),
        ({"gradient": "score"}, "gradient: expected one of plain, resampled, dreg; got 'score'"),
        ({"decoder": "beta"}, "decoder: "),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(IWAE, **options)
    with pytest.raises(ValueError, match="k: expected 1 or more, got 0"):
        build(IWAE).bound(images()[0], 0)
