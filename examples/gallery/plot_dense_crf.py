"""
A dense CRF cuts maps out along the image
=========================================

:func:`~wsss_blocks.refine.dense_crf` compares every pixel with every other one: those that are near
and of similar colour pull each other towards one label. It needs no compiler and no other package.
Before and after, on the two photographs that come with scikit-learn.
"""

# %%
# Rough maps on a grid of 16-pixel cells, as if a network had pointed at the flower, and at the
# tower and the sky.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from wsss_blocks.refine import DenseCRF, NoRefiner, dense_crf
from wsss_blocks.viz import overlay_mask


def photograph(name, size=(224, 320)):
    photo = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(photo, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def ellipse(centre, axes):
    """Score of cells on a 14 x 20 grid: 1 at the centre, 0 far away."""
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(20.0), indexing="ij")
    distance = ((rows - centre[0]) / axes[0]).square() + ((columns - centre[1]) / axes[1]).square()
    return (1.1 - 0.55 * distance).clamp(0, 1)


def with_background(*classes):
    """Probabilities of background and classes."""
    maps = torch.stack(classes)[None]
    rest = (1 - maps.amax(1, keepdim=True)).clamp_min(0.05)
    maps = torch.cat([rest, maps.clamp_min(0.02)], 1)
    return maps / maps.sum(1, keepdim=True)


def show(pictures, titles):
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 2.5))
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()


def decided(image, maps):
    return overlay_mask(image[0], maps[0].argmax(0))


flower = photograph("flower.jpg")
flower_maps = with_background(ellipse((6.2, 9.8), (4, 5)))
refined = dense_crf(flower, flower_maps)
print("image", tuple(flower.shape), "maps", tuple(flower_maps.shape), "->", tuple(refined.shape))
show(
    [flower[0], decided(flower, NoRefiner()(flower, flower_maps)), decided(flower, refined)],
    ["image", "before", "after the CRF"],
)

# %%
# Several classes
# ---------------
#
# All classes are decided together. With ``labels`` the absent ones are left out and cost nothing.

china = photograph("china.jpg")
tower, sky = ellipse((6.8, 6.6), (4.2, 3.6)), ellipse((0, 12), (3.4, 12))
china_maps = with_background(tower, sky, torch.zeros_like(sky))
labels = torch.tensor([[1.0, 1.0, 0.0]])
refined = dense_crf(china, china_maps, labels=labels)
assert refined[:, 3].eq(0).all()
show(
    [china[0], decided(china, NoRefiner()(china, china_maps)), decided(china, refined)],
    ["image", "before", "after the CRF"],
)

# %%
# Constants
# ---------
#
# Published systems differ in how far the kernels reach, in how much colours may differ and in how
# strongly pixels pull. ``DenseCRF.preset`` has their constants by name. Here the weak kernel of
# ``dhr`` (weight 4, colours 3 of 255 apart) moves the borders least, the strong and wide one of
# ``mctformer`` (weight 10, 13 apart) most.

pictures, titles = [], []
for name in ("deeplab", "dhr", "irn", "mctformer"):
    pictures.append(decided(china, DenseCRF.preset(name)(china, china_maps, labels=labels)))
    titles.append(name)
show(pictures, titles)
