"""Memory: state that lives across training steps."""

from .ema import EMA

__all__ = ["EMA"]
