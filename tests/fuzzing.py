"""Random bad arguments for every public name: a finite result or an error that names an argument.

A target is a valid call, drawn anew for each seed, and the function that takes it. A case changes
one or two of its arguments and judges what comes back:

- a result whose floating-point numbers are all finite (and, where only the memory layout was
  changed, the result of the plain call), with the arguments left as they were; or
- ValueError or TypeError whose message names a parameter and says what came.

Anything else is a failure. What a target is excused from stands in its record, with the reason.
"""

import inspect
import math
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "EXEMPT",
    "TARGETS",
    "Case",
    "Draw",
    "Target",
    "check",
    "draw_case",
    "possible_changes",
    "public_names",
]

_FOLDER = tempfile.TemporaryDirectory(prefix="wsss-blocks-fuzz-")
_SINK = f"{_FOLDER.name}/written"  # a real file: the library replaces what it writes

PACKAGES = (
    *("pooling", "heads", "decoders", "memory", "cam", "refine", "losses", "metrics", "viz"),
    *("backbones", "training", "data", "segmenters"),
)


class Draw:
    """Numbers and tensors of one seed; sides of one occur often."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def coin(self) -> bool:
        return self.random.random() < 0.5

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def maybe(self, value: Any) -> Any:
        return value if self.coin() else None

    def grid(self, limit: int = 4) -> tuple[int, int]:
        return self.whole(1, limit), self.whole(1, limit)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def labels(self, batch: int, classes: int) -> Tensor:
        return (self.uniform(batch, classes) < 0.5).float()

    def valid(self, *shape: int) -> Tensor | None:
        return self.maybe(self.uniform(*shape) < 0.7)

    def mask(self, *shape: int, classes: int) -> Tensor:
        ids = torch.randint(0, classes, shape, generator=self.generator)
        ids[self.uniform(*shape) < 0.1] = 255
        return ids

    def box(self, batch: int, size: tuple[int, int]) -> Tensor:
        rows = []
        for _ in range(batch):
            (top, bottom), (left, right) = (
                sorted((self.whole(0, s), self.whole(0, s))) for s in size
            )
            rows.append([top, left, bottom, right])
        return torch.tensor(rows)


@dataclass(frozen=True)
class Target:
    """A public name, how to draw a valid call of it and how to make that call."""

    name: str
    draw: Callable[[Draw], dict[str, Any]]
    call: Callable[..., Any]
    words: frozenset[str]  # what a message may name: parameters, keys of samples
    fixed: Mapping[str, str] = field(default_factory=dict)  # argument -> why it stays valid
    nan: str = ""  # why the result may hold NaN
    huge: str = ""  # why values of 1e30 may overflow
    device: str = ""  # why tensors of two devices are not tried
    weights: bool = False  # it has parameters, which are on one device too
    slow: bool = False  # fewer cases in the tests


@dataclass(frozen=True)
class Case:
    """A call with one or two arguments changed; none for a call that must succeed."""

    target: Target
    seed: int
    arguments: dict[str, Any]
    changes: tuple[str, ...]
    plain: dict[str, Any] | None = None  # equal values in plain memory: must give the same

    @property
    def title(self) -> str:
        return f"{self.target.name}, seed {self.seed}: {', '.join(self.changes) or 'valid call'}"


TARGETS: dict[str, Target] = {}


def target(
    *values: Any,
    call: Callable[..., Any] | None = None,
    name: str | None = None,
    words: Sequence[str] = (),
    fixed: Mapping[str, str] | None = None,
    nan: str = "",
    huge: str = "",
    device: str = "",
    weights: bool = False,
    slow: bool = False,
) -> Callable[[Callable[[Draw], dict[str, Any]]], Callable[[Draw], dict[str, Any]]]:
    """Enter a function, its module twin or both; the decorated function draws their arguments."""

    def enter(draw: Callable[[Draw], dict[str, Any]]) -> Callable[[Draw], dict[str, Any]]:
        for value in values:
            own = name or value.__name__
            TARGETS[own] = Target(
                name=own,
                draw=draw,
                call=call or _caller(value),
                words=frozenset(words) | frozenset(_parameters(value)),
                fixed=fixed or {},
                nan=nan,
                huge=huge,
                device=device,
                weights=weights,
                slow=slow,
            )
        return draw

    return enter


def _parameters(value: Any) -> set[str]:
    if not inspect.isclass(value):
        return set(inspect.signature(value).parameters)
    found = set(inspect.signature(value).parameters)
    for method in ("forward", "update"):
        if issubclass(value, nn.Module) or hasattr(value, "compute"):
            found |= set(inspect.signature(getattr(value, method, value)).parameters)
    return found - {"self", "args", "kwargs"}


def _caller(value: Any) -> Callable[..., Any]:
    if not inspect.isclass(value) or not issubclass(value, nn.Module):
        return value
    settings = set(inspect.signature(value).parameters)

    def build_and_call(**arguments: Any) -> Any:
        module = value(**{k: v for k, v in arguments.items() if k in settings})
        return module(**{k: v for k, v in arguments.items() if k not in settings})

    return build_and_call


# --- changes of one argument -----------------------------------------------------------------

DTYPES = ("int64", "uint8", "bool", "float16", "bfloat16", "float64", "complex64")
LAYOUTS = ("not contiguous", "expanded", "requires grad")


def _tensor_changes(x: Tensor) -> dict[str, Callable[[Draw], Any]]:
    """What can be done to a tensor, by name; the layouts leave its values as they are."""

    def axis(d: Draw) -> int:
        return d.whole(0, x.ndim - 1)

    def one_more(d: Draw) -> Tensor:
        at = axis(d)
        return torch.cat([x, x.narrow(at, 0, 1)], at) if x.shape[at] else x

    def one_less(d: Draw) -> Tensor:
        at = axis(d)
        return x.narrow(at, 0, max(x.shape[at] - 1, 0))

    def swapped(d: Draw) -> Tensor:
        return x.transpose(*d.random.sample(range(x.ndim), 2)).contiguous()

    def put(value: float) -> Callable[[Draw], Tensor]:
        def at_one_place(d: Draw) -> Tensor:
            new = x.clone().flatten()
            if len(new):
                new[d.whole(0, len(new) - 1)] = value
            return new.view(x.shape)

        return at_one_place

    changes: dict[str, Callable[[Draw], Any]] = {
        "None": lambda d: None,
        "a list": lambda d: x.tolist(),
        "a numpy array": lambda d: x.numpy(),
        "a number": lambda d: 1.0,
        "a string": lambda d: "tensor",
        "one axis more": lambda d: x[None],
        "one axis more at the end": lambda d: x[..., None],
        "on another device": lambda d: x.to("meta"),
        **{dtype: lambda d, t=dtype: x.to(getattr(torch, t)) for dtype in DTYPES},
    }
    if x.ndim:
        changes |= {
            "flattened": lambda d: x.flatten(),
            "no axes": lambda d: x.flatten()[0] if x.numel() else x.sum(),
            "one slice more": one_more,
            "one slice less": one_less,
            "an empty axis": lambda d: x.narrow(axis(d), 0, 0),
            "one axis less": lambda d: x[0] if len(x) else x.sum(0),
            "expanded": lambda d: x[:1].expand_as(x),
        }
    if x.ndim > 1:
        changes |= {
            "transposed": swapped,
            "not contiguous": lambda d: x.transpose(0, -1).contiguous().transpose(0, -1),
        }
    if x.is_floating_point():
        changes |= {
            "NaN in one place": put(math.nan),
            "inf in one place": put(math.inf),
            "-inf in one place": put(-math.inf),
            "all NaN": lambda d: torch.full_like(x, math.nan),
            "huge": lambda d: x * 1e30,
            "one huge value": put(1e30),
            "in 0..255": lambda d: x * 255,
            "negative": lambda d: -x.abs() - 0.1,
            "zeros": lambda d: torch.zeros_like(x),
            "requires grad": lambda d: x.clone().requires_grad_(),
        }
    elif x.dtype != torch.bool:
        changes |= {
            "an id of -1": put(-1),
            "an id of 254": put(254),
            **({"an id of 2**31": put(2**31)} if x.dtype == torch.int64 else {}),
            "all 255": lambda d: torch.full_like(x, 255),
        }
    return changes


def _number_changes(x: float) -> dict[str, Any]:
    return {
        "NaN": math.nan,
        "-1": -1,
        "0": 0,
        "-inf": -math.inf,
        "inf": math.inf,
        "one half": 0.5,
        "a numeral as text": str(x),
        "None": None,
        "a list of it": [x],
    }


def _sequence_changes(x: Sequence[Any]) -> dict[str, Any]:
    kind = type(x)
    changes: dict[str, Any] = {
        "None": None,
        "empty": kind(()),
        "one entry more": kind((*x, *x[-1:])),
        "one entry less": kind(x[:-1]),
        "a number": 1,
        "text": "two",
    }
    for name, value in (("NaN", math.nan), ("-1", -1), ("0", 0), ("text", "x"), ("None", None)):
        changes[f"{name} as last entry"] = kind((*x[:-1], value))
    if len(x) == 2:
        changes["reversed"] = kind(x[::-1])
    return changes


def changes_of(value: Any) -> dict[str, Callable[[Draw], Any]]:
    """List what can be done to an argument; nothing to a function, a module or a bool."""
    if isinstance(value, Tensor):
        return _tensor_changes(value)
    if isinstance(value, bool | Path) or value is None or callable(value):
        return {}
    if isinstance(value, int | float):
        found = _number_changes(value)
    elif isinstance(value, str):
        found = {"another word": "no such", "empty": "", "None": None, "a number": 3}
    elif isinstance(value, torch.dtype):
        found = {"float32": torch.float32, "bool": torch.bool, "text": "int64", "None": None}
    elif isinstance(value, Mapping):
        first = next(iter(value), None)
        found = {"None": None, "text": "two", "a list": list(value)}
        found |= {"another key": {**value, "no such": value.get(first)}}
        for name, odd in (("NaN", math.nan), ("-1", -1), ("None", None), ("text", "x")):
            found[f"{name} as a value"] = {**value, first: odd}
    elif isinstance(value, list | tuple):
        found = _sequence_changes(value)
    else:
        return {}
    return {name: lambda d, v=changed: v for name, changed in found.items()}


def possible_changes(one: Target, arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """List the pairs of argument and change that are tried on these arguments."""
    tensors = [v for k, v in arguments.items() if isinstance(v, Tensor)]
    left_out = set()
    if one.device or len(tensors) + one.weights < 2:  # nothing that it could disagree with
        left_out.add("on another device")
    if one.huge:
        left_out |= {"huge", "one huge value"}
    return [
        (name, kind)
        for name, value in arguments.items()
        if name not in one.fixed
        for kind in changes_of(value)
        if kind not in left_out
    ]


def draw_case(one: Target, seed: int, *, change: tuple[str, str] | None = None) -> Case:
    """Draw a valid call and change none (one case in eight), one or two arguments of it.

    ``change`` names the argument and the change instead: for a sweep over all of them.
    """
    d = Draw(seed)
    arguments = one.draw(d)
    open_to = possible_changes(one, arguments)
    wanted = d.one_of(0, 1, 1, 1, 1, 1, 2, 2)
    chosen: dict[str, str] = {}
    if change is not None:
        chosen = dict([change])
    elif open_to:
        # An argument first, so that one of few changes is not drowned by those of a tensor.
        for name in d.random.sample(sorted({n for n, _ in open_to}), k=1) if wanted else []:
            chosen[name] = d.one_of(*[k for n, k in open_to if n == name])
        others = [(n, k) for n, k in open_to if n not in chosen]
        if wanted == 2 and others:
            name, kind = d.one_of(*others)
            if not (kind == "huge" and "huge" in chosen.values()):
                chosen[name] = kind
    changed = dict(arguments)
    for name, kind in chosen.items():
        changed[name] = changes_of(arguments[name])[kind](d)
    plain = None
    if len(chosen) == 1 and set(chosen.values()) & set(LAYOUTS):
        (name,) = chosen
        plain = {
            **arguments,
            name: changed[name].detach().clone(memory_format=torch.contiguous_format),
        }
    titles = tuple(f"{name} {kind}" for name, kind in chosen.items())
    return Case(one, seed, changed, titles, plain)


# --- judgement -------------------------------------------------------------------------------


def check(case: Case) -> str:
    """Return "finite" or "error" for a legal outcome; raise AssertionError for another."""
    before = {k: v.detach().clone() for k, v in case.arguments.items() if isinstance(v, Tensor)}
    try:
        result = _run(case.target, case.arguments)
    except (ValueError, TypeError) as error:
        _check_message(case, error)
        if not case.changes or case.plain is not None:
            raise AssertionError(f"{case.title}: a valid call is refused: {error}") from error
        return "error"
    except Exception as error:
        raise AssertionError(f"{case.title}: {type(error).__name__}: {error}") from error
    for name, old in before.items():
        if not _same(old, case.arguments[name].detach()):
            raise AssertionError(f"{case.title}: {name} was changed in place")
    found = list(_numbers(result))
    devices = {x.device.type for x in case.arguments.values() if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise AssertionError(f"{case.title}: tensors of {sorted(devices)} together are not refused")
    if not case.target.nan:
        for x in found:
            if x.device.type != "meta" and not bool(torch.isfinite(x.detach()).all()):
                raise AssertionError(f"{case.title}: the result holds NaN or infinity")
    if case.plain is not None:
        expected = list(_numbers(_run(case.target, case.plain)))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x.detach(), y.detach(), equal_nan=True, msg=case.title)
    return "finite"


def _run(one: Target, arguments: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return one.call(**arguments)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.device.type == "meta":
        return True
    return (
        torch.equal(a.nan_to_num(), b.nan_to_num())
        if a.is_floating_point()
        else bool(torch.equal(a, b))
    )


def _check_message(case: Case, error: Exception) -> None:
    message = str(error)
    words = set(re.findall(r"\w+", message))
    if not words & case.target.words:
        raise AssertionError(
            f"{case.title}: the message names no argument: {type(error).__name__}: {message}"
        ) from error
    if not {"must", "got"} <= words:
        raise AssertionError(
            f"{case.title}: the message does not say what must be and what came: {message}"
        ) from error


def _numbers(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point values of a result, wherever they are."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _numbers(vars(value))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)


# --- the table -------------------------------------------------------------------------------

from wsss_blocks import (  # noqa: E402
    backbones,
    cam,
    data,
    decoders,
    heads,
    losses,
    memory,
    metrics,
    pooling,
    refine,
    segmenters,
    training,
    viz,
)

# Why a public name has no target.
_CONTAINER = "holds what a block returned; checks nothing by itself"
_PROTOCOL = "describes an interface, no code"
_CONSTANT = "a constant"
_FILES = "takes files and folders: planted faults (faults.py)"
EXEMPT: dict[str, str] = {
    **dict.fromkeys(
        (
            *("ClassCentroids", "ClassHeadOutput", "Features", "TextFeatures"),
            *("QueryKey", "StoredTokens", "LocalCrops"),
            *("RecordedMetrics", "ScoredMaps", "SegmentationScores", "SweepResult"),
            *("ClassMaps", "MetricDifference"),
            *("BoundaryScores", "ImageScore", "Interval", "SplitScores"),
            *("LoadReport", "ToCoCheckpoint", "Segmentation"),
            *("LinearProbe", "RetrievalScores", "ShardList"),
            *("ScoredSegmentation", "ZeroShotProtocol"),
            *("AffinityLabels", "NeighbourAffinity", "RebalancedMask"),
            *("CocoMasks", "VocAug", "DiskEstimate", "TextVocabulary", "ExportedMasks"),
            "DeployedFile",
            *("CamStoreEstimate", "StoredCam"),
        ),
        _CONTAINER,
    ),
    **dict.fromkeys(("Encoder", "TextEncoder", "Refiner", "Stateful", "WeakDataset"), _PROTOCOL),
    "ImageTextModel": _PROTOCOL,
    "PROTOCOL_OF_DATA": _CONSTANT,
    "imagenet_templates": "takes no argument",
    **dict.fromkeys(("COCO_NAMES", "DIGIT_NAMES", "VOC_NAMES", "VOC_SPOKEN_NAMES"), _CONSTANT),
    "CLASS_TABLES": _CONSTANT,
    "ClassTable": _CONTAINER,
    **dict.fromkeys(
        (
            *("read_metrics", "load_weights", "save_weights", "load_run_state", "save_run_state"),
            *("FolderDataset", "VOC2012", "open_dataset", "read_image", "read_mask"),
            *("ADE20K", "COCOObject", "COCOStuff", "ImageTextPairs", "PascalContext"),
            *("COCO", "UsableImages", "usable_images", "create_encoder", "create_text_bank"),
            "create_text_encoder",
            *("outside_text", "read_toco_checkpoint", "read_class_maps"),
            *("FeatureCache", "SavedFeatures", "read_cause_features", "WithPseudoMasks"),
            *("create_token_encoder", "load_class_token_weights"),
            *("build_coco_masks", "build_voc_aug", "export_masks"),
            *("CamStore", "export_irn", "export_psa", "import_irn", "import_psa"),
            *("ImageTextShards", "find_shards", "shard_loader"),
            *("create_loda", "save_loda", "load_loda"),
            *("export_onnx", "export_program", "export_pt2"),
            *("save_pretrained", "push_to_hub", "load_pretrained", "load_pretrained_loda"),
        ),
        _FILES,
    ),
    "write_coco_layout": "write_voc_layout with other names",
    **dict.fromkeys(("Examination", "Finding", "SplitCounts"), _CONTAINER),
    "examine": "takes a folder, and reports faults: tests/data/test_doctor.py plants them",
    "hardware": "takes no argument",
    "compare_metrics": "takes what read_metrics returns",
    "tap_output": "takes a module",
    "Compose": "takes functions only",
    "MapFiles": "takes a function and a list of ids",
    "AddView": "takes a name and a function",
    "Augmented": "takes a data set and a function",
    "RandomCaption": "no argument; draws from a list of strings",
}
_CALLER = "a function or module of the caller"


def public_names() -> dict[str, object]:
    """Return every public name of the fuzzed packages."""
    modules = (pooling, heads, decoders, memory, cam, refine, losses, metrics, viz, backbones)
    return {
        name: getattr(module, name)
        for module in (*modules, training, data, segmenters)
        for name in module.__all__
    }


def _maps(d: Draw) -> dict[str, Any]:
    b, k, (h, w) = d.whole(1, 2), d.whole(1, 3), d.grid()
    return {"maps": d.normal(b, k, h, w), "valid": d.valid(b, h, w)}


target(pooling.global_average_pool, pooling.GlobalAveragePool)(_maps)
target(pooling.global_max_pool, pooling.GlobalMaxPool)(_maps)


@target(pooling.global_weighted_rank_pool, pooling.GlobalWeightedRankPool)
def _rank(d: Draw) -> dict[str, Any]:
    return {**_maps(d), "decay": d.one_of(0.0, 0.9, 1.0)}


@target(pooling.global_top_k_pool, pooling.GlobalTopKPool)
def _top_k(d: Draw) -> dict[str, Any]:
    return {**_maps(d), "fraction": d.one_of(0.1, 0.5, 1.0)}


@target(pooling.max_response_pool, pooling.MaxResponsePool)
def _max_response(d: Draw) -> dict[str, Any]:
    b, n, c = d.whole(1, 2), d.whole(1, 5), d.whole(1, 3)
    return {"tokens": d.normal(b, n, c), "k": d.whole(1, 6), "mask": d.valid(b, n)}


@target(pooling.patch_class_weights, pooling.PatchClassWeights)
def _class_weights(d: Draw) -> dict[str, Any]:
    b, c, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    return {
        "mask": d.mask(b, *d.grid(5), classes=c),
        "size": size,
        "num_classes": c,
        "assign": d.one_of("area", "majority", "nearest"),
        "valid": d.valid(b, *size),
        "ignore_index": 255,
    }


@target(pooling.class_average_pool, pooling.ClassAveragePool)
def _class_average(d: Draw) -> dict[str, Any]:
    b, c, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    mask = d.mask(b, *d.grid(5), classes=c) if d.coin() else d.uniform(b, c, *size)
    return {
        "features": d.normal(b, d.whole(1, 3), *size),
        "mask": mask,
        "num_classes": c,
        "assign": d.one_of("area", "majority", "nearest"),
        "valid": d.valid(b, *size),
        "ignore_index": 255,
    }


@target(heads.ClassHead, weights=True)
def _class_head(d: Draw) -> dict[str, Any]:
    b, dim, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    return {
        "dim": dim,
        "num_classes": d.whole(1, 3),
        "pool_at": d.one_of("features", "cam"),
        "features": d.normal(b, dim, *size),
        "valid": d.valid(b, *size),
    }


@target(heads.PatchCAMHead, weights=True)
def _patch_cam_head(d: Draw) -> dict[str, Any]:
    b, dim, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    return {
        "dim": dim,
        "num_classes": d.whole(1, 3),
        "background": d.coin(),
        "kernel_size": d.one_of(1, 3),
        "features": d.normal(b, dim, *size),
        "valid": d.valid(b, *size),
    }


@target(heads.class_token_logits)
def _token_logits(d: Draw) -> dict[str, Any]:
    shape = d.whole(1, 2), d.whole(2, 4), d.whole(1, 4)
    return {"tokens": d.normal(*shape), "background": d.coin()}


@target(heads.infuse_class_tokens, huge="the squares of tokens of 1e30 are infinite (rescale)")
def _infuse(d: Draw) -> dict[str, Any]:
    b, k, background, dim = d.whole(1, 2), d.whole(1, 3), d.whole(0, 1), d.whole(1, 4)
    given = k + background * d.whole(0, 1)
    return {
        "tokens": d.normal(b, k + background, dim),
        "source": d.normal(*d.one_of((b, given, dim), (given, dim))),
        "labels": d.maybe(d.labels(b, k)),
        "weight": d.one_of(0.0, 0.5, 1.0),
        "rescale": d.coin(),
    }


@target(heads.ProjectionHead, weights=True)
def _projection(d: Draw) -> dict[str, Any]:
    b, dim = d.whole(1, 2), d.whole(1, 4)
    shape = d.one_of((b, dim), (b, d.whole(1, 4), dim), (b, dim, *d.grid()))
    return {
        "dim": dim,
        "out_dim": d.whole(1, 4),
        "hidden_dim": d.maybe(d.whole(1, 4)),
        "normalize": d.coin(),
        "x": d.normal(*shape),
    }


@target(
    decoders.AllBlocksDecoder,
    weights=True,
    call=lambda first, second, **a: decoders.AllBlocksDecoder(**a).eval()([first, second]),
    words=("maps",),
    huge="the variance of LayerNorm overflows",
)
def _all_blocks(d: Draw) -> dict[str, Any]:
    heads, dims = d.whole(1, 2), (d.whole(1, 3), d.whole(1, 3))
    shape = d.whole(1, 2), d.grid()
    return {
        "dims": dims,
        "num_classes": d.whole(1, 3),
        "hidden_dim": heads * d.whole(1, 3),
        "layers": d.whole(0, 2),
        "heads": heads,
        "mlp_ratio": d.whole(1, 2),
        "dropout": d.one_of(0.0, 0.5),
        "first": d.normal(shape[0], dims[0], *shape[1]),
        "second": d.normal(shape[0], dims[1], *shape[1]),
    }


@target(heads.DINOHead, weights=True)
def _dino_head(d: Draw) -> dict[str, Any]:
    b, dim = d.whole(1, 2), d.whole(1, 4)
    return {
        "dim": dim,
        "out_dim": d.whole(1, 4),
        "hidden_dim": d.whole(1, 4),
        "bottleneck_dim": d.whole(1, 4),
        "x": d.normal(*d.one_of((b, dim), (b, d.whole(1, 4), dim))),
    }


@target(decoders.LargeFOV, weights=True, huge="the variance of GroupNorm overflows")
def _large_fov(d: Draw) -> dict[str, Any]:
    b, dim, skip_dim = d.whole(1, 2), d.whole(1, 3), d.maybe(d.whole(1, 3))
    return {
        "dim": dim,
        "num_classes": d.whole(1, 3),
        "hidden_dim": d.whole(1, 3),
        "dilation": d.whole(1, 3),
        "skip_dim": skip_dim,
        "skip_hidden_dim": d.whole(1, 3),
        "features": d.normal(b, dim, *d.grid()),
        "skip": None if skip_dim is None else d.normal(b, skip_dim, *d.grid()),
    }


@target(decoders.DeepLabV2Head, weights=True)
def _deeplab_v2_head(d: Draw) -> dict[str, Any]:
    b, dim = d.whole(1, 2), d.whole(1, 3)
    return {
        "dim": dim,
        "num_classes": d.whole(1, 3),
        "rates": d.one_of((6, 12, 18, 24), (1,), (2, 3)),
        "features": d.normal(b, dim, *d.grid()),
    }


def _scales(d: Draw) -> dict[str, Any]:
    return {
        "images": d.uniform(d.whole(1, 2), 3, *d.grid(5)),
        "scales": d.one_of((1.0,), (1.0, 0.5), (0.5, 2.0, 1.0)),
        "flip": d.coin(),
        "flip_reduce": d.one_of("max", "mean", "sum"),
        "scale_reduce": d.one_of("max", "mean", "sum"),
        "size": d.maybe(d.grid()),
    }


@target(
    decoders.multi_scale_logits,
    call=lambda **a: decoders.multi_scale_logits(lambda x: x[:, :2], **a),
)
def _multi_scale_logits(d: Draw) -> dict[str, Any]:
    return {**_scales(d), "activation": d.maybe("softmax")}


@target(cam.multi_scale_cam, call=lambda **a: cam.multi_scale_cam(lambda x: x[:, :2], **a))
def _multi_scale_cam(d: Draw) -> dict[str, Any]:
    found = _scales(d)
    labels = d.maybe(d.labels(len(found["images"]), 2))
    return {**found, "relu": d.coin(), "labels": labels}


def _averaged(model: nn.Linear, x: Tensor, **settings: Any) -> Tensor:
    ema = memory.EMA(model, **settings)
    ema.update(model)
    return ema(x)


@target(
    memory.EMA,
    call=_averaged,
    fixed={"x": "goes to the model of the caller"},
)
def _ema(d: Draw) -> dict[str, Any]:
    return {"model": nn.Linear(2, 1), "x": d.normal(1, 2), "decay": 0.9, "warmup": d.coin()}


def _banked(tokens: Any, labels: Any, batch: Any, **settings: Any) -> Any:
    bank = memory.ClassTokenBank(**settings)
    bank.push(tokens, labels)
    return *bank.prototypes(), *bank.sample(batch)


@target(
    memory.ClassTokenBank,
    call=_banked,
    words=("tokens", "labels", "batch"),
    huge="the variance of the layer norm overflows",
)
def _bank_of_tokens(d: Draw) -> dict[str, Any]:
    b, k, dim, size = d.whole(1, 3), d.whole(1, 3), d.whole(1, 4), d.whole(1, 4)
    return {
        "num_classes": k,
        "dim": dim,
        "size": size,
        "min_entries": d.maybe(d.whole(1, size)),
        "normalize": d.coin(),
        "tokens": d.normal(b, k, dim),
        "labels": d.labels(b, k),
        "batch": d.whole(0, 3),
    }


@target(cam.fuse_cams, huge="the product of scores of 1e30 is infinite")
def _fuse(d: Draw) -> dict[str, Any]:
    shape = d.whole(1, 2), d.whole(1, 3), *d.grid()
    mode = d.one_of("product", "sqrt", "attention", "cam")
    return {"attention": d.uniform(*shape), "cam": d.normal(*shape), "mode": mode}


@target(cam.foreground_map)
def _foreground(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 2), d.whole(1, 3)
    return {"cam": d.uniform(b, k, *d.grid()), "labels": d.labels(b, k)}


@target(cam.normalize_cam, cam.NormalizeCAM)
def _normalize(d: Draw) -> dict[str, Any]:
    b, k, (h, w) = d.whole(1, 2), d.whole(1, 3), d.grid()
    return {
        "cam": d.normal(b, k, h, w),
        "mode": d.one_of("minmax", "max", "cti"),
        "relu": d.coin(),
        "scope": d.one_of("class", "image"),
        "valid": d.valid(b, h, w),
        "eps": 1e-5,
    }


@target(cam.similarity_cam, cam.SimilarityCAM)
def _similarity(d: Draw) -> dict[str, Any]:
    dim = d.whole(1, 4)
    mode = d.one_of("cosine", "margin", "softmax")
    background = d.normal(d.whole(1, 2), dim)
    return {
        "features": d.normal(d.whole(1, 2), dim, *d.grid()),
        "text": d.normal(d.whole(1, 3), dim),
        "background": background if mode == "margin" else d.maybe(background),
        "mode": mode,
        "temperature": d.one_of(0.05, 1.0),
    }


def _query_key(d: Draw, batch: int, tokens: int) -> dict[str, Any]:
    shape = batch, d.whole(1, 2), tokens, d.whole(1, 4)
    return {"q": d.normal(*shape), "k": d.normal(*shape), "scale": 0.5}


_HUGE_LOGITS = "products of q and k of 1e60 are infinite"


@target(
    cam.class_to_patch_attention,
    call=lambda q, k, scale, **a: cam.class_to_patch_attention(
        {3: backbones.QueryKey(q, k, scale)}, **a
    ),
    words=("q", "k", "scale"),
    huge=_HUGE_LOGITS,
)
def _class_attention(d: Draw) -> dict[str, Any]:
    n, grid = d.whole(1, 3), d.grid(3)
    return {
        **_query_key(d, d.whole(1, 2), n + d.whole(0, 1) + grid[0] * grid[1]),
        "num_class_tokens": n,
        "grid": grid,
        "layers": d.one_of(None, (3,)),
        "reduce": d.one_of("sum", "mean"),
    }


@target(
    cam.patch_to_patch_attention,
    call=lambda q, k, scale, **a: cam.patch_to_patch_attention(
        {3: backbones.QueryKey(q, k, scale)}, **a
    ),
    words=("q", "k", "scale"),
    huge=_HUGE_LOGITS,
)
def _patch_attention(d: Draw) -> dict[str, Any]:
    grid = d.grid(3)
    return {
        **_query_key(d, d.whole(1, 2), d.whole(0, 2) + grid[0] * grid[1]),
        "grid": grid,
        "layers": d.one_of(None, (3,)),
    }


@target(cam.confident_label)
def _confident_label(d: Draw) -> dict[str, Any]:
    b, size = d.whole(1, 2), d.grid()
    return {
        "maps": d.normal(b, d.whole(1, 3), *size).softmax(1),
        "confidence": d.one_of(0.0, 0.5, 0.95),
        "box": d.maybe(d.box(b, size)),
        "ignore_index": 255,
    }


@target(cam.class_weight_cam)
def _class_weight(d: Draw) -> dict[str, Any]:
    dim, k = d.whole(1, 4), d.whole(1, 3)
    shape = d.one_of((k, dim), (k, dim, 1, 1))
    return {"features": d.normal(d.whole(1, 2), dim, *d.grid()), "weight": d.normal(*shape)}


def _gradient_cam(scores: Any, tap: Any, **rest: Any) -> Tensor:
    """Put the scores on a graph with the tap, where both can be on one."""
    both = [x for x in (scores, tap) if isinstance(x, Tensor) and x.is_floating_point()]
    if len(both) == 2 and scores.device == tap.device:
        tap = tap.detach().requires_grad_()
        scores = scores.detach() + tap.tanh().sum()
    return cam.gradient_cam(scores, tap, **rest)


@target(cam.gradient_cam, call=_gradient_cam)
def _gradient(d: Draw) -> dict[str, Any]:
    b, k, dim, size = d.whole(1, 2), d.whole(1, 3), d.whole(1, 4), d.grid()
    tokens = d.coin()
    shape = (b, d.whole(0, 2) + size[0] * size[1], dim) if tokens else (b, dim, *size)
    return {
        "scores": d.normal(b, k),
        "tap": d.normal(*shape),
        "labels": d.labels(b, k),
        "mode": d.one_of("gradcam", "layercam", "hirescam"),
        "grid": size if tokens else d.maybe(size),
        "max_classes": d.maybe(k),
        "relu": d.coin(),
        "create_graph": d.coin(),
    }


@target(cam.present_softmax_scores)
def _present_softmax(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 2), d.whole(1, 3)
    return {
        "logits": d.normal(b, k),
        "labels": d.labels(b, k),
        "background": d.maybe(d.normal(b, d.whole(1, 3))),
    }


@target(cam.scale_box, cam.box_to_valid)
def _boxes(d: Draw) -> dict[str, Any]:
    image_size = d.grid(6)
    return {"box": d.box(d.whole(1, 2), image_size), "image_size": image_size, "size": d.grid()}


@target(cam.cam_to_label)
def _cam_to_label(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 3), d.grid()
    threshold = d.one_of(0.5, (0.2, 0.6), d.uniform(b), d.uniform(b, 2).sort(1).values, None)
    background_power = d.maybe(2.0)
    return {
        "cam": d.normal(b, k + (threshold is None and background_power is None), *d.grid()),
        "labels": d.labels(b, k),
        "size": size,
        "threshold": threshold if background_power is None else 0.5,
        "background_power": background_power,
        "box": d.maybe(d.box(b, size)),
        "relu": d.coin(),
        "normalize": d.maybe("minmax"),
        "ignore_index": 255,
        "dtype": d.one_of(torch.int64, torch.uint8, torch.int32),
    }


@target(cam.negative_crops)
def _negative_crops(d: Draw) -> dict[str, Any]:
    b, (h, w) = d.whole(1, 2), d.grid(6)
    side = d.whole(1, min(h, w))
    return {
        "images": d.uniform(b, 3, h, w),
        "mask": d.mask(b, h, w, classes=3),
        "size": side,
        "number": d.whole(1, (h - side + 1) * (w - side + 1)),
        "share": 0.2,
        "box": d.maybe(d.box(b, (h, w))),
        "ignore_index": 255,
    }


@target(cam.strongest_scores)
def _strongest_scores(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 2), d.whole(1, 3)
    return {
        "cam": d.normal(b, k, *d.grid()),
        "labels": d.labels(b, k),
        "size": d.maybe(d.grid()),
        "relu": d.coin(),
        "normalize": d.maybe("minmax"),
    }


@target(cam.otsu_threshold)
def _otsu_threshold(d: Draw) -> dict[str, Any]:
    return {"scores": d.uniform(d.whole(1, 9)), "bins": d.whole(2, 30)}


@target(cam.mixture_threshold)
def _mixture_threshold(d: Draw) -> dict[str, Any]:
    return {"scores": d.uniform(d.whole(1, 9)), "max_scores": d.whole(4, 30)}


@target(cam.CAMToLabel)
def _cam_to_label_module(d: Draw) -> dict[str, Any]:
    found = _cam_to_label(d)
    while isinstance(found["threshold"], Tensor):
        found = _cam_to_label(d)
    return found


def _refined(refiner: nn.Module) -> Callable[[Draw], dict[str, Any]]:
    def draw(d: Draw) -> dict[str, Any]:
        b, k, size = d.whole(1, 2), d.whole(1, 3), d.grid(5)
        groups = d.one_of((), (2,))
        return {
            "images": d.uniform(b, 3, *size),
            "maps": d.uniform(b, *groups, k + 1, *d.grid()),
            "labels": d.maybe(d.labels(b, k)),
            "box": d.maybe(d.box(b, size)),
        }

    return draw


target(refine.NoRefiner)(_refined(refine.NoRefiner()))


def _rings(d: Draw) -> dict[str, Any]:
    return {
        "dilations": d.one_of((1,), (1, 2)),
        "iterations": d.whole(0, 2),
        "colour_scale": 0.3,
        "position_weight": d.one_of(0.0, 0.01),
        "kernel": d.one_of("par", "pamr"),
    }


@target(refine.PixelAdaptiveRefine)
def _par_module(d: Draw) -> dict[str, Any]:
    settings = {"downsample": d.whole(1, 2), "softmax": d.coin()}
    return {**_refined(refine.NoRefiner())(d), **_rings(d), **settings}


@target(refine.pixel_adaptive_refine)
def _par(d: Draw) -> dict[str, Any]:
    found = _refined(refine.NoRefiner())(d)
    return {"images": found["images"], "maps": found["maps"], **_rings(d)}


def _crf_settings(d: Draw) -> dict[str, Any]:
    return {
        "iterations": d.whole(0, 2),
        "gaussian": d.one_of((1.0, 3.0), (3.0, 0.0)),
        "bilateral": d.one_of((67.0, 3.0, 4.0), (5.0, 50.0, 1.0)),
        "method": d.one_of("auto", "lattice", "cells", "exact"),
    }


@target(refine.DenseCRF)
def _crf_module(d: Draw) -> dict[str, Any]:
    return {**_refined(refine.NoRefiner())(d), **_crf_settings(d)}


@target(refine.dense_crf)
def _crf(d: Draw) -> dict[str, Any]:
    found = _refined(refine.NoRefiner())(d)
    return {"probs": found.pop("maps"), **found, **_crf_settings(d)}


def _transport_settings(d: Draw) -> dict[str, Any]:
    return {"reg": d.one_of(0.1, 1.0), "num_iters": d.whole(1, 3)}


@target(refine.TransportRefine)
def _transport_module(d: Draw) -> dict[str, Any]:
    return {**_refined(refine.NoRefiner())(d), **_transport_settings(d)}


@target(refine.transport_refine)
def _transport(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 3), d.grid()
    return {
        "cam": d.normal(b, k, *size),
        "labels": d.labels(b, k),
        "guide": d.maybe(d.normal(b, k, *size)),
        "valid": d.valid(b, *size),
        "official": d.coin(),
        **_transport_settings(d),
    }


@target(refine.class_heatmaps)
def _class_heatmaps(d: Draw) -> dict[str, Any]:
    b, dim, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    return {
        "features": d.normal(b, dim, *size),
        "centroids": d.normal(b, d.whole(1, 3), dim),
        "normalize": d.coin(),
        "valid": d.valid(b, *size),
    }


@target(refine.class_groups)
def _class_groups(d: Draw) -> dict[str, Any]:
    b, c = d.whole(1, 2), d.whole(1, 4)
    return {
        "centroids": d.normal(b, c, d.whole(1, 3)),
        "present": d.uniform(b, c) < 0.7,
        "threshold": d.one_of(0.0, 0.8),
        "overlapping": d.coin(),
    }


@target(refine.ClassRebalancer)
def _class_rebalancer(d: Draw) -> dict[str, Any]:
    b, k, size, uss = d.whole(1, 2), d.whole(1, 3), d.grid(5), d.maybe(d.grid())
    wss = tuple(d.normal(b, d.whole(1, 3), *d.grid()) for _ in range(d.whole(0, 2)))
    return {
        "images": d.uniform(b, 3, *size),
        "cam": d.maybe(d.normal(b, k, *d.grid())),
        "mask": d.mask(b, *size, classes=k + 1),
        "labels": d.labels(b, k),
        "uss_features": None if uss is None else d.normal(b, 3, *uss),
        "wss_features": wss,
        "box": d.maybe(d.box(b, size)),
        "valid": None if uss is None else d.valid(b, *uss),
        "refine_seed": d.coin(),
        "threshold": d.one_of(0.0, 0.8),
        "size": d.maybe(d.grid()),
        "class_mass": d.one_of("uniform", "area"),
        **_transport_settings(d),
        "ignore_index": 255,
    }


@target(refine.morphological_closing, refine.MorphologicalClosing)
def _morphological_closing(d: Draw) -> dict[str, Any]:
    return {"maps": d.normal(d.whole(1, 2), d.whole(1, 3), *d.grid()), "size": d.one_of(1, 3, 7)}


@target(refine.add_background)
def _add_background(d: Draw) -> dict[str, Any]:
    b = d.whole(1, 2)
    return {
        "cam": d.uniform(b, d.whole(1, 3), *d.grid()),
        "mode": d.one_of("constant", "power"),
        "value": d.one_of(0.3, 2.0, d.uniform(b)),
    }


@target(refine.sinkhorn, refine.Sinkhorn)
def _sinkhorn(d: Draw) -> dict[str, Any]:
    batch, rows, columns = d.whole(1, 2), d.whole(1, 5), d.whole(1, 4)
    a, b = d.uniform(batch, rows).softmax(1), d.uniform(batch, columns).softmax(1)
    return {
        "cost": d.uniform(batch, rows, columns),
        "reg": d.one_of(0.1, 1.0),
        "a": d.maybe(a),
        "b": d.maybe(b),
        "num_iters": d.whole(1, 3),
        "tol": d.maybe(1e-3),
        "method": d.one_of("auto", "scaling", "log", "newton", "exact"),
        "gradient": d.one_of("unroll", "implicit", "none"),
    }


@target(
    refine.refine_to_label,
    call=lambda **a: refine.refine_to_label(
        a.pop("cam"), a.pop("images"), a.pop("labels"), refine.NoRefiner(), **a
    ),
)
def _refine_to_label(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 3), d.grid(5)
    return {
        "cam": d.uniform(b, k, *d.grid()),
        "images": d.uniform(b, 3, *size),
        "labels": d.labels(b, k),
        "thresholds": d.one_of((0.25, 0.7), d.uniform(b, 2).sort(1).values),
        "box": d.maybe(d.box(b, size)),
        "ignore_index": 255,
    }


def _walk_settings(d: Draw, *shape: int) -> dict[str, Any]:
    return {
        "beta": d.one_of(1.0, 8.0),
        "steps": d.one_of(0, 2, 50),
        "valid": d.valid(shape[0], *shape[-2:]),
    }


_HALF_PLANE = ((0, 1), (1, -1), (2, 0))


@target(
    refine.random_walk,
    call=lambda maps, values, offsets, **a: refine.random_walk(
        maps, refine.NeighbourAffinity(values, offsets), **a
    ),
)
def _random_walk(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 3), d.grid()
    return {
        "maps": d.normal(b, *d.one_of((), (2,)), k, *size),
        "values": d.uniform(b, 3, *size),
        "offsets": _HALF_PLANE,
        **_walk_settings(d, b, *size),
    }


@target(refine.random_walk, name="random_walk.matrix")
def _random_walk_matrix(d: Draw) -> dict[str, Any]:
    b, k, (h, w) = d.whole(1, 2), d.whole(1, 3), d.grid(3)
    matrix = d.uniform(b, h * w, h * w)
    maps = d.normal(b, k, h, w)
    return {"maps": maps, "affinity": matrix, **_walk_settings(d, b, h, w)}


@target(
    refine.RandomWalk,
    call=lambda images, maps, labels, box, **a: refine.RandomWalk(
        lambda x, _: refine.feature_affinity(x, radius=2), **a
    )(images, maps, labels=labels, box=box),
)
def _random_walk_module(d: Draw) -> dict[str, Any]:
    settings = {"beta": d.one_of(1.0, 8.0), "steps": d.whole(0, 3)}
    return {**_refined(refine.NoRefiner())(d), **settings}


def _learnt(d: Draw) -> dict[str, Any]:
    return {
        "dim": d.whole(1, 3),
        "kind": d.one_of("psa", "irn"),
        "radius": d.whole(2, 4),
        "hidden": d.whole(1, 3),
    }


@target(refine.LearntWalk, weights=True)
def _learnt_walk(d: Draw) -> dict[str, Any]:
    b, settings = d.whole(1, 2), _learnt(d)
    return {
        **settings,
        "beta": d.one_of(None, 1.0, 8.0),
        "steps": d.one_of(None, 0, 3),
        "maps": d.uniform(b, d.whole(1, 3), *d.grid()),
        "features": d.normal(b, settings["dim"], *d.grid()),
    }


@target(
    refine.LearntWalk,
    name="LearntWalk.pairs",
    call=lambda mask, size, ignore_index, **a: refine.LearntWalk(**a).pairs(
        mask, size=size, ignore_index=ignore_index
    )[:3],
    words=("mask", "size", "ignore_index"),
)
def _learnt_pairs(d: Draw) -> dict[str, Any]:
    return {
        **_learnt(d),
        "mask": d.mask(d.whole(1, 2), *d.grid(), classes=3),
        "size": d.grid(),
        "ignore_index": 255,
    }


@target(refine.edge_affinity)
def _edge_affinity(d: Draw) -> dict[str, Any]:
    return {"edge": d.uniform(d.whole(1, 2), 1, *d.grid()), "radius": d.whole(2, 4)}


@target(refine.feature_affinity)
def _feature_affinity(d: Draw) -> dict[str, Any]:
    shape = d.whole(1, 2), d.whole(1, 3), *d.grid()
    return {"features": d.normal(*shape), "radius": d.whole(2, 4)}


@target(refine.affinity_labels, refine.affinity_matrix_labels)
def _affinity_labels(d: Draw) -> dict[str, Any]:
    return {
        "mask": d.mask(d.whole(1, 2), *d.grid(), classes=3),
        "radius": d.whole(2, 4),
        "ignore_index": 255,
    }


@target(
    refine.attention_affinity_refine,
    call=lambda maps, q, k, scale, **a: refine.attention_affinity_refine(
        maps, {3: backbones.QueryKey(q, k, scale)}, **a
    ),
    words=("q", "k", "scale"),
    huge=_HUGE_LOGITS,
)
def _attention_affinity(d: Draw) -> dict[str, Any]:
    b, (h, w) = d.whole(1, 2), d.grid(3)
    return {
        "maps": d.normal(b, d.whole(1, 3), h, w),
        **_query_key(d, b, d.whole(0, 2) + h * w),
        "layers": d.one_of(None, (3,)),
        "reduce": d.one_of("sum", "mean"),
    }


def _attention_module(images: Any, maps: Any, labels: Any, box: Any, **settings: Any) -> Tensor:
    grid, batch = (2, 2), len(images) if isinstance(images, Tensor) and images.ndim else 1
    qk = torch.ones(batch, 1, 5, 2)
    cells = torch.ones(batch, 2, *grid)
    features = backbones.Features(
        cells, cells[:, :, 0], {}, {}, {}, {0: backbones.QueryKey(qk, qk, 1.0)}
    )
    refiner = refine.AttentionAffinityRefine(**settings)
    return refiner(images, maps, labels=labels, box=box, features=features)


@target(refine.AttentionAffinityRefine, call=_attention_module)
def _attention_refiner(d: Draw) -> dict[str, Any]:
    settings = {"layers": d.one_of(None, (0,)), "reduce": d.one_of("sum", "mean")}
    return {**_refined(refine.NoRefiner())(d), **settings}


@target(refine.class_aware_affinity, refine.ClassAwareAffinity)
def _class_aware_affinity(d: Draw) -> dict[str, Any]:
    b, k, (h, w) = d.whole(1, 2), d.whole(1, 3), d.grid(3)
    return {
        "cam": d.uniform(b, k, h, w),
        "attention": d.uniform(b, h * w, h * w),
        "labels": d.labels(b, k),
        "threshold": d.one_of(0.0, 0.4),
        "rounds": d.whole(0, 3),
        "power": d.whole(0, 3),
    }


def _kinds(d: Draw) -> dict[str, Any]:
    offsets = ((0, 1), (1, 0))
    kinds = torch.randint(0, 4, (d.whole(1, 2), 2, *d.grid()), generator=d.generator)
    names = ("background", "foreground", "different")
    return {**{name: kinds == i for i, name in enumerate(names)}, "offsets": offsets}


@target(
    losses.affinity_loss,
    call=lambda values, offsets, counts, **kinds: losses.affinity_loss(
        refine.NeighbourAffinity(values, offsets),
        refine.AffinityLabels(**kinds, offsets=offsets),
        counts=counts,
    ),
    fixed={"offsets": "those of both arguments"},
)
@target(
    losses.AffinityLoss,
    call=lambda values, offsets, counts, **kinds: losses.AffinityLoss()(
        refine.NeighbourAffinity(values, offsets),
        refine.AffinityLabels(**kinds, offsets=offsets),
        counts=counts,
    ),
    fixed={"offsets": "those of both arguments"},
)
def _affinity_loss(d: Draw) -> dict[str, Any]:
    kinds = _kinds(d)
    values = d.uniform(*kinds["background"].shape)
    return {"values": values, "counts": d.maybe(torch.tensor([2, 3, 4])), **kinds}


@target(
    losses.affinity_counts,
    call=lambda **kinds: losses.affinity_counts(refine.AffinityLabels(**kinds)),
    fixed={"offsets": "those of a mask"},
)
def _affinity_counts(d: Draw) -> dict[str, Any]:
    return _kinds(d)


def _matrix_labels(d: Draw, batch: int, cells: int) -> Tensor:
    kinds = torch.randint(0, 3, (batch, cells, cells), generator=d.generator)
    return kinds.masked_fill(kinds == 2, 255).to(torch.uint8)


@target(losses.affinity_matrix_loss, losses.AffinityMatrixLoss)
def _affinity_matrix_loss(d: Draw) -> dict[str, Any]:
    b, n = d.whole(1, 2), d.whole(1, 4)
    return {
        "affinity": d.uniform(b, n, n),
        "labels": _matrix_labels(d, b, n),
        "counts": d.maybe(torch.tensor([2, 3])),
    }


@target(losses.affinity_matrix_counts)
def _affinity_matrix_counts(d: Draw) -> dict[str, Any]:
    return {"labels": _matrix_labels(d, d.whole(1, 2), d.whole(1, 4))}


@target(losses.multi_label_soft_margin_loss, losses.MultiLabelSoftMarginLoss)
def _soft_margin(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 3), d.whole(1, 4)
    return {
        "logits": d.normal(b, k),
        "labels": d.labels(b, k),
        "reduction": d.one_of("mean", "sum", "none"),
    }


@target(losses.balanced_segmentation_loss, losses.BalancedSegmentationLoss)
def _balanced(d: Draw) -> dict[str, Any]:
    b, c, size = d.whole(1, 2), d.whole(1, 4), d.grid()
    return {
        "logits": d.normal(b, c, *d.one_of(size, d.grid())),
        "mask": d.mask(b, *size, classes=c),
        "ignore_index": 255,
        "counts": d.maybe(torch.tensor([3, 4])),
    }


@target(losses.segmentation_loss, losses.SegmentationLoss)
def _segmentation(d: Draw) -> dict[str, Any]:
    return {**_balanced(d), "counts": d.maybe(torch.tensor(3))}


@target(losses.dense_energy_loss, losses.DenseEnergyLoss)
def _dense_energy(d: Draw) -> dict[str, Any]:
    b, c, size = d.whole(1, 2), d.whole(1, 4), d.grid(6)
    return {
        "logits": d.normal(b, c, *d.one_of(size, d.grid())),
        "images": d.uniform(b, 3, *size),
        "mask": d.maybe(d.mask(b, *size, classes=c)),
        "box": d.maybe(d.box(b, size)),
        "weight": 0.1,
        "sigma_rgb": d.one_of(15.0, 90.0),
        "sigma_xy": 4.0,
        "scale": d.one_of(0.5, 1.0),
        "method": d.one_of("auto", "lattice", "exact", "cells"),
        "ignore_index": 255,
    }


@target(losses.patch_token_contrast_loss, losses.PatchTokenContrastLoss)
def _patch_contrast(d: Draw) -> dict[str, Any]:
    b, size = d.whole(1, 2), d.grid()
    return {
        "features": d.normal(b, d.whole(1, 3), *size),
        "mask": d.mask(b, *size, classes=3),
        "ignore_index": 255,
        "counts": d.maybe(torch.tensor([3, 4])),
    }


@target(losses.background_consistency_loss, losses.BackgroundConsistencyLoss)
def _background_consistency(d: Draw) -> dict[str, Any]:
    b, size = d.whole(1, 2), d.grid()
    return {
        "eps": 1e-5,
        "foreground": d.normal(b, 1, *size),
        "background": d.normal(b, 1, *size),
        "labels": d.maybe(d.labels(b, d.whole(1, 3))),
        "counts": d.maybe(torch.tensor(2)),
    }


@target(losses.cam_consistency_loss, losses.CAMConsistencyLoss)
def _cam_consistency(d: Draw) -> dict[str, Any]:
    b, k, background, size = d.whole(1, 2), d.whole(1, 3), d.whole(0, 1), d.grid()
    return {
        "eps": 1e-5,
        "cam": d.normal(b, k + background, *size),
        "other": d.normal(b, k + background, *size),
        "labels": d.maybe(d.labels(b, k)),
        "counts": d.maybe(torch.tensor(2)),
    }


@target(losses.class_token_contrast_loss, losses.ClassTokenContrastLoss)
def _class_token_contrast(d: Draw) -> dict[str, Any]:
    b, k, dim = d.whole(1, 2), d.whole(1, 3), d.whole(1, 4)
    shape = d.one_of((b, k, dim), (d.whole(1, 2), b, k, dim))
    counts = d.maybe(torch.tensor(2))
    return {"tokens": d.normal(*shape), "labels": d.labels(b, k), "counts": counts}


@target(losses.crop_token_contrast_loss, losses.CropTokenContrastLoss)
def _crop_token_contrast(d: Draw) -> dict[str, Any]:
    b, n, dim = d.whole(1, 2), d.whole(1, 3), d.whole(1, 4)
    return {
        "tokens": d.normal(b, n, dim),
        "targets": d.normal(b, d.whole(1, 2), dim),
        "positive": d.uniform(b, n) < 0.5,
        "temperature": 0.5,
    }


@target(losses.global_implicit_alignment_loss, losses.GlobalImplicitAlignmentLoss)
def _gia(d: Draw) -> dict[str, Any]:
    b, k, dim = d.whole(1, 3), d.whole(1, 3), d.whole(1, 4)
    reduction = d.one_of("mean", "sum", "none")
    return {
        "token": d.normal(b, dim),
        "labels": d.labels(b, k),
        "class_text": d.normal(k, dim),
        "background_text": d.normal(d.whole(0, 2), dim),
        "similarity": d.one_of("tangent", "clamp", "shifted"),
        "reduction": reduction,
        "counts": d.maybe(torch.tensor(2)) if reduction == "mean" else None,
        "class_reduction": d.one_of("sum", "mean"),
    }


@target(losses.cross_contrastive_loss, losses.CrossContrastiveLoss)
def _cross_contrastive(d: Draw) -> dict[str, Any]:
    b, k, dim, size = d.whole(1, 2), d.whole(1, 3), d.whole(1, 4), d.grid()
    return {
        "features": d.normal(b, dim, *size),
        "mask": d.mask(b, *size, classes=k + 1),
        "labels": d.labels(b, k),
        "class_text": d.normal(k, dim),
        "background_text": d.normal(d.whole(1, 2), dim),
        "temperature": d.one_of(0.1, 1.0),
        "background_weight": 1e-3,
        "variant": d.one_of("background", "classes", "denominator", "batch"),
        "pool": d.one_of("region", "token"),
        "ignore_index": 255,
        "counts": d.maybe(torch.tensor(2)),
    }


@target(losses.image_text_contrastive_loss, losses.ImageTextContrastiveLoss)
def _image_text_contrastive(d: Draw) -> dict[str, Any]:
    b, dim = d.whole(1, 3), d.whole(1, 4)
    return {
        "image": d.normal(b, dim),
        "text": d.normal(b, dim),
        "logit_scale": d.one_of(10.0, torch.tensor(14.3)),
        "positives": d.maybe(torch.randint(0, 2, (b,), generator=d.generator)),
        "gather_distributed": d.coin(),
    }


@target(losses.balanced_segmentation_counts)
def _balanced_counts(d: Draw) -> dict[str, Any]:
    mask = d.mask(d.whole(1, 2), *d.grid(), classes=3)
    return {"mask": mask, "ignore_index": d.one_of(255, -1)}


target(losses.segmentation_counts)(_balanced_counts)
target(losses.patch_token_contrast_counts)(_balanced_counts)


@target(losses.cross_contrastive_counts)
def _contrastive_counts(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 2), d.whole(1, 3)
    mask = d.mask(b, *d.grid(), classes=k + 1)
    return {"mask": mask, "labels": d.labels(b, k), "ignore_index": 255}


@target(losses.cam_consistency_counts)
def _cam_counts(d: Draw) -> dict[str, Any]:
    return {**_gia_counts(d), "background": d.coin()}


@target(
    losses.background_consistency_counts,
    losses.class_token_contrast_counts,
    losses.global_implicit_alignment_counts,
)
def _gia_counts(d: Draw) -> dict[str, Any]:
    return {"labels": d.labels(d.whole(1, 3), d.whole(1, 3))}


# --- metrics ---------------------------------------------------------------------------------

_MOVED = "moves its tensors to one device, where a tensor without data cannot go"
_UNDEFINED = "scores that nothing defines are NaN: documented"


def _counted(metric: Any, settings: set[str], arguments: dict[str, Any]) -> Any:
    one = metric(**{k: v for k, v in arguments.items() if k in settings})
    one.update(**{k: v for k, v in arguments.items() if k not in settings})
    return one.compute()


_EVALUATOR = {"num_classes", "ignore_index", "absent", "names"}
_SPLIT = _EVALUATOR | {"undecided", "boundary", "replicates"}
_SWEEP = {"num_classes", "thresholds", "ignore_index", "absent", "normalize"}


@target(
    metrics.SegmentationEvaluator,
    call=lambda **a: _counted(metrics.SegmentationEvaluator, _EVALUATOR, a),
    nan=_UNDEFINED,
)
def _evaluator(d: Draw) -> dict[str, Any]:
    c, shape = d.whole(1, 4), d.one_of(d.grid(), (d.whole(1, 2), *d.grid()))
    return {
        "num_classes": c,
        "ignore_index": 255,
        "absent": d.one_of("both", "target"),
        "names": d.maybe([f"class {i}" for i in range(c)]),
        "pred": torch.randint(0, c, shape, generator=d.generator),
        "target": d.mask(*shape, classes=c),
    }


@target(metrics.boundary_region)
def _boundary_region(d: Draw) -> dict[str, Any]:
    return {"mask": d.mask(d.whole(1, 2), *d.grid(), classes=3), "width": d.whole(1, 6)}


@target(
    metrics.BoundaryEvaluator,
    call=lambda **a: _counted(metrics.BoundaryEvaluator, _EVALUATOR | {"ratio"}, a),
    nan=_UNDEFINED,
)
def _boundary(d: Draw) -> dict[str, Any]:
    return {**_evaluator(d), "ratio": d.one_of(0.02, 0.3)}


@target(
    metrics.SplitEvaluator,
    call=lambda **a: _counted(metrics.SplitEvaluator, _SPLIT, a),
    nan=_UNDEFINED,
    fixed={"name": "any text, or what str makes of it"},
)
def _split(d: Draw) -> dict[str, Any]:
    c, shape = d.whole(1, 4), d.grid()
    return {
        "num_classes": c,
        "names": d.maybe([f"class {i}" for i in range(c)]),
        "ignore_index": 255,
        "absent": d.one_of("both", "target"),
        "undecided": d.one_of("refused", "ignored", "background"),
        "boundary": d.coin(),
        "replicates": d.one_of(0, 5),
        "name": "a",
        "pred": torch.randint(0, c, shape, generator=d.generator),
        "target": d.mask(*shape, classes=c),
    }


@target(
    metrics.ImageBootstrap,
    call=lambda **a: _counted(
        metrics.ImageBootstrap, {"num_classes", "replicates", "seed", "absent"}, a
    ),
    nan=_UNDEFINED,
)
def _bootstrap(d: Draw) -> dict[str, Any]:
    b, c = d.whole(1, 3), d.whole(1, 4)
    return {
        "num_classes": c,
        "replicates": d.whole(2, 5),
        "seed": d.whole(0, 9),
        "absent": d.one_of("both", "target"),
        "ids": [f"image {i}" for i in range(b)],
        "confusion": torch.randint(0, 9, (b, c, c), generator=d.generator),
    }


@target(metrics.mean_average_precision, nan="no image shows a class")
def _mean_average_precision(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 4), d.whole(1, 3)
    return {"scores": d.normal(b, k), "labels": d.labels(b, k)}


def _recalls(d: Draw) -> dict[str, Any]:
    n, m = d.whole(1, 4), d.whole(1, 5)
    return {
        "text_image": torch.randint(0, n, (m,), generator=d.generator),
        "ks": d.one_of((1,), (1, 5)),
        "groups": d.maybe(torch.randint(0, 3, (m,), generator=d.generator)),
        "images": n,
    }


target(metrics.retrieval_chance)(_recalls)


@target(metrics.retrieval_scores)
def _retrieval(d: Draw) -> dict[str, Any]:
    drawn, dim = _recalls(d), d.whole(1, 3)
    image = d.normal(drawn.pop("images"), dim)
    return {"image": image, "text": d.normal(len(drawn["text_image"]), dim), **drawn}


@target(metrics.topk_accuracy)
def _topk(d: Draw) -> dict[str, Any]:
    n, k = d.whole(1, 4), d.whole(1, 3)
    labels = torch.randint(0, k, (n,), generator=d.generator)
    return {"scores": d.normal(n, k), "labels": labels, "ks": d.one_of((1,), (1, 5))}


@target(metrics.zero_shot_accuracy)
def _zero_shot(d: Draw) -> dict[str, Any]:
    scored, dim = _topk(d), d.whole(1, 3)
    n, k = scored.pop("scores").shape
    return {"features": d.normal(n, dim), "classes": d.normal(k, dim), **scored}


@target(
    metrics.ThresholdSweep,
    call=lambda **a: _counted(metrics.ThresholdSweep, _SWEEP, a),
    nan=_UNDEFINED,
)
def _sweep(d: Draw) -> dict[str, Any]:
    b, k = d.whole(1, 2), d.whole(1, 3)
    return {
        "num_classes": k + 1,
        "thresholds": d.maybe((0.2, 0.5)),
        "ignore_index": 255,
        "absent": d.one_of("both", "target"),
        "normalize": d.maybe("minmax"),
        "cam": d.normal(b, k, *d.grid()),
        "labels": d.labels(b, k),
        "target": d.mask(b, *d.grid(), classes=k + 1),
    }


def _protocol_fields(d: Draw) -> dict[str, Any]:
    threshold = d.one_of(None, 0.4, (0.2, 0.6))
    return {
        "dataset": "scenes",
        "split": "val",
        "num_images": d.whole(1, 3),
        "scales": d.one_of((1.0,), (0.5, 1.0)),
        "flip": d.coin(),
        "refiner": "none",
        "labels_used": d.coin(),
        "flip_reduce": "mean",
        "scale_reduce": "mean",
        "size_policy": "resize",
        "threshold": threshold,
        "threshold_source": None if threshold is None else "preset",
        "absent_rule": d.one_of("both", "target"),
        "ignore_index": 255,
    }


@target(
    metrics.EvaluationProtocol,
    call=lambda **a: metrics.EvaluationProtocol(**a).describe(),
    fixed=dict.fromkeys(
        ("flip_reduce", "scale_reduce", "size_policy", "threshold_source"), "a description"
    ),
)
def _protocol(d: Draw) -> dict[str, Any]:
    return _protocol_fields(d)


def _some_protocol() -> metrics.EvaluationProtocol:
    return metrics.EvaluationProtocol(
        dataset="scenes",
        split="val",
        num_images=1,
        scales=(1.0,),
        flip=False,
        refiner="none",
        labels_used=True,
        threshold=0.4,
        threshold_source="preset",
    )


@target(metrics.hash_masks, call=lambda masks: metrics.hash_masks([masks]))
def _hash(d: Draw) -> dict[str, Any]:
    return {"masks": d.mask(*d.one_of(d.grid(), (2, *d.grid())), classes=3)}


def _write_metrics(results: Any, seed: Any) -> None:
    metrics.write_metrics(_SINK, results, _some_protocol(), seed=seed, command="fuzz")


@target(metrics.write_metrics, call=_write_metrics, fixed={"seed": "written as it is"})
def _results(d: Draw) -> dict[str, Any]:
    return {"results": {"segmentation": d.random.random()}, "seed": 0}


def _one_sample(image: Any, labels: Any, mask: Any) -> list[dict[str, Any]]:
    return [{"image": image, "labels": labels, "mask": mask}]


@target(
    metrics.sweep_maps,
    device=_MOVED,
    call=lambda num_classes, **sample: metrics.sweep_maps(
        lambda x, y: {"red": x[:, :1].repeat(1, y.shape[1], 1, 1)},
        _one_sample(**sample),
        num_classes=num_classes,
    )["red"].compute(),
    words=("image", "labels", "mask", "cam", "target"),
    nan=_UNDEFINED,
)
def _sweep_maps(d: Draw) -> dict[str, Any]:
    k, size = d.whole(1, 2), d.grid()
    return {
        "image": d.uniform(3, *size),
        "labels": d.labels(1, k)[0],
        "mask": d.mask(*size, classes=k + 1),
        "num_classes": k + 1,
    }


@target(
    metrics.score_maps,
    device=_MOVED,
    call=lambda num_classes, **sample: (
        metrics.score_maps(
            lambda x, y: {"red": x[:, :1].repeat(1, y.shape[1], 1, 1)},
            _one_sample(**sample),
            num_classes=num_classes,
            protocol=_some_protocol(),
        ).miou
    ),
    words=("image", "labels", "mask", "cam", "target"),
    nan=_UNDEFINED,
)
def _score_maps(d: Draw) -> dict[str, Any]:
    return _sweep_maps(d)


@target(
    metrics.evaluate_masks,
    device=_MOVED,
    call=lambda predicted, num_classes, names, mask: metrics.evaluate_masks(
        lambda sample: predicted, [{"mask": mask}], num_classes=num_classes, names=names
    ).compute(),
    words=("mask", "pred", "target"),
    nan=_UNDEFINED,
)
def _evaluate_masks(d: Draw) -> dict[str, Any]:
    c, size = d.whole(1, 3), d.grid()
    return {
        "predicted": d.mask(*size, classes=c),
        "mask": d.mask(*size, classes=c),
        "num_classes": c,
        "names": d.maybe(tuple(map(str, range(c)))),
    }


# --- viz -------------------------------------------------------------------------------------


@target(viz.heat_colors)
def _heat(d: Draw) -> dict[str, Any]:
    return {"heat": d.uniform(*d.one_of(d.grid(), (2, *d.grid())))}


@target(viz.colorize, device=_MOVED)
def _colorize(d: Draw) -> dict[str, Any]:
    palette = torch.randint(0, 256, (256, 3), generator=d.generator).to(torch.uint8)
    return {"mask": d.mask(*d.grid(), classes=3), "palette": d.maybe(palette)}


@target(viz.overlay_mask)
def _overlay_mask(d: Draw) -> dict[str, Any]:
    size = d.grid()
    return {"image": d.uniform(3, *size), "mask": d.mask(*size, classes=3), "alpha": 0.6}


@target(viz.overlay_heatmap)
def _overlay_heatmap(d: Draw) -> dict[str, Any]:
    size = d.grid()
    return {"image": d.uniform(3, *size), "heat": d.uniform(*size), "alpha": 0.6}


def _to_sink(figure: Callable[..., None]) -> Callable[..., None]:
    return lambda **arguments: figure(path=_SINK, **arguments)


@target(
    viz.figure_grid,
    call=lambda image, **a: viz.figure_grid([[image, None]], path=_SINK, **a),
)
def _figure_grid(d: Draw) -> dict[str, Any]:
    return {
        "image": d.uniform(3, *d.grid()),
        "titles": d.maybe(["one", "two"]),
        "row_labels": d.maybe(["row"]),
        "captions": d.maybe([["a", "b"]]),
        "legend": d.maybe({"cat": (1, 2, 3)}),
        "cell": 8,
    }


@target(viz.segmentation_figure, call=_to_sink(viz.segmentation_figure))
def _segmentation_figure(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 2), d.grid()
    return {
        "images": d.uniform(b, 3, *size),
        "labels": d.labels(b, k),
        "names": [f"class {i}" for i in range(k + 1)],
        "cam": d.maybe(d.normal(b, k, *d.grid())),
        "pseudo_label": d.maybe(d.mask(b, *size, classes=k + 1)),
        "prediction": d.maybe(d.mask(b, *size, classes=k + 1)),
        "truth": d.maybe(d.mask(b, *size, classes=k + 1)),
        "ignore_index": 255,
        "cell": 8,
    }


@target(viz.similarity_figure, call=_to_sink(viz.similarity_figure))
def _similarity_figure(d: Draw) -> dict[str, Any]:
    b, m = d.whole(1, 2), d.whole(1, 2)
    return {
        "images": d.uniform(b, 3, *d.grid()),
        "similarity": d.normal(b, m, *d.grid()),
        "names": [f"text {i}" for i in range(m)],
        "limits": d.maybe((0.0, 1.0)),
        "row_labels": d.maybe([f"row {i}" for i in range(b)]),
        "cell": 8,
    }


@target(viz.rebalancing_figure, call=_to_sink(viz.rebalancing_figure), slow=True)
def _rebalancing_figure(d: Draw) -> dict[str, Any]:
    b, k, size = d.whole(1, 2), d.whole(1, 2), d.grid()
    return {
        "images": d.uniform(b, 3, *size),
        "labels": d.labels(b, k),
        "names": [f"class {i}" for i in range(k + 1)],
        "initial": d.mask(b, *size, classes=k + 1),
        "weights": d.uniform(b, k + 1, *d.grid()),
        "before": d.uniform(b, k + 1, *d.grid()),
        "after": d.uniform(b, k + 1, *d.grid()),
        "result": d.mask(b, *size, classes=k + 1),
        "truth": d.maybe(d.mask(b, *size, classes=k + 1)),
        "palette": d.maybe(torch.randint(0, 256, (256, 3), generator=d.generator)),
        "ignore_index": 255,
        "cell": 8,
    }


@target(
    viz.class_token_figure,
    call=lambda values, **a: viz.class_token_figure({"block 1": values}, path=_SINK, **a),
    words=("tokens",),
    device=_MOVED,
    slow=True,
)
def _class_token_figure(d: Draw) -> dict[str, Any]:
    m, k = d.whole(3, 6), d.whole(1, 3)
    return {
        "values": d.normal(m, d.whole(1, 4)),
        "classes": torch.randint(0, k, (m,), generator=d.generator),
        "names": [f"class {i}" for i in range(k)],
        "perplexity": d.one_of(1.0, 30.0),
        "seed": d.whole(0, 9),
        "palette": d.maybe(torch.randint(0, 256, (256, 3), generator=d.generator)),
    }


@target(viz.class_score_figure, call=_to_sink(viz.class_score_figure), device=_MOVED, slow=True)
def _class_score_figure(d: Draw) -> dict[str, Any]:
    n, c = d.whole(1, 4), d.whole(1, 3)
    return {
        "scores": d.normal(n, c),
        "labels": d.maybe(d.labels(n, c)),
        "names": [f"class {i}" for i in range(c)],
        "thresholds": d.maybe(d.normal(n)),
        "bins": d.whole(1, 5),
    }


@target(viz.patch_similarity_figure, call=_to_sink(viz.patch_similarity_figure), device=_MOVED)
def _patch_similarity_figure(d: Draw) -> dict[str, Any]:
    dim, grid, m = d.whole(1, 3), d.grid(), d.whole(1, 2)
    query = (d.whole(0, grid[0] - 1), d.whole(0, grid[1] - 1))
    return {
        "image": d.uniform(3, *d.grid(9)),
        "patches": d.normal(dim, *grid),
        "queries": [query],
        "texts": d.normal(m, dim),
        "names": [f"text {i}" for i in range(m)],
        "cell": 8,
    }


@target(
    viz.curve_figure,
    call=lambda x, y, **a: viz.curve_figure(
        {"CAM": (x, y)}, path=_SINK, x_label="x", y_label="y", **a
    ),
    slow=True,
)
def _curve(d: Draw) -> dict[str, Any]:
    marks = {"Otsu": d.random.random()}
    return {"x": [0.1, 0.2], "y": [0.3, 0.4], "mark_best": d.coin(), "marks": marks}


# --- backbones -------------------------------------------------------------------------------


def _pictures(d: Draw, limit: int = 9) -> dict[str, Any]:
    return {"images": d.uniform(d.whole(1, 2), 3, *d.grid(limit))}


@target(
    backbones.SmallCNN,
    weights=True,
    call=lambda images, layers, **a: backbones.SmallCNN(**a).eval()(images, layers=layers),
)
def _small_cnn(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "widths": (2, 3),
        "blocks": (0, 1),
        "layers": d.one_of((), (1,), (-1, 1)),
        "size_policy": d.one_of("resize", "pad"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }


@target(
    backbones.BilateralFeatures,
    weights=True,
    call=lambda images, layers, **a: backbones.BilateralFeatures(**a)(images, layers=layers),
)
def _bilateral(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "dim": 2 * d.whole(1, 3),
        "colour_scale": d.one_of(0.15, 1.0),
        "position_scale": d.one_of(0.3, 10.0),
        "stride": d.whole(1, 3),
        "seed": d.whole(0, 9),
        "layers": (),
    }


def _tiny_vit() -> nn.Module:
    from timm.models import VisionTransformer

    return VisionTransformer(img_size=8, patch_size=4, embed_dim=4, depth=2, num_heads=1)


def _tiny_cnn() -> nn.Module:
    from timm.models import ResNet
    from timm.models.resnet import BasicBlock

    return ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(2, 2, 2, 2), num_classes=2)


def _tiny_tower() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(8, 4, width=4, layers=2, heads=1, mlp_ratio=1, output_dim=3)


def _tiny_text() -> nn.Module:
    from open_clip.transformer import TextTransformer

    return TextTransformer(
        context_length=6, vocab_size=300, width=4, heads=1, layers=1, output_dim=3
    )


def _encoding(wrapper: Any, model: Callable[[], nn.Module]) -> Callable[..., Any]:
    def call(images: Any, layers: Any, **settings: Any) -> Any:
        encoder = wrapper(model(), **settings).eval()
        return encoder(images, layers=layers)

    return call


def _wrapped(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "layers": d.one_of((), (-1,)),
        "size_policy": d.one_of("resize", "pad"),
        "mean": d.maybe((0.5, 0.5, 0.5)),
        "std": d.maybe((0.25, 0.25, 0.25)),
    }


for _wrapper, _model in (
    (backbones.TimmViT, _tiny_vit),
    (backbones.TimmCNN, _tiny_cnn),
    (backbones.OpenCLIPImageEncoder, _tiny_tower),
):
    target(_wrapper, weights=True, call=_encoding(_wrapper, _model))(_wrapped)


@target(
    backbones.OpenCLIPTextEncoder, weights=True, call=lambda ids, mask: _text_encoder()(ids, mask)
)
def _ids(d: Draw) -> dict[str, Any]:
    b, t = d.whole(1, 2), d.whole(1, 6)
    ids = torch.randint(0, 300, (b, t), generator=d.generator)
    return {"ids": ids, "mask": d.uniform(b, t) < 0.7}


def _text_encoder() -> nn.Module:
    return backbones.OpenCLIPTextEncoder(_tiny_text()).eval()


def _joint() -> nn.Module:
    import open_clip

    vision = open_clip.CLIPVisionCfg(layers=1, width=8, head_width=4, patch_size=2, image_size=4)
    text = open_clip.CLIPTextCfg(vocab_size=300, context_length=6, width=4, heads=1, layers=1)
    return backbones.OpenCLIPModel(open_clip.CLIP(3, vision, text)).eval()


def _pairs_in(images: Any, ids: Any, mask: Any) -> Any:
    model = _joint()
    pooled = model.encode_image(images), model.encode_text(ids, mask)
    return (*pooled, model.encode_patches(images))


@target(backbones.OpenCLIPModel, weights=True, call=_pairs_in, words=("images", "ids", "mask"))
def _pairs(d: Draw) -> dict[str, Any]:
    return {**_pictures(d), **_ids(d)}


class _Pieces:
    """As much of a tokenizer of Hugging Face as an encoder looks at."""

    cls_token_id, sep_token_id, mask_token_id, pad_token_id = 1, 2, 3, 0

    def get_vocab(self) -> dict[str, int]:
        return {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "em": 4, "##bed": 5, "cat": 6}


def _hugging_face() -> nn.Module:
    import transformers

    size = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=300, intermediate_size=4, **size)
    return backbones.HuggingFaceTextEncoder(config, tokenizer=_Pieces(), max_length=6).eval()


target(
    backbones.HuggingFaceTextEncoder,
    weights=True,
    call=lambda ids, mask: _hugging_face()(ids, mask),
)(_ids)


@target(backbones.SmallTextEncoder, weights=True)
def _small_text(d: Draw) -> dict[str, Any]:
    words = ["a", "cat", "dog"][: d.whole(1, 3)]
    b, t = d.whole(1, 2), d.whole(1, 4)
    return {
        "words": words,
        "dim": d.one_of(2, 4),
        "depth": d.whole(1, 2),
        "heads": d.whole(1, 2),
        "max_length": d.whole(t, 5),
        "ids": torch.randint(0, 3 + len(words), (b, t), generator=d.generator),
        "mask": d.uniform(b, t) < 0.7,
    }


@target(
    backbones.TokenViT,
    weights=True,
    call=lambda images, layers, attention_layers, num_classes, **a: backbones.TokenViT(
        _tiny_vit(), num_classes, **a
    ).eval()(images, layers=layers, attention_layers=attention_layers),
)
def _token_vit(d: Draw) -> dict[str, Any]:
    return {
        **_wrapped(d),
        "attention_layers": d.one_of((), (-1,), (0, 1)),
        "num_classes": d.whole(1, 3),
        "background": d.coin(),
        "generator": d.coin(),
        "resample": d.one_of("compat", "timm"),
    }


@target(backbones.ClassTokens)
def _class_tokens(d: Draw) -> dict[str, Any]:
    return {
        "dim": d.whole(1, 4),
        "num_classes": d.whole(1, 3),
        "background": d.coin(),
        "generator": d.coin(),
    }


@target(backbones.TextBank, call=lambda **a: list(backbones.TextBank(**a).buffers()))
def _bank(d: Draw) -> dict[str, Any]:
    k, dim = d.whole(1, 3), d.whole(1, 4)
    return {
        "classes": d.normal(k, dim),
        "background": d.maybe(d.normal(d.whole(0, 2), dim)),
        "names": [f"class {i}" for i in range(k)],
        "source": "fuzz",
    }


@target(
    backbones.TextBank.stand_in,
    name="TextBank.stand_in",
    call=lambda **a: list(backbones.TextBank.stand_in(**a).buffers()),
)
def _stand_in(d: Draw) -> dict[str, Any]:
    return {"names": ["cat", "dog"], "dim": d.whole(3, 6), "seed": d.whole(0, 3)}


@target(backbones.resize_to_stride)
def _to_stride(d: Draw) -> dict[str, Any]:
    return {
        "images": d.uniform(d.whole(1, 2), d.whole(1, 3), *d.grid(9)),
        "stride": d.whole(1, 4),
        "policy": d.one_of("resize", "pad"),
    }


@target(
    backbones.mobilenet_v1,
    call=lambda multiplier, output_stride, images: backbones.TimmCNN(
        backbones.mobilenet_v1(multiplier, output_stride=output_stride)
    ).eval()(images),
    fixed={"images": "those of TimmCNN"},
    slow=True,
)
def _mobilenet(d: Draw) -> dict[str, Any]:
    return {"multiplier": 0.125, "output_stride": d.one_of(8, 16, 32), **_pictures(d)}


# --- training --------------------------------------------------------------------------------


@target(training.param_groups, call=lambda **a: len(training.param_groups(**a)))
def _groups(d: Draw) -> dict[str, Any]:
    return {
        "model": nn.ModuleDict({"head": nn.Linear(1, 1)}),
        "lr": 0.1,
        "weight_decay": d.one_of(0.0, 0.01),
        "multipliers": d.one_of({}, {"head.": 10.0}),
        "no_decay": ("pos_embed",),
    }


def _rates(**settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = training.polynomial_schedule(optimizer, **settings)
    optimizer.step()
    schedule.step()
    return schedule.get_last_lr()


@target(training.polynomial_schedule, call=_rates)
def _schedule(d: Draw) -> dict[str, Any]:
    return {
        "total_steps": d.whole(3, 5),
        "warmup_steps": d.whole(0, 2),
        "warmup_ratio": 1e-6,
        "power": 0.9,
    }


def _cached(image: Tensor, text: Tensor, chunk_size: Any) -> list[Tensor]:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).square().mean()

    total = training.cached_gradient_backward(layers, [image, text], loss, chunk_size=chunk_size)
    return [total, *(p.grad for layer in layers for p in layer.parameters())]


@target(
    training.cached_gradient_backward,
    call=_cached,
    fixed=dict.fromkeys(("image", "text"), "what the caller's encoders make of it is theirs"),
)
def _cached_gradients(d: Draw) -> dict[str, Any]:
    image, text = d.normal(d.whole(1, 4), 3), d.normal(d.whole(1, 4), 3)
    return {"image": image, "text": text, "chunk_size": d.whole(1, 5)}


@target(training.linear_probe, huge="features of 1e30 overflow in the layer")
def _linear_probe(d: Draw) -> dict[str, Any]:
    n, m, dim, k = d.whole(2, 4), d.whole(1, 4), d.whole(1, 3), d.whole(1, 3)
    return {
        "features": d.normal(n, dim),
        "labels": torch.randint(0, k, (n,), generator=d.generator),
        "val_features": d.normal(m, dim),
        "val_labels": torch.randint(0, k, (m,), generator=d.generator),
        "num_classes": k,
        "epochs": d.whole(2, 3),
        "base_lr": 0.1,
        "batch_size": d.whole(2, 5),
        "warmup": d.whole(0, 1),
        "momentum": 0.9,
        "batch_norm": d.coin(),
        "ks": (1, 2),
        "seed": d.whole(0, 9),
    }


def _phases(starts: Any, weights: Any, name: Any, step: Any) -> float:
    return training.Phases(starts, weights=weights).weight(name, step)


@target(training.Phases, call=_phases, words=("name", "step"))
def _phases_draw(d: Draw) -> dict[str, Any]:
    weights = d.one_of({}, {"seg": 0.1})
    return {"starts": {"seg": 2}, "weights": weights, "name": "seg", "step": d.whole(0, 4)}


# --- data ------------------------------------------------------------------------------------


def _sample(d: Draw) -> dict[str, Any]:
    k = d.whole(1, 3)
    return {
        "image": d.uniform(3, *d.grid(6)),
        "id": "a",
        "labels": d.maybe(d.labels(1, k)[0]),
    }


target(data.new_sample)(_sample)
target(
    data.collate,
    call=lambda **a: data.collate([data.new_sample(**a), data.new_sample(**a)]),
    words=("image", "labels", "id"),
)(_sample)


@target(
    data.replay,
    call=lambda map, matrix, **a: data.replay(
        map, data.Geometry(matrix, torch.tensor((4, 5)), torch.tensor((4, 5))), **a
    ),
)
def _replay(d: Draw) -> dict[str, Any]:
    return {
        "map": d.normal(d.whole(1, 2), *d.grid()),
        "matrix": torch.eye(2, 3),
        "size": d.maybe(d.grid()),
        "mode": d.one_of("bilinear", "nearest"),
        "fill": d.one_of(0.0, -1.0),
    }


def _follow(size: Any, new_size: Any, top: Any, left: Any, crop: Any) -> Tensor:
    geometry = data.Geometry.identity(size).resize(new_size).flip().crop(top, left, crop)
    return geometry.compose(data.Geometry.identity(crop)).matrix


@target(data.Geometry, call=_follow, words=("size", "top", "left"))
def _geometry(d: Draw) -> dict[str, Any]:
    corner = {"top": d.whole(-2, 2), "left": d.whole(-2, 2)}
    return {"size": d.grid(), "new_size": d.grid(), **corner, "crop": d.grid()}


@target(data.write_mask, call=lambda mask: data.write_mask(_SINK, mask))
def _write_mask(d: Draw) -> dict[str, Any]:
    return {"mask": d.mask(*d.grid(), classes=3)}


@target(data.class_table)
def _class_table(d: Draw) -> dict[str, Any]:
    return {"name": d.one_of(*data.CLASS_TABLES)}


@target(data.check_split_size)
def _split_size(d: Draw) -> dict[str, Any]:
    return {
        "table": d.one_of("voc", "ade20k"),
        "split": d.one_of("mine", "train2014"),
        "count": d.whole(0, 9),
    }


@target(
    data.write_class_maps,
    call=lambda cam, labels, **a: data.write_class_maps(f"{_SINK}.npz", cam, labels, **a),
    device="labels may lie on another one",
)
def _class_maps(d: Draw) -> dict[str, Any]:
    k = d.whole(1, 3)
    return {
        "cam": d.normal(k, *d.grid()),
        "labels": d.labels(1, k)[0],
        "dtype": d.one_of("float16", "float32"),
    }


@target(data.estimate_cam_store)
def _cam_store_size(d: Draw) -> dict[str, Any]:
    return {
        "images": d.whole(0, 9),
        "classes": 2.9 * d.whole(0, 2),
        "grid": d.grid(),
        "dtype": d.one_of("uint8", "float16"),
    }


def _stored_cam(
    names: Any, dtype: Any, shard_size: Any, rank: Any, world_size: Any, **record: Any
) -> Any:
    with tempfile.TemporaryDirectory(dir=_FOLDER.name) as folder:
        settings = {"shard_size": shard_size, "rank": rank, "world_size": world_size}
        ids = [str(i) for i in range(rank + 1)] if isinstance(rank, int) else ["0"]
        lines: list[str] = []
        with data.CamStoreWriter(
            folder, ids, names, dtype=dtype, progress=lines.append, **settings
        ) as writer:
            writer.write(ids[-1], **record)
        return data.CamStore(folder)[ids[-1]].cam


@target(
    data.CamStoreWriter,
    call=_stored_cam,
    words=("cam", "labels", "image_size"),
    device="labels may lie on another one",
)
def _cam_store(d: Draw) -> dict[str, Any]:
    k = d.whole(1, 3)
    return {
        "names": [str(i) for i in range(k)],
        "dtype": d.one_of("uint8", "float16"),
        "shard_size": d.whole(1, 3),
        "rank": d.whole(0, 1),
        "world_size": 2,
        "cam": d.normal(k, *d.grid()),
        "labels": d.labels(1, k)[0],
        "image_size": d.grid(9),
    }


@target(data.voc_palette)
def _palette(d: Draw) -> dict[str, Any]:
    return {"n": d.whole(1, 256)}


@target(data.StepSampler, call=lambda **a: len(list(data.StepSampler(**a))))
def _sampler(d: Draw) -> dict[str, Any]:
    return {
        "length": d.whole(1, 5),
        "batch_size": d.whole(1, 3),
        "steps": d.whole(1, 4),
        "start": d.whole(0, 1),
        "seed": d.whole(0, 9),
        "rank": 0,
        "world_size": d.whole(1, 2),
    }


def _transformed(transform: Any) -> Callable[..., Any]:
    def call(image: Any, **settings: Any) -> Any:
        sample = data.new_sample(image, id="a")
        return transform(**settings)(sample, torch.Generator().manual_seed(0))["image"]

    return call


_SETTINGS: dict[Any, dict[str, Any]] = {
    data.CenterCrop: {"size": 4, "fill": 0.0},
    data.RandomCrop: {"size": (4, 5), "fill": 0.0},
    data.RandomResizedCrop: {"size": 4, "scale": (0.2, 1.0), "ratio": (0.75, 1.5)},
    data.RandomScale: {"low": 0.5, "high": 2.0},
    data.RandomResize: {"low": 4, "high": 8},
    data.RandomHorizontalFlip: {"p": 0.5},
    data.Resize: {"size": (4, 5)},
    data.ColorJitter: {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 1.0},
    data.RandomGrayscale: {"p": 0.5},
    data.ChannelPermutation: {"p": 0.5},
    data.GaussianBlur: {"low": 0.1, "high": 2.0, "p": 1.0},
    data.AutoAugment: {"fill": 0.5},
    data.RandAugment: {"config": "rand-m9-mstd0.5-inc1", "fill": 0.45},
    data.training_transform: {
        "size": 4,
        "scale": (0.5, 2.0),
        "flip": True,
        "colour": "photometric",
        "square": False,
    },
}
for _transform, _values in _SETTINGS.items():
    target(
        _transform,
        call=_transformed(_transform),
        fixed={"image": "checked by new_sample"},
    )(lambda d, values=_values: {"image": d.uniform(3, *d.grid(6)), **values})


@target(
    data.compute_maps,
    call=lambda image, dtype: data.compute_maps(
        lambda x: x[..., ::2, ::2], [data.new_sample(image, id="a")], lambda s, g: s, dtype=dtype
    ),
    words=("image",),
    fixed={"image": "checked by new_sample"},
)
def _compute_maps(d: Draw) -> dict[str, Any]:
    return {"image": d.uniform(3, *d.grid(6)), "dtype": torch.float16}


def _with_maps(image: Any, map: Any, size: Any) -> Any:
    samples = data.Augmented([data.new_sample(image, id="a")], lambda s, g: s)
    with_maps = data.WithMaps(samples, {"features": [map]}, sizes={"features": size})
    return with_maps[0, 7]["maps"]["features"]


@target(
    data.WithMaps,
    call=_with_maps,
    words=("map",),
    fixed={"image": "checked by new_sample"},
)
def _with_maps_draw(d: Draw) -> dict[str, Any]:
    return {"image": d.uniform(3, *d.grid(6)), "map": d.normal(2, *d.grid()), "size": d.grid()}


def _vocabulary() -> backbones.TextVocabulary:
    return backbones.TextVocabulary.from_pieces(
        _Pieces().get_vocab(), special=[1, 2], mask_id=3, pad_id=0
    )


@target(
    data.augment_words,
    call=lambda **a: data.augment_words(
        vocabulary=_vocabulary(), generator=torch.Generator().manual_seed(0), **a
    ),
)
@target(
    data.WordAugmentation,
    call=lambda ids, mask, **a: data.WordAugmentation(_vocabulary(), **a)(
        ids, mask, generator=torch.Generator().manual_seed(0)
    ),
)
def _captions(d: Draw) -> dict[str, Any]:
    b, t = d.whole(1, 3), d.whole(1, 6)
    return {
        "ids": torch.randint(0, 7, (b, t), generator=d.generator),
        "mask": d.uniform(b, t) < 0.7,
        "mask_rate": d.one_of(0.0, 0.3),
        "replace_rate": d.one_of(0.0, 0.2),
        "delete_rate": d.one_of(0.0, 0.5),
    }


@target(
    data.dense_features,
    weights=True,
    words=("layers",),  # those of the encoder, which says so
    call=lambda **a: data.dense_features(backbones.SmallCNN((2, 3), blocks=(0, 0)), **a),
)
def _dense_features(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "scales": d.one_of((1.0,), (2.0, 0.5)),
        "flip": d.coin(),
        "layer": d.one_of(None, 1, -1),
        "size": d.maybe(d.grid()),
    }


@target(
    data.step_loader,
    call=lambda image, **a: list(
        data.step_loader([data.new_sample(image, id="a")], lambda s, g: s, **a)
    ),
    words=("image", "length"),
    fixed={"image": "checked by new_sample", "workers": "starts processes"},
)
def _loader(d: Draw) -> dict[str, Any]:
    counts = {"batch_size": d.whole(1, 2), "steps": d.whole(1, 3), "start": d.whole(0, 1)}
    return {"image": d.uniform(3, *d.grid(6)), **counts, "seed": d.whole(0, 9), "workers": 0}


def _multi_hot(names: Any, rows: Any) -> list[Tensor]:
    labels = data.WeakLabels(names, rows)
    return [labels[image] for image in labels]


@target(data.WeakLabels, call=_multi_hot)
def _weak_labels(d: Draw) -> dict[str, Any]:
    return {"names": ("cat", "dog"), "rows": {"a": ["dog"], "b": d.one_of([], ["cat", "dog"])}}


@target(data.Scenes, call=lambda **a: data.Scenes(**a)[0]["image"])
def _scenes(d: Draw) -> dict[str, Any]:
    return {"split": d.one_of("train", "val"), "size": d.whole(1, 3), "seed": 0}


def _written(train: Any, val: Any, seed: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data.write_voc_layout(folder, train=train, val=val, seed=seed)


@target(data.write_voc_layout, call=_written, slow=True)
def _layout(d: Draw) -> dict[str, Any]:
    return {"train": 1, "val": 1, "seed": 0}


def _networks(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "encoder": "small-cnn",
        "num_classes": 3,
        "neck_dim": d.one_of(0, 2),
        "skip": d.one_of(None, 1),
        "hidden_dim": d.whole(1, 3),
        "dilation": d.whole(1, 2),
    }


def _network(**arguments: Any) -> nn.Module:
    return segmenters.SegmentationNetwork(**arguments).eval()


@target(
    segmenters.SegmentationNetwork,
    weights=True,
    slow=True,
    fixed={"encoder": "a name that is built from files of timm"},
    call=lambda images, **a: _network(**a)(images),
    huge="the variance of GroupNorm overflows",
)
def _segmentation_network(d: Draw) -> dict[str, Any]:
    return _networks(d)


def _deeplab(images: Any, **arguments: Any) -> Tensor:
    return segmenters.DeepLabV3PlusNetwork(**arguments).eval()(images)


@target(
    segmenters.DeepLabV3PlusNetwork,
    weights=True,
    slow=True,
    fixed={"encoder": "a name that is built from files of timm"},
    call=_deeplab,
)
def _deeplab_network(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "encoder": "test_resnet",
        "num_classes": 3,
        "output_stride": d.one_of(8, 16),
        "rates": (1, 2, 3),
        "hidden_dim": d.whole(1, 3),
        "separable": d.coin(),
        "dropout": (0.5, 0.1),
    }


def _deeplab_v2(images: Any, **arguments: Any) -> Tensor:
    return segmenters.DeepLabV2Network(**arguments).eval()(images)


@target(
    segmenters.DeepLabV2Network,
    weights=True,
    slow=True,
    fixed={"encoder": "a name that is built from files of timm"},
    call=_deeplab_v2,
)
def _deeplab_v2_network(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "encoder": "test_resnet",
        "num_classes": 3,
        "output_stride": d.one_of(8, 16),
        "rates": d.one_of((6, 12, 18, 24), (1, 2)),
        "frozen_norms": d.coin(),
    }


def _segment(images: Any, image: Any, names: Any, size: Any, palette: Any) -> Any:
    views = {"scales": (1.0,), "flip": True, "refiner": "none", "labels_used": False}
    protocol = metrics.EvaluationProtocol(dataset="a", split="b", num_images=1, **views)
    torch.manual_seed(0)
    network = _network(num_classes=3, hidden_dim=2, dilation=1)
    segmenter = segmenters.Segmenter(
        network, names=names, protocol=protocol, size=size, palette=palette
    )
    if isinstance(image, str):  # the path of a file: tests/faults.py plants those
        return segmenter(images)
    return segmenter(images), segmenter.segment(image).mask


@target(
    segmenters.Segmenter,
    weights=True,
    slow=True,
    call=_segment,
    words=("image",),
    device="one image is moved to the network",
)
def _segmenter(d: Draw) -> dict[str, Any]:
    return {
        **_pictures(d),
        "image": _pictures(d)["images"][0],
        "names": ("cat", "dog"),
        "size": d.maybe(d.whole(1, 9)),
        "palette": torch.zeros(3, 3, dtype=torch.uint8),
    }


_SQUARED = "squares of 1e30 overflow"


@target(segmenters.class_threshold, huge=_SQUARED)
def _class_threshold(d: Draw) -> dict[str, Any]:
    scores = d.normal(d.whole(1, 3), d.whole(1, 12))
    return {"scores": scores, "top": d.whole(1, 12), "sigma": d.one_of(0.0, 1.0)}


@target(segmenters.select_classes, huge=_SQUARED)
def _select_classes(d: Draw) -> dict[str, Any]:
    background = d.one_of(0, None)
    return {**_class_threshold(d), "most": d.whole(1, 6), "background": background}


@target(segmenters.zero_shot_protocol)
def _zero_shot_protocol(d: Draw) -> dict[str, Any]:
    return {"name": d.one_of("voc21", "context60", "coco_object81")}


class _Spoken(nn.Module):
    """A model of images and texts whose vectors are read off the pixels and the letters."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))  # it says where the model is

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[len(text), ord(text[0]), ord(text[-1])] for text in texts])
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def encode_text(self, ids: Tensor, mask: Any = None, normalize: bool = True) -> Tensor:
        return self.one * ids

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        return images.mean((2, 3)) + 0.1

    def encode_patches(self, images: Tensor) -> Tensor:
        return images


