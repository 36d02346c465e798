"""The text banks that every example can be asked for by name (CLIP: Radford et al., ICML 2021)."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from wsss_blocks.backbones._stand_in import STAND_IN
from wsss_blocks.backbones.text_bank import TextBank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsss_blocks.backbones.open_clip_text import OpenCLIPTextEncoder

__all__ = ["create_text_bank"]

_CLIP = "ViT-B-16/openai"
_TEMPLATE = "a photo of {}"
_BACKGROUND = "background"
# VOC's names that are no words; COCO spells the same things in two.
_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def create_text_bank(
    text: str,
    names: Sequence[str],
    *,
    dim: int = 64,
    seed: int = 0,
    prompts: Mapping[str, str] | None = None,
) -> TextBank:
    """Build the text rows of classes and background from a tower of open_clip, a file or a seed.

    A tower reads "a photo of dog" for each class and "a photo of background"; only its text half
    is kept while it does, nothing of it afterwards. VOC's "diningtable", "pottedplant" and
    "tvmonitor" are spelled as two words; the bank's names stay those of the data set. The bank's
    ``source`` says tower, weights and prompts.

    Reference:
        Prompts: "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation",
        ECCV 2024, supplement, figure 10 (class prompts inferred from that of the background).
        CLIP: https://arxiv.org/abs/2103.00020

    Note:
        OpenAI's weights were trained with QuickGELU. For a tag of open_clip it is switched on where
        the tag asks for it; of a file nobody can tell, so name the architecture with it:
        ``"ViT-B-16-quickgelu//path/to/weights.safetensors"``. Files are read without executing
        anything in them, which leaves out TorchScript archives such as OpenAI's own ``.pt``.

    Args:
        text: ``"stand-in"`` for ``TextBank.stand_in``; ``"clip"`` for OpenAI's ViT-B-16;
            ``"ARCH/TAG"`` for weights that open_clip downloads (``"ViT-L-14/laion2b_s32b_b82k"``);
            ``"ARCH/PATH"`` for a local file of that tower (``"ViT-B-16//path/to/weights.pt"``);
            otherwise the path of a saved bank, whose rows are taken by name.
        names: K class names of the data set, in the order of the labels; further names are rows
            for prompts outside the training classes.
        dim: D of stand-in rows.
        seed: of stand-in rows.
        prompts: class name, or "background" -> whole prompt in place of the usual one (towers
            only).

    Returns:
        A bank with classes ``(K, D)`` and background ``(1, D)`` (of a file, whatever it holds).

    Raises:
        ValueError: an unknown source of text, prompts for what is not encoded, or a file that
            lacks a name or does not fit the tower.
        OSError: the weights could not be downloaded.

    Example:
        >>> bank = create_text_bank("stand-in", ["cat", "dog"], dim=16)
        >>> bank.classes.shape, bank.background.shape, bank.source
        (torch.Size([2, 16]), torch.Size([1, 16]), 'stand-in')
    """
    own = dict(prompts or {})
    encoded = text == "clip" or (text != STAND_IN and not os.path.isfile(text))
    if own and not encoded:
        raise ValueError(f"prompts must be None for text={text!r}, where none is encoded.")
    unknown = [name for name in own if name not in (*names, _BACKGROUND)]
    if unknown:
        raise ValueError(f"prompts must be for names or {_BACKGROUND!r}, got {unknown}.")
    if text == STAND_IN:
        return TextBank.stand_in(names, dim=dim, seed=seed)
    if not encoded:
        return TextBank.load(text, names=names)
    tower, label = _tower(_CLIP if text == "clip" else text)
    usual = {name: _TEMPLATE.format(_SPOKEN.get(name, name)) for name in (*names, _BACKGROUND)}
    said = usual | own
    bank = TextBank.from_encoder(
        tower,
        [said[name] for name in names],
        templates=("{}",),
        background=(said[_BACKGROUND],),
    )
    special = "".join(f"; {name}: {prompt}" for name, prompt in own.items())
    return TextBank(
        bank.classes, bank.background, names=names, source=f"{label}: {_TEMPLATE}{special}"
    )


def _tower(text: str) -> tuple["OpenCLIPTextEncoder", str]:
    """Return the text half of ``ARCH/TAG`` or ``ARCH/PATH`` and its name for ``source``."""
    from wsss_blocks.backbones.open_clip_text import OpenCLIPTextEncoder

    model, tokenizer, label = named_open_clip(
        text,
        argument="text",
        choices=f"'stand-in', 'clip', 'ARCH/TAG' or 'ARCH/PATH' of open_clip (as {_CLIP!r}), "
        "or the file of a saved bank",
        instead="a saved bank (TextBank.save where there is a network) or ",
    )
    return OpenCLIPTextEncoder(model, tokenizer=tokenizer), label


def named_open_clip(
    text: str, *, argument: str, choices: str, instead: str = ""
) -> tuple["nn.Module", "Callable[[list[str]], Tensor]", str]:
    """Return model, tokenizer and label of ``ARCH/TAG`` or ``ARCH/PATH``.

    The rest is for the errors: the argument's name, what it may be, and what else would do where
    there is no download.
    """
    # Here, not above: stand-ins and files need no open_clip, which takes seconds to import.
    import open_clip

    arch, _, weights = text.partition("/")
    if arch not in open_clip.list_models():
        raise ValueError(f"{argument} must be {choices}, got {text!r}, which is no file.")
    config = open_clip.get_pretrained_cfg(arch, weights) if weights else {}
    if config:
        file = _download(open_clip, arch, weights, config, argument, instead)
    elif os.path.isfile(weights):
        file = weights
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch))
        raise ValueError(
            f"{argument} must name weights for {arch}, a file or one of {tags}, got {weights!r}."
        )
    try:
        model = open_clip.create_model(
            arch, pretrained=file, force_quick_gelu=bool(config.get("quick_gelu"))
        )
    except Exception as error:  # whatever a reader raised comes through
        raise ValueError(
            f"{argument} must name weights that fit {arch}, got {file}: "
            f"{type(error).__name__}: {str(error)[:400]}"  # open_clip lists each of 300 keys
        ) from error
    label = f"open_clip {arch} {weights if config else os.path.basename(file)}"
    return model, open_clip.get_tokenizer(arch), label


def _download(
    open_clip: ModuleType,
    arch: str,
    tag: str,
    config: Mapping[str, object],
    argument: str,
    instead: str,
) -> str:
    try:
        return str(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        source = config.get("hf_hub") or config.get("url")
        quick = config.get("quick_gelu") and not arch.endswith("-quickgelu")
        raise OSError(
            f"{argument}={arch}/{tag} needs weights that could not be had from {source}: {error}. "
            f"Give {instead}a local file of these weights, as "
            f"'{arch}{'-quickgelu' if quick else ''}//path/to/weights.safetensors'."
        ) from error
