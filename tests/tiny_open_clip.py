"""An open_clip model of a few thousand parameters that reads CLIP's own token ids."""

from pathlib import Path

import open_clip
import torch

NAME = "tiny-clip"
CONFIG = {
    "embed_dim": 6,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8},
    "text_cfg": {"vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def tiny_clip(seed: int = 0) -> open_clip.CLIP:
    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(**CONFIG["vision_cfg"])
    text = open_clip.CLIPTextCfg(**CONFIG["text_cfg"])
    return open_clip.CLIP(6, vision, text).eval()


def tiny_weights(monkeypatch, folder: Path) -> str:
    """Let open_clip know the model, write its weights, and return what names both."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIG)
    path = folder / "tiny.pt"
    torch.save(tiny_clip().state_dict(), path)
    return f"{NAME}/{path}"


def tiny_answers(monkeypatch) -> list[tuple[str, str, bool]]:
    """Answer each request for a model of open_clip with the small one; return the requests."""
    found = []

    def create_model(arch, *, pretrained, force_quick_gelu):
        found.append((arch, pretrained, force_quick_gelu))
        return tiny_clip()

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: config["hf_hub"])
    return found
