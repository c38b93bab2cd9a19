"""Which rivals an entry must have: a table that leaves out the strongest one says nothing."""

from functools import cache

import pytest

from benchmarks import run
from benchmarks.harness import Setting
from benchmarks.test_entries import CURVES

ENTRIES = [e for e in run.all_entries() if not any(word in e.name for word in CURVES)]

# The longest beginning of an entry's name counts. Each word stands in a rival's or a floor's name.
REQUIRED = {
    "affine_coupling image exp": "eager, torch.compile, nflows, normflows, FrEIA, zuko",
    "affine_coupling image tanh": "eager, torch.compile, nflows, FrEIA",  # the others have no tanh
    "affine_coupling image sigmoid": "eager, torch.compile, nflows, normflows",
    "affine_coupling tabular exp": "eager, torch.compile, nflows, normflows, FrEIA, zuko",
    "affine_coupling small exp": "eager, torch.compile, nflows, normflows, FrEIA, zuko",
    # With raw scale and shift apart, as no peer has them; theirs are "to the conditioner".
    "affine_coupling image exp forward+backward": "eager, torch.compile",
    "affine_coupling small exp forward+backward": "eager, torch.compile",
    "affine_coupling image exp forward+backward to the conditioner": (
        "eager, torch.compile, nflows, normflows, FrEIA, zuko"
    ),
    "half_coupling": "affine_coupling, eager, torch.compile",
    "channel_affine": "eager, torch.addcmul, torch.compile, nflows, normflows, FrEIA",
    "bernoulli_log_prob": "eager, product, torch.compile",
    "rational_quadratic_spline tabular forward": "eager, torch.compile, nflows, normflows, zuko",
    "rational_quadratic_spline tabular inverse": "eager, torch.compile, nflows, normflows, zuko",
    "rational_quadratic_spline image": "eager, torch.compile, nflows, normflows, zuko",
    # zuko's spline of given bins is compared where no gradient is asked for.
    "rational_quadratic_spline tabular forward+backward": "eager, torch.compile, nflows, normflows",
    "rational_quadratic_spline tabular inverse+backward": "eager, torch.compile, nflows, normflows",
    "planar_chain": "eager, torch.compile, normflows",
    "radial_chain": "eager, torch.compile, normflows",
    "block_triangular_linear": "eager, torch.compile, dense",
    "masked_conv2d": "eager, masked before, torch.compile, vendor",
    "glow_conv_net": "channels last, channels first, torch.compile, matrix products",
    "categorical_draw": "eager, searchsorted, torch.multinomial, torch.compile",
    "discretized_logistic_mixture": "eager, torch.compile",
    "power_iteration": "eager, torch.compile",
    "power_iteration W / sigma": "eager, torch.compile, torch's parametrization",
    "power_iteration eval": "torch's parametrization",  # which is all that there is to read
    "fixed_point_step": "eager, torch.compile",
    "fixed_point_step conv block": "eager Picard, torchdeq Anderson, torchdeq Broyden, normflows",
    "fixed_point_mlp": "eager Picard, torchdeq Anderson, torchdeq Broyden, normflows",
    # A loop over dimensions or pixels is no graph for torch.compile, but its pass is.
    "autoregressive_inverse": "eager incremental, nflows, normflows, zuko",
    "maf sampling D=784": "masks",  # rivals of this size: autoregressive_inverse
    "maf sampling D=64": "nflows",
    "PixelCNN 7x64": "eager incremental, torch.compile",
    "PixelCNN 7x64 sampling, 12x12": "eager incremental, torch.compile, naive, jacobi",
    "gated PixelCNN": "torch.compile",
    "PixelCNN++": "torch.compile",
    "made pass": "eager, torch.compile, nflows, normflows, zuko",
    "made training step": "eager, torch.compile, nflows, normflows, zuko",
    "glow step": "eager, torch.compile, conv nets",
    "glow layer": "normflows, torch.compile, conv nets",
    "reversible couplings": "stored, memcnn, conv nets",
    "residual inverse": "eager, normflows",
    "iwae step": "eager, torch.compile, its networks",
    "hierarchical-vae sampling": "one pass",
    "pixelvae sampling": "the bare PixelCNN",
    "spectral_networks": "torch's parametrization, torch.compile, without norms",
    "adversarial sn-gan": "torch's parametrization, torch.compile",
    "adversarial sn-gan norms": "torch's parametrization",
    "adversarial wgan-gp": "eager, torch.compile",
    "accelerate": "before",
}


@cache
def names_of(entry):
    case = entry.build(Setting(tiny=True, budget=0.0))
    return [rival.name for rival in (*case.rivals, *case.floors)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_its_rivals(entry):
    beginnings = [b for b in REQUIRED if entry.name.startswith(b)]
    assert beginnings, "say in REQUIRED whom this entry has to face"
    for word in REQUIRED[max(beginnings, key=len)].split(", "):
        assert any(word in name for name in names_of(entry)), f"nobody called {word!r}"


def test_no_rule_is_left_over():
    used = {max((b for b in REQUIRED if e.name.startswith(b)), key=len) for e in ENTRIES}
    assert used | {"accelerate"} == set(REQUIRED)  # those entries are there with their peers only
