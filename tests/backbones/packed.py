"""An encoder whose output is a plain tuple, for the contract's helpers."""

from torch import nn


class Packed(nn.Module):
    def __init__(self, encoder, layers=()):
        super().__init__()
        self.encoder = encoder
        self.layers = layers

    def forward(self, images):
        f = self.encoder(images, layers=self.layers)
        return f.feature_map, f.class_tokens, *f.intermediates.values(), *f.taps.values()
