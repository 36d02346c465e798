"""The test contract: which check each public block must pass, and helpers for the checks.

A test says what it proves with ``@covers("class_average_pool", "oracle", "properties")``.
``tests/test_contract.py`` reads those marks and the table below: each cell is either covered by a
test or has a reason in words here.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CHECKS = (
    "oracle",
    "properties",
    "gradcheck",
    "module",
    "dtypes",
    "compile",
    "errors",
    "degenerate",
)
NEVER_EMPTY = ("oracle", "errors", "degenerate", "dtypes")

# block -> {check: why it does not apply}. Everything else needs a test.
_FUNCTION_FIRST = "the first argument is a function; functools.partial is the configured form"
_INTEGERS = "integers and bools in and out: nothing to differentiate"
_COUNTS = "integers out of a mask or labels; nothing to configure but the ignored id"
_BUILDER = "builds frozen rows of text once, before training"
_FITTED = "a number fitted once to the scores of a data set, for a configuration"
_NO_STATE = "a helper of two lines around integers, with nothing to configure"
_ONE_RADIUS = "a formula with a radius; functools.partial is the configured form"
EXEMPT: dict[str, dict[str, str]] = {
    "class_weight_cam": {"module": "ClassHead is the module"},
    "gradient_cam": {
        "module": "functools.partial is the configured form",
        "compile": "it calls torch.autograd.grad, which dynamo does not trace by default",
    },
    "present_softmax_scores": {"module": "a formula without state"},
    "tap_output": dict.fromkeys(
        ("gradcheck", "module", "compile"), "a context manager around a hook; values pass unchanged"
    ),
    "multi_scale_cam": {"module": _FUNCTION_FIRST},
    "multi_scale_logits": {"module": _FUNCTION_FIRST},
    "cam_to_label": {"gradcheck": "integer output, the input is detached"},
    "add_background": {"module": "a formula without state"},
    "refine_to_label": {
        "gradcheck": "integer output",
        "module": "the refiner it takes is the module",
    },
    "create_encoder": {
        "gradcheck": "a builder; the gradient path is that of what it builds",
        "module": "a builder",
        "compile": "a builder; what it builds is tested under compile",
    },
    "create_token_encoder": {
        "gradcheck": "a builder; the gradient path is that of what it builds",
        "module": "a builder",
    },
    "create_text_encoder": {
        "gradcheck": "a builder; the gradient path is that of what it builds",
        "module": "a builder",
        "compile": "a builder; what it builds is tested under compile",
    },
    "load_class_token_weights": dict.fromkeys(
        ("gradcheck", "module", "compile"), "reads a file into an encoder"
    ),
    "confident_label": {
        "gradcheck": "integer output",
        "module": "a formula; functools.partial is the configured form",
    },
    "patch_to_patch_attention": {"module": "a formula without state"},
    "class_to_patch_attention": {"module": "a formula without state"},
    "mobilenet_v1": {"gradcheck": "a builder; the gradient path is that of TimmCNN"},
    "patch_class_weights": {"gradcheck": "integers in: nothing to differentiate"},
    "resize_to_stride": {"module": _NO_STATE},
    "TextBank": {
        "gradcheck": "frozen buffers, no forward",
        "compile": "frozen buffers, no forward",
    },
    "balanced_segmentation_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "segmentation_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "patch_token_contrast_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "cross_contrastive_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "global_implicit_alignment_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "create_text_bank": dict.fromkeys(("gradcheck", "module", "compile"), _BUILDER),
    "imagenet_templates": dict.fromkeys(
        ("gradcheck", "module", "compile"), "sentences; nothing is computed"
    ),
    "outside_text": dict.fromkeys(("gradcheck", "module", "compile"), _BUILDER),
    "otsu_threshold": dict.fromkeys(("gradcheck", "module", "compile"), _FITTED),
    "mixture_threshold": dict.fromkeys(("gradcheck", "module", "compile"), _FITTED),
    "strongest_scores": {
        "gradcheck": "the input is detached: it is what cam_to_label compares",
        "module": "feeds the fits of thresholds, once per data set",
        "compile": "the labels say how many scores there are",
    },
    "edge_affinity": {"module": _ONE_RADIUS},
    "feature_affinity": {"module": _ONE_RADIUS},
    "affinity_labels": {"gradcheck": _INTEGERS, "module": _ONE_RADIUS},
    "affinity_matrix_labels": {"gradcheck": _INTEGERS, "module": _ONE_RADIUS},
    "affinity_matrix_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "affinity_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "class_heatmaps": {"module": "a formula without state"},
    "class_token_logits": {"module": "a formula without state"},
    "infuse_class_tokens": {"module": "a formula; functools.partial is the configured form"},
    "ClassTokenBank": {"gradcheck": "stored tokens are constants"},
    "fuse_cams": {"module": "a formula with a mode; functools.partial is the configured form"},
    "foreground_map": {"module": "a formula without state"},
    "background_consistency_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "cam_consistency_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "class_token_contrast_counts": {"gradcheck": _INTEGERS, "module": _COUNTS},
    "class_groups": {
        "gradcheck": "bools out: nothing to differentiate",
        "module": "a formula with a threshold; functools.partial is the configured form",
    },
    "ClassRebalancer": {"gradcheck": "masks out, under no_grad: nothing to differentiate"},
    "negative_crops": {
        "gradcheck": "cut out of images under no_grad",
        "module": "draws places, nothing to keep; functools.partial is the configured form",
    },
    "scale_box": {"gradcheck": _INTEGERS, "module": _NO_STATE},
    "box_to_valid": {"gradcheck": _INTEGERS, "module": _NO_STATE},
}

TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


def covers(block: str, *checks: str) -> Callable[[Any], Any]:
    """Mark a test (function or class) as the proof of some cells of the contract table."""
    unknown = set(checks) - set(CHECKS)
    assert not unknown, f"unknown checks {unknown} for {block}"
    return lambda test: test


def assert_close(actual: Tensor, expected: Any, *, dtype: torch.dtype | None = None) -> None:
    """Compare values within the table's tolerance for the (actual) dtype."""
    if not isinstance(expected, Tensor):
        expected = torch.tensor(expected, dtype=torch.float64)
    tolerance = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(
        actual.detach().double(), expected.detach().double(), **tolerance, equal_nan=False
    )


