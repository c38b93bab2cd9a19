"""Properties of latent-variable models whose two latents can be integrated over by quadrature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.checks import randomize

SHAPE = (1, 2, 2)
N_LEVELS = 3


def build(kind: type[nn.Module], **options) -> nn.Module:
    """A tiny model in float64 with two latents, which its posterior tells in part: far from
    exactly, but no further than a thousand draws can reach.
    """
    torch.manual_seed(0)
    defaults = {"hidden_features": (6,), "flow_steps": 2, "flow_hidden": 6}
    if "flow" in options:  # FlowVAE: its flow is of the pixels
        defaults = {"hidden_features": (6,)}
    options = defaults | options
    model = randomize(kind(SHAPE, 2, n_levels=N_LEVELS, **options), 0.05).double()
    with torch.no_grad():
        model.decoder.output.weight.mul_(2)
        model.posterior.moments.weight.mul_(0.5)
    return model


def images(n: int = 4) -> tuple[Tensor, Tensor]:
    """Levels, and the noise of their pixels."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, N_LEVELS, (n, *SHAPE), generator=generator)
    return levels, torch.rand(levels.shape, generator=generator, dtype=torch.float64)


def grid(radius: float = 8.0, cells: int = 161) -> tuple[Tensor, Tensor]:
    """Points (m, 2), and ln of the area that each stands for."""
    axis = torch.linspace(-radius, radius, cells, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * (axis[1] - axis[0]).log()


def log_joint(model: nn.Module, target: Tensor, z: Tensor) -> Tensor:
    """ln p(x, z), (n, m), of images at the points z (m, 2)."""
    z = z.expand(target.shape[0], -1, 2)
    return model.log_likelihood_of_latents(target, z) + model.log_prior(z)


@torch.no_grad()
def log_likelihood(model: nn.Module, target: Tensor) -> Tensor:
    """ln p(x), (n,), by quadrature."""
    z, log_area = grid()
    return torch.logsumexp(log_joint(model, target, z), 1) + log_area


def elbo(model: nn.Module, target: Tensor) -> Tensor:
    """E_q[ln p(x, z) - ln q(z|x)], (n,), by quadrature: differentiable."""
    z, log_area = grid()
    log_q = model.posterior(z.expand(target.shape[0], -1, 2), model.encode(target))
    weighted = (log_q + log_area).exp() * (log_joint(model, target, z) - log_q)
    return torch.where(log_q > -300, weighted, 0.0).sum(1)


def gradients(value: Tensor, model: nn.Module) -> Tensor:
    """Of all parameters, in one vector; zero where there is none."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(found, parameters, strict=True)
        ]
    )


def check_unbiased(estimates: Tensor, expected: Tensor, error_of_expected: Tensor | float) -> None:
    """The mean over the rows is as expected within 5 standard errors, which say something."""
    error = (estimates.var(0) / len(estimates) + error_of_expected**2).sqrt()
    difference = (estimates.mean(0) - expected).abs()
    assert (difference <= 5 * error + 1e-9).all(), (difference / error).max()
    assert error.norm() < 0.2 * expected.norm(), "so few draws would prove nothing"
