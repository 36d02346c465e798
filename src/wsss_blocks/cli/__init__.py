"""The ``wsss`` command, and what the examples share: options, the frame of a run, its results."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_blocks.cli.class_tokens import draw_class_tokens
    from wsss_blocks.cli.config import load_config, parse_config, save_config
    from wsss_blocks.cli.evaluate import MaskFiles, evaluate_files
    from wsss_blocks.cli.features import frozen_features
    from wsss_blocks.cli.loop import Checkpoints, TrainingSteps
    from wsss_blocks.cli.made_maps import write_train_cams
    from wsss_blocks.cli.made_masks import with_masks, write_train_masks
    from wsss_blocks.cli.map_figure import draw_maps
    from wsss_blocks.cli.page import Picture, write_page
    from wsss_blocks.cli.rebalancing import RebalancedCase, draw_rebalancing
    from wsss_blocks.cli.recipe import describe_recipe
    from wsss_blocks.cli.report import evaluate_system
    from wsss_blocks.cli.run import (
        RunConfig,
        open_data,
        open_splits,
        run_protocol,
        run_segmenter,
        start_run,
    )
    from wsss_blocks.cli.segment import segment_files, segment_predicted
    from wsss_blocks.cli.similarity import draw_similarity
    from wsss_blocks.cli.train_masks import score_train_masks
    from wsss_blocks.cli.whole import whole_image, whole_mask
    from wsss_blocks.cli.zero_shot import load_image_text_model, segmenter_of_names
    from wsss_blocks.cli.zero_shot_report import evaluate_zero_shot, score_retrieval

__all__ = [
    "Checkpoints",
    "MaskFiles",
    "Picture",
    "RebalancedCase",
    "RunConfig",
    "TrainingSteps",
    "describe_recipe",
    "draw_class_tokens",
    "draw_maps",
    "draw_rebalancing",
    "draw_similarity",
    "evaluate_files",
    "evaluate_system",
    "evaluate_zero_shot",
    "frozen_features",
    "load_config",
    "load_image_text_model",
    "open_data",
    "open_splits",
    "parse_config",
    "run_protocol",
    "run_segmenter",
    "save_config",
    "score_retrieval",
    "score_train_masks",
    "segment_files",
    "segment_predicted",
    "segmenter_of_names",
    "start_run",
    "whole_image",
    "whole_mask",
    "with_masks",
    "write_page",
    "write_train_cams",
    "write_train_masks",
]

_HOMES = {
    "class_tokens": ("draw_class_tokens",),
    "config": ("load_config", "parse_config", "save_config"),
    "evaluate": ("MaskFiles", "evaluate_files"),
    "features": ("frozen_features",),
    "loop": ("Checkpoints", "TrainingSteps"),
    "made_maps": ("write_train_cams",),
    "made_masks": ("with_masks", "write_train_masks"),
    "map_figure": ("draw_maps",),
    "page": ("Picture", "write_page"),
    "rebalancing": ("RebalancedCase", "draw_rebalancing"),
    "recipe": ("describe_recipe",),
    "report": ("evaluate_system",),
    "run": ("RunConfig", "open_data", "open_splits", "run_protocol", "run_segmenter", "start_run"),
    "segment": ("segment_files", "segment_predicted"),
    "similarity": ("draw_similarity",),
    "train_masks": ("score_train_masks",),
    "whole": ("whole_image", "whole_mask"),
    "zero_shot": ("load_image_text_model", "segmenter_of_names"),
    "zero_shot_report": ("evaluate_zero_shot", "score_retrieval"),
}


# Lazy, so that `wsss --help` answers before torch is loaded.
def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
