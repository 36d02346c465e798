"""Small decoders, and the fusion of their logits over scales."""

from wsss_blocks.decoders.large_fov import LargeFOV
from wsss_blocks.decoders.multi_scale_logits import multi_scale_logits

__all__ = ["LargeFOV", "multi_scale_logits"]
