"""Masked convolutions in the styles that people copy: trained, and drawn from."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_ext import accelerate, report, restore
from deepgen_ext.models.autoregressive import naive_sample
from deepgen_ext.nn import AncestralSampler, Categorical
from deepgen_ext.nn.masked_conv2d import Raster
from tests.checks import randomize
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

LEVELS = 5


class Written(nn.Conv2d):
    """The mask is written into the weight: hidden weights have gradients, which the next pass masks."""

    def __init__(self, mask_type: str, *args, groups_in_order: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        raster = Raster(mask_type, groups_in_order)
        self.register_buffer("mask", raster.mask(self.weight.shape).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Multiplied(Written):
    """A product in each pass: no gradient for what is hidden, which stays what it was."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=self.padding, dilation=self.dilation)


class OneForAll(nn.Conv2d):
    """The mask of one channel, as bool."""

    def __init__(self, mask_type: str, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        mask = Raster(mask_type, 1).mask((1, 1, *self.kernel_size))
        self.register_buffer("causal", mask[0, 0], persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.causal, self.bias)


STYLES = [Written, Multiplied, OneForAll]


def pixelcnn(
    style: type[nn.Conv2d], channels: int = 6, hidden: int = 2, outputs: int = LEVELS
) -> nn.Sequential:
    """The network of the tutorials, for pictures of one channel."""
    layers: list[nn.Module] = [style("A", 1, channels, 7, padding=3, bias=False)]
    for _ in range(hidden):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(True)]
        layers.append(style("B", channels, channels, 3, padding="same"))
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels, outputs, 1))


