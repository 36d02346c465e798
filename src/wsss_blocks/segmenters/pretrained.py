"""Models of folders and of repositories of the Hugging Face hub."""

import os
from pathlib import Path

import torch

from wsss_blocks.segmenters._hub import LODA, SEGMENTER, WORDS, hub_errors, is_repo_id, refused
from wsss_blocks.segmenters.loda import LoDAModel
from wsss_blocks.segmenters.loda_file import load_loda
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["load_pretrained", "load_pretrained_loda"]


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Build a segmenter from a folder or from a repository of the Hugging Face hub.

    What was downloaded once is kept in the hub's cache and used without a network, as it is with
    ``HF_HUB_OFFLINE=1``. No code is downloaded.

    Args:
        source: a folder of :func:`save_pretrained`, or the ``"user/name"`` of a repository that
            :func:`push_to_hub` made; a folder of that name here comes first.
        revision: branch, tag or commit of the repository; a commit never changes.
        token: for a private repository; default that of ``hf auth login`` or ``HF_TOKEN``.
        device: where the network goes.

    Returns:
        The segmenter in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder or repository, or it holds no segmenter.
        ValueError: its file cannot be read, or ``source`` is a folder and ``revision`` is given.
        ConnectionError: the hub could not be reached and there is no copy of the repository here.
    """
    folder = _fetched(source, [SEGMENTER], revision=revision, token=token)
    return Segmenter.load(_held(folder, SEGMENTER, source), device=device)


def load_pretrained_loda(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    device: torch.device | str = "cpu",
) -> LoDAModel:
    """Build a model of images and texts from a folder or repository, as :func:`load_pretrained`.

    Args:
        source: likewise.
        revision: likewise.
        token: likewise.
        device: likewise.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder or repository, or it holds no such model.
        ValueError: its file cannot be read, or ``source`` is a folder and ``revision`` is given.
        ConnectionError: the hub could not be reached and there is no copy of the repository here.
        OSError: the tokenizer of ``"hf:NAME"`` could not be had.
    """
    folder = _fetched(source, [LODA, WORDS], revision=revision, token=token)
    words = folder / WORDS if (folder / WORDS).is_file() else None
    model = load_loda(_held(folder, LODA, source), vocabulary=words, device=device)
    if not Path(source).is_dir():
        model.source = f"LoDA {source}"
    return model


def _fetched(
    source: str | os.PathLike[str], names: list[str], *, revision: str | None, token: str | None
) -> Path:
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, {source}, got {revision!r}.")
        return Path(source)
    if Path(source).is_file():
        raise FileNotFoundError(
            f"source must be a folder or a repository, got the file {source}: Segmenter.load or "
            "load_loda reads it."
        )
    if not isinstance(source, str) or not is_repo_id(source):
        raise FileNotFoundError(
            "source must be a folder or a repository 'user/name' of the hub, got "
            f"{os.fspath(source)!r}: there is no such folder."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(source, revision=revision, token=token, allow_patterns=names)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        which = source if revision is None else f"{source} at {revision!r}"
        raise FileNotFoundError(
            f"there is neither a folder {source} here nor a repository {which} on the hub for you "
            f"(a private one needs a token): {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{source} is no folder here, has no copy in the hub's cache, and the hub could not be "
            "asked: connect (HF_HUB_OFFLINE must not be set), or copy the repository from where "
            f"there is a network and give its folder. {error}"
        ) from error
    except hub_errors() as error:
        raise refused(str(source), error) from error
    return Path(found)


def _held(folder: Path, name: str, source: str | os.PathLike[str]) -> Path:
    path = folder / name
    if path.is_file():
        return path
    other, reader = (LODA, "load_pretrained_loda")
    if name == LODA:
        other, reader = (SEGMENTER, "load_pretrained")
    raise FileNotFoundError(
        f"{source} holds no {name}, which save_pretrained and push_to_hub write; "
        f"{reader} reads one with {other}."
    )
