"""Encoders of images and texts: pixels and prompts to tokens, maps and banks of text rows.

Nothing here is imported before its name is used, so that the contracts (``Features``,
``TextBank``) cost neither timm nor open_clip.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsss_blocks.backbones.bilateral import BilateralFeatures
    from wsss_blocks.backbones.class_token_weights import load_class_token_weights
    from wsss_blocks.backbones.class_tokens import ClassTokens
    from wsss_blocks.backbones.create import create_encoder
    from wsss_blocks.backbones.create_text import create_text_bank
    from wsss_blocks.backbones.create_tokens import create_token_encoder
    from wsss_blocks.backbones.features import (
        Encoder,
        Features,
        TextEncoder,
        TextFeatures,
        resize_to_stride,
    )
    from wsss_blocks.backbones.hugging_face_text import HuggingFaceTextEncoder
    from wsss_blocks.backbones.mobilenet import mobilenet_v1
    from wsss_blocks.backbones.open_clip_image import OpenCLIPImageEncoder
    from wsss_blocks.backbones.open_clip_model import OpenCLIPModel
    from wsss_blocks.backbones.open_clip_text import OpenCLIPTextEncoder
    from wsss_blocks.backbones.outside_text import outside_text
    from wsss_blocks.backbones.query_key import QueryKey
    from wsss_blocks.backbones.small_cnn import SmallCNN
    from wsss_blocks.backbones.small_text import SmallTextEncoder
    from wsss_blocks.backbones.templates import imagenet_templates
    from wsss_blocks.backbones.text_bank import TextBank
    from wsss_blocks.backbones.text_encoders import create_text_encoder
    from wsss_blocks.backbones.text_vocabulary import TextVocabulary
    from wsss_blocks.backbones.timm_cnn import TimmCNN
    from wsss_blocks.backbones.timm_vit import TimmViT
    from wsss_blocks.backbones.token_vit import TokenViT

__all__ = [
    "BilateralFeatures",
    "ClassTokens",
    "Encoder",
    "Features",
    "HuggingFaceTextEncoder",
    "OpenCLIPImageEncoder",
    "OpenCLIPModel",
    "OpenCLIPTextEncoder",
    "QueryKey",
    "SmallCNN",
    "SmallTextEncoder",
    "TextBank",
    "TextEncoder",
    "TextFeatures",
    "TextVocabulary",
    "TimmCNN",
    "TimmViT",
    "TokenViT",
    "create_encoder",
    "create_text_bank",
    "create_text_encoder",
    "create_token_encoder",
    "imagenet_templates",
    "load_class_token_weights",
    "mobilenet_v1",
    "outside_text",
    "resize_to_stride",
]

_HOME = {
    "BilateralFeatures": "bilateral",
    "ClassTokens": "class_tokens",
    "Encoder": "features",
    "Features": "features",
    "HuggingFaceTextEncoder": "hugging_face_text",
    "OpenCLIPImageEncoder": "open_clip_image",
    "OpenCLIPModel": "open_clip_model",
    "OpenCLIPTextEncoder": "open_clip_text",
    "QueryKey": "query_key",
    "SmallCNN": "small_cnn",
    "SmallTextEncoder": "small_text",
    "TextBank": "text_bank",
    "TextEncoder": "features",
    "TextFeatures": "features",
    "TextVocabulary": "text_vocabulary",
    "TimmCNN": "timm_cnn",
    "TimmViT": "timm_vit",
    "TokenViT": "token_vit",
    "create_encoder": "create",
    "create_text_bank": "create_text",
    "create_text_encoder": "text_encoders",
    "create_token_encoder": "create_tokens",
    "imagenet_templates": "templates",
    "load_class_token_weights": "class_token_weights",
    "mobilenet_v1": "mobilenet",
    "outside_text": "outside_text",
    "resize_to_stride": "features",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
