"""Names of the files of a shared model, and what goes wrong with the hub."""

import re

__all__ = [
    "CARD",
    "FILES",
    "LODA",
    "METRICS",
    "SEGMENTER",
    "WORDS",
    "hub_errors",
    "is_repo_id",
    "refused",
]

CARD, METRICS, WORDS = "README.md", "metrics.json", "word_pieces.txt"
SEGMENTER, LODA = "segmenter.safetensors", "model.safetensors"
FILES = {CARD, METRICS, WORDS, SEGMENTER, LODA}


def is_repo_id(name: object) -> bool:
    """Tell ``user/name`` from paths and all else."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises: also errors of its HTTP library, which has changed."""
    from huggingface_hub import errors

    return OSError, getattr(errors, "HTTPError", OSError)


def refused(repo_id: str, error: Exception) -> ConnectionError:
    """Say what to do where the hub could not be reached or said no."""
    return ConnectionError(
        f"{repo_id}: the hub could not be reached or refused, {type(error).__name__}: {error} (no "
        "right: `hf auth login`, or token; no network: share the folder of save_pretrained later)."
    )
