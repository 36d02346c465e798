"""Palettes, overlays and figures: everything ends as a tensor in [0, 1] or as a PNG file."""

from wsss_blocks.viz.class_scores import class_score_figure
from wsss_blocks.viz.curve import curve_figure
from wsss_blocks.viz.grid import figure_grid
from wsss_blocks.viz.overlay import overlay_heatmap, overlay_mask
from wsss_blocks.viz.palette import colorize, heat_colors
from wsss_blocks.viz.patch_similarity import patch_similarity_figure
from wsss_blocks.viz.rebalancing import rebalancing_figure
from wsss_blocks.viz.segmentation import segmentation_figure
from wsss_blocks.viz.similarity import similarity_figure
from wsss_blocks.viz.tokens import class_token_figure

__all__ = [
    "class_score_figure",
    "class_token_figure",
    "colorize",
    "curve_figure",
    "figure_grid",
    "heat_colors",
    "overlay_heatmap",
    "overlay_mask",
    "patch_similarity_figure",
    "rebalancing_figure",
    "segmentation_figure",
    "similarity_figure",
]
