"""open_clip models by name, with the activation that their weights were trained with."""

import open_clip
from torch import nn

__all__ = ["create_open_clip"]


def create_open_clip(name: str, pretrained: str | None) -> nn.Module:
    """Build a model; some released weights want QuickGELU where the plain name builds GELU."""
    # open_clip only warns of this, and "openai", the tag that everybody uses, is such a case.
    config = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick = bool(config.get("quick_gelu"))
    model: nn.Module = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick)
    return model
