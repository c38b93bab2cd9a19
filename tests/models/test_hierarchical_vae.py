"""Hierarchical VAE: its bound against quadrature, its levels, its options, its use."""

import copy
import math
import pickle

import pytest
import torch

from deepgen_ext.models import HierarchicalVAE
from deepgen_ext.models.autoregressive import naive_sample
from deepgen_ext.models.latent import DECODERS
from tests.checks import randomize
from tests.latent_checks import check_unbiased, gradients, grid
from tests.top_down_checks import check_copies, check_gradients_reach, check_learns, images

SMALL = {"channels": 6, "prior_channels": 6, "prior_layers": 2}


def build(shape=(1, 4, 4), latent_channels=(1, 1), std=0.1, **options):
    torch.manual_seed(0)
    options = {"n_levels": 3, "decoder": "bernoulli"} | SMALL | options
    return randomize(HierarchicalVAE(shape, latent_channels, **options), std).double()


def two_cells():
    """A grid of two cells, whose two latents can be integrated over, and images."""
    model = build((1, 2, 4), (1,), std=0.15)
    return model, *images(model, 3)


def log_joint(model, target, z):
    """ln p(x, z), (n, m), at points z (m, 2): by the prior's own score and the decoder."""
    prior = model.levels[0].prior
    log_prior = prior.log_prob(z.view(-1, 1, 1, 2), model.top.expand(len(z), *model.top.shape))
    parameters = model.decode(z).unsqueeze(0).expand(len(target), -1, -1, -1, -1)
    return model.distribution.log_prob(parameters, target) + log_prior


def log_posterior(model, target, z):
    h = model.top.expand(len(target), *model.top.shape)
    mean, log_scale = model.levels[0].posterior_of(h, model.encode(target)[0])
    normal = torch.distributions.Normal(mean.view(-1, 1, 2), log_scale.exp().view(-1, 1, 2))
    return normal.log_prob(z).sum(2)


def quadrature(model, target):
    """(ln p(x), ELBO), each (n,), the second differentiable."""
    z, log_area = grid(cells=121)
    joint, log_q = log_joint(model, target, z), log_posterior(model, target, z)
    elbo = ((log_q + log_area).exp() * (joint - log_q)).sum(1)
    return (torch.logsumexp(joint, 1) + log_area).detach(), elbo


def test_bound_and_estimate_against_quadrature():
    model, levels, noise = two_cells()
    exact, elbo = quadrature(model, model.target(levels, noise))
    with torch.no_grad():
        draws = torch.stack([model.elbo(levels, 200, noise=noise) for _ in range(30)])
        error = draws.std(0) / 30**0.5
        assert ((draws.mean(0) - elbo).abs() < 5 * error + 1e-6).all()
        assert (elbo < exact - 5e-3).all()
        assert (error < (exact - elbo) / 5).all()
    estimate = model.log_likelihood(levels, 5000, chunk=7000, noise=noise)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.03)


def test_reparametrised_gradient():
    """Against the gradient of the quadrature, and against score-function estimates."""
    model, levels, noise = two_cells()
    target = model.target(levels, noise)
    exact = gradients(quadrature(model, target)[1].sum(), model)
    ours = torch.stack(
        [gradients(model.elbo(levels, 50, noise=noise).sum(), model) for _ in range(40)]
    )
    check_unbiased(ours, exact, 1e-7)
    posterior = list(model.levels[0].posterior.parameters())

    def by_score():
        h, eps = model.encode(target), torch.randn(3, 2000, 2).double()
        with torch.no_grad():
            mean, log_scale = model.levels[0].posterior_of(
                model.top.expand(3, *model.top.shape), h[0]
            )
            z = mean.view(3, 1, 2) + log_scale.exp().view(3, 1, 2) * eps
            joint = torch.cat([log_joint(model, target[i : i + 1], z[i]) for i in range(3)])
        h = model.top.expand(3, *model.top.shape)
        mean, log_scale = model.levels[0].posterior_of(h, model.encode(target)[0])
        normal = torch.distributions.Normal(mean.view(3, 1, 2), log_scale.exp().view(3, 1, 2))
        log_q = normal.log_prob(z).sum(2)
        weight = joint - log_q.detach()
        weight = weight - weight.mean(1, keepdim=True)
        found = torch.autograd.grad((weight * log_q).mean(1).sum(), posterior)
        return torch.cat([each.flatten() for each in found])

    expected = torch.autograd.grad(quadrature(model, target)[1].sum(), posterior)
    expected = torch.cat([each.flatten() for each in expected])
    check_unbiased(torch.stack([by_score() for _ in range(40)]), expected, 1e-7)


