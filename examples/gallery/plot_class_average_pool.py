"""
Class centroids and the heat maps they draw
===========================================

:func:`~wsss_blocks.pooling.class_average_pool` averages the features of each region into one
vector. The cosine between that centroid and every position is a map of what looks alike: the idea
behind region contrast and behind rebalancing by features.
"""

# %%
# A photograph that comes with scikit-learn, and features that need no network: the colours around
# each cell of a 4-pixel grid at three scales, whitened, so that hue counts as much as brightness.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from wsss_blocks.cam import similarity_cam
from wsss_blocks.pooling import class_average_pool
from wsss_blocks.viz import overlay_heatmap, overlay_mask

photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
image = F.interpolate(photo, size=(224, 320), mode="bilinear", antialias=True).clamp(0, 1)

scales = [F.avg_pool2d(F.pad(image, [r] * 4, mode="replicate"), 2 * r + 1, 1) for r in (1, 4, 9)]
features = F.adaptive_avg_pool2d(torch.cat(scales, 1), (56, 80))
flat = features.flatten(2)[0] - features.mean((2, 3)).T
values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
features = ((vectors.T @ flat) / (values[:, None] + 1e-3).sqrt()).view_as(features)
print("features", tuple(features.shape))

# %%
# Three rough strokes are all the supervision: sky and water (1), pagoda (2), greenery (3). All
# other pixels are ignored (255).

mask = torch.full((1, 224, 320), 255)
mask[:, 10:50, 20:100] = 1
mask[:, 80:130, 70:140] = 2
mask[:, 190:216, 190:300] = 3

centroids, weights = class_average_pool(features, mask, num_classes=4)
print("centroids", tuple(centroids.shape), "area of each class in grid cells", weights.tolist())

# %%
# The background class 0 has no pixel: its centroid is zero and its weight is 0, never NaN. The
# cosine maps of the other three follow.

similarity = similarity_cam(features, centroids[0, 1:])
large = F.interpolate(similarity, size=image.shape[-2:], mode="bilinear")[0]


def show(pictures, titles):
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 2.5))
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()


strokes = overlay_mask(image[0], mask[0].where(mask[0] != 255, 0))
nearest = overlay_mask(image[0], large.argmax(0) + 1)
show([image[0], strokes, nearest], ["image", "strokes", "nearest centroid"])

# %%
names = ("sky and water", "pagoda", "greenery")
show([overlay_heatmap(image[0], heat) for heat in large], [f"cosine to {name}" for name in names])
