"""
From a class activation map to a pseudo-label
=============================================

A classifier says *which* classes an image shows; its class activation map says roughly *where*. A
segmentation network needs one label per pixel. :func:`~wsss_blocks.cam.cam_to_label` makes the
step, and the threshold decides what becomes object, background or "do not know".
"""

# %%
# Two digits on a cluttered canvas, from :class:`~wsss_blocks.data.Scenes`. To need no trained
# network, this page makes its own map: the true masks, averaged over an 8 x 8 grid and smoothed.
# It is coarse as a network's map is, but better placed than most.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from wsss_blocks.cam import cam_to_label, normalize_cam
from wsss_blocks.data import Scenes, voc_palette
from wsss_blocks.viz import overlay_heatmap, overlay_mask

scenes = Scenes("val")
sample = scenes[29]  # a five and a six
image, labels, mask = sample["image"], sample["labels"][None], sample["mask"]
palette = (255 * torch.tensor(plt.colormaps["tab10"].colors)).to(torch.uint8)
palette = torch.cat([voc_palette()[:1], palette.roll(4, 0), voc_palette()[11:]])

masks = F.one_hot(mask, 11)[..., 1:].permute(2, 0, 1)[None].float()
cam = F.avg_pool2d(F.adaptive_avg_pool2d(masks, 8), 3, stride=1, padding=1)
print("cam", tuple(cam.shape), "labels", labels.int().tolist())


def paint(label):
    return overlay_mask(image, label, palette=palette)


def show(pictures, titles):
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.2 * len(pictures), 2.6))
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture.permute(1, 2, 0), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()


present = labels[0].nonzero().flatten().tolist()
large = F.interpolate(normalize_cam(cam), size=mask.shape, mode="bilinear")[0]
show(
    [image, *(overlay_heatmap(image, large[k]) for k in present), paint(mask)],
    ["image", *(f"CAM of {scenes.names[k]}" for k in present), "truth"],
)

# %%
# One threshold
# -------------
#
# A pixel whose best class scores at most the threshold is background. A low threshold spills over
# the object, a high one keeps only its core. There is no right value without looking: the field
# chooses it on masks of *training* images, and that choice belongs beside the result
# (:class:`~wsss_blocks.metrics.EvaluationProtocol`).

values = (0.15, 0.35, 0.55, 0.75)
show(
    [paint(cam_to_label(cam, labels, size=mask.shape, threshold=value)[0]) for value in values],
    [f"threshold {value}" for value in values],
)

# %%
# Two thresholds and a band in between
# ------------------------------------
#
# A wrong label teaches a network something false, a missing one nothing. With ``(low, high)`` the
# pixels between the thresholds get ``ignore_index`` (beige), and losses such as
# :func:`~wsss_blocks.losses.balanced_segmentation_loss` leave them out. A wider band leaves fewer
# wrong pixels, and fewer pixels.

pictures, titles = [], []
for pair in ((0.35, 0.35), (0.25, 0.5), (0.25, 0.7), (0.1, 0.9)):
    label = cam_to_label(cam, labels, size=mask.shape, threshold=pair)[0]
    known = label != 255
    right = (label == mask)[known].float().mean()
    pictures.append(paint(label))
    titles.append(f"{pair}: {known.float().mean():.0%} known,\n{right:.0%} of them right")
show(pictures, titles)

# %%
# What the image labels do
# ------------------------
#
# Absent classes are left out whatever they score. Here the map of a third, absent class is as
# strong as the others: with the image labels it changes nothing, and where the labels claim that it
# is present it takes over its region. ``background_power`` is the other common rule: the background
# scores :math:`(1 - \max_k A_k)^\alpha` and competes with the classes.

absent = next(k for k in range(10) if k not in present)
noisy, wrong = cam.clone(), labels.clone()
noisy[:, absent] = cam.flip(3)[:, present[0]]
wrong[:, absent] = 1
show(
    [
        paint(cam_to_label(noisy, labels, size=mask.shape, threshold=0.35)[0]),
        paint(cam_to_label(noisy, wrong, size=mask.shape, threshold=0.35)[0]),
        paint(cam_to_label(cam, labels, size=mask.shape, background_power=1.0)[0]),
        paint(cam_to_label(cam, labels, size=mask.shape, background_power=4.0)[0]),
    ],
    ["true image labels", "one class too many", "background_power 1", "background_power 4"],
)
