"""Memory: state that lives across training steps."""

from .class_token_bank import ClassTokenBank, StoredTokens
from .ema import EMA

__all__ = ["EMA", "ClassTokenBank", "StoredTokens"]
