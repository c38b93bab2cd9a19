"""What adversarial models refuse, by the name of the argument."""

from __future__ import annotations

import pytest
import torch

from deepgen_ext.models import GAN, WGAN, WGANGP
from tests.models.test_adversarial_models import SMALL


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GAN((2,), n_critic=0), "n_critic: expected an integer of 1 or more, got 0"),
        (lambda: WGAN((2,), n_critic=1.5), "n_critic: expected an integer of 1 or more, got 1.5"),
        (lambda: WGANGP((2,), penalty=-1.0), "penalty: expected 0 or more, got -1.0"),
        (lambda: WGANGP((2,), target=-1.0), "target: expected 0 or more"),
        (lambda: WGAN((2,), clip=0.0), "clip: expected a positive number"),
        (lambda: GAN((2,), r1=-1.0), "r1: expected 0 or more"),
        (lambda: GAN((2,), ema=1.0), r"ema: expected a number in \[0, 1\)"),
        (lambda: GAN((2,), objective="wasserstein"), "needs a bound on the slope: see WGAN"),
        (lambda: GAN((2,), objective="best"), "objective: expected one of minimax"),
        (lambda: GAN((2,), network="dcgan"), "network: expected mlp, these are vectors"),
        (lambda: GAN((1, 8, 8), network="mlp", n_levels=17), "expected dcgan or resnet"),
        (lambda: GAN((1, 8, 8)), "n_levels: images have them"),
        (lambda: GAN((2,), n_levels=17), "n_levels: images have them and vectors do not"),
        (lambda: GAN((1, 7, 8), n_levels=17), "even sides of 4 or more, got 7x8"),
        (lambda: GAN((2,), width=-3), "width: expected 1 or more, got -3"),
        (lambda: GAN((2,), n_classes=-1), "n_classes: expected 0 or more"),
        (lambda: GAN((2,)).critic_loss(torch.zeros(3, 4)), r"x: expected \(n, 2\), got \(3, 4\)"),
        (lambda: GAN((2,)).sample(-1), "n: expected 0 or more"),
        (lambda: GAN((2,)).sample(1, -1.0), "temperature: expected 0 or more"),
        (lambda: GAN((2,), n_classes=2).critic_loss(torch.zeros(3, 2)), "labels: .* needs the"),
        (lambda: GAN((2,)).critic_loss(torch.zeros(3, 2), torch.zeros(3)), "without classes"),
        (lambda: GAN((2,), n_classes=2).sample(3, labels=torch.zeros(2).long()), "expected 3 cl"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_levels_must_be_integers():
    with pytest.raises(TypeError, match="levels: expected an integer tensor"):
        GAN((1, 8, 8), **SMALL).critic_loss(torch.rand(2, 1, 8, 8))
