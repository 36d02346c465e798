"""Poolings: maps or tokens to one vector per image or per class."""

from .class_average import ClassAveragePool, ClassCentroids, class_average_pool
from .class_weights import PatchClassWeights, patch_class_weights
from .global_average import GlobalAveragePool, global_average_pool
from .global_max import GlobalMaxPool, global_max_pool
from .max_response import MaxResponsePool, max_response_pool
from .rank import GlobalWeightedRankPool, global_weighted_rank_pool
from .top_k import GlobalTopKPool, global_top_k_pool

__all__ = [
    "ClassAveragePool",
    "ClassCentroids",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalTopKPool",
    "GlobalWeightedRankPool",
    "MaxResponsePool",
    "PatchClassWeights",
    "class_average_pool",
    "global_average_pool",
    "global_max_pool",
    "global_top_k_pool",
    "global_weighted_rank_pool",
    "max_response_pool",
    "patch_class_weights",
]
