"""torch's spectral norms, the parametrization and the hook, with our arithmetic: step by step torch's."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm
from torch.nn.utils import spectral_norm as hook
from torch.utils.checkpoint import checkpoint

from deepgen_ext import accelerate, report, restore
from deepgen_ext.compat import spectral_group
from deepgen_ext.compat import torch as replaced
from deepgen_ext.nn.spectral_norm import SpectralNorm as OurSpectralNorm
from tests.compat.accelerated_models import (
    accelerated_parts,
    check_accelerated,
    close,
    strictly_accelerated,
)

NORMS = {"parametrization": parametrizations.spectral_norm, "hook": hook}
both = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


class Critic(nn.Module):
    """Layers of all kinds; one is used twice a pass, one not at all."""

    def __init__(self, norm, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = norm(nn.ConvTranspose2d(2, 3, 2), **options)
        self.twice = norm(nn.Conv2d(3, 3, 3, padding=1), **options)
        self.down = norm(nn.Conv2d(3, 4, 3, groups=1, bias=False), **options)
        self.plain = nn.Linear(4, 5)
        self.linear = norm(nn.Linear(5, 2), **options)
        self.unused = norm(nn.Conv1d(2, 3, 2), **options)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return self.linear(torch.tanh(self.plain(self.down(h).mean((2, 3)))))


def images(model: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x.to(next(model.parameters()))


def steps(model: nn.Module) -> list[Tensor]:
    """Three passes in training before one backward, one in eval mode; u and v are put back."""
    before = [buffer.clone() for buffer in model.buffers()]
    model.train()
    results = []
    for seed in range(3):
        results.append(model(images(model, seed)))
        results += [buffer.clone() for buffer in model.buffers()]
    model.eval()
    with torch.enable_grad():  # not left in the graph: torch's hook keeps there what moves again
        used = [p for name, p in model.named_parameters() if not name.startswith("unused")]
        results += torch.autograd.grad(model(images(model, 0)).square().sum(), used)
    with torch.no_grad():
        results += [model(images(model, 3)), model(images(model, 4))]
    results += [buffer.clone() for buffer in model.buffers()]
    model.train()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return results


@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 3, "dim": 1}], ids=str)
@both
def test_step_by_step(norm, options) -> None:
    # torch refuses to pickle a module with parametrizations, and its class stays torch's.
    fast = check_accelerated(Critic(norm, **options), steps, 5, pickles=norm is hook)
    assert "is accelerated" in report(fast)


@both
def test_each_weight_has_the_strides_of_torchs(norm) -> None:
    model = Critic(norm)
    fast = strictly_accelerated(model, 5)
    for twin in (model, fast):
        twin(images(twin, 0))
    for name in ("up", "twice", "linear"):
        a, b = getattr(fast, name).weight, getattr(model, name).weight
        assert a.stride() == b.stride()


@both
def test_taken_off(norm) -> None:
    # Of models built apart: copies share the class that torch makes up for a parametrized layer.
    model = Critic(norm).double()
    fast = strictly_accelerated(Critic(norm).double(), 5, inplace=True)
    for twin in (model, fast):
        for name in ("up", "linear", "unused"):
            layer = getattr(twin, name)
            if norm is hook:
                remove_spectral_norm(layer)
            else:
                parametrize.remove_parametrizations(layer, "weight")
    assert list(fast.state_dict()) == list(model.state_dict())
    close(list(fast.state_dict().values()), list(model.state_dict().values()), 1e-12)
    assert type(fast.up) is nn.ConvTranspose2d
    assert len(accelerated_parts(fast)) == 2
    close(steps(fast), steps(model), 1e-10)
    assert vars(restore(fast).twice).keys() == vars(model.twice).keys()


def test_restored_parts_have_what_they_had() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    fast = strictly_accelerated(layer, 1).eval()
    with torch.no_grad():
        fast(torch.ones(1, 3))
    before, after = layer.parametrizations.weight[0], restore(fast).parametrizations.weight[0]
    assert type(after) is type(before)
    assert vars(after).keys() == vars(before).keys()


@both
def test_gradient_penalty(norm) -> None:
    model = Critic(norm).double()
    gradients = []
    for twin in (model, strictly_accelerated(model, 5)):
        x = images(twin, 1).requires_grad_()
        score = twin(x).square().sum()
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        used = [p for name, p in twin.named_parameters() if not name.startswith("unused")]
        found = torch.autograd.grad(slope.square().sum() + score, used, allow_unused=True)
        gradients.append([torch.zeros(()) if g is None else g for g in found])
    close(gradients[1], gradients[0], 1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@both
def test_a_checkpoints_second_forward_steps_too(norm, reentrant) -> None:
    model = Critic(norm).double()
    found = []
    for twin in (model, strictly_accelerated(model, 5)):
        x = images(twin, 1).requires_grad_()
        checkpoint(twin, x, use_reentrant=reentrant).square().sum().backward()
        found.append([x.grad, *twin.buffers()])
    close(found[1], found[0], 1e-10)


@both
def test_compiles(norm) -> None:
    fast = strictly_accelerated(Critic(norm), 5)
    twin = copy.deepcopy(fast)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        close([compiled(images(fast, seed))], [fast(images(fast, seed))], 1e-5)
    close(list(twin.buffers()), list(fast.buffers()), 1e-5)
    for model in (fast, twin):
        model.eval()
    close([compiled(images(fast, 5))], [fast(images(fast, 5))], 1e-5)


@both
def test_torch_func_finds_torchs_own_operations(norm) -> None:
    model = Critic(norm).double().eval()
    fast, x = strictly_accelerated(model, 5), images(model, 0)
    found = []
    for twin in (model, fast):
        state = {name: p.detach() for name, p in twin.named_parameters()}

        def loss(state, twin=twin):
            return torch.func.functional_call(twin, state, (x,)).square().sum()

        gradients = torch.func.grad(loss)(state)
        found.append(list(gradients.values()))
    close(found[1], found[0], 1e-10)
    assert found[0][0].any()


@both
def test_half_weights_and_autocast(norm) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        fast = strictly_accelerated(norm(nn.Linear(6, 5)).to(dtype), 1)
        exact = restore(copy.deepcopy(fast)).float()
        x = torch.linspace(-1, 1, 12).view(2, 6)
        for _ in range(3):
            found = fast(x.to(dtype))
            assert found.dtype == dtype
            close([found.float()], [exact(x)], 0.05)
    fast = strictly_accelerated(norm(nn.Linear(6, 5)), 1)
    exact = copy.deepcopy(fast)
    with torch.autocast("cpu", torch.bfloat16):
        fast(x)
    exact(x)
    close([*fast.buffers(), fast.weight], [*exact.buffers(), exact.weight], 1e-6)


def test_a_writer_of_eval_weights_is_noticed() -> None:
    model = parametrizations.spectral_norm(nn.Linear(6, 5)).eval()
    fast = strictly_accelerated(model, 1)
    with torch.no_grad():
        for twin in (model, fast):
            _ = twin.weight
            twin.parametrizations.weight.original.mul_(torch.arange(1.0, 6.0)[:, None])
            twin.parametrizations.weight[0]._u.copy_(torch.ones(5) / 5**0.5)
        close([fast.weight], [model.weight], 1e-5)
        assert fast.weight is fast.weight, "eval mode computed the weight again"


@both
def test_hooks_and_layers_of_the_users_stay(norm) -> None:
    class Own(parametrizations._SpectralNorm):
        pass

    layer = norm(nn.Linear(4, 3))
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    fast = strictly_accelerated(layer.double(), 1)
    x = torch.ones(2, 4, dtype=torch.float64)
    close([fast(x)], [layer(x)], 1e-10)

    own = nn.Linear(4, 3)
    parametrize.register_parametrization(own, "weight", Own(own.weight))
    vector = parametrizations.spectral_norm(nn.LayerNorm(3))
    complex_one = norm(nn.Linear(4, 3, dtype=torch.complex64))
    for stays, words in ((own, "a subclass of _SpectralNorm"), (vector, "a vector")):
        with pytest.warns(UserWarning, match="nothing to accelerate"):
            assert accelerate(stays) is stays
        assert words in report(stays)
    if norm is hook:  # which knows no weight until it is called
        fast, complex_x = strictly_accelerated(complex_one, 1), torch.ones(2, 4) + 0j
        close([fast(complex_x)], [complex_one(complex_x)], 0.0)
    else:
        assert "a weight of torch.complex64" in report(complex_one)


@both
def test_verification_sees_a_difference(norm, monkeypatch) -> None:
    given = replaced.spectral_normalize

    def wrong(*args):
        scaled, *rest = given(*args)
        return [tensor * 1.001 for tensor in scaled], *rest

    for module in (replaced, spectral_group):
        monkeypatch.setattr(module, "spectral_normalize", wrong)
    monkeypatch.setattr(sys.modules[OurSpectralNorm.__module__], "spectral_normalize", wrong)
    layer = norm(nn.Conv2d(3, 4, 3))
    with pytest.warns(UserWarning, match=r"Norm\) stays: verification failed, the scaled weight"):
        left = accelerate(layer)
    assert not accelerated_parts(left)
