"""``wsss deploy``: a trained segmenter for programs without this library."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = ["deploy"]


def deploy(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SEGMENTER")],
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    returns: Literal["mask", "scores"] = "mask",
    views: Literal["protocol", "one"] = "protocol",
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None,
    opset: int = 18,
    check: bool = True,
) -> int:
    """Write a segmenter as one ONNX file, or for torch alone.

        wsss deploy runs/pets/segmenter.safetensors --output pets.onnx
        wsss deploy runs/pets/segmenter.safetensors --output pets.onnx --views one
        wsss deploy runs/pets/segmenter.safetensors --output pets.pt2 --returns scores

    The input is `images`, (B, 3, H, W) float32, RGB in [0, 1], of any size; the output is `mask`,
    (B, H, W) uint8 class ids, or `scores`, (B, K+1, H, W) probabilities. Colour statistics,
    scales and mirror images are inside the file, and the names of the classes beside.

    The file appears once its answers were those of the segmenter. Exit code 0: written; 2: not
    written, with the reason.

    Args:
        source: the segmenter.safetensors of a run.
        output: a file that ends in .onnx, or in .pt2 for torch.export.load; replaced if it exists.
        returns: class ids or probabilities.
        views: protocol fuses the scales and mirror images with which the network was scored; one
            shows it the image once, which is faster.
        size: of all images, for networks that cannot be exported for any size.
        opset: version of ONNX's operators.
        check: compare the file with the segmenter before it appears.
    """
    kind = output.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise ValueError(f"--output must end in .onnx or .pt2, got {output}.")
    from wsss_blocks.segmenters import Segmenter, export_onnx, export_pt2

    segmenter = Segmenter.load(source)
    options: dict[str, Any] = {"output": returns, "views": views, "size": size, "check": check}
    if kind == ".onnx":
        done = export_onnx(segmenter, output, opset=opset, **options)
    else:
        done = export_pt2(segmenter, output, **options)
    sides = "any size" if size is None else f"{size[0]} x {size[1]}"
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, images of {sides} to {returns}")
    if done.mask_difference is None:
        print("not compared with the segmenter")
        return 0
    differences = [f"{100 * done.mask_difference:.3g} % of the pixels of another class"]
    if done.score_difference is not None:
        differences.insert(0, f"scores differ by up to {done.score_difference:.1g}")
    print(f"compared with the segmenter: {', '.join(differences)}")
    return 0
