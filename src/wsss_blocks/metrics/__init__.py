"""Streaming segmentation scores, threshold sweeps and the protocol beside each number."""

from wsss_blocks.metrics.average_precision import mean_average_precision
from wsss_blocks.metrics.bootstrap import ImageBootstrap, Interval
from wsss_blocks.metrics.boundary import BoundaryEvaluator, BoundaryScores, boundary_region
from wsss_blocks.metrics.compare import MetricDifference, compare_metrics
from wsss_blocks.metrics.evaluate import ScoredMaps, evaluate_masks, score_maps, sweep_maps
from wsss_blocks.metrics.evaluator import SegmentationEvaluator, SegmentationScores
from wsss_blocks.metrics.protocol import EvaluationProtocol, hash_masks
from wsss_blocks.metrics.record import RecordedMetrics, hardware, read_metrics, write_metrics
from wsss_blocks.metrics.retrieval import RetrievalScores, retrieval_chance, retrieval_scores
from wsss_blocks.metrics.split import ImageScore, SplitEvaluator, SplitScores
from wsss_blocks.metrics.sweep import SweepResult, ThresholdSweep
from wsss_blocks.metrics.zero_shot_accuracy import topk_accuracy, zero_shot_accuracy

__all__ = [
    "BoundaryEvaluator",
    "BoundaryScores",
    "EvaluationProtocol",
    "ImageBootstrap",
    "ImageScore",
    "Interval",
    "MetricDifference",
    "RecordedMetrics",
    "RetrievalScores",
    "ScoredMaps",
    "SegmentationEvaluator",
    "SegmentationScores",
    "SplitEvaluator",
    "SplitScores",
    "SweepResult",
    "ThresholdSweep",
    "boundary_region",
    "compare_metrics",
    "evaluate_masks",
    "hardware",
    "hash_masks",
    "mean_average_precision",
    "read_metrics",
    "retrieval_chance",
    "retrieval_scores",
    "score_maps",
    "sweep_maps",
    "topk_accuracy",
    "write_metrics",
    "zero_shot_accuracy",
]