def test_two_levels_against_draws_of_the_prior():
    """ln p(x) by importance samples of q(z_2|x) q(z_1|x, z_2) and of p(z_2) p(z_1|z_2)."""
    model = build(std=0.15)
    levels, noise = images(model, 2)
    target = model.target(levels, noise)
    with torch.no_grad():
        z = model.latents_of_noise(torch.randn(30_000, model.noise_features).double())
        given = model.decode(z).unsqueeze(0).expand(2, -1, -1, -1, -1)
        exact = model.distribution.log_prob(given, target).logsumexp(1) - math.log(len(z))
    estimate = model.log_likelihood(levels, 10_000, chunk=20_000, noise=noise)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.1)
    bound = model.elbo(levels, 2000, noise=noise)
    assert (bound < exact - 0.2).all()


def test_kl_of_each_level():
    """They add up to the ELBO; each is what its draws say, the top one's in closed form too."""
    model = build((1, 4, 4), (2, 3), std=0.2)
    levels, noise = images(model, 2)
    k = 4000
    eps = torch.randn(2, k, model.noise_features).double()
    with torch.no_grad():
        terms = model.terms(levels, k, noise=noise, eps=eps)
        target = model.target(levels, noise)
        h = model.encode(target)
        top = torch.distributions.Normal(0, 1)
        mean, log_scale = model.levels[0].posterior_of(model.top.expand(2, -1, -1, -1), h[0])
        q = torch.distributions.Normal(mean, log_scale.exp())
        closed = torch.distributions.kl_divergence(q, top).flatten(1).sum(1)
        of_all = terms.reconstruction - model.log_weights(h, target, eps).mean(1)
    assert len(terms.kl_by_level) == 2
    torch.testing.assert_close(terms.kl_by_level[0], closed)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - sum(terms.kl_by_level))
    torch.testing.assert_close(terms.kl, of_all, rtol=0.05, atol=0.05)
    assert terms.kl_by_level[1].min() > 0.1
    assert torch.equal(model.elbo(levels, k, noise=noise, eps=eps), terms.elbo)


