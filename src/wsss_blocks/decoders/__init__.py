"""Small decoders, and the fusion of their logits over scales."""

from wsss_blocks.decoders.all_blocks import AllBlocksDecoder
from wsss_blocks.decoders.deeplab_v2 import DeepLabV2Head
from wsss_blocks.decoders.large_fov import LargeFOV
from wsss_blocks.decoders.multi_scale_logits import multi_scale_logits

__all__ = ["AllBlocksDecoder", "DeepLabV2Head", "LargeFOV", "multi_scale_logits"]
