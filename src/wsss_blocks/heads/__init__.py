"""Heads: features to class logits, class activation maps and projections."""

from .class_head import ClassHead, ClassHeadOutput
from .projection import ProjectionHead

__all__ = ["ClassHead", "ClassHeadOutput", "ProjectionHead"]
