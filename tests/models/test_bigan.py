"""BiGAN: at the optimum the encoder inverts the generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepgen_ext.models import BiGAN
from tests.models.test_adversarial_models import descend, digits, play


def test_a_linear_game_ends_at_the_inverse():
    """x ~ N(mean, A A'), linear generator and encoder: G must map N(0, I) to the data, and E G = I
    up to a rotation that both share.
    """
    torch.manual_seed(0)
    model = BiGAN((2,), latent_features=2, width=16, r1=0.3, ema=0.98)
    for name in ("generator", "encoder"):
        linear = nn.Linear(2, 2)
        setattr(model, name, linear)
        model.averages[name] = nn.Linear(2, 2).requires_grad_(False)
        model.averages[name].load_state_dict(linear.state_dict())
    mean = torch.tensor([0.5, -0.3])
    matrix = torch.tensor([[1.2, 0.0], [0.7, 0.6]])

    def data(n):
        return mean + torch.randn(n, 2) @ matrix.T

    def distance():
        forward, back = model.averaged("generator"), model.averaged("encoder")
        return torch.linalg.matrix_norm(back.weight @ forward.weight - torch.eye(2), 2).item()

    start = distance()
    players = [
        model.optimizer(parameters, 1e-2)
        for parameters in (model.critic_parameters(), model.generator_parameters())
    ]
    steps = 350
    for step in range(steps):
        for group in (group for player in players for group in player.param_groups):
            group["lr"] = 1e-2 * (1 - step / steps)
        descend(model.critic_loss(data(128)), players[0])
        descend(model.generator_loss(data(128)), players[1])
        model.after_generator_step()
    assert start > 0.5
    assert distance() < 0.2
    weight = model.averaged("generator").weight.detach()
    torch.testing.assert_close(weight @ weight.T, matrix @ matrix.T, rtol=0, atol=0.25)
    assert model.reconstruction_error(data(500)).mean() < 0.1


def test_both_players_and_what_is_encoded():
    model = BiGAN((1, 8, 8), n_levels=17, width=4, latent_features=8, r1=1.0)
    x = digits()
    model.critic_loss(x).backward()
    assert all(p.grad is None for p in model.generator_parameters())
    assert all(p.grad is not None for p in model.critic_parameters())
    model.zero_grad(set_to_none=True)
    model.generator_loss(x).backward()
    assert all(p.grad is None for p in model.critic_parameters())
    encoder = list(model.encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in encoder)
    assert {id(p) for p in encoder} < {id(p) for p in model.generator_parameters()}
    assert model.encode(x).shape == (6, 8)
    assert model.reconstruct(x).shape == x.shape
    assert torch.equal(model.encode(x), model.encode(x))  # no noise in it
    error = (model.reconstruct(x) - (x + 0.5) / 17).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(model.reconstruction_error(x), error)


def test_losses_are_opposed():
    """Minimax: what the critic wins the generator and encoder lose, all of it."""
    model = BiGAN((2,), objective="minimax", width=8)
    x = torch.randn(16, 2)
    noise = model.draw_noise(16)
    critic, other = model.critic_loss(x, noise=noise), model.generator_loss(x, noise=noise)
    torch.testing.assert_close(critic, -other)


def test_the_critic_sees_pairs():
    model = BiGAN((2,), width=8)
    x, z = torch.randn(4, 2), torch.randn(4, 16)
    assert not torch.allclose(model.critic(x, z), model.critic(x, z.flip(0)))
    play(model, [x])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BiGAN((2,), objective="least-squares"), "objective: expected one of non-sat"),
        (lambda: BiGAN((2,), r1=-1), "r1: expected 0 or more"),
        (lambda: BiGAN((2,), n_critic=0), "n_critic"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
