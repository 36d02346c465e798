"""Share a model with its model card: as a folder, or on the Hugging Face hub."""

import copy
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wsss_blocks import __version__
from wsss_blocks._files import replaced
from wsss_blocks.metrics import RecordedMetrics, read_metrics
from wsss_blocks.segmenters._card import model_card
from wsss_blocks.segmenters._hub import (
    CARD,
    FILES,
    LODA,
    METRICS,
    SEGMENTER,
    WORDS,
    hub_errors,
    is_repo_id,
    refused,
)
from wsss_blocks.segmenters.loda import LoDAModel
from wsss_blocks.segmenters.loda_file import save_loda
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["push_to_hub", "save_pretrained"]

_TAGS = ("image-segmentation", "weakly-supervised")


def save_pretrained(
    model: Segmenter | LoDAModel,
    folder: str | os.PathLike[str],
    *,
    metrics: str | os.PathLike[str] | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = _TAGS,
    repo_id: str | None = None,
    replace: bool = False,
) -> None:
    """Write a model, its model card and its measured numbers into a folder to be shared.

    ``segmenter.safetensors`` (of a :class:`LoDAModel` ``model.safetensors``), ``README.md`` and,
    where there is one, ``metrics.json``. The card takes its numbers from the last, each with its
    protocol, and states nothing that is neither in the model nor there nor in the arguments. Read
    it and add to it; ``hf upload USER/NAME FOLDER`` then shares it as it is.

    Args:
        model: to be shared.
        folder: made where it is missing; other files stay.
        metrics: file of :func:`~wsss_blocks.metrics.write_metrics`, as a run leaves it; it is
            copied as it is, with the command line and the paths in it.
        license: of the weights, as the hub spells it ("apache-2.0"); None: the card says that none
            was stated.
        datasets: that it was trained on, as the hub names them.
        tags: leave "weakly-supervised" out for a model that learnt from masks.
        repo_id: what the card calls the model, default the name of the folder.
        replace: a ``README.md`` and a ``metrics.json`` that say something else.

    Raises:
        FileNotFoundError: there is no file ``metrics``.
        ValueError: it is no file of ``write_metrics``, a number lacks its protocol, or its classes
            are not those of the segmenter; ``license``, a tag or a data set is empty.
        FileExistsError: ``README.md`` or ``metrics.json`` is there, and to be replaced only if you
            say so.
        TypeError: the model cannot be saved with its recipe, or is of another type.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.metrics import EvaluationProtocol
        >>> from wsss_blocks.segmenters import SegmentationNetwork, load_pretrained
        >>> data = {"dataset": "pets", "split": "val", "num_images": 9}
        >>> views = {"scales": (1.0,), "flip": True, "refiner": "none", "labels_used": False}
        >>> protocol = EvaluationProtocol(**data, **views)
        >>> network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(Segmenter(network, names=("cat", "dog"), protocol=protocol), folder)
        ...     files = sorted(path.name for path in Path(folder).iterdir())
        ...     load_pretrained(folder).names, files
        (('cat', 'dog'), ['README.md', 'segmenter.safetensors'])
    """
    if not isinstance(model, Segmenter | LoDAModel):
        raise TypeError(f"model must be a Segmenter or a LoDAModel, got {type(model).__name__}.")
    stated = () if license is None else (license,)
    for argument, words in (("datasets", datasets), ("tags", tags), ("license", stated)):
        if isinstance(words, str) or not all(isinstance(w, str) and w.strip() for w in words):
            raise ValueError(f"{argument} must hold words, none of them empty, got {words!r}.")
    folder = Path(folder)
    record = None if metrics is None else _record(Path(metrics), model)
    try:
        card = model_card(
            model,
            name=repo_id or folder.resolve().name,
            license=license,
            datasets=datasets,
            tags=tags,
            record=record,
        )
    except ValueError as error:
        raise ValueError(
            f"metrics must be a whole file of write_metrics, {metrics}: {error}"
        ) from error
    new = {CARD: card.encode()} | ({} if metrics is None else {METRICS: Path(metrics).read_bytes()})
    for name in (METRICS, CARD):
        path = folder / name
        if path.is_file() and path.read_bytes() != new.get(name) and not (replace and name in new):
            how = "replace=True replaces it" if name in new else "give it as metrics, or remove it"
            raise FileExistsError(f"{path} is there and would not fit this model: {how}.")
    if isinstance(model, Segmenter):
        model.save(folder / SEGMENTER)
    else:
        _save_loda(folder, model)
    for name, content in new.items():
        with replaced(folder / name) as temporary:
            temporary.write_bytes(content)


