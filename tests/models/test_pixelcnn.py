"""PixelCNN, plain and gated: order, density, training, what is refused."""

import math

import pytest
import torch

from deepgen_ext import objectives
from deepgen_ext.models import PixelCNN
from deepgen_ext.models.autoregressive.naive import embed
from tests.models.pixelcnn_cases import COLOR, GRAY, build, name
from tests.pixel_checks import (
    allowed,
    check_causal,
    check_normalised,
)

# ---------------------------------------------------------------- order and density


@pytest.mark.parametrize("options", GRAY, ids=name)
def test_no_later_pixel_reaches_a_gray_one(options):
    model = build((1, 5, 4), **options)
    check_causal(model.network, torch.randn(1, 5, 4, dtype=torch.float64))


@pytest.mark.parametrize("options", COLOR, ids=name)
def test_no_later_channel_reaches_an_earlier_one(options):
    model = build((3, 3, 3), channels=12, **options)
    groups = 3 if options.get("channels_in_order", True) else 1
    found = check_causal(model.network, torch.randn(6, 3, 3, 3, dtype=torch.float64), groups)
    if groups == 3:
        # Within a pixel all that may be seen is seen: G sees R, and B sees both.
        pixel = torch.arange(27) // 3
        inside = (pixel[:, None] == pixel) & allowed((3, 3, 3), 3)
        assert found[inside].all()


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_gated_sees_all_and_plain_is_blind_on_the_right(kernel_size):
    shape = (1, 5, 5)
    x = torch.randn(2, *shape, dtype=torch.float64)
    wide = {"layers": 6, "kernel_size": kernel_size}
    found = {
        gated: check_causal(build(shape, gated=gated, **wide).network, x) for gated in (False, True)
    }
    assert torch.equal(found[True], allowed(shape, 1))
    # One row up, the plain one sees k // 2 columns to the right, however deep it is.
    right = [bool(found[False][1 * 5 + column, 2 * 5]) for column in range(1, 5)]
    assert right == [column <= kernel_size // 2 for column in range(1, 5)]


@pytest.mark.parametrize("options", GRAY, ids=name)
def test_gray_densities_add_up_to_one(options):
    check_normalised(build((1, 2, 3), n_levels=2, **options))
    check_normalised(build((1, 2, 2), n_levels=3, **options))


@pytest.mark.parametrize("options", COLOR, ids=name)
def test_colour_densities_add_up_to_one(options):
    check_normalised(build((3, 1, 2), n_levels=3, **options))
    check_normalised(build((3, 2, 1), n_levels=3, **options))


@pytest.mark.parametrize("gated", [False, True])
def test_densities_given_a_condition_add_up_to_one(gated):
    model = build((1, 2, 2), n_levels=3, gated=gated, conditional_channels=2)
    check_normalised(model, torch.randn(1, 2, dtype=torch.float64))
    check_normalised(model, torch.randn(1, 2, 2, 2, dtype=torch.float64))


def test_bits_per_dim_and_loss_count_levels_and_take_no_noise():
    model = build((3, 4, 5), n_levels=7)
    levels = torch.randint(0, 7, (6, 3, 4, 5))
    bits = -model.log_prob(levels) / (60 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(levels), bits)
    torch.testing.assert_close(model.bits_per_dim(levels, noise=torch.rand(6, 3, 4, 5)), bits)
    torch.testing.assert_close(model.loss(levels), bits.mean())
    torch.testing.assert_close(model.loss(levels.byte(), noise=torch.rand(6, 3, 4, 5)), bits.mean())
    parameters = model(levels)
    torch.testing.assert_close(
        model.network(2 * levels.double() / 6 - 1), parameters, rtol=0, atol=0
    )
    log_softmax = parameters.view(6, 3, 7, 4, 5).log_softmax(2)
    expected = log_softmax.gather(2, levels[:, :, None]).flatten(1).sum(1)
    torch.testing.assert_close(model.log_prob(levels), expected)


# ---------------------------------------------------------------- use


@pytest.mark.parametrize("gated", [False, True])
def test_every_parameter_is_trained(gated):
    torch.manual_seed(0)
    model = PixelCNN((3, 4, 4), 3, 24, gated, 4, conditional_channels=2, kernel_size=3)
    levels = (torch.arange(48).view(1, 3, 4, 4) % 4).expand(8, -1, -1, -1)
    condition = torch.randn(8, 2)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = model.loss(levels, condition)
        adam.zero_grad()
        loss.backward()
        if not losses:
            for parameter_name, parameter in model.named_parameters():
                assert parameter.grad is not None, parameter_name
                assert parameter.grad.any(), parameter_name
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(model.sample(2, condition=condition[:2], temperature=1e-3), levels[:2])


def test_names_of_the_number_of_levels():
    for model in (
        PixelCNN((1, 2, 2), 1, 4, False, 16),
        PixelCNN((1, 2, 2), 1, 4, n_levels=16),
        PixelCNN((1, 2, 2), 1, 4, levels=16),
    ):
        assert model.n_levels == 16
        assert model(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).shape == (1, 16, 2, 2)
    with pytest.raises(ValueError, match="levels: .*8 and 16"):
        PixelCNN((1, 2, 2), 1, 4, n_levels=16, levels=8)


def test_log_prob_compiles_into_one_graph():
    torch._dynamo.reset()
    model = build((1, 4, 4), gated=True)
    levels = torch.randint(0, 4, (3, 1, 4, 4))
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(levels), model.log_prob(levels))


def test_what_a_network_sees():
    x = embed(torch.arange(5), 5, torch.float64)
    torch.testing.assert_close(x, torch.tensor([-1, -0.5, 0, 0.5, 1], dtype=torch.float64))


