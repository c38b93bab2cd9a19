"""Which networks fixed_point_inverse iterates in one kernel, and what it says of the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepgen_ext.nn import MLP, LipschitzMLP, MaskedLinear, fixed_point_inverse
from deepgen_ext.nn.lipschitz_activations import _NAMES, activation_lipschitz
from tests.nn.contractions import F64, linear, network


def fused_networks():
    torch.manual_seed(0)
    spectral = nn.utils.parametrizations.spectral_norm
    parametrized = nn.Sequential(spectral(nn.Linear(6, 9)), nn.ELU(), spectral(nn.Linear(9, 6)))
    masked = nn.Sequential(
        MaskedLinear(6, 9, torch.rand(9, 6) > 0.4), nn.ReLU(), linear(6, 9, 0.5).float()
    )
    with torch.no_grad():
        masked[0].weight.copy_(0.1 * torch.randn(9, 6))  # what the mask hides too
    mlp = MLP(6, 6, 8, 2)
    with torch.no_grad():
        mlp.output.weight.normal_(0, 0.1)
    yield "Tanh", network()
    yield "SiLU", network(activation=nn.SiLU, norm=0.8)
    yield "nested", nn.Sequential(nn.Sequential(*network()[:3]), *network()[3:])
    yield "without bias", nn.Sequential(nn.Linear(6, 6, bias=False).double())
    yield "parametrized", parametrized.double().eval()
    yield "masked", masked.double()
    yield "MLP", mlp.double()


@pytest.mark.parametrize(
    ("name", "g"), list(fused_networks()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_known_networks_run_in_one_kernel(name, g):
    y = torch.randn(5, 6, dtype=F64)
    with torch.no_grad():
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x: g(x[None])[0]))(y)
        scale = 0.5 / torch.linalg.matrix_norm(jacobian, 2).max().clamp_min(0.5)
        last = [m for m in g.modules() if isinstance(m, nn.Linear)][-1]
        if name != "parametrized":
            last.weight.mul_(scale)
        else:
            y = y * 0.1
    options = {"lipschitz": 0.95, "tol": 1e-10}
    ours = fixed_point_inverse(g, y, raise_on_failure=name != "parametrized", **options)
    theirs = fixed_point_inverse(
        g, y, fused=False, raise_on_failure=name != "parametrized", **options
    )
    assert ours.method == "anderson in one kernel"
    assert theirs.method == "anderson"
    assert torch.equal(ours.iterations, theirs.iterations)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)


class PlainImages(nn.Module):
    """A module that says what it is made of, and works on flattened samples."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.swish = linear(9, 6, 0.9), linear(6, 9, 0.9), Swish()

    def plain_layers(self):
        return self.first, self.swish, self.last

    def forward(self, x):
        return self.last(self.swish(self.first(x.flatten(1)))).view(x.shape)


class Swish(nn.Module):
    beta = torch.tensor(1.7, dtype=F64)

    def fused_activation(self):
        return "lipswish", self.beta

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x) / 1.1


def test_modules_that_say_what_they_are_made_of():
    torch.manual_seed(0)
    g = PlainImages()
    y = torch.randn(3, 1, 2, 3, dtype=F64)
    ours = fixed_point_inverse(g, y, lipschitz=0.81, tol=1e-10, fused=True)
    theirs = fixed_point_inverse(g, y, lipschitz=0.81, tol=1e-10, fused=False)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)
    assert ours.x.shape == y.shape


OFFERED = [name for name in _NAMES if activation_lipschitz(_NAMES[name]()) <= 1]
WITH_PARAMETER = {
    "ELU": lambda: nn.ELU(0.4),
    "LeakyReLU": lambda: nn.LeakyReLU(-0.3),
    "Softplus": lambda: nn.Softplus(2.5),
    "Sigmoid": nn.Sigmoid,
}


@pytest.mark.parametrize("activation", [*OFFERED, *WITH_PARAMETER.values()],
                         ids=[*OFFERED, *WITH_PARAMETER])  # fmt: skip
def test_every_activation_of_a_lipschitz_mlp_runs_in_one_kernel(activation):
    torch.manual_seed(0)
    g = LipschitzMLP(6, (9, 7), activation=activation).double().eval()
    y = 3 * torch.randn(5, 6, dtype=F64)
    ours = fixed_point_inverse(g, y, lipschitz=g.lipschitz, tol=1e-10, fused=True)
    theirs = fixed_point_inverse(g, y, lipschitz=g.lipschitz, tol=1e-10, fused=False)
    assert "in one kernel" in ours.method
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=2e-10)
    assert torch.equal(ours.iterations, theirs.iterations)


def test_what_does_not_run_in_one_kernel_says_why():
    y = torch.randn(3, 6, dtype=F64)
    hooked = network()
    hooked[0].register_forward_hook(lambda *_: None)
    refused = {
        "known layers": lambda x: 0.5 * x,
        "is not a module whose layers are known": nn.Bilinear(2, 2, 2),
        "GELU": network(activation=nn.GELU),
        "several kinds": nn.Sequential(*network()[:3], nn.ReLU(), network()[4]),
        "threshold": nn.Sequential(linear(6, 6, 0.5), nn.Softplus(1, 3), linear(6, 6, 0.5)),
        "between each two": nn.Sequential(linear(6, 6, 0.5), nn.Tanh()),
        "stands where a Linear": nn.Sequential(nn.Tanh()),
        "hooks": hooked,
        "float32": network().float(),
        "takes 5 numbers": network(5),
        "to 5": nn.Sequential(linear(5, 6, 0.5)),
    }
    for reason, g in refused.items():
        with pytest.raises(ValueError, match=rf"^fused: .*{reason}"):
            fixed_point_inverse(g, y, lipschitz=0.5, fused=True)
    with pytest.raises(ValueError, match="no vectors"):
        fixed_point_inverse(network(), y[:, None], lipschitz=0.5, fused=True)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        fixed_point_inverse(network(), y, lipschitz=0.5, fused=True)
