"""
A coarse map snaps to the edges of a photograph
===============================================

Class maps are many times coarser than the image.
:func:`~wsss_blocks.refine.pixel_adaptive_refine` averages each map over neighbours of similar
colour, so that it spreads inside a region and stops at its border. Nothing is learnt.
"""

# %%
# A photograph that comes with scikit-learn, and a rough map of the flower: an ellipse on a grid of
# 16-pixel cells, as if a network had pointed at it. The second channel is the background.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from wsss_blocks.refine import (
    NoRefiner,
    PixelAdaptiveRefine,
    pixel_adaptive_refine,
    refine_to_label,
)
from wsss_blocks.viz import overlay_heatmap, overlay_mask

photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
image = F.interpolate(photo, size=(224, 320), mode="bilinear", antialias=True).clamp(0, 1)

rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(20.0), indexing="ij")
distance = ((rows - 6.2) / 4).square() + ((columns - 9.8) / 5).square()
cam = (1.1 - 0.55 * distance).clamp(0, 1)[None, None]
maps = torch.cat([1 - cam, cam], 1)
print("image", tuple(image.shape), "maps", tuple(maps.shape))


def show(pictures, titles):
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 2.5))
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()


coarse = F.interpolate(cam, size=image.shape[-2:], mode="nearest")
refined = pixel_adaptive_refine(image, maps, iterations=10)
foreground = refined[:, 1] / refined.sum(1)
show(
    [image[0], overlay_heatmap(image[0], coarse[0, 0]), overlay_heatmap(image[0], foreground[0])],
    ["image", "coarse map", "after 10 iterations"],
)

# %%
# Iterations
# ----------
#
# Each step reaches as far as the largest dilation (24 pixels), so that a few steps cross an object.
# Here more steps keep helping, because flower and leaves differ in colour everywhere; an object of
# many colours, or a background of the same colour, is not separated by any number of them.

pictures, titles = [], []
for iterations in (0, 3, 10, 40):
    refined = pixel_adaptive_refine(image, maps, iterations=iterations)
    pictures.append(overlay_mask(image[0], refined[0].argmax(0)))
    titles.append(f"{iterations} iterations")
show(pictures, titles)

# %%
# In a training step
# ------------------
#
# :func:`~wsss_blocks.refine.refine_to_label` refines the map against a low and a high background in
# one call and ignores the pixels on which the two disagree (beige). Any refiner fits:
# :class:`~wsss_blocks.refine.NoRefiner` only resizes.

labels = torch.ones(1, 1)
show(
    [
        overlay_mask(image[0], refine_to_label(cam, image, labels, refiner)[0])
        for refiner in (NoRefiner(), PixelAdaptiveRefine())
    ],
    ["NoRefiner", "PixelAdaptiveRefine"],
)
