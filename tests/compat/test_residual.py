"""normflows' residual blocks: the same steps, draws and terms, in fewer operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepgen_ext import accelerate, report
from deepgen_ext.nn import fixed_point_inverse
from tests.compat.accelerated_models import check_accelerated, close, strictly_accelerated

SHAPES = {"mlp": (5,), "plane": (2,), "cnn": (2, 4, 3)}


def flow(kind: str, **options) -> nn.Module:
    nf = pytest.importorskip("normflows")
    channels = SHAPES[kind][0]
    torch.manual_seed(1)
    if kind == "cnn":
        net = nf.nets.LipschitzCNN([channels, 6, channels], [3, 1], init_zeros=False)
    else:
        net = nf.nets.LipschitzMLP([channels, 9, 8, channels], init_zeros=False)
    block = nf.flows.Residual(net, **options)
    block(torch.randn(2, *SHAPES[kind]))  # convolutions learn their sizes
    return block


def both_ways(model: nn.Module) -> list[Tensor]:
    """Before and behind the layer, with the draws of both generators repeated."""
    torch.manual_seed(7)
    np.random.seed(7)
    weight = model.iresblock.nnet.net[1].weight
    x = torch.randn(4, *SHAPES[model.kind], dtype=torch.float64).to(weight)
    return [*model.forward(x), *model.inverse(x)]


@pytest.mark.parametrize("n_dist", ["geometric", "poisson"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_equality(kind: str, training: bool, n_dist: str) -> None:
    model = flow(kind, reverse=training, n_dist=n_dist, n_samples=2)
    model.kind = kind
    # normflows' norms are float32 whatever the dtype, and so are gradients on their way through them.
    check_accelerated(model.train(training), both_ways, 1, std=0.2, tolerance=1e-7)


def test_steps_until_the_whole_batch_has_settled() -> None:
    """More than one step, and as many as normflows takes: x is an iterate, not the fixed point."""
    model = flow("mlp").double().eval()
    with torch.no_grad():
        for layer in model.iresblock.nnet.net[1::2]:
            layer.weight.mul_(10)
            layer.compute_weight(update=True, n_iterations=50)
    fast = strictly_accelerated(model, 1)
    y = 3 * torch.randn(20, 5, dtype=torch.float64)
    close([fast.iresblock.inverse(y)], [model.iresblock.inverse(y)], 1e-12)
    x = fast.iresblock.inverse(y)
    step = (fast.iresblock.forward(x) - y).abs().max()
    assert 1e-8 < step < 1e-2
    close([fast.iresblock.inverse(y[3:4])], [model.iresblock.inverse(y[3:4])], 1e-12)


def test_a_slope_of_zero_in_the_activation() -> None:
    model = flow("mlp").eval()
    with torch.no_grad():
        model.iresblock.nnet.net[2].beta.fill_(-200.0)
    fast = strictly_accelerated(model, 1)
    y = torch.randn(3, 5)
    close([fast.iresblock.inverse(y)], [model.iresblock.inverse(y)], 1e-5)


def test_convolutions_that_have_seen_nothing_draw_as_normflows_does() -> None:
    nf = pytest.importorskip("normflows")
    model = nf.flows.Residual(nf.nets.LipschitzCNN([2, 6, 2], [3, 3])).eval()
    fast = strictly_accelerated(model, 1)
    results = []
    for part in (model, fast):
        torch.manual_seed(3)
        results.append(part.iresblock.inverse(torch.ones(2, 2, 4, 4)))
    close(results[:1], results[1:], 0.0)


def test_verification_moves_no_generator_of_numpy() -> None:
    model = flow("mlp")
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    strictly_accelerated(model, 1)
    assert (np.random.get_state()[1] == before).all()


def test_other_nets_stay() -> None:
    nf = pytest.importorskip("normflows")
    own = nf.flows.Residual(nn.Linear(2, 2))
    altered, hooked = flow("mlp"), flow("mlp")
    altered.iresblock.nnet.net[0] = nn.Tanh()
    hooked.iresblock.nnet.net[1].register_forward_hook(lambda *_: None)
    for model, words in ((own, "but Linear"), (altered, "layers"), (hooked, "hooks")):
        assert words in report(model)
        with pytest.warns(UserWarning, match="nothing to accelerate"):
            assert accelerate(model) is model


def test_a_wrong_fold_is_refused(monkeypatch) -> None:
    model = flow("mlp")
    fast = type(accelerate(model).iresblock)
    given = fast._folded

    def wrong(block):
        folded = given(block)
        return folded._replace(beta=folded.beta * 1.01)

    monkeypatch.setattr(fast, "_folded", wrong)
    with pytest.warns(UserWarning, match=r"iresblock \(iResBlock\) stays: verification failed"):
        left = accelerate(model)
    assert type(left.iresblock) is type(model.iresblock)


def test_how_to_ask_for_a_bound_of_the_error() -> None:
    model = strictly_accelerated(flow("mlp").double().eval(), 1)
    net, y = model.iresblock.nnet, torch.randn(4, 5, dtype=torch.float64)
    x = fixed_point_inverse(net, y, lipschitz=0.97**3, tol=1e-9).x
    close([x + net(x)], [y], 1e-8)


@pytest.mark.parametrize("n_dist", ["geometric", "poisson"])
def test_late_terms_of_the_series_where_they_count(n_dist: str) -> None:
    nf = pytest.importorskip("normflows")
    model = nf.flows.Residual(nf.nets.LipschitzMLP([4, 4]), reverse=False, n_dist=n_dist).eval()
    with torch.no_grad():
        model.iresblock.nnet.net[1].weight.copy_(0.97 * torch.eye(4))
    model, x = model.double(), torch.full((3, 4), 20.0, dtype=torch.float64)
    fast = strictly_accelerated(model, 1)
    results = []
    for part in (model, fast):  # slopes of 0.88, whose power of 20 is 0.08
        np.random.seed(2)
        torch.manual_seed(2)
        results.append(part.iresblock.forward(x, 0)[1])
    close(results[:1], results[1:], 1e-9)


def test_terms_that_are_spent_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """normflows computes 20 terms and more, of a strong contraction with subnormal numbers."""
    model = flow("mlp").eval()
    from deepgen_ext.compat import lipschitz_block

    with torch.no_grad():
        for layer in model.iresblock.nnet.net[1::2]:
            layer.weight.mul_(1e-2)
            layer.compute_weight(update=True, n_iterations=50)
    model.kind = "mlp"
    fast = strictly_accelerated(model, 1)
    asked = []

    def watched(v: Tensor) -> bool:
        asked.append(is_spent(v))
        return asked[-1]

    is_spent = lipschitz_block.is_spent
    monkeypatch.setattr(lipschitz_block, "is_spent", watched)
    with torch.no_grad():
        close(both_ways(fast), both_ways(model), 1e-6)
    assert asked.count(True) == 2, "the forward and the inverse"
    assert len(asked) < 20
