"""Spectral norms as layers have them: step by step torch's, true norms of convolutions, bounds."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from deepgen_ext.nn import SpectralConv2d, SpectralLinear, spectral_norm, spectral_norm_all

LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(3, 4, 3),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "embedding": lambda: nn.Embedding(9, 4),
}


def pair_of(make, **options):
    """Ours and torch's, of the same weights and random numbers."""
    torch.manual_seed(0)
    ours = make()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)
    spectral_norm(ours, **options)
    torch.manual_seed(1)
    return ours, parametrizations.spectral_norm(theirs, **options)


def original(layer):
    return layer.parametrizations.weight.original


def check_same_state(ours, theirs):
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 3, "dim": 1}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_step_by_step_as_torch(name, options):
    ours, theirs = pair_of(LAYERS[name], **options)
    for step in range(4):
        torch.manual_seed(step)
        losses = [(layer.weight, original(layer)) for layer in (ours, theirs)]
        torch.testing.assert_close(losses[0][0], losses[1][0])
        check_same_state(ours, theirs)
        cotangent = torch.randn_like(losses[0][0])
        gradients = [torch.autograd.grad(w, leaf, cotangent)[0] for w, leaf in losses]
        torch.testing.assert_close(*gradients)
        with torch.no_grad():
            for (_, leaf), gradient in zip(losses, gradients):
                leaf -= 0.1 * gradient
    before = ours.state_dict()["parametrizations.weight.0._u"].clone()
    for layer in (ours.eval(), theirs.eval()):
        _ = layer.weight
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert torch.equal(before, ours.state_dict()["parametrizations.weight.0._u"])
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.weight, theirs.weight)
    weight = ours.weight.detach().clone()
    parametrize.remove_parametrizations(ours, "weight")
    assert torch.equal(ours.weight, weight)
    assert type(ours) is type(LAYERS[name]())


def test_a_vector_is_divided_by_its_length():
    layer = spectral_norm(nn.LayerNorm(7))
    torch.testing.assert_close(layer.weight.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.ConvTranspose2d(4, 3, 2)])
def test_other_dtypes(make, dtype):
    layer = spectral_norm(make().to(dtype), n_power_iterations=200)
    assert layer.weight.dtype == dtype
    if isinstance(layer, nn.ConvTranspose2d):
        layer.weight.float().square().sum().backward()
        assert original(layer).grad.dtype == dtype
        return
    norm = torch.linalg.svdvals(layer.weight.double())[0]
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make", [lambda: spectral_norm(nn.Linear(6, 5)), lambda: SpectralLinear(6, 5)]
)
def test_autocast_changes_the_product_alone(make, dtype):
    """The weight, u and v are those of float32; the layer's result has autocast's dtype."""
    torch.manual_seed(0)
    layer = make()
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 6)
    expected = twin(x)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.02)
    for name, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


CONVOLUTIONS = [
    (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (7,)),
    (lambda: nn.Conv1d(2, 3, 4, padding="same"), (6,)),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2), (5, 4)),
    (lambda: nn.Conv2d(2, 3, (3, 2), stride=2, padding=(0, 1), dilation=(1, 2)), (6, 7)),
    (lambda: nn.Conv2d(2, 3, 2, padding="same"), (4, 5)),
    (lambda: nn.Conv3d(2, 2, 2, stride=2, padding=1), (3, 4, 3)),
]


def operator_norm(layer, shape):
    """The largest singular value of the layer without its bias, unrolled."""
    x = torch.zeros(layer.in_channels, *shape, dtype=layer.weight.dtype)
    weight = layer.weight.detach()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: layer._conv_forward(x[None], weight, None).flatten(), x
    )
    return torch.linalg.svdvals(jacobian.flatten(1))[0]


