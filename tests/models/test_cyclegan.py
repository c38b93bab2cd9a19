"""CycleGAN: translations there and back, and the buffer of past ones."""

from __future__ import annotations

import copy

import pytest
import torch

from deepgen_ext.models import CycleGAN
from deepgen_ext.models.adversarial.image_buffer import ImageBuffer
from tests.models.test_adversarial_models import play

SMALL = {"n_levels": 17, "width": 4, "blocks": 1, "buffer": 8}


def pair(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(8, (n, 1, 8, 8), generator=generator)
    return a, 16 - torch.randint(8, (n, 1, 8, 8), generator=generator)


def test_cycle_consistency_falls():
    torch.manual_seed(0)
    model = CycleGAN((1, 8, 8), ema=0.9, **SMALL)
    a, b = pair(32, seed=99)
    before = model.cycle_error(a, "a-to-b").mean(), model.cycle_error(b, "b-to-a").mean()
    play(model, (pair(8, seed) for seed in range(60)), rate=3e-3)
    after = model.cycle_error(a, "a-to-b").mean(), model.cycle_error(b, "b-to-a").mean()
    assert after[0] < 0.6 * before[0]
    assert after[1] < 0.6 * before[1]
    # dark images became bright ones
    assert model.translate(a, "a-to-b").mean() > 0.6
    assert model.translate(b, "b-to-a").mean() < 0.4


def test_each_loss_is_of_one_side():
    model = CycleGAN((1, 8, 8), **SMALL)
    model.critic_loss(pair()).backward()
    assert all(p.grad is None for p in model.generator_parameters())
    assert all(p.grad is not None for p in model.critic_parameters())
    model.zero_grad(set_to_none=True)
    model.generator_loss(pair()).backward()
    assert all(p.grad is None for p in model.critic_parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.generator_parameters())


def test_the_terms_of_the_loss():
    """With translators that are known: the identity has neither cycle nor identity loss."""
    model = CycleGAN((1, 8, 8), cycle=3.0, identity=2.0, **SMALL)
    noise = model.draw_noise(4)
    scores = {"a": -0.5, "b": 2.0}
    for name, score in scores.items():
        model.critic[name].forward = lambda x, score=score: x.mean() * 0 + score
    game = sum((score - 1) ** 2 / 2 for score in scores.values())
    model.to_a.forward = model.to_b.forward = lambda x: x
    assert model.generator_loss(pair(), noise=noise).item() == pytest.approx(game)
    model.to_b.forward = lambda x: x + 0.25  # of both cycles 0.25 is left, of b's identity too
    expected = game + 3.0 * (0.25 + 0.25) + 3.0 * 2.0 * 0.25
    assert model.generator_loss(pair(), noise=noise).item() == pytest.approx(expected, rel=1e-5)


def test_translations():
    model = CycleGAN((1, 8, 8), ema=0, **SMALL)
    a, _ = pair()
    there, back = model.there_and_back(a, "a-to-b")
    assert there.shape == a.shape
    assert there.min() >= 0
    assert there.max() <= 1
    torch.testing.assert_close(there, model.translate(a, "a-to-b"))
    x = model.stretch(a, model.middle(a))
    torch.testing.assert_close(there * 2 - 1, model.to_b(x))
    torch.testing.assert_close(back * 2 - 1, model.to_a(model.to_b(x)))
    assert not torch.allclose(there, model.translate(a, "b-to-a"))
    error = (back - (a + 0.5) / 17).abs().mean((1, 2, 3))
    torch.testing.assert_close(model.cycle_error(a, "a-to-b"), error)


def test_the_buffer_fills_then_exchanges():
    buffer = ImageBuffer((1,), 4)
    order = torch.tensor([0.3, 0.1, 0.9, 0.2])  # ranks: places 1, 3, 0, 2
    first = torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(buffer.exchange(first, order, torch.zeros(3)), first)
    second = torch.tensor([[4.0], [5.0], [6.0]])
    assert torch.equal(buffer.exchange(second, order, torch.zeros(3)), second)
    assert buffer.images.flatten().tolist() == [1, 2, 3, 4]  # full: the rest was not kept
    third = torch.tensor([[7.0], [8.0], [9.0]])
    given = buffer.exchange(third, order, torch.tensor([0.1, 0.7, 0.4]))
    assert given.flatten().tolist() == [2, 8, 1]  # places 1 and 0 exchanged, place 3 not
    assert buffer.images.flatten().tolist() == [9, 7, 3, 4]
    twin = ImageBuffer((1,), 4)
    twin.load_state_dict(buffer.state_dict())
    assert twin.count == 4
    assert torch.equal(twin.images, buffer.images)
    assert ImageBuffer((1,), 0).exchange(third, torch.zeros(0), torch.zeros(3)) is third
    with pytest.raises(ValueError, match="at most size=4 at a time, got 5"):
        buffer.exchange(torch.zeros(5, 1), order, torch.zeros(5))


def test_critics_see_old_translations():
    model = CycleGAN((1, 8, 8), **{**SMALL, "buffer": 4})
    model.critic_loss(pair())  # fills it
    noise = model.draw_noise(4)
    kept = model.buffers_of["a"].images.clone()
    noise["swap_a"] = noise["swap_b"] = torch.zeros(4)  # all come from it
    seen = {}
    handle = model.critic["a"].register_forward_hook(lambda m, args, y: seen.update(x=args[0]))
    model.critic_loss(pair(seed=1), noise=noise)
    handle.remove()
    places = noise["order_a"].argsort()
    torch.testing.assert_close(seen["x"][4:], kept[places])


def test_bfloat16_autocast_is_close():
    model = CycleGAN((1, 8, 8), **SMALL)
    noise = model.draw_noise(4)
    losses = []
    for enabled in (False, True):
        twin = copy.deepcopy(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = twin.generator_loss(pair(), noise=noise)
            (loss + twin.critic_loss(pair(), noise=noise)).backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CycleGAN((2,)), r"shape: expected \(C, H, W\)"),
        (lambda: CycleGAN((1, 8, 8), n_levels=17, cycle=-1), "cycle: expected 0 or more"),
        (lambda: CycleGAN((1, 8, 8), n_levels=17, identity=-1), "identity: expected 0 or more"),
        (lambda: CycleGAN((1, 8, 8), n_levels=17, buffer=-1), "buffer: expected 0 or more"),
        (lambda: CycleGAN((1, 8, 8), n_levels=17, blocks=0), "blocks: expected 1 or more"),
        (lambda: CycleGAN((1, 8, 8), n_levels=17, objective="wasserstein"), "bound on the slope"),
        (lambda: CycleGAN((1, 8, 8), **SMALL).sample(3), "draws no samples, it translates"),
        (lambda: CycleGAN((1, 8, 8), **SMALL).translate(pair()[0], "back"), "direction: expected"),
        (
            lambda: CycleGAN((1, 8, 8), **SMALL).critic_loss((pair(3)[0], pair(4)[1])),
            "as many of a as of b, got 3 and 4",
        ),
        (
            lambda: CycleGAN((1, 8, 8), **SMALL).critic_loss((torch.zeros(2, 1, 9, 9), pair(2)[1])),
            r"a: expected \(n, 1, 8, 8\), got \(2, 1, 9, 9\)",
        ),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
