"""Losses: predictions and weak supervision become scalars."""

from wsss_blocks.losses.affinity import AffinityLoss, affinity_counts, affinity_loss
from wsss_blocks.losses.affinity_matrix import (
    AffinityMatrixLoss,
    affinity_matrix_counts,
    affinity_matrix_loss,
)
from wsss_blocks.losses.background_consistency import (
    BackgroundConsistencyLoss,
    background_consistency_counts,
    background_consistency_loss,
)
from wsss_blocks.losses.balanced_segmentation import (
    BalancedSegmentationLoss,
    balanced_segmentation_loss,
)
from wsss_blocks.losses.cam_consistency import (
    CAMConsistencyLoss,
    cam_consistency_counts,
    cam_consistency_loss,
)
from wsss_blocks.losses.class_token_contrast import (
    ClassTokenContrastLoss,
    class_token_contrast_counts,
    class_token_contrast_loss,
)
from wsss_blocks.losses.counts import (
    balanced_segmentation_counts,
    cross_contrastive_counts,
    global_implicit_alignment_counts,
    patch_token_contrast_counts,
)
from wsss_blocks.losses.crop_token_contrast import (
    CropTokenContrastLoss,
    crop_token_contrast_loss,
)
from wsss_blocks.losses.cross_contrastive import CrossContrastiveLoss, cross_contrastive_loss
from wsss_blocks.losses.dense_energy import DenseEnergyLoss, dense_energy_loss
from wsss_blocks.losses.global_alignment import (
    GlobalImplicitAlignmentLoss,
    global_implicit_alignment_loss,
)
from wsss_blocks.losses.image_text_contrastive import (
    ImageTextContrastiveLoss,
    image_text_contrastive_loss,
)
from wsss_blocks.losses.patch_token_contrast import (
    PatchTokenContrastLoss,
    patch_token_contrast_loss,
)
from wsss_blocks.losses.segmentation import (
    SegmentationLoss,
    segmentation_counts,
    segmentation_loss,
)
from wsss_blocks.losses.soft_margin import MultiLabelSoftMarginLoss, multi_label_soft_margin_loss

__all__ = [
    "AffinityLoss",
    "AffinityMatrixLoss",
    "BackgroundConsistencyLoss",
    "BalancedSegmentationLoss",
    "CAMConsistencyLoss",
    "ClassTokenContrastLoss",
    "CropTokenContrastLoss",
    "CrossContrastiveLoss",
    "DenseEnergyLoss",
    "GlobalImplicitAlignmentLoss",
    "ImageTextContrastiveLoss",
    "MultiLabelSoftMarginLoss",
    "PatchTokenContrastLoss",
    "SegmentationLoss",
    "affinity_counts",
    "affinity_loss",
    "affinity_matrix_counts",
    "affinity_matrix_loss",
    "background_consistency_counts",
    "background_consistency_loss",
    "balanced_segmentation_counts",
    "balanced_segmentation_loss",
    "cam_consistency_counts",
    "cam_consistency_loss",
    "class_token_contrast_counts",
    "class_token_contrast_loss",
    "crop_token_contrast_loss",
    "cross_contrastive_counts",
    "cross_contrastive_loss",
    "dense_energy_loss",
    "global_implicit_alignment_counts",
    "global_implicit_alignment_loss",
    "image_text_contrastive_loss",
    "multi_label_soft_margin_loss",
    "patch_token_contrast_counts",
    "patch_token_contrast_loss",
    "segmentation_counts",
    "segmentation_loss",
]
