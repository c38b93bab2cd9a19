"""What holds for every model with latents in levels, or with a decoder of dependent pixels."""

from __future__ import annotations

import copy
import math
import pickle

import torch
from torch import Tensor, nn

from tests.checks import randomize


def images(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """Levels, and the noise of their pixels."""
    generator = torch.Generator().manual_seed(1)
    shape = (n, *model.image_shape)
    levels = torch.randint(0, model.n_levels, shape, generator=generator)
    return levels, torch.rand(shape, generator=generator, dtype=torch.float64)


def check_gradients_reach(model: nn.Module) -> None:
    randomize(model)
    levels, noise = images(model, 6)
    model.loss(levels, noise=noise.float()).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not silent, silent


def check_learns(model: nn.Module, steps: int = 60) -> None:
    """What is left is less than the ln 2 that a model without latents must pay, and a start that
    knows the frequencies of levels much more.
    """
    torch.manual_seed(0)
    last = model.n_levels - 1
    two = torch.zeros(2, *model.image_shape, dtype=torch.uint8)
    half = model.image_shape[1] // 2
    two[0, :, :half], two[1, :, half:] = last, last
    levels = two[torch.randint(0, 2, (64,))]
    model.initialize(levels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model.loss(levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, end = sum(losses[:3]) / 3, sum(losses[-5:]) / 5
    assert math.isfinite(end)
    assert end < first - (5 if model.unit == "nats" else 0.4)


def check_copies(model: nn.Module) -> None:
    """Batches of 0 and 1, other dtypes, strides, copies, autocast; a model in float64."""
    shape, features = model.image_shape, model.noise_features
    levels, noise = images(model, 4)
    eps = torch.randn(4, 2, features).double()
    whole = model.elbo(levels, 2, noise=noise, eps=eps)
    assert whole.dtype == torch.float64
    assert whole.std() > 0
    for size in (0, 1):
        few = model.elbo(levels[:size], 2, noise=noise[:size], eps=eps[:size])
        torch.testing.assert_close(few, whole[:size])
        assert model.log_likelihood(levels[:size], 3, noise=noise[:size]).shape == (size,)
        assert model.reconstruct(levels[:size], noise=noise[:size]).shape == (size, *shape)
        assert model.sample(size).shape == (size, *shape)
    for same in (levels.mT.contiguous().mT, levels.to(torch.uint8), levels.int()):
        torch.testing.assert_close(model.elbo(same, 2, noise=noise, eps=eps), whole)
    single = copy.deepcopy(model).float().elbo(levels, 2, noise=noise, eps=eps)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-4, atol=1e-3)
    other = randomize(copy.deepcopy(model), seed=1)
    assert not torch.equal(other.elbo(levels, 2, noise=noise, eps=eps), whole)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.elbo(levels, 2, noise=noise, eps=eps), whole)
    with torch.autocast("cpu", torch.bfloat16):
        half = copy.deepcopy(model).float().elbo(levels, 2, noise=noise, eps=eps)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0.05, atol=0.5)