def assert_gradcheck(fn: Callable[..., Any], *inputs: Tensor) -> None:
    """Check analytic against numeric gradients in float64."""
    assert all(x.dtype == torch.float64 for x in inputs if x.is_floating_point())
    assert torch.autograd.gradcheck(fn, inputs, fast_mode=True)


def flatten(out: Any) -> list[Tensor]:
    """List the tensors of a tensor, tuple or NamedTuple."""
    return [out] if isinstance(out, Tensor) else [t for o in out for t in flatten(o)]


def assert_same(actual: Any, expected: Any) -> None:
    """Demand bitwise equal outputs."""
    for a, b in zip(flatten(actual), flatten(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_compiles(fn: Callable[..., Any], *args: Any) -> None:
    """``torch.compile(fullgraph=True, dynamic=True)`` gives what eager gives."""
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, dynamic=True, backend="eager")
    for a, b in zip(flatten(compiled(*args)), flatten(fn(*args)), strict=True):
        torch.testing.assert_close(a, b)


def assert_module(
    module: nn.Module, expected: Any, *args: Any, state_keys: tuple[str, ...] = (), **kwargs: Any
) -> None:
    """Module == function; deepcopy and pickle keep it; its state keys are the listed ones."""
    assert tuple(module.state_dict()) == state_keys
    assert type(module).__name__ in repr(module)
    assert_same(module(*args, **kwargs), expected)
    assert_same(copy.deepcopy(module)(*args, **kwargs), expected)
    restored = pickle.load(io.BytesIO(pickle.dumps(module)))
    assert_same(restored(*args, **kwargs), expected)