@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_conv_is_the_norm_of_the_unrolled_operator(case):
    make, shape = CONVOLUTIONS[case]
    torch.manual_seed(case)
    layer = make().double()
    expected = operator_norm(layer, shape)
    before = layer.weight.detach().clone()
    spectral_norm(layer, kind="conv", input_shape=shape, rtol=1e-13)
    torch.testing.assert_close(layer.weight.detach(), before / expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(operator_norm(layer.eval(), shape), torch.ones_like(expected))
    constraint = layer.parametrizations.weight[0]
    u, v = constraint._u.clone(), constraint._v.clone()
    leaf = original(layer).detach().clone().requires_grad_()

    def scaled(weight):
        return constraint.scaled(weight, u, v, 0)[0]

    assert torch.autograd.gradcheck(scaled, leaf, fast_mode=True)
    assert torch.autograd.gradgradcheck(scaled, leaf, fast_mode=True)


@pytest.mark.parametrize("kind", ["matrix", "conv"])
def test_a_bound_holds_after_training_and_loading(kind):
    """Lip < 1 is what an inverse lives by: an estimate from below must not break it."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    options = {"coefficient": 0.9, "kind": kind}
    options |= {"input_shape": 5} if kind == "conv" else {}
    spectral_norm(layer, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    target = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    for _ in range(20):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()

    def norm(layer):
        if kind == "conv":
            return operator_norm(layer, (5, 5))
        return torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]

    fresh = spectral_norm(nn.Conv2d(3, 4, 3, padding=1).double(), **options)
    fresh.load_state_dict(layer.state_dict())
    for each in (layer.eval(), fresh.eval()):
        assert 0.9 - 1e-6 < norm(each) < 0.9 * (1 + 1e-9)
        assert (
            torch.linalg.svdvals(each.weight.detach().flatten(1))[0] > 0.9 - 1e-6 or kind == "conv"
        )
    with torch.no_grad():
        original(layer).mul_(0.01 / original(layer).norm())
    assert torch.equal(layer.weight, original(layer)), "a weight below the bound was changed"


def test_eval_keeps_the_weight_until_something_changes():
    layer = spectral_norm(nn.Linear(6, 5)).eval()
    with torch.no_grad():
        kept = layer.weight
        assert layer.weight is kept
        original(layer).mul_(2)
        assert layer.weight is not kept
        torch.testing.assert_close(layer.weight, kept)
        original(layer)[0] = 0
        assert layer.weight[0].abs().max() == 0
        state = spectral_norm(nn.Linear(6, 5)).state_dict()
        layer.load_state_dict(state)
        sigma = state["parametrizations.weight.0._u"] @ state["parametrizations.weight.original"]
        sigma = sigma @ state["parametrizations.weight.0._v"]
        torch.testing.assert_close(layer.weight, original(layer) / sigma)
        layer.double()
        assert layer.weight.dtype == torch.float64
        original(layer).data.mul_(0)  # no version tells of this
        assert layer.train().eval().weight.abs().max() == 0


def test_gradients_in_eval_are_those_of_torch():
    ours, theirs = pair_of(lambda: nn.Conv2d(3, 4, 3).double())
    ours.eval(), theirs.eval()
    _ = ours.weight  # kept, and the next one has a graph of its own
    cotangent, other = torch.randn_like(ours.weight), torch.randn_like(ours.weight)
    results = []
    for layer in (ours, theirs):
        leaf = original(layer)
        (first,) = torch.autograd.grad(layer.weight.sin(), leaf, cotangent, create_graph=True)
        results.append((first, torch.autograd.grad(first, leaf, other)[0]))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_a_weight_of_zeros_stays_and_comes_to_life():
    for options in ({}, {"kind": "conv", "input_shape": 4}, {"domain": 3, "codomain": 2}):
        layer = nn.Conv2d(2, 3, 3, padding=1)
        nn.init.zeros_(layer.weight)
        spectral_norm(layer, n_power_iterations=50, **options)
        layer.weight.sum().backward()
        assert original(layer).grad.isfinite().all()
        assert torch.equal(layer.weight, original(layer))
        with torch.no_grad():
            original(layer).normal_()
        assert layer.weight.isfinite().all()
        if not options:
            norm = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
            torch.testing.assert_close(norm, torch.ones(()), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (
            "linear",
            {"name": "nothing"},
            ValueError,
            "has no parameter or buffer with name 'nothing'",
        ),
        ("linear", {"n_power_iterations": 0}, ValueError, "n_power_iterations to be positive"),
        ("linear", {"dim": 2}, IndexError, "Dimension out of range"),
        ("linear", {"kind": "tensor"}, ValueError, "kind must be 'matrix' or 'conv', got 'tensor'"),
        ("linear", {"kind": "conv", "input_shape": 3}, ValueError, "kind: 'conv' is for Conv1d"),
        ("conv2d", {"kind": "conv"}, ValueError, "input_shape: kind='conv' needs the spatial size"),
        ("conv2d", {"kind": "conv", "input_shape": (3,)}, ValueError, "input_shape: expected 2"),
        ("conv2d", {"kind": "conv", "input_shape": 0}, ValueError, "input_shape: expected 2"),
        ("conv2d", {"coefficient": 0.0}, ValueError, "coefficient must be a finite number above 0"),
        ("conv2d", {"coefficient": -1}, ValueError, "coefficient must be a finite number above 0"),
        ("conv2d", {"rtol": 0.0}, ValueError, "rtol must be a finite number above 0"),
        ("conv2d", {"domain": 0.5}, ValueError, "domain must be 1 or more"),
        ("transposed2d", {"codomain": 1}, ValueError, "norms other than 2 need dim=0"),
    ],
)
def test_bad_input(make, options, error, words):
    layer = LAYERS[make]()
    with pytest.raises(error, match=words):
        spectral_norm(layer, **options)
    assert not parametrize.is_parametrized(layer)


def test_bad_input_to_layers_and_models():
    with pytest.raises(ValueError, match="coefficient must be a finite number above 0"):
        SpectralLinear(3, 4, coefficient=0.0)
    with pytest.raises(ValueError, match="n_power_iterations must be positive"):
        SpectralConv2d(3, 4, 3, n_power_iterations=0)
    with pytest.raises(ValueError, match="model: no layer with a parameter 'weight'"):
        spectral_norm_all(nn.ReLU())
    circular = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="padding_mode"):
        spectral_norm(circular, kind="conv", input_shape=4)
