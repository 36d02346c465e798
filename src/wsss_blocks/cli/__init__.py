"""Command lines: presets and options, the frame of a run, and what it leaves behind."""

from wsss_blocks.cli.config import load_config, parse_config, save_config
from wsss_blocks.cli.loop import Checkpoints, TrainingSteps
from wsss_blocks.cli.recipe import describe_recipe
from wsss_blocks.cli.report import evaluate_system
from wsss_blocks.cli.run import RunConfig, open_data, open_splits, run_segmenter, start_run
from wsss_blocks.cli.segment import segment_files
from wsss_blocks.cli.similarity import draw_similarity

__all__ = [
    "Checkpoints",
    "RunConfig",
    "TrainingSteps",
    "describe_recipe",
    "draw_similarity",
    "evaluate_system",
    "load_config",
    "open_data",
    "open_splits",
    "parse_config",
    "run_segmenter",
    "save_config",
    "segment_files",
    "start_run",
]
