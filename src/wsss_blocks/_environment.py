"""What a bug report has to say about the machine and the installed packages."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator

__all__ = ["environment"]

_REQUIRED = ("timm", "open_clip_torch", "einops", "POT", "numpy", "torchvision", "safetensors")
_OPTIONAL = (
    "accelerate", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pillow", "pycocotools",
    "rich", "scikit-learn", "segmentation-models-pytorch", "tensorboard", "tqdm", "transformers",
    "tyro", "webdataset",
)  # fmt: skip
_VARIABLES = re.compile(r"WSSS_\w+|TRITON_INTERPRET|OMP_NUM_THREADS")
# Anything but a switch or a number may be a path or a name of somebody.
_HARMLESS = re.compile(r"[\d.,]+|true|false|yes|no|on|off", re.IGNORECASE)


def environment() -> None:
    """Print what a bug report needs: versions, processors, GPUs and settings.

    A package that is missing or broken is said to be so. No path and no user name is printed.

    Example:
        >>> import wsss_blocks
        >>> wsss_blocks.environment()  # doctest: +ELLIPSIS
        wsss-blocks     ...
        python          ...
    """
    from wsss_blocks import __version__

    print("\n".join(f"{name:<15} {value}" for name, value in _facts(__version__)))


def _facts(version: str) -> Iterator[tuple[str, str]]:
    yield "wsss-blocks", version
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "CPU", f"{os.cpu_count()} cores, {usable} usable"
    yield from _torch_facts()
    for name in ("triton", *_REQUIRED):
        yield name, _version(name) or "not installed"
    found = {name: _version(name) for name in _OPTIONAL}
    here = [f"{name} {number}" for name, number in found.items() if number]
    yield "optional", ", ".join(here) or "none"
    yield "not installed", ", ".join(name for name in found if not found[name]) or "none"
    settings = {k: v for k, v in sorted(os.environ.items()) if _VARIABLES.fullmatch(k)}
    shown = [f"{k}={v if _HARMLESS.fullmatch(v) else '(set)'}" for k, v in settings.items()]
    yield "variables", ", ".join(shown) or "none"


def _torch_facts() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except Exception as error:  # a broken installation is what a report is about
        version = _version("torch")
        broken = f"{version}, import fails with {type(error).__name__}"
        yield "torch", broken if version else "not installed"
        return
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    build = f"{torch.version.cuda or 'none'}, cuDNN {cudnn or 'none'}"
    yield "CUDA of torch", build if torch.version.hip is None else f"ROCm {torch.version.hip}"
    yield from _gpu_facts()


def _gpu_facts() -> Iterator[tuple[str, str]]:
    import torch

    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            gpu = torch.cuda.get_device_properties(index)
            about = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, sm_{gpu.major}{gpu.minor}"
            yield f"GPU {index}", about
    except Exception as error:
        yield "GPU", f"CUDA fails with {type(error).__name__}"
        return
    if torch.backends.mps.is_available():
        yield "GPU", "Apple (MPS)"
    elif not count:
        yield "GPU", "no GPU"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except Exception:  # absent, or its metadata are broken
        return None