def push_to_hub(
    model: Segmenter | LoDAModel,
    repo_id: str,
    *,
    metrics: str | os.PathLike[str] | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = _TAGS,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    replace: bool = False,
) -> str:
    """Share on the Hugging Face hub what :func:`save_pretrained` writes, as one commit.

    Args:
        model: to be shared.
        repo_id: ``"user/name"``; made where it is missing.
        metrics: as :func:`save_pretrained`; it becomes public, with the paths in it.
        license: likewise.
        datasets: likewise.
        tags: likewise.
        private: for a repository that is made now; one that is public is refused.
        revision: branch, made where it is missing.
        token: with the right to write; default that of ``hf auth login`` or ``HF_TOKEN``.
        replace: a model, card or metrics in the repository; the older ones stay in its history.

    Returns:
        Address of the commit; its last part is what ``revision`` of :func:`load_pretrained` takes.

    Raises:
        ValueError: as :func:`save_pretrained`, or the repository is public and must not be.
        FileNotFoundError: as :func:`save_pretrained`.
        TypeError: likewise.
        FileExistsError: the repository has a card, model or metrics, and ``replace`` is not set.
        ConnectionError: the hub could not be reached, or refused; the message says why.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not is_repo_id(repo_id):
        raise ValueError(f"repo_id must be 'user/name', got {repo_id!r}.")
    with tempfile.TemporaryDirectory() as name:
        save_pretrained(
            model, name, metrics=metrics, license=license, datasets=datasets, tags=tags,
            repo_id=repo_id,
        )  # fmt: skip
        files = sorted(Path(name).iterdir())
        api = HfApi(token=token, library_name="wsss-blocks", library_version=__version__)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            found = api.model_info(repo_id, revision=revision)
        except hub_errors() as error:
            raise refused(repo_id, error) from error
        if private and not found.private:
            raise ValueError(f"private must be False for {repo_id}, which is there and public.")
        there = FILES & {file.rfilename for file in found.siblings or ()}
        if there and not replace:
            raise FileExistsError(
                f"{repo_id} holds {', '.join(sorted(there))} already: replace=True replaces it."
            )
        adds = [CommitOperationAdd(file.name, file) for file in files]
        drops = [CommitOperationDelete(old) for old in there - {file.name for file in files}]
        try:
            commit = api.create_commit(
                repo_id,
                [*adds, *drops],
                commit_message=f"Model and card, by wsss-blocks {__version__}",
                revision=revision,
                parent_commit=found.sha,
            )
        except hub_errors() as error:
            raise refused(repo_id, error) from error
    return commit.commit_url


def _save_loda(folder: Path, model: LoDAModel) -> None:
    """Write the model; its word pieces go beside it, not their place on this machine."""
    words = (model.recipe or {}).get("vocabulary")
    if words is None:
        (folder / WORDS).unlink(missing_ok=True)
    else:
        model = copy.copy(model)  # shares the weights
        model.recipe = {**(model.recipe or {}), "vocabulary": WORDS}
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / WORDS) as temporary:
            shutil.copyfile(str(words), temporary)
    save_loda(folder / LODA, model, size=model.size)


def _record(path: Path, model: Segmenter | LoDAModel) -> RecordedMetrics:
    if not path.is_file():
        raise FileNotFoundError(
            f"metrics must be a file of write_metrics, there is none at {path}."
        )
    try:
        record = read_metrics(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"metrics must be a file of write_metrics, got {path}: {error}") from error
    scored: dict[str, set[str]] = {}
    for name in record.results:
        owner, iou, label = name.partition("/iou/")
        if iou:
            scored.setdefault(owner, set()).add(label)
    own = {"background", *model.names} if isinstance(model, Segmenter) else None
    for owner, labels in scored.items():
        if own is not None and labels != own:
            odd = ", ".join(sorted(labels ^ own)[:3])
            raise ValueError(
                f"metrics must be of this segmenter and its {len(own)} classes, but {path} scores "
                f"{len(labels)} as {owner!r} (not in both: {odd})."
            )
    return record