def images(module: nn.Module, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(next(module.parameters()).dtype)


@pytest.mark.parametrize("style", STYLES)
def test_pixelcnn_trains(style) -> None:
    check_accelerated(pixelcnn(style), lambda m: [m(images(m, 3, 1, 5, 4))], 3)


@pytest.mark.parametrize("style", [Written, Multiplied])
@pytest.mark.parametrize(
    "options",
    [
        {"groups_in_order": 3, "padding": 1},
        {"dilation": 2, "padding": 2},
        {"padding": "same", "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_layers(style, options: dict, mask_type: str) -> None:
    layer = style(mask_type, 6, 9, 3, **options)
    x = images(layer, 2, 6, 5, 4)
    check_accelerated(layer, lambda m: [m(x.to(m.weight.dtype))], 1)
    fast = strictly_accelerated(layer, 1)
    groups = options.get("groups_in_order", 1)
    assert fast.raster() == Raster(mask_type, groups)


@pytest.mark.parametrize("style", [Written, Multiplied])
def test_hidden_weights_go_on_as_they_did(style) -> None:
    """Their values after each step of an optimiser that looks at the gradient's norm."""
    model = randomize(style("B", 4, 4, 3, padding=1).double())
    fast = strictly_accelerated(model, 1)
    x = images(model, 3, 4, 5, 5)
    kept = [bool((m.weight[m.mask == 0] != 0).all()) for m in (model, fast)]
    assert kept == [True, True], "accelerate itself writes nothing"
    for _ in range(3):
        norms = []
        for m in (model, fast):
            m.zero_grad()
            m(x).square().sum().backward()
            norms.append(nn.utils.clip_grad_norm_(m.parameters(), 0.5))
            torch.optim.SGD(m.parameters(), lr=0.3).step()
        close([norms[1], fast.weight], [norms[0], model.weight], 1e-10)
    assert bool((model.weight[model.mask == 0] != 0).all())
    with torch.no_grad():
        close([fast.eval()(x), fast.weight], [model.eval()(x), model.weight], 1e-10)
    assert bool((model.weight[model.mask == 0] == 0).all()) is (style is Written)


def test_a_layer_used_twice_and_second_derivatives() -> None:
    for style in (Written, Multiplied):
        model = randomize(style("B", 4, 4, 3, padding=1).double())
        fast = strictly_accelerated(model, 1)
        results = []
        for m in (model, fast):
            x = images(m, 2, 4, 4, 5).requires_grad_()
            parameters = [x, m.weight, m.bias]
            y = m(m(x).tanh()).square().sum()
            first = torch.autograd.grad(y, parameters, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
            results.append([*first, *second])
        close(results[1], results[0], 1e-9)


def test_frozen_weights_half_precision_and_empty_batches() -> None:
    model = randomize(pixelcnn(Written)).eval()
    for layer in model:
        layer.requires_grad_(False)
    fast = strictly_accelerated(model, 3)
    results = []
    for m in (model, fast):
        x = images(m, 2, 1, 6, 6).requires_grad_()
        m(x).sum().backward()
        results.append([x.grad])
    close(results[1], results[0], 1e-5)
    assert fast(images(fast, 0, 1, 6, 6)).shape == (0, LEVELS, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (m(images(m, 2, 1, 6, 6)) for m in (model, fast))
    assert a.dtype == b.dtype == torch.bfloat16
    close([b], [a], 2e-2)


def test_what_the_op_does_not_take_is_the_classs_own() -> None:
    model = randomize(Multiplied("B", 2, 3, 3, padding=1).double())
    fast = strictly_accelerated(model, 1)
    x = images(model, 2, 2, 2, 4)
    close([fast(x[0])], [model(x[0])], 1e-12)  # one image, without a batch
    close([torch.func.vmap(fast)(x)], [torch.func.vmap(model)(x)], 1e-12)
    with pytest.raises(RuntimeError, match="channels"):
        fast(images(model, 2, 3, 4, 4))


def test_a_mask_that_changes() -> None:
    """By a checkpoint, to another raster mask and to none at all."""
    model = randomize(Multiplied("A", 4, 4, 3, padding=1).double())
    fast = strictly_accelerated(model, 1)
    x = images(model, 2, 4, 4, 4)
    fast(x)
    for mask in (Raster("B", 2).mask(model.weight.shape), torch.ones_like(model.mask)):
        model.mask.copy_(mask)
        fast.load_state_dict(model.state_dict())
        close([fast(x)], [model(x)], 1e-12)
    assert fast.raster() is None
    sampler = AncestralSampler(nn.Sequential(fast), (4, 4, 4), Categorical(4, 2))
    with pytest.raises(TypeError, match=r"layer '0' \(Multiplied\)"):
        sampler(torch.rand(1, 4, 4, 4))


def test_copies_of_copies() -> None:
    model = nn.Sequential(randomize(Written("B", 2, 3, 3, padding=1)))
    fast = strictly_accelerated(model, 1)
    fast(images(model, 1, 2, 4, 4))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(pickle.loads(pickle.dumps(fast)))))
    assert type(twin[0]) is type(fast[0])
    assert isinstance(twin[0], Written)
    twin[0].mask.zero_()  # a mask of its own
    assert twin[0].raster() is None
    assert fast[0].raster() == Raster("B", 1)
    fast[0].mask.zero_()  # and is copied before anyone looked at it
    assert copy.deepcopy(fast)[0].raster() is None
    assert type(restore(twin)[0]) is Written
    assert set(vars(twin[0])) == set(vars(model[0]))


@pytest.mark.parametrize("style", [Written, Multiplied])
def test_compiles(style) -> None:
    fast = strictly_accelerated(randomize(pixelcnn(style, hidden=1)), 2)
    twin = copy.deepcopy(fast)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    results = []
    for m in (fast, compiled):
        m.zero_grad()
        y = m(images(fast, 3, 1, 5, 4))
        y.square().sum().backward()
        results.append([y, *(p.grad for p in m.parameters()), *(p for p in m.parameters())])
    close(results[1], results[0], 1e-5)


class Scaled(Multiplied):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.01


class Detached(Multiplied):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class WithContext(Multiplied):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x) if context is None else super().forward(x) + context


class Halved(Written):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.weight.data *= 0.5
        return y


class WithScale(Multiplied):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.ones(()))


class Failing(Multiplied):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


def with_mask(change) -> nn.Module:
    layer = Multiplied("B", 6, 6, 3, padding=1)
    change(layer.mask)
    return layer


STAYS = {
    "not a raster mask": [
        lambda: with_mask(lambda mask: mask[:, :, 2, 0].fill_(1)),
        lambda: with_mask(lambda mask: mask[:, :, 0].fill_(0.5)),
        # Colours one channel after the other, where ours are contiguous groups.
        lambda: with_mask(lambda mask: mask[::3, 1::3, 1, 1].zero_()),
    ],
    "stride (2, 2), groups 1": [lambda: Multiplied("B", 6, 6, 3, stride=2, padding=1)],
    "groups 2": [lambda: Multiplied("B", 6, 6, 3, groups=2, padding=1)],
    "dilation (1, 2)": [lambda: Multiplied("B", 6, 6, 3, dilation=(1, 2), padding=(1, 2))],
    "an even kernel": [lambda: Multiplied("B", 6, 6, 4, padding=1)],
    "its padding": [
        lambda: Multiplied("B", 6, 6, 3),
        lambda: Written("B", 6, 6, 3, padding=1, padding_mode="circular"),
    ],
    "is not a convolution with the weight times": [lambda: Scaled("B", 6, 6, 3, padding=1)],
    "its forward was tried": [
        lambda: Detached("B", 6, 6, 3, padding=1),
        lambda: Failing("B", 6, 6, 3, padding=1),
    ],
    "more than one tensor": [lambda: WithContext("B", 6, 6, 3, padding=1)],
    "writes something else": [lambda: Halved("B", 6, 6, 3, padding=1)],
    "not weight and bias alone": [
        lambda: WithScale("B", 6, 6, 3, padding=1),
        lambda: nn.utils.parametrizations.weight_norm(Written("B", 6, 6, 3, padding=1)),
    ],
}


@pytest.mark.parametrize("reason", STAYS)
def test_others_stay_with_their_reason(reason: str) -> None:
    for make in STAYS[reason]:
        layer = make()
        generator = torch.get_rng_state()
        table = report(nn.Sequential(layer))
        assert reason in table, table
        assert torch.equal(torch.get_rng_state(), generator)
        with pytest.warns(UserWarning, match="nothing to accelerate"):
            assert type(accelerate(layer, verify=False)) is type(layer)


def test_what_is_no_masked_convolution_is_not_mentioned() -> None:
    class Plain(nn.Conv2d):
        pass

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Plain(2, 2, 3), Standardised(2, 2, 3))
    assert report(model) == "nothing to accelerate in this model"


# ---------------------------------------------------------------- sampling


def far_from_uniform(network: nn.Module) -> nn.Module:
    """Statistics of no batch, and weights so large that each level depends on those before it."""
    randomize(network.double(), 0.25)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("style", STYLES)
def test_draws_what_the_loop_over_pixels_draws(style) -> None:
    network = far_from_uniform(pixelcnn(style))
    distribution = Categorical(1, LEVELS)
    uniforms = torch.rand(4, 1, 6, 5, dtype=torch.float64)
    fast = strictly_accelerated(network, 3)
    drawn = AncestralSampler(fast, (1, 6, 5), distribution)(uniforms)
    assert torch.equal(drawn, naive_sample(Alone(network), distribution, uniforms))
    assert len(drawn.unique()) == LEVELS


class Alone(nn.Module):
    """A network without a condition, which naive_sample passes on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, condition: None = None) -> Tensor:
        return self.network(x)


class Colours(nn.Module):
    """Colours in turns; pictures in [0, 1], as the tutorials have them; a residual block."""

    def __init__(self) -> None:
        super().__init__()
        options = {"groups_in_order": 3, "padding": "same"}
        self.first = Multiplied("A", 3, 6, 5, **options)
        self.hidden = Written("B", 6, 6, 3, dilation=2, **options)
        self.norm = nn.BatchNorm2d(6)
        self.last = Written("B", 6, 3 * LEVELS, 1, **options)

    def forward(self, x: Tensor, condition: None = None) -> Tensor:
        h = self.first(x / 2 + 0.5)
        return self.last(h + F.relu(self.norm(self.hidden(h))))


def test_colours_in_turns() -> None:
    network = far_from_uniform(Colours())
    distribution = Categorical(3, LEVELS, groups_in_order=3)
    uniforms = torch.rand(4, 3, 4, 5, dtype=torch.float64)
    sampler = AncestralSampler(strictly_accelerated(network, 3), (3, 4, 5), distribution)
    drawn = sampler(uniforms)
    assert torch.equal(drawn, naive_sample(network, distribution, uniforms))
    assert len(drawn.unique()) == LEVELS


def test_a_layer_that_was_not_accelerated_is_named() -> None:
    network = pixelcnn(Written)
    for model, index in ((network, 0), (nn.Sequential(*accelerate(network)[:1], *network[1:]), 3)):
        sampler = AncestralSampler(model, (1, 5, 5), Categorical(1, LEVELS))
        with pytest.raises(TypeError, match=rf"layer '{index}' \(Written\): .*accelerate"):
            sampler(torch.rand(1, 1, 5, 5))


def test_a_masked_pointwise_layer_is_not_taken_for_a_plain_one() -> None:
    layers = accelerate(Written("A", 1, 6, 3, padding=1)), Written("B", 6, LEVELS, 1)
    sampler = AncestralSampler(nn.Sequential(*layers), (1, 5, 5), Categorical(1, LEVELS))
    with pytest.raises(TypeError, match=r"layer '1' \(Written\)"):
        sampler(torch.rand(1, 1, 5, 5))
