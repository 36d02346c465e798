"""Command lines: presets and options, and what an example does with image files."""

from wsss_blocks.cli.config import load_config, parse_config, save_config
from wsss_blocks.cli.report import evaluate_system
from wsss_blocks.cli.run import RunConfig, open_data, start_run
from wsss_blocks.cli.segment import segment_files

__all__ = [
    "RunConfig",
    "evaluate_system",
    "load_config",
    "open_data",
    "parse_config",
    "save_config",
    "segment_files",
    "start_run",
]
