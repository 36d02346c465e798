"""
Rebalance the masks of any method
=================================

:class:`~wsss_blocks.refine.ClassRebalancer` takes rough masks and features, and asks for each pixel
which class's features it resembles. Here the masks are blobs, as a class map leaves them, and the
features are :class:`~wsss_blocks.backbones.BilateralFeatures`: colour and position, no network.
"""

# %%
# Scenes with several digits, and a blob for each: the true mask, blurred. (A run has class maps
# instead; truth is used here to make rough masks and to look at the result.)

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from wsss_blocks.backbones import BilateralFeatures
from wsss_blocks.data import Scenes
from wsss_blocks.metrics import SegmentationEvaluator
from wsss_blocks.pooling import class_average_pool
from wsss_blocks.refine import ClassRebalancer, DenseCRF, class_heatmaps
from wsss_blocks.viz import overlay_mask

scenes = Scenes("val", size=40, hard=True)
samples = [s for s in map(scenes.__getitem__, range(40)) if s["labels"].sum() > 1][:8]
images, labels, truth = (torch.stack([s[k] for s in samples]) for k in ("image", "labels", "mask"))
classes = len(scenes.names) + 1

digits = F.one_hot(truth, classes).movedim(3, 1)[:, 1:].float()
blurred = F.avg_pool2d(F.avg_pool2d(digits, 17, 1, 8), 17, 1, 8)
rough = torch.where(blurred.amax(1) > 0.25, blurred.argmax(1) + 1, 0)


def score(masks):
    evaluator = SegmentationEvaluator(classes)
    evaluator.update(masks, truth)
    return f"mIoU {100 * evaluator.compute().miou:.0f}"


def show(columns):
    figure, axes = plt.subplots(3, len(columns), figsize=(2.2 * len(columns), 6.4))
    for i, row in enumerate(axes):
        for axis, (title, pictures) in zip(row, columns.items(), strict=True):
            axis.imshow(pictures[i])
            axis.set_title(title if i == 0 else "", fontsize=9)
            axis.axis("off")
    figure.tight_layout()


def drawn(masks):
    return [overlay_mask(x, m).permute(1, 2, 0) for x, m in zip(images, masks, strict=True)]


# %%
# Masks before and after
# ----------------------
#
# Centroids of the classes of the rough mask, a heat-map for each, transport between them, a CRF.
# ``class_mass="area"`` keeps small objects small: with equal masses, the reading of the released
# code, each class gets as much of the image as the background.

features = BilateralFeatures()(images).feature_map
found = {"rough masks": rough}
for mass in ("uniform", "area"):
    rebalance = ClassRebalancer(refiner=DenseCRF.preset("dhr"), class_mass=mass)
    found[f'class_mass="{mass}"'] = rebalance(images, None, rough, labels, features).mask
show({f"{name}: {score(masks)}": drawn(masks) for name, masks in found.items()})

# %%
# Heat-maps
# ---------
#
# Of the first class of each image: the cosine with its centroid, and what rebalancing makes of it.

centroids = class_average_pool(features, rough, num_classes=classes).centroids
alone = class_heatmaps(features, centroids)
balanced = rebalance(images, None, rough, labels, features).heatmaps
first = labels.argmax(1) + 1
rows = torch.arange(len(images))
show(
    {
        "image": images.movedim(1, 3),
        "features alone": alone[rows, first],
        "rebalanced": balanced[rows, first],
    }
)