def small(**options):
    return PixelCNN((3, 4, 4), 2, 6, n_levels=4, kernel_size=3, **options)


def levels(*shape):
    return torch.zeros(shape, dtype=torch.long)


MASK = torch.ones(3, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PixelCNN((4, 4)), ValueError, r"image_shape: .*\(4, 4\)"),
        (lambda: PixelCNN((1, 0, 4)), ValueError, r"image_shape: .*\(1, 0, 4\)"),
        (lambda: PixelCNN((1, 4, 4), 0), ValueError, "layers: .*0"),
        (lambda: PixelCNN((1, 4, 4), channels=0), ValueError, "channels: .*0"),
        (
            lambda: PixelCNN((3, 4, 4), channels=64),
            ValueError,
            "channels: .*of 3,.*64: try 63 or 66",
        ),
        (lambda: PixelCNN((1, 4, 4), kernel_size=4), ValueError, "kernel_size"),
        (lambda: PixelCNN((1, 4, 4), gated=True, kernel_size=4), ValueError, "kernel_size"),
        (lambda: PixelCNN((1, 4, 4), hidden_kernel_size=2), ValueError, "kernel_size"),
        (lambda: PixelCNN((1, 4, 4), n_levels=1), ValueError, "n_levels: .*1"),
        (lambda: PixelCNN((1, 4, 4), dilations=()), ValueError, "dilations: .*0"),
        (lambda: PixelCNN((1, 4, 4), conditional_channels=-1), ValueError, "condition.*-1"),
        (lambda: small().log_prob(levels(2, 3, 4, 5)), ValueError, r"levels: .*\(2, 3, 4, 5\)"),
        (lambda: small().log_prob(levels(2, 3, 4, 4) + 4), ValueError, r"\[0, 4\), got 4 to 4"),
        (lambda: small().log_prob(torch.zeros(2, 3, 4, 4)), TypeError, "levels: .*integer"),
        (
            lambda: small().log_prob(levels(2, 3, 4, 4), torch.zeros(2, 5)),
            ValueError,
            r"conditional_channels=0, got \(2, 5\)",
        ),
        (
            lambda: small(conditional_channels=5).log_prob(levels(2, 3, 4, 4)),
            ValueError,
            r"condition: expected \(2, 5\) or \(2, 5, 4, 4\), got None",
        ),
        (
            lambda: small(conditional_channels=5).sample(2, condition=torch.zeros(3, 5)),
            ValueError,
            r"condition: expected \(2, 5\) or \(2, 5, 4, 4\), got \(3, 5\)",
        ),
        (
            lambda: small(conditional_channels=5).sample(2, condition=levels(2, 5)),
            TypeError,
            "condition: .*int64",
        ),
        (lambda: small().sample(-1), ValueError, "n: .*-1"),
        (lambda: small().sample(1, method="fast"), ValueError, "method: .*'fast'"),
        (lambda: small().sample(1, temperature=0.0), ValueError, "temperature: .*0"),
        (lambda: small().sample(1, temperature=math.nan), ValueError, "temperature: .*nan"),
        (lambda: small().sample(1, max_batch=0), ValueError, "max_batch: .*0"),
        (lambda: small().sample(1, return_sweeps=True), ValueError, "return_sweeps"),
        (lambda: small().sample(1, method="jacobi", block_rows=0), ValueError, "block_rows: .*0"),
        (
            lambda: small().sample(2, uniforms=torch.rand(2, 3, 4, 5)),
            ValueError,
            r"uniforms: expected \(2, 3, 4, 4\), got \(2, 3, 4, 5\)",
        ),
        (
            lambda: small().sample(1, uniforms=torch.ones(1, 3, 4, 4)),
            ValueError,
            r"uniforms: .*\[0, 1\), got 1.0 to 1.0",
        ),
        (
            lambda: small().sample(1, uniforms=torch.full((1, 3, 4, 4), math.nan)),
            ValueError,
            r"uniforms: .*\[0, 1\)",
        ),
        (lambda: small().sample(1, uniforms=levels(1, 3, 4, 4)), TypeError, "uniforms: .*int64"),
        (lambda: small().sample(2, given=levels(3, 3, 2, 4)), ValueError, r"given: .*\(3, 3, 2"),
        (lambda: small().sample(2, given=levels(2, 3, 5, 4)), ValueError, r"given: .*\(2, 3, 5"),
        (lambda: small().sample(2, given=levels(2, 3, 2, 3)), ValueError, r"given: .*\(2, 3, 2, 3"),
        (lambda: small().sample(2, given=levels(3, 4, 4)), ValueError, r"given: .*\(3, 4, 4"),
        (lambda: small().sample(2, given=levels(2, 3, 1, 4) + 9), ValueError, r"\[0, 4\), got 9"),
        (
            lambda: small().sample(2, given=(levels(2, 3, 2, 4), MASK)),
            ValueError,
            r"given\[0\]: .*\(2, 3, 2, 4\)",
        ),
        (
            lambda: small().sample(2, given=(levels(2, 3, 4, 4), MASK[:2])),
            ValueError,
            r"given\[1\]: .*broadcasts to \(2, 3, 4, 4\), got \(2, 4, 4\)",
        ),
        (
            lambda: small().sample(2, given=(levels(2, 3, 4, 4), MASK.int())),
            TypeError,
            r"given\[1\]: .*bool.*int32",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_levels_are_checked_like_those_that_are_dequantised():
    objectives.check_levels(torch.arange(4), 4)
    with pytest.raises(ValueError, match="n_levels"):
        objectives.check_levels(torch.arange(4), 1)
