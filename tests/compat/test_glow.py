"""normflows' Glow: steps, affine couplings, 1x1 convolutions."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated


def both_ways(module: nn.Module, *shape: int) -> list[Tensor]:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(weight)
    return [*module.forward(x), *module.inverse(x)]


def glow(channels: int = 4, **options) -> nn.Module:
    nf = pytest.importorskip("normflows")
    torch.manual_seed(1)
    block = nf.flows.GlowBlock(channels, 6, **options)
    block(3 * torch.randn(5, channels, 3, 4))  # initialises the normalisation
    return block


@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize("split_mode", ["channel", "channel_inv"])
@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_glow(scale_map: str, split_mode: str, use_lu: bool) -> None:
    module = glow(scale_map=scale_map, split_mode=split_mode, use_lu=use_lu, leaky=0.1)
    check_accelerated(module, lambda m: both_ways(m, 3, 4, 2, 3), 4, std=0.05)


@pytest.mark.parametrize("options", [{"scale": False}, {"split_mode": "checkerboard"}])
def test_couplings_that_stay_in_a_step_that_does_not(options: dict) -> None:
    module = glow(5, net_actnorm=True, **options)
    check_accelerated(module, lambda m: both_ways(m, 3, 5, 2, 4), 2, std=0.05)


def test_odd_channels_and_a_batch_of_none() -> None:
    model = glow(5)
    fast = strictly_accelerated(model, 4)
    for x in (torch.randn(1, 5, 3, 3), torch.randn(0, 5, 2, 2)):
        for direction in ("forward", "inverse"):
            close(getattr(fast, direction)(x), getattr(model, direction)(x), 1e-5)


def test_the_first_batch_initialises() -> None:
    nf = pytest.importorskip("normflows")
    model = nf.flows.GlowBlock(4, 6)
    fast = strictly_accelerated(model, 4)
    x = torch.randn(5, 4, 3, 3)
    close(fast(x), model(x), 1e-5)
    assert fast.flows[2].data_dep_init_done
    close(list(fast.state_dict().values()), list(model.state_dict().values()), 1e-5)
    close(fast(x), model(x), 1e-5)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_couplings_of_vectors(scale_map: str) -> None:
    nf = pytest.importorskip("normflows")
    module = nf.flows.AffineCouplingBlock(nf.nets.MLP([3, 7, 4]), scale_map=scale_map)
    check_accelerated(module, lambda m: both_ways(m, 4, 5), 2)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_couplings_neither_join_nor_split_by_themselves(scale_map: str) -> None:
    nf = pytest.importorskip("normflows")
    net = nf.nets.MLP([3, 7, 6])
    fast = strictly_accelerated(nf.flows.AffineCouplingBlock(net, scale_map=scale_map), 2)
    x = torch.randn(4, 6)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fast.inverse(fast(x)[0])
    called = {event.key for event in profile.key_averages()}
    assert not called & {"aten::cat", "aten::stack", "aten::sub", "aten::add"}


def test_a_flow_samples() -> None:
    nf = pytest.importorskip("normflows")
    base = nf.distributions.DiagGaussian(6)
    layers = [nf.flows.AffineCouplingBlock(nf.nets.MLP([3, 8, 6])) for _ in range(2)]
    flow = randomize(nf.NormalizingFlow(base, layers))
    fast = strictly_accelerated(flow, 4)
    x = torch.randn(4, 6)
    close([fast.log_prob(x)], [flow.log_prob(x)], 1e-5)
    draws = []
    for model in (flow, fast):
        torch.manual_seed(3)
        draws.append(model.sample(4))
    close(draws[0], draws[1], 1e-5)


def test_gradients_of_the_net_survive_activations_in_place() -> None:
    nf = pytest.importorskip("normflows")
    net = nf.nets.ConvNet2d((2, 5, 5, 4), (3, 1, 3), leaky=0.3, init_zeros=False)
    check_accelerated(net, lambda m: [m(torch.ones(2, 2, 3, 3).to(next(m.parameters())))], 1)
    net.net[0].register_forward_hook(lambda *_: None)
    assert "hooks on its layers" in report(net)


def pictures(batch: int, channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, side, side, generator=generator)


@pytest.mark.parametrize(
    ("shape", "turns"),
    [((16, 2, 8), True), ((15, 2, 8), False), ((64, 2, 7), False), ((4, 2, 16), True)],
)
def test_large_batches_of_pictures_go_through_the_net_channels_last(shape, turns: bool) -> None:
    nf = pytest.importorskip("normflows")
    net = randomize(nf.nets.ConvNet2d((2, 5, 5, 4), (3, 1, 3), leaky=0.3))
    fast, x = strictly_accelerated(net, 1), pictures(*shape)
    formats = []
    fast.net[0].register_forward_hook(
        lambda _, given, y: formats.append(y.is_contiguous(memory_format=torch.channels_last))
    )
    y, expected = fast(x), net(x)
    assert formats == [turns]
    assert y.is_contiguous(), "views of it worked before"
    close([y], [expected], 1e-5)


def test_a_step_with_its_net_channels_last_has_the_same_numbers_and_strides() -> None:
    model = randomize(glow(), 0.05)
    fast, x = strictly_accelerated(model, 4), pictures(20, 4, 8)
    results = []
    for block in (model, fast):
        for direction in ("forward", "inverse"):
            given = x.clone().requires_grad_()
            y, log_det = getattr(block, direction)(given)
            y.view(len(y), -1)
            block.zero_grad()
            (y.square().mean() + log_det.mean()).backward()
            results.append([y, log_det, given.grad, *(p.grad for p in block.parameters())])
    close(results[2], results[0], 1e-5)
    close(results[3], results[1], 1e-5)
    for found, expected in zip(fast.parameters(), model.parameters(), strict=True):
        assert found.stride() == expected.stride()
        assert found.grad.is_contiguous()


def test_optimisers_that_flatten_the_weights_go_on() -> None:
    model = randomize(glow(), 0.05)
    fast, x = strictly_accelerated(model, 4), pictures(20, 4, 8)
    for block in (model, fast):
        optimiser = torch.optim.LBFGS(block.parameters(), lr=0.1, max_iter=2)

        def loss(block=block, optimiser=optimiser) -> Tensor:
            optimiser.zero_grad()
            z, log_det = block.inverse(x)
            value = z.square().mean() - log_det.mean() / 256
            value.backward()
            return value

        optimiser.step(loss)
    flat = [torch.nn.utils.parameters_to_vector(block.parameters()) for block in (fast, model)]
    close(flat[:1], flat[1:], 1e-3)


def test_other_parts_and_hooks_stay() -> None:
    hooked, other = glow(), glow()
    hooked.flows[2].register_forward_hook(lambda *_: None)
    other.flows[0].flows[0] = nn.Identity()
    assert "hooks on its parts" in report(hooked).splitlines()[1]
    assert "not those that it was made with" in report(other).splitlines()[2]


def test_verification_sees_a_wrong_matrix(monkeypatch) -> None:
    replaced = sys.modules[type(accelerate(glow())).__module__]
    given = replaced.matrix_of

    def wrong(convolution, inverse):
        weight, log_det = given(convolution, inverse)
        return weight, log_det + 0.01

    monkeypatch.setattr(replaced, "matrix_of", wrong)
    with pytest.warns(UserWarning, match=r"verification failed, its log-det"):
        left = accelerate(glow())
    assert "GlowBlock" in type(left).__name__
    assert type(left).__module__.startswith("normflows")
