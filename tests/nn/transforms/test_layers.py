"""Every invertible layer against the contract: round trip, log-det, gradients, copies."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from deepgen_ext.nn import MLP, GlowConvNet, ResidualConvNet, ZeroConv2d
from deepgen_ext.nn.transforms import (
    ActNorm,
    ActNormConv1x1,
    AdditiveCoupling,
    AffineCoupling,
    GlowSteps,
    Inverse,
    InvertibleConv1x1,
    Sequential,
    Split,
    Squeeze,
    checkerboard,
    partition_sizes,
)
from tests.checks import check_compiles, check_transform, randomize

IMAGE, ODD_IMAGE, VECTOR = (3, 4, 4, 2), (3, 5, 2, 2), (3, 5)


def affine(channels: int, partition: str, swap: bool, scale_map: str = "tanh", context: int = 0):
    seen, moved = partition_sizes(channels, partition, swap)
    net = GlowConvNet(seen, 2 * moved, 6, context)
    return AffineCoupling(net, partition=partition, swap=swap, scale_map=scale_map)


def vector_coupling(features: int, partition: str, swap: bool, context: int = 0):
    seen, moved = partition_sizes(features, partition, swap)
    net = MLP(seen, 2 * moved, 6, 1, context)
    return AffineCoupling(net, partition=partition, swap=swap, scale_map="atan")


def additive(channels: int, partition: str, swap: bool):
    seen, moved = partition_sizes(channels, partition, swap)
    return AdditiveCoupling(ResidualConvNet(seen, moved, 5, 1), partition=partition, swap=swap)


CASES = {
    "affine": (lambda: affine(4, "channel", False), IMAGE),
    "affine-swap-odd": (lambda: affine(5, "channel", True, "sigmoid"), ODD_IMAGE),
    "affine-odd": (lambda: affine(5, "channel", False, "exp"), ODD_IMAGE),
    "affine-checkerboard": (lambda: affine(4, "checkerboard", False, "atan"), IMAGE),
    "affine-checkerboard-swap": (lambda: affine(1, "checkerboard", True), (3, 1, 4, 4)),
    "affine-vector": (lambda: vector_coupling(5, "channel", True), VECTOR),
    "affine-vector-alternate": (lambda: vector_coupling(5, "checkerboard", False), VECTOR),
    "additive": (lambda: additive(4, "channel", True), IMAGE),
    "additive-checkerboard": (lambda: additive(4, "checkerboard", False), IMAGE),
    "actnorm": (lambda: ActNorm(4), IMAGE),
    "actnorm-vector": (lambda: ActNorm(5), VECTOR),
    "conv1x1": (lambda: InvertibleConv1x1(4), IMAGE),
    "conv1x1-vector": (lambda: InvertibleConv1x1(5), VECTOR),
    "conv1x1-sequence": (lambda: InvertibleConv1x1(4), (3, 4, 6)),
    "actnorm-conv1x1": (lambda: ActNormConv1x1(4), IMAGE),
    "squeeze": (Squeeze, IMAGE),
    "split-plain": (Split, ODD_IMAGE),
    "split": (lambda: Split(ZeroConv2d(3, 4)), ODD_IMAGE),
    "split-mean-only": (lambda: Split(ZeroConv2d(2, 2), scale=False), IMAGE),
    "inverse": (lambda: Inverse(affine(4, "channel", False)), IMAGE),
    "sequential": (
        lambda: Sequential(Squeeze(), Sequential(ActNormConv1x1(16), affine(16, "channel", True))),
        IMAGE,
    ),
    "glow-steps": (
        lambda: GlowSteps(4, [affine(4, "channel", False), affine(4, "channel", True)]),
        IMAGE,
    ),
    "sequential-empty": (Sequential, IMAGE),
    "reversible": (
        lambda: Sequential(ActNorm(4), affine(4, "channel", True), reversible=True),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    transform, x = make(), torch.randn(shape)
    transform(x)
    check_transform(randomize(transform, 0.2), x)


@pytest.mark.parametrize("context_shape", [(3, 2), (3, 2, 4, 2)])
def test_context_reaches_an_image_coupling(context_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    transform = Sequential(ActNorm(4), affine(4, "channel", False, context=2))
    x = torch.randn(IMAGE)
    transform(x, torch.randn(context_shape))
    check_transform(randomize(transform, 0.3), x, torch.randn(context_shape))


@pytest.mark.parametrize("partition", ["channel", "checkerboard"])
def test_context_reaches_a_vector_coupling(partition: str) -> None:
    torch.manual_seed(0)
    transform = randomize(vector_coupling(5, partition, True, context=3), 0.3)
    check_transform(transform, torch.randn(VECTOR), torch.randn(3, 3))


@pytest.mark.parametrize(
    "name", ["affine", "affine-checkerboard", "additive", "actnorm-conv1x1", "glow-steps"]
)
def test_compiles_into_one_graph(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    transform = make()
    x = torch.randn(shape)
    transform(x)
    check_compiles(randomize(transform, 0.2), x)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("channels", [2, 5])
def test_coupling_moves_the_right_half(channels: int, swap: bool) -> None:
    transform = randomize(affine(channels, "channel", swap), 0.3)
    x = torch.randn(2, channels, 2, 2)
    y, _ = transform(x)
    first = (channels + 1) // 2
    kept, moved = (slice(first, None), slice(first)) if swap else (slice(first), slice(first, None))
    assert torch.equal(y[:, kept], x[:, kept])
    assert (y[:, moved] != x[:, moved]).all()


def test_coupling_reads_raw_scale_then_shift() -> None:
    class Constant(torch.nn.Module):
        def forward(self, visible):
            return torch.tensor([0.3, 2.0]).expand(visible.shape[0], 2)

    y, log_det = AffineCoupling(Constant(), scale_map="exp")(torch.tensor([[5.0, 1.5]]))
    torch.testing.assert_close(y, torch.tensor([[5.0, 1.5 * math.exp(0.3) + 2.0]]))
    torch.testing.assert_close(log_det, torch.tensor([0.3]))


def test_glow_steps_are_the_sequence_of_their_layers() -> None:
    torch.manual_seed(0)
    couplings = [affine(4, "channel", swap, "sigmoid", 2) for swap in (False, True, False)]
    steps, x, context = GlowSteps(4, couplings), torch.randn(5, 4, 2, 2), torch.randn(5, 2)
    steps(x, context)
    randomize(steps, 0.2)
    results = []
    for chain in (steps, Sequential(*steps)):
        for direction in (chain, chain.inverse):
            steps.zero_grad()
            y, log_det = direction(x, context)
            (y.square().sum() + log_det.sum()).backward()
            results.append([y, log_det, *(p.grad.clone() for p in steps.parameters())])
    for batched, sequence in zip(results[:2], results[2:], strict=True):
        for actual, expected in zip(batched, sequence, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("swap", [False, True])
def test_checkerboard_alternates(swap: bool) -> None:
    mask = checkerboard(torch.zeros(1, 2, 3, 4), swap)
    rows = [[(i + j) % 2 == (0 if swap else 1) for j in range(4)] for i in range(3)]
    assert mask.tolist() == rows
    assert checkerboard(torch.zeros(1, 5), swap).tolist() == [
        (i % 2 == 0) == swap for i in range(5)
    ]
    x = torch.randn(2, 2, 3, 4)
    y, _ = randomize(affine(2, "checkerboard", swap), 0.3)(x)
    assert torch.equal(y == x, ~mask.expand_as(x))


def test_squeeze_gathers_two_by_two_squares() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y, _ = Squeeze()(x)
    assert y.shape == (1, 4, 2, 2)
    assert sorted(y[0, :, 0, 0].tolist()) == [0, 1, 4, 5]


def test_split_standardises_what_the_prior_predicts() -> None:
    class Prior(torch.nn.Module):
        def forward(self, kept):
            raw = torch.full_like(kept, 3.0)
            return torch.cat((raw, 2.0 * kept), 1)

    x = torch.randn(4, 6, 2, 2)
    (kept, z), _ = Split(Prior(), clamp=4.0)(x)
    sigma = torch.tensor(4.0 * 2 / torch.pi * torch.atan(torch.tensor(0.75)).item()).exp()
    torch.testing.assert_close(kept, x[:, :3])
    torch.testing.assert_close(z, (x[:, 3:] - 2 * x[:, :3]) / sigma)


def test_coupling_under_autocast_keeps_the_flow_in_float32() -> None:
    transform = Sequential(
        ActNormConv1x1(4), GlowSteps(4, [affine(4, "channel", False)]), InvertibleConv1x1(4)
    )
    x = torch.randn(IMAGE)
    transform(x)
    randomize(transform, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = transform(x)
        again, _ = transform.inverse(y)
    assert y.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: AffineCoupling(MLP(2, 3)), torch.zeros(2, 4), r"\(2, 4\).*\(2, 2\).*\(2, 3\)"),
        (lambda: AdditiveCoupling(MLP(2, 4)), torch.zeros(2, 4), r"\(2, 2\).*\(2, 4\)"),
        (lambda: AffineCoupling(MLP(1, 2)), torch.zeros(2, 1), "at least 2 channels, got 1"),
        (lambda: AffineCoupling(MLP(1, 2)), torch.zeros(2), r"x: .*\(2,\)"),
        (lambda: Split(MLP(2, 3)), torch.zeros(2, 4), r"prior: .*\(2, 4\).*\(2, 3\)"),
        (Squeeze, torch.zeros(1, 1, 3, 4), r"even H and W, got \(1, 1, 3, 4\)"),
        (lambda: ActNorm(3), torch.zeros(2, 4), r"\(batch, 3, \.\.\.\), got \(2, 4\)"),
        (lambda: InvertibleConv1x1(3), torch.zeros(2, 4), r"\(batch, 3, \.\.\.\), got \(2, 4\)"),
        (lambda: MLP(2, 2), (torch.zeros(1, 2), torch.zeros(1, 1)), "context_features=0"),
        (lambda: MLP(2, 2, context_features=1), torch.zeros(1, 2), "got None"),
        (lambda: AffineCoupling(MLP(1, 2), partition="half"), None, "'half'"),
        (lambda: AffineCoupling(MLP(1, 2), scale_map="relu"), None, "'relu'"),
        (lambda: AffineCoupling(MLP(1, 2), clamp=0.0), None, "clamp: .*0.0"),
        (lambda: ActNorm(0), None, "channels: .*0"),
    ],
)
def test_bad_input_is_named(make, x, message: str) -> None:
    def use() -> None:
        layer = make()
        layer(*x if isinstance(x, tuple) else (x,))

    with pytest.raises(ValueError, match=message):
        use()


def test_sequential_refuses_what_is_no_transform() -> None:
    with pytest.raises(TypeError, match=r"transforms\[1\].*Linear"):
        Sequential(Squeeze(), torch.nn.Linear(2, 2))


def test_glow_conv_net_keeps_its_weights_channels_last(tmp_path) -> None:
    net = GlowConvNet(2, 4, 6, context_features=3)
    net.output.weight.data.normal_()
    usual = GlowConvNet(2, 4, 6, context_features=3).to(memory_format=torch.contiguous_format)
    usual.load_state_dict(net.state_dict())
    torch.save(usual.state_dict(), tmp_path / "usual.pt")
    again = GlowConvNet(2, 4, 6, context_features=3)
    again.load_state_dict(torch.load(tmp_path / "usual.pt"))  # values come, the layout stays
    x, context = torch.randn(3, 2, 5, 4), torch.randn(3, 3)
    for module in (net, again, copy.deepcopy(net), net.double().float()):
        for layer in (module.input, module.output):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(module(x, context), usual(x, context))