def _rows(**arguments: Any) -> list[Tensor]:
    return list(segmenters.zero_shot_bank(_Spoken(), **arguments).buffers())


@target(segmenters.zero_shot_bank, call=_rows)
def _zero_shot_bank(d: Draw) -> dict[str, Any]:
    return {
        "names": ["cat", "dog"][: d.whole(1, 2)],
        "templates": d.maybe(["a {}", "the {}"]),
        "spoken": d.maybe({"cat": "kitten"}),
        "background": d.maybe("background"),
        "batch_size": d.whole(1, 3),
    }


def _by_names(images: Any, thresholds: Any, given: Any, **options: Any) -> Any:
    bank = segmenters.zero_shot_bank(_Spoken(), ["cat", "dog"], templates=["{}"])
    segmenter = segmenters.ZeroShotSegmenter(_Spoken(), bank, **options)
    masks = segmenter(images), segmenter.masks_at(images, thresholds, given=given)
    return (*masks, segmenter.scores(images), segmenter.patches(images))


@target(
    segmenters.ZeroShotSegmenter,
    weights=True,
    call=_by_names,
    words=("thresholds", "given"),
    fixed={"palette": "as in Segmenter"},
    huge="images of 1e30 are none",
)
def _zero_shot_segmenter(d: Draw) -> dict[str, Any]:
    pictures = _pictures(d)
    return {
        **pictures,
        "thresholds": [0.2, 0.5],
        "given": d.maybe(d.labels(len(pictures["images"]), 2)),
        "top": d.whole(1, 4),
        "sigma": d.one_of(None, 0.5),
        "most": d.whole(1, 3),
        "size": d.maybe(d.whole(1, 9)),
        "upsampling": d.one_of("nearest", "bilinear"),
        "similarity": d.one_of("cosine", "dot"),
        "threshold": 0.5,
        "closing": d.one_of(1, 3),
        "palette": d.maybe(torch.zeros(3, 3, dtype=torch.uint8)),
    }


def _aligned(images: Any, ids: Any, mask: Any, **options: Any) -> Any:
    encoders = backbones.SmallCNN((2, 4), blocks=(0, 0)), backbones.SmallTextEncoder(["cat"], dim=4)
    model = segmenters.LoDAModel(*encoders, **options)
    return model.eval()(images, ids, mask), model.encode_patches(images)


@target(segmenters.LoDAModel, weights=True, call=_aligned, words=("mask",))
def _loda(d: Draw) -> dict[str, Any]:
    pictures = _pictures(d)
    b, t = len(pictures["images"]), d.whole(1, 4)
    mask = d.uniform(b, t) < 0.7
    mask[:, 0] = True
    return {
        **pictures,
        "ids": torch.randint(0, 4, (b, t), generator=d.generator),
        "mask": mask,
        "dim": d.whole(1, 4),
        "pool": d.one_of("max_response", "average", "class_token"),
        "image_k": d.whole(1, 4),
        "text_k": d.whole(1, 3),
        "eval_text_k": d.whole(1, 3),
        "mask_padding": (d.coin(), d.coin()),
        "exclude_special": d.coin(),
        "image_norm": d.coin(),
        "temperature": d.one_of(0.07, 1.0),
        "max_scale": 100.0,
    }
