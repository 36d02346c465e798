"""The sentences that class names are put into before a text tower reads them (CLIP, ICML 2021)."""

__all__ = ["imagenet_templates"]


def imagenet_templates() -> tuple[str, ...]:
    """Return OpenAI's 80 sentences for ImageNet, as open_clip carries them.

    Reference:
        "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4,
        https://arxiv.org/abs/2103.00020. SimSeg (CVPR 2023) encodes each class in all of them.

    Returns:
        Texts with one ``{}`` each, as :meth:`TextBank.from_encoder
        <wsss_blocks.backbones.TextBank.from_encoder>` wants them.

    Example:
        >>> templates = imagenet_templates()
        >>> len(templates), templates[0].format("dog")
        (80, 'a bad photo of a dog.')
    """
    import open_clip  # a list of sentences should not cost the seconds that it takes to import

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
