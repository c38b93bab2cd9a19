"""Initialisation from data, and the accuracy of the 1x1 convolution's inverse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from deepgen_ext.nn.transforms import ActNorm, ActNormConv1x1, InvertibleConv1x1, Sequential
from tests.checks import randomize

LAYERS = [ActNorm, ActNormConv1x1]


def batch(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, 4, 4, generator=generator)
    return x * torch.tensor([5.0, 0.1, 1.0]).view(3, 1, 1) + torch.tensor([1.0, -2.0, 0.0]).view(
        3, 1, 1
    )


def channels_of(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).flatten(1)


def test_first_batch_gives_the_output_zero_mean_and_unit_variance() -> None:
    y, _ = ActNorm(3)(batch())
    torch.testing.assert_close(channels_of(y).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        channels_of(y).std(1, correction=0), torch.ones(3), atol=1e-4, rtol=0
    )


def test_fused_layer_is_actnorm_then_convolution() -> None:
    norm, conv, fused = ActNorm(3), InvertibleConv1x1(3), ActNormConv1x1(3)
    fused.rotation.load_state_dict(conv.rotation.state_dict())
    expected = Sequential(norm, conv)(batch())
    actual = fused(batch())
    torch.testing.assert_close(fused.log_scale, norm.log_scale)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        norm.log_scale.add_(0.3)
        fused.log_scale.add_(0.3)
        norm.shift.add_(0.2)
        fused.shift.copy_(conv.rotation() @ norm.shift)
    for a, b in zip(fused(batch(1)), Sequential(norm, conv)(batch(1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", LAYERS)
def test_initialised_once(make) -> None:
    layer = make(3)
    assert not layer.initialized
    layer(batch())
    assert layer.initialized
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(batch(1) * 7)
    fresh = make(3)
    fresh.load_state_dict(state)
    for twin in (layer, fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        twin(batch(2) * 9)
        for name, value in twin.state_dict().items():
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("make", LAYERS)
def test_loading_an_uninitialised_state_initialises_again(make) -> None:
    fresh, used = make(3).state_dict(), make(3)
    used(batch())
    used.load_state_dict(fresh)
    y, _ = used(batch(1))
    torch.testing.assert_close(channels_of(y).mean(1), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", LAYERS)
def test_neither_evaluation_nor_inverse_nor_empty_batch_initialises(make) -> None:
    layer = make(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.inverse(batch())
    layer(batch()[:0])
    layer.eval()(batch())
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("make", LAYERS)
def test_constant_channels_stay_finite(make) -> None:
    x = batch()
    x[:, 1] = 1000.1
    y, log_det = make(3)(x)
    assert y.isfinite().all()
    assert log_det.abs().max() < 100
    one, _ = ActNorm(3)(x[:1, :, 0, 0])
    torch.testing.assert_close(one, torch.zeros(1, 3))


@pytest.mark.parametrize("make", LAYERS)
def test_initialisation_refuses_values_that_are_not_finite(make) -> None:
    x = batch()
    x[0, 0, 0, 0] = float("nan")
    layer = make(3)
    with pytest.raises(ValueError, match="not finite"):
        layer(x)
    assert not layer.initialized


@pytest.mark.parametrize("make", LAYERS)
def test_compiling_before_initialisation_says_what_to_do(make) -> None:
    torch._dynamo.reset()
    layer = torch.compile(make(3), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="not initialised: run one training batch"):
        layer(batch())


@pytest.mark.parametrize("channels", [3, 12, 48])
@pytest.mark.parametrize("make", [InvertibleConv1x1, ActNormConv1x1])
def test_float32_inverse_reconstructs_after_training(make, channels: int) -> None:
    torch.manual_seed(0)
    layers = Sequential(*[make(channels) for _ in range(4)])
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
    mixing = torch.randn(channels, channels) / channels**0.5
    for _ in range(100):
        x = torch.einsum("ij,njhw->nihw", mixing, torch.randn(16, channels, 2, 2))
        y, log_det = layers(x)
        loss = (0.5 * y.square().flatten(1).sum(1) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = max(layer.rotation.lower.detach().abs().max() for layer in layers)
    assert moved > 0.5
    with torch.no_grad():
        for layer in layers:
            again, _ = layer.inverse(layer(x)[0])
            assert (again - x).abs().max() < 1e-5 * max(1.0, x.abs().max())


def test_rotation_starts_orthogonal_with_log_det_zero() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        conv = InvertibleConv1x1(6).double()
        weight, log_diagonal = conv.rotation(), conv.rotation.log_diagonal
        torch.testing.assert_close(
            weight @ weight.T, torch.eye(6, dtype=torch.float64), atol=1e-5, rtol=0
        )
        assert abs(log_diagonal.sum()) < 1e-5
    weight = randomize(conv, 0.3).rotation()
    torch.testing.assert_close(torch.linalg.slogdet(weight)[1], conv.rotation.log_diagonal.sum())
