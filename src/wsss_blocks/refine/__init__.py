"""Refinement: maps and the image they belong to, to better maps and pseudo-labels."""

from wsss_blocks.refine.contract import NoRefiner, Refiner, add_background
from wsss_blocks.refine.par import PixelAdaptiveRefine, pixel_adaptive_refine
from wsss_blocks.refine.refine_label import refine_to_label
from wsss_blocks.refine.sinkhorn import Sinkhorn, sinkhorn
from wsss_blocks.refine.transport import TransportRefine, transport_refine

__all__ = [
    "NoRefiner",
    "PixelAdaptiveRefine",
    "Refiner",
    "Sinkhorn",
    "TransportRefine",
    "add_background",
    "pixel_adaptive_refine",
    "refine_to_label",
    "sinkhorn",
    "transport_refine",
]
