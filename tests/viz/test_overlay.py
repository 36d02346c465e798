import pytest
import torch
from strategies import generator

from wsss_blocks.viz import colorize, heat_colors, overlay_heatmap, overlay_mask

IMAGE = torch.rand(3, 4, 6, generator=generator(0))
MASK = torch.tensor([[0, 1, 2, 255, 0, 0]]).repeat(4, 1)


def test_mask_tints_classes_and_leaves_the_background():
    out = overlay_mask(IMAGE, MASK, alpha=0.25)
    torch.testing.assert_close(
        out, torch.where(MASK == 0, IMAGE, IMAGE * 0.75 + colorize(MASK) / 4)
    )
    assert torch.equal(overlay_mask(IMAGE, MASK, alpha=0.0), IMAGE)
    torch.testing.assert_close(
        overlay_mask(IMAGE, MASK, alpha=1.0)[:, :, 1:4], colorize(MASK)[:, :, 1:4]
    )


def test_heat_lies_over_the_grey_image():
    heat = torch.rand(4, 6)
    grey = overlay_heatmap(IMAGE, heat, alpha=0.0)
    assert torch.equal(grey[0], grey[1])
    torch.testing.assert_close(grey[0, 1, 2], IMAGE[:, 1, 2] @ torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(overlay_heatmap(IMAGE, heat, alpha=1.0), heat_colors(heat))
    out = overlay_heatmap(IMAGE.bfloat16(), heat)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1


def test_arguments_are_left_alone():
    image, mask = IMAGE.clone(), MASK.clone()
    overlay_mask(image, mask)
    overlay_heatmap(image, mask.float())
    assert torch.equal(image, IMAGE)
    assert torch.equal(mask, MASK)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: overlay_mask(IMAGE[:1], MASK), ValueError, r"image must have shape \(3, H, W\)"),
        (lambda: overlay_mask(IMAGE, MASK[:2]), ValueError, "mask must have shape .* with H=4"),
        (lambda: overlay_mask(IMAGE, MASK.float()), TypeError, "mask must be an integer"),
        (lambda: overlay_mask(IMAGE.long(), MASK), TypeError, "image must be a floating-point"),
        (lambda: overlay_mask(IMAGE, MASK, alpha=1.5), ValueError, r"alpha must be in \[0, 1\]"),
        (lambda: overlay_heatmap(IMAGE, MASK), TypeError, "heat must be a floating-point"),
        (lambda: overlay_heatmap(IMAGE, IMAGE), ValueError, "heat must have shape"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