@pytest.mark.parametrize("decoder", ["bernoulli", "discretized_logistic"])
def test_free_bits_and_warm_up(decoder):
    model = build(decoder=decoder, std=0.2, kl_warmup=4)
    levels, noise = images(model, 6)
    eps = torch.randn(6, 1, model.noise_features).double()
    terms = model.terms(levels, noise=noise, eps=eps)
    kl = torch.stack([level.mean() for level in terms.kl_by_level])  # a level is one channel here
    free = kl.mean().item()  # between the two of them
    assert kl.min() < 0.8 * free
    for free_bits, charged in (
        (0.0, kl.sum()),
        (free / math.log(2), kl.max() + free),
        (100.0, 200 * math.log(2)),
    ):
        model.free_bits = free_bits
        for weight in (1.0, 0.3):
            loss = model.loss(levels, noise=noise, eps=eps, kl_weight=weight)
            expected = model.in_units(terms.reconstruction.mean() - weight * charged)
            torch.testing.assert_close(loss, expected)
    model.free_bits = 0.0
    bound = model.bound(levels, noise=noise, eps=eps)
    torch.testing.assert_close(
        model.loss(levels, noise=noise, eps=eps), model.in_units(bound).mean()
    )
    assert [model.kl_weight(step) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    assert build().kl_weight(0) == 1.0


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(decoder):
    torch.manual_seed(0)
    options = SMALL | {"prior_channels": 12}
    model = HierarchicalVAE((3, 8, 8), (2, 1), decoder=decoder, n_levels=5, **options)
    check_gradients_reach(model)


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_tells_two_images_apart(decoder):
    check_learns(HierarchicalVAE((1, 4, 4), (1, 1), decoder=decoder, n_levels=5, **SMALL))


def test_batches_dtypes_and_copies():
    check_copies(build((2, 4, 8), (2, 1)))
    model = build()
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(*(m.sample(3, generator=seeded(1)) for m in (model, twin)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_samples_are_the_definitions():
    """Level by level, each cell by a pass of its prior."""
    model = build((1, 8, 8), (2, 1), std=0.2)
    eps = torch.randn(3, model.noise_features).double()
    h, parts, start = model.top.expand(3, *model.top.shape), [], 0
    with torch.no_grad():
        for level, finer in zip(model.levels, model.finer, strict=True):
            size = math.prod(level.grid)
            noise = eps[:, start : start + size].view(3, *level.grid)
            start += size
            prior = level.prior
            z = naive_sample(prior.network, prior.distribution, noise, condition=h)
            parts.append(z.flatten(1))
            h = finer(level(h, z))
        expected = model.output(torch.nn.functional.elu(h))
        z = torch.cat(parts, 1)
        torch.testing.assert_close(model.latents_of_noise(eps), z)
        torch.testing.assert_close(model.parameters_of_noise(eps), expected)
        torch.testing.assert_close(model.decode(z), expected)
    samples = model.sample(4, generator=seeded(0))
    assert torch.equal(samples, model.sample(4, generator=seeded(0)))
    assert set(samples.unique().tolist()) <= {0, 2}
    cold = model.sample(3, temperature=0.0, generator=seeded(0), mean=True)
    assert torch.equal(cold[0], cold[1])
    assert model.sample(0).shape == (0, 1, 8, 8)


def test_redrawn_levels():
    model = build((1, 8, 8), (2, 1), std=0.2)
    top = 2 * 2 * 2
    z, eps = torch.randn(2, 3, model.noise_features).double()
    assert torch.equal(model.redrawn(z, eps, 2), z)
    one = model.redrawn(z, eps, 1)
    assert torch.equal(one[:, :top], z[:, :top])
    assert (one[:, top:] - z[:, top:]).abs().max() > 0.1
    assert torch.equal(model.redrawn(z, eps, 0), model.latents_of_noise(eps))
    changed = z.clone()
    changed[:, :top] += 1
    assert not torch.allclose(model.redrawn(changed, eps, 1)[:, top:], one[:, top:])


def test_the_start_fits_the_pixels():
    model = HierarchicalVAE((2, 4, 4), (1,), decoder="gaussian", n_levels=8, **SMALL)
    levels = torch.randint(0, 3, (200, 2, 4, 4))
    model.initialize(levels)
    means, _ = model.decode(torch.zeros(1, model.noise_features)).chunk(2, 1)
    assert (means.mean() - (levels.float().mean() + 0.5) / 8).abs() < 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"image_shape": (1, 8, 6)},
            "2 levels halve the sides 2 times, and 8x6 is not divisible by 4",
        ),
        ({"image_shape": (8, 8)}, r"image_shape: expected \(C, H, W\), got \(8, 8\)"),
        ({"latent_channels": ()}, "latent_channels: expected a positive number for each level"),
        ({"latent_channels": (2, 0)}, "latent_channels: expected a positive number for each level"),
        ({"free_bits": -0.1}, "free_bits: expected 0 or more, got -0.1"),
        ({"kl_warmup": -1}, "kl_warmup: expected 0 or more steps, got -1"),
        (
            {"decoder": "poisson"},
            "decoder: expected one of bernoulli, gaussian, discretized_logistic",
        ),
        ({"channels": 0}, "channels: expected a positive number, got 0"),
        ({"prior_layers": 0}, "prior_layers: expected a positive number, got 0"),
        ({"prior_kernel_size": 2}, "kernel_size: expected an odd number, got 2"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        HierarchicalVAE(**{"image_shape": (1, 8, 8)} | arguments)


def test_what_is_refused_on_use():
    model = build()
    levels, noise = images(model, 2)
    for call, words in (
        (lambda: model.elbo(levels, 0), "k: expected 1 or more, got 0"),
        (lambda: model.log_likelihood(levels, 5, chunk=0), "chunk: expected 1 or more, got 0"),
        (lambda: model.elbo(levels[:, :, :3]), r"levels: expected \(n, 1, 4, 4\)"),
        (lambda: model.elbo(levels + 3), "levels: expected values in"),
        (lambda: model.elbo(levels, eps=torch.zeros(2, 1, 3)), r"eps: expected \(2, 1, 5\)"),
        (lambda: model.elbo(levels, noise=noise[:1]), "noise: expected the shape of levels"),
        (lambda: model.sample(-1), "n: expected 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="a bernoulli decoder takes integer levels 0 to 2"):
        copy.deepcopy(model).elbo(levels.double())
