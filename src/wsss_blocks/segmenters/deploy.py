"""A trained segmenter without this library: graphs of torch.export, and ONNX."""

import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_int
from wsss_blocks.segmenters._exported import (
    check_options,
    compare,
    deployable,
    description,
    traced,
)
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["DeployedFile", "export_onnx", "export_program", "export_pt2"]

Output = Literal["mask", "scores"]
Views = Literal["protocol", "one"]
_LARGEST = 2**31 - 2**24  # bytes of weights; a protobuf message ends at 2 GiB


class DeployedFile(NamedTuple):
    """Hold where a segmenter was written, and how far the file is from it.

    Args:
        path: the file.
        score_difference: the largest of a score, over the images of the check; None for a file
            that returns masks, and without a check.
        mask_difference: share of the pixels that are of another class; None without a check.
    """

    path: Path
    score_difference: float | None
    mask_difference: float | None


def export_program(
    segmenter: Segmenter,
    *,
    output: Output = "mask",
    views: Views = "protocol",
    size: tuple[int, int] | None = None,
) -> ExportedProgram:
    r"""Record all that a segmenter does between image and mask as one graph.

    .. math::

        \mathrm{scores} = \mathrm{softmax}(\mathrm{up}(Z)), \qquad
        \mathrm{mask} = \mathrm{argmax}_c \, \mathrm{up}(Z)_c

    with :math:`Z` the fused logits of all views and :math:`\mathrm{up}` bilinear resizing to the
    images. Colour statistics, sizes that fit the network, scales and mirror images are inside.
    Reading a file, turning it upright and dividing by 255 are not.

    Note:
        A view at a scale that no fraction up to 1/1000 hits exactly in binary (0.7, not 1.25) may
        be a pixel larger or smaller than in :class:`Segmenter`, where a side falls on a half.
        All classes are resized at once: C H W floats are needed, a gigabyte for a photograph of 12
        megapixels and 21 classes.

    Args:
        segmenter: with any network that torch.export can take. It is exported in evaluation mode,
            float32 and for the CPU, and stays as it is.
        output: ``"mask"`` returns class ids, ``"scores"`` probabilities.
        views: ``"protocol"`` fuses the scales and mirror images with which the network was
            scored; ``"one"`` shows it the image once, as it is.
        size: ``(H, W)`` of all images, for networks that cannot be exported for any size.

    Returns:
        A graph with one argument, ``images`` ``(B, 3, H, W)`` float32, RGB in [0, 1]. It returns
        the mask ``(B, H, W)`` uint8 (0 background; background, then the lowest class, wins ties)
        or scores ``(B, K+1, H, W)`` float32. B is free, H and W are without ``size``.

    Raises:
        ValueError: an option is unknown, or the network cannot be exported so.
        TypeError: it is not a :class:`Segmenter`.

    Example:
        >>> from wsss_blocks.metrics import EvaluationProtocol
        >>> from wsss_blocks.segmenters import SegmentationNetwork
        >>> data = {"dataset": "pets", "split": "val", "num_images": 9}
        >>> views = {"scales": (1.0,), "flip": False, "refiner": "none", "labels_used": False}
        >>> network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=8)
        >>> protocol = EvaluationProtocol(**data, **views)
        >>> program = export_program(Segmenter(network, names=("cat", "dog"), protocol=protocol))
        >>> program.module()(torch.rand(2, 3, 31, 45)).shape
        torch.Size([2, 31, 45])
    """
    check_options(segmenter, output, views, size)
    return traced(deployable(segmenter, views), output, size)


