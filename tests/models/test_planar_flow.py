"""Planar and radial flows as models: exact densities, cheap samples, contexts."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext.models import PlanarFlow, RadialFlow
from tests.checks import check_model, randomize

FLOWS = [PlanarFlow, RadialFlow]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("features", [1, 3])
def test_contract(flow, features: int) -> None:
    torch.manual_seed(0)
    check_model(flow(features, length=3), torch.randn(4, features))


@pytest.mark.parametrize("flow", FLOWS)
def test_density_integrates_to_one(flow) -> None:
    torch.manual_seed(0)
    model = randomize(flow(2, length=4), 0.5).double()
    axis = (torch.arange(300, dtype=torch.float64) + 0.5) / 15 - 10
    with torch.no_grad():
        log_prob = model.log_prob(torch.cartesian_prod(axis, axis))
    assert (log_prob.exp().sum() / 15**2).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("flow", FLOWS)
def test_samples_come_with_their_density(flow) -> None:
    torch.manual_seed(0)
    model = randomize(flow(2, length=4, context_features=3), 0.3).double()
    context = torch.randn(6, 3, dtype=torch.float64)
    x, log_prob = model.sample_and_log_prob(6, context)
    torch.testing.assert_close(log_prob, model.log_prob(x, context))
    gradients = torch.autograd.grad(x.sum() + log_prob.sum(), list(model.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.allclose(model.log_prob(x, context + 1), log_prob)


def test_fits_samples_by_maximum_likelihood() -> None:
    torch.manual_seed(0)
    data = torch.randn(512, 2) * torch.tensor([2.0, 0.5]) + 1.0
    model = PlanarFlow(2, length=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        loss = model.loss(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
