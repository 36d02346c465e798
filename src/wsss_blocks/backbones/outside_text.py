"""The text of something that no image was labelled with."""

import os

from torch import Tensor

from wsss_blocks.backbones._stand_in import STAND_IN
from wsss_blocks.backbones.create_text import create_text_bank
from wsss_blocks.backbones.text_bank import TextBank

__all__ = ["outside_text"]


def outside_text(text: str, prompt: str, *, bank: TextBank) -> Tensor | None:
    """Embed a prompt outside the classes as the bank's own rows were made.

    What a network does with a text it was never trained on shows whether it learnt the space of
    the texts or the list of its classes.

    Reference:
        "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", ECCV 2024,
        supplement, figure 9, https://arxiv.org/abs/2409.15801

    Args:
        text: what :func:`create_text_bank` was given for ``bank``.
        prompt: name of the thing, put into the same template.
        bank: the texts of the classes.

    Returns:
        A unit row ``(D,)``: of the same tower; of the same file, if it has a row of that name, else
        None; for stand-ins one more vector at the same angle to all others, whatever the prompt.

    Raises:
        ValueError: ``prompt`` is one of the classes, or as :func:`create_text_bank`.
        OSError: the tower's weights could not be downloaded.

    Example:
        >>> bank = create_text_bank("stand-in", ["cat", "dog"], dim=16)
        >>> row = outside_text("stand-in", "a letter", bank=bank)
        >>> [round(float(c), 4) for c in bank.classes @ row]
        [0.75, 0.75]
    """
    if prompt in bank.names:
        raise ValueError(f"prompt must be outside the classes, got {prompt!r}.")
    if text == STAND_IN:
        return bank.stand_in_row(seed=0)
    if os.path.isfile(text):
        stored = TextBank.load(text)
        return stored.select([prompt]).classes[0] if prompt in stored.names else None
    return create_text_bank(text, [prompt]).classes[0]
