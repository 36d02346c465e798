"""Class activation maps: where they come from, how they are fused, how they become labels."""

from wsss_blocks.cam.box import box_to_valid, scale_box
from wsss_blocks.cam.class_attention import class_to_patch_attention
from wsss_blocks.cam.class_weight import class_weight_cam
from wsss_blocks.cam.confident import confident_label
from wsss_blocks.cam.foreground import foreground_map
from wsss_blocks.cam.fusion import fuse_cams
from wsss_blocks.cam.gradient import gradient_cam
from wsss_blocks.cam.multi_scale import multi_scale_cam
from wsss_blocks.cam.negative_crops import LocalCrops, negative_crops
from wsss_blocks.cam.normalize import NormalizeCAM, normalize_cam
from wsss_blocks.cam.patch_attention import patch_to_patch_attention
from wsss_blocks.cam.present_softmax import present_softmax_scores
from wsss_blocks.cam.similarity import SimilarityCAM, similarity_cam
from wsss_blocks.cam.tap import tap_output
from wsss_blocks.cam.thresholds import mixture_threshold, otsu_threshold, strongest_scores
from wsss_blocks.cam.to_label import CAMToLabel, cam_to_label

__all__ = [
    "CAMToLabel",
    "LocalCrops",
    "NormalizeCAM",
    "SimilarityCAM",
    "box_to_valid",
    "cam_to_label",
    "class_to_patch_attention",
    "class_weight_cam",
    "confident_label",
    "foreground_map",
    "fuse_cams",
    "gradient_cam",
    "mixture_threshold",
    "multi_scale_cam",
    "negative_crops",
    "normalize_cam",
    "otsu_threshold",
    "patch_to_patch_attention",
    "present_softmax_scores",
    "scale_box",
    "similarity_cam",
    "strongest_scores",
    "tap_output",
]
