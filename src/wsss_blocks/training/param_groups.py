"""Parameter groups: faster heads, no weight decay on norms, biases and position embeddings."""

from collections.abc import Collection, Mapping, Set
from types import MappingProxyType
from typing import TypedDict

from torch import nn

from wsss_blocks._validate import check_number, check_positive, check_sequence

__all__ = ["ParamGroup", "param_groups"]

_NO_DECAY = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "dist_token",
    "positional_embedding",
    "class_embedding",
)


class ParamGroup(TypedDict):
    """One entry of an optimizer's ``params``; ``name`` is for logs."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    multipliers: Mapping[str, float] = MappingProxyType({}),
    no_decay: Collection[str] = _NO_DECAY,
) -> list[ParamGroup]:
    """Sort a model's parameters into groups for an optimizer.

    A parameter's learning rate is ``lr`` times the multiplier of the longest prefix that its name
    starts with. Parameters with at most one axis (biases, norms, a temperature) and those with a
    name part in ``no_decay`` take no weight decay. Frozen parameters are left out; a parameter
    used twice appears once.

    Reference:
        Ten times faster heads: the released code of ToCo, https://arxiv.org/abs/2303.01267.

    Args:
        model: the model, or a dictionary of models as ``nn.ModuleDict``.
        lr: learning rate of multiplier 1.
        weight_decay: decay of weights.
        multipliers: name prefix, such as ``"head."``, to the factor of the learning rate.
        no_decay: parts of dotted names without decay; default: the position embeddings and
            class tokens of timm and open_clip.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, none empty.

    Raises:
        ValueError: a prefix that no parameter has, a rate or factor that is not positive, or
            negative weight decay.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        >>> groups = param_groups(model, lr=0.1, weight_decay=0.01, multipliers={"head.": 10.0})
        >>> for g in groups:
        ...     print(g["name"], len(g["params"]), g["lr"], g["weight_decay"])
        decay 1 0.1 0.01
        no decay 1 0.1 0.0
        head. decay 1 1.0 0.01
        head. no decay 1 1.0 0.0
    """
    check_positive("lr", lr)
    check_number("weight_decay", weight_decay)
    if not isinstance(multipliers, Mapping):
        raise TypeError(f"multipliers must map prefixes to factors, got {multipliers!r}.")
    check_sequence("no_decay", tuple(no_decay) if isinstance(no_decay, Set) else no_decay)
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be >= 0 and finite, got {weight_decay}.")
    named = list(model.named_parameters())
    for prefix, factor in multipliers.items():
        check_positive(f"multipliers[{prefix!r}]", factor)
        if not any(name.startswith(prefix) for name, _ in named):
            raise ValueError(
                "multipliers must name prefixes of parameters, but none starts with "
                f"{prefix!r}, got {sorted(multipliers)}."
            )
    by_length = sorted(multipliers, key=len, reverse=True)
    groups: dict[str, ParamGroup] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        prefix = next((p for p in by_length if name.startswith(p)), "")
        decays = parameter.ndim > 1 and not set(name.split(".")) & set(no_decay)
        key = f"{prefix} {'decay' if decays else 'no decay'}".lstrip()
        if key not in groups:
            groups[key] = ParamGroup(
                name=key,
                params=[],
                lr=lr * multipliers.get(prefix, 1.0),
                weight_decay=weight_decay if decays else 0.0,
            )
        groups[key]["params"].append(parameter)
    return list(groups.values())
