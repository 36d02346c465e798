"""Trained networks as one file: load it, hand it an image, get a mask."""

from wsss_blocks.segmenters.deeplab import DeepLabV3PlusNetwork
from wsss_blocks.segmenters.network import SegmentationNetwork
from wsss_blocks.segmenters.segmentation import Segmentation
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["DeepLabV3PlusNetwork", "Segmentation", "SegmentationNetwork", "Segmenter"]
