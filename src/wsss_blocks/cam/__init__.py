"""Class activation maps: where they come from, how they are fused, how they become labels."""

from wsss_blocks.cam.box import box_to_valid, scale_box
from wsss_blocks.cam.class_weight import class_weight_cam
from wsss_blocks.cam.multi_scale import multi_scale_cam
from wsss_blocks.cam.normalize import NormalizeCAM, normalize_cam
from wsss_blocks.cam.similarity import SimilarityCAM, similarity_cam
from wsss_blocks.cam.to_label import CAMToLabel, cam_to_label

__all__ = [
    "CAMToLabel",
    "NormalizeCAM",
    "SimilarityCAM",
    "box_to_valid",
    "cam_to_label",
    "class_weight_cam",
    "multi_scale_cam",
    "normalize_cam",
    "scale_box",
    "similarity_cam",
]