def export_onnx(
    segmenter: Segmenter,
    path: str | os.PathLike[str],
    *,
    output: Output = "mask",
    views: Views = "protocol",
    size: tuple[int, int] | None = None,
    opset: int = 18,
    check: bool = True,
) -> DeployedFile:
    """Write the graph of :func:`export_program` as one ONNX file, weights included.

    Its input is called ``images``, its output ``mask`` or ``scores``. The file says, as JSON in
    its ``metadata_props``, what it is: ``names`` (background first), ``palette``, ``protocol``,
    ``views``, ``output``, ``size`` and ``library``.

    Args:
        segmenter: as in :func:`export_program`.
        path: the file, replaced as a whole; missing folders are made.
        output: as in :func:`export_program`, likewise ``views`` and ``size``.
        views: see there.
        size: see there.
        opset: version of ONNX's operators, 18 (read by most programs) to 23.
        check: compare what onnxruntime makes of the file with the segmenter, on images of odd
            sizes, before the file appears.

    Returns:
        The file and, with ``check``, how far it is from the segmenter.

    Raises:
        ValueError: an option is unknown, the network cannot be exported so, or its weights are too
            large for one ONNX file (2 GiB), or the file and the segmenter differ by more than
            rounding explains.
        TypeError: it is not a :class:`Segmenter`.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    check_options(segmenter, output, views, size)
    check_int("opset", opset)
    if not 18 <= opset <= 23:
        raise ValueError(f"opset must be 18 to 23, got {opset}.")
    onnx: Any = require("onnx", extra="export", what="export_onnx")
    require("onnxscript", extra="export", what="export_onnx")
    if check:
        require("onnxruntime", extra="export", what="the check of export_onnx")
    if sum(p.numel() * p.element_size() for p in segmenter.parameters()) > _LARGEST:
        raise ValueError("segmenter must have less than 2 GiB of weights to fit in one ONNX file.")
    source = deployable(segmenter, views)
    model = _as_onnx(traced(source, output, size), output, size, opset)
    onnx.helper.set_model_props(model, description(segmenter, output, views, size))
    with replaced(Path(path)) as temporary:
        onnx.save_model(model, temporary)
        del model
        found = compare(_OnnxFile(temporary), source, output, size) if check else (None, None)
    return DeployedFile(Path(path), *found)


def export_pt2(
    segmenter: Segmenter,
    path: str | os.PathLike[str],
    *,
    output: Output = "mask",
    views: Views = "protocol",
    size: tuple[int, int] | None = None,
    check: bool = True,
) -> DeployedFile:
    """Write the graph of :func:`export_program` as :func:`torch.export.save` does.

    ``torch.export.load(path).module()`` maps images to masks wherever torch is installed. What
    :func:`export_onnx` puts into ``metadata_props`` are extra files of the same names here:
    ``extra = {"names": ""}; torch.export.load(path, extra_files=extra)``.

    Args:
        segmenter: as in :func:`export_program`.
        path: the file, replaced as a whole; missing folders are made.
        output: as in :func:`export_program`, likewise ``views`` and ``size``.
        views: see there.
        size: see there.
        check: read the file and compare it with the segmenter, before it appears.

    Returns:
        The file and, with ``check``, how far it is from the segmenter.

    Raises:
        ValueError: an option is unknown, the network cannot be exported so, or the file and the
            segmenter differ by more than rounding explains.
        TypeError: it is not a :class:`Segmenter`.
    """
    check_options(segmenter, output, views, size)
    source = deployable(segmenter, views)
    program = traced(source, output, size)
    about = description(segmenter, output, views, size)
    with replaced(Path(path)) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files=about)
        found: tuple[float | None, float | None] = (None, None)
        if check:
            with temporary.open("rb") as file:
                run = torch.export.load(file).module()
            found = compare(run, source, output, size)
    return DeployedFile(Path(path), *found)


def _as_onnx(
    program: ExportedProgram, output: str, size: tuple[int, int] | None, opset: int
) -> Any:
    """Translate to ONNX, with names that people understand and without traces of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how torch translates: nothing to be done about it
        made = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=[output],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    model = cast(Any, made).model_proto
    graph = model.graph
    shown = ["batch", None, "height", "width"] if size is None else ["batch", None, None, None]
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {a.dim_param: name for a, name in zip(axes, shown, strict=True) if name}
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbol.sub(lambda found: names[found[0]], axis.dim_param)
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    return model


class _OnnxFile:
    """Run an ONNX file on the CPU."""

    def __init__(self, path: Path) -> None:
        runtime: Any = require("onnxruntime", extra="export", what="the check of export_onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Tensor) -> Tensor:
        (answer,) = self.session.run(None, {"images": images.numpy()})
        return torch.from_numpy(answer)
