"""Heads: features and class tokens to class logits, class activation maps and projections."""

from .class_head import ClassHead, ClassHeadOutput
from .class_token_logits import class_token_logits
from .dino import DINOHead
from .infusion import infuse_class_tokens
from .patch_cam_head import PatchCAMHead
from .projection import ProjectionHead

__all__ = [
    "ClassHead",
    "ClassHeadOutput",
    "DINOHead",
    "PatchCAMHead",
    "ProjectionHead",
    "class_token_logits",
    "infuse_class_tokens",
]
