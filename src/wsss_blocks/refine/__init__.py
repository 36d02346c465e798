"""Refinement: maps and the image they belong to, to better maps and pseudo-labels."""

from wsss_blocks.refine.affinity import NeighbourAffinity, edge_affinity, feature_affinity
from wsss_blocks.refine.affinity_labels import (
    AffinityLabels,
    affinity_labels,
    affinity_matrix_labels,
)
from wsss_blocks.refine.attention_affinity import (
    AttentionAffinityRefine,
    attention_affinity_refine,
)
from wsss_blocks.refine.class_aware_affinity import ClassAwareAffinity, class_aware_affinity
from wsss_blocks.refine.class_groups import class_groups
from wsss_blocks.refine.class_heatmaps import class_heatmaps
from wsss_blocks.refine.closing import MorphologicalClosing, morphological_closing
from wsss_blocks.refine.contract import NoRefiner, Refiner, add_background
from wsss_blocks.refine.dense_crf import dense_crf
from wsss_blocks.refine.dense_crf_module import DenseCRF
from wsss_blocks.refine.learnt_walk import LearntWalk
from wsss_blocks.refine.par import PixelAdaptiveRefine, pixel_adaptive_refine
from wsss_blocks.refine.random_walk import RandomWalk, random_walk
from wsss_blocks.refine.rebalance import ClassRebalancer, RebalancedMask
from wsss_blocks.refine.refine_label import refine_to_label
from wsss_blocks.refine.sinkhorn import Sinkhorn, sinkhorn
from wsss_blocks.refine.transport import TransportRefine, transport_refine

__all__ = [
    "AffinityLabels",
    "AttentionAffinityRefine",
    "ClassAwareAffinity",
    "ClassRebalancer",
    "DenseCRF",
    "LearntWalk",
    "MorphologicalClosing",
    "NeighbourAffinity",
    "NoRefiner",
    "PixelAdaptiveRefine",
    "RandomWalk",
    "RebalancedMask",
    "Refiner",
    "Sinkhorn",
    "TransportRefine",
    "add_background",
    "affinity_labels",
    "affinity_matrix_labels",
    "attention_affinity_refine",
    "class_aware_affinity",
    "class_groups",
    "class_heatmaps",
    "dense_crf",
    "edge_affinity",
    "feature_affinity",
    "morphological_closing",
    "pixel_adaptive_refine",
    "random_walk",
    "refine_to_label",
    "sinkhorn",
    "transport_refine",
]
