"""Image in, mask out: trained networks as one file, and masks of class names alone."""

from wsss_blocks.segmenters.class_selection import class_threshold, select_classes
from wsss_blocks.segmenters.deeplab import DeepLabV3PlusNetwork
from wsss_blocks.segmenters.deeplab_v2 import DeepLabV2Network
from wsss_blocks.segmenters.deploy import DeployedFile, export_onnx, export_program, export_pt2
from wsss_blocks.segmenters.hub import push_to_hub, save_pretrained
from wsss_blocks.segmenters.loda import LoDAModel
from wsss_blocks.segmenters.loda_file import create_loda, load_loda, save_loda
from wsss_blocks.segmenters.name_bank import ImageTextModel, zero_shot_bank
from wsss_blocks.segmenters.network import SegmentationNetwork
from wsss_blocks.segmenters.pretrained import load_pretrained, load_pretrained_loda
from wsss_blocks.segmenters.published_protocols import (
    PROTOCOL_OF_DATA,
    ZeroShotProtocol,
    zero_shot_protocol,
)
from wsss_blocks.segmenters.segmentation import Segmentation
from wsss_blocks.segmenters.segmenter import Segmenter
from wsss_blocks.segmenters.zero_shot import ScoredSegmentation, ZeroShotSegmenter

__all__ = [
    "PROTOCOL_OF_DATA",
    "DeepLabV2Network",
    "DeepLabV3PlusNetwork",
    "DeployedFile",
    "ImageTextModel",
    "LoDAModel",
    "ScoredSegmentation",
    "Segmentation",
    "SegmentationNetwork",
    "Segmenter",
    "ZeroShotProtocol",
    "ZeroShotSegmenter",
    "class_threshold",
    "create_loda",
    "export_onnx",
    "export_program",
    "export_pt2",
    "load_loda",
    "load_pretrained",
    "load_pretrained_loda",
    "push_to_hub",
    "save_loda",
    "save_pretrained",
    "select_classes",
    "zero_shot_bank",
    "zero_shot_protocol",
]
