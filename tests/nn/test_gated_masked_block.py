"""Blocks of gated PixelCNN and PixelCNN++: what each of their streams may see, and does."""

import pytest
import torch

from deepgen_ext.nn import ConditionProjection, GatedMaskedBlock, GatedResnet, Shift, ShiftedConv2d
from tests.pixel_checks import allowed, check_causal, influence

SHAPE = (3, 4, 5)


def image():
    return torch.randn(*SHAPE, dtype=torch.float64)


def rows_above(shape):
    """The influence of pixels of rows strictly above."""
    channels, height, width = shape
    source = torch.arange(height * width * channels) // (width * channels)
    return source[:, None] < torch.arange(height * width) // width


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_streams_of_gated_blocks_are_causal(kernel_size, groups, dilation):
    first = GatedMaskedBlock(
        3, 6, kernel_size, mask_type="A", groups_in_order=groups, skip_channels=6
    ).double()
    second = GatedMaskedBlock(
        6, 6, kernel_size, groups_in_order=groups, dilation=dilation, skip_channels=6
    ).double()
    for depth in (1, 2):
        for stream in (0, 1, 2):

            def output(x, depth=depth, stream=stream):
                streams = first(x, x)
                return (second(*streams[:2]) if depth == 2 else streams)[stream]

            if stream == 0:
                found = influence(output, image())
                assert not (found & ~rows_above(SHAPE)).any()
                assert found.any()
            elif kernel_size == 1 and groups == 1:
                # Only the vertical stack sees anything: the pixel above.
                check_causal(output, image(), groups)
            else:
                found = check_causal(output, image(), groups)
                left = torch.eye(20).roll(1, 1).bool()
                left[torch.arange(4, 20, 5)] = False  # the end of a row is not left of the next
                seen = found.view(20, 3, 20, groups).any(3).any(1)
                assert kernel_size == 1 or (seen & left).sum() == left.sum()


def test_type_b_sees_its_own_pixel_and_group():
    block = GatedMaskedBlock(6, 6, 3, groups_in_order=3, residual=False).double()
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    found = check_causal(lambda x: block(0 * x, x)[1], x, groups=3, own_pixel=True)
    itself = allowed((6, 3, 3), 3, own_pixel=True) & ~allowed((6, 3, 3), 3)
    assert found[itself].all()


def test_two_blocks_see_every_pixel_before_them():
    """No blind spot: with kernels as large as the image, all that is allowed is seen."""
    torch.manual_seed(0)
    first = GatedMaskedBlock(3, 6, 9, mask_type="A", groups_in_order=3).double()
    second = GatedMaskedBlock(6, 6, 9, groups_in_order=3, skip_channels=6, last=True).double()
    found = influence(lambda x: second(*first(x, x)[:2])[2], image(), groups=3)
    assert torch.equal(found, allowed(SHAPE, 3))


def test_each_block_adds_half_a_kernel_of_rows():
    """With k = 3 the first block sees one row up and the second two, k columns wide at each."""
    first = GatedMaskedBlock(1, 4, 3, mask_type="A").double()
    second = GatedMaskedBlock(4, 4, 3).double()
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    below = 4 * 5 + 2  # the pixel (4, 2)
    for stream in (0, 1):
        one = influence(lambda x, stream=stream: first(x, x)[stream], x)[:, below].view(5, 5)
        two = influence(lambda x, stream=stream: second(*first(x, x)[:2])[stream], x)
        two = two[:, below].view(5, 5)
        assert one[3].tolist() == [False, True, True, True, False]
        assert not one[:3].any()
        assert two[2].tolist() == two[3].tolist() == [True] * 5
        assert not two[:2].any()


def test_residual_adds_the_input():
    torch.manual_seed(0)
    plain = GatedMaskedBlock(4, 4, 3, residual=False)
    residual = GatedMaskedBlock(4, 4, 3)
    residual.load_state_dict(plain.state_dict())
    v, h = torch.randn(2, 2, 4, 3, 3)
    torch.testing.assert_close(residual(v, h)[1], plain(v, h)[1] + h)
    first = GatedMaskedBlock(4, 4, 3, mask_type="A")
    assert not first.adds_input


def test_condition_reaches_both_gates():
    block = GatedMaskedBlock(4, 4, 3, conditional_channels=2)
    v, h = torch.randn(2, 2, 4, 3, 3)
    c = torch.randn(2, 2)
    base, moved = block(v, h, c), block(v, h, c + 1)
    as_map = block(v, h, c[:, :, None, None].expand(2, 2, 3, 3))
    for stream in (0, 1):
        assert (base[stream] != moved[stream]).all()
        torch.testing.assert_close(as_map[stream], base[stream])
    # The horizontal gate has a projection of its own.
    with torch.no_grad():
        block.vertical_condition.weight.zero_()
    assert (block(v, h, c)[1] != block(v, h, c + 1)[1]).all()


def test_condition_projection_of_vectors_and_maps():
    layer = ConditionProjection(3, 4, stride=2)
    c = torch.randn(2, 3)
    vector = layer(c)
    assert vector.shape == (2, 4, 1, 1)
    of_map = layer(c[:, :, None, None].expand(2, 3, 5, 4))
    torch.testing.assert_close(of_map, vector.expand(2, 4, 3, 2))


@pytest.mark.parametrize("shift", ["down", "down_right"])
def test_gated_resnet_is_causal_with_a_shortcut(shift):
    size = (2, 3) if shift == "down" else (2, 2)
    resnet = GatedResnet(4, size, shift=shift, shortcut_channels=3, conditional_channels=2)
    resnet.double().eval()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    c = torch.randn(1, 2, dtype=torch.float64)
    if shift == "down":
        enter = ShiftedConv2d(3, 4, (1, 3), shift="down").double()
        above = Shift("down")
        found = influence(lambda x: resnet(enter(above(x)), above(x), c), x)
        assert not (found & ~rows_above((3, 4, 5))).any()
    else:
        enter = ShiftedConv2d(3, 4, (2, 1), shift="down_right").double()
        right = Shift("right")
        found = check_causal(lambda x: resnet(enter(right(x)), right(x), c), x)
    assert found.any()


def test_gated_resnet_formula():
    torch.manual_seed(0)
    resnet = GatedResnet(4, (2, 2), shift="down_right", shortcut_channels=3, dropout=0.5)
    x, shortcut = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 3, 3)
    resnet.eval()
    f, gate = resnet.activation, resnet.gate
    h = resnet.first(f(x)) + resnet.shortcut(f(shortcut))
    torch.testing.assert_close(resnet(x, shortcut), x + gate(resnet.second(f(h))))
    resnet.train()
    assert not torch.equal(resnet(x, shortcut), resnet(x, shortcut))
    # Nearly the identity at first.
    assert (resnet(x, shortcut) - x).std() < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GatedMaskedBlock(4, 4, 4), "kernel_size: .*odd.*4"),
        (lambda: GatedMaskedBlock(4, 4, mask_type="C"), "mask_type: .*'C'"),
        (lambda: GatedMaskedBlock(3, 4), "in_channels: .*3"),
        (lambda: GatedMaskedBlock(4, 4, last=True), "skip_channels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
