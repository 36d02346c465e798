"""Which parts of a training run are on from which step."""

from collections.abc import Mapping
from types import MappingProxyType

from wsss_blocks._validate import check_int, check_number

__all__ = ["Phases"]


class Phases:
    """Tell which named terms are active at a step, and with which weight.

    A term is anything with a first step: a loss, or the switch from auxiliary to final CAMs as
    the source of pseudo-labels.

    Reference:
        The released code of ToCo, https://arxiv.org/abs/2303.01267: no segmentation loss for
        2,000 steps on VOC, three phases on COCO.

    Args:
        starts: name -> first step, counted from 0, at which the term is on.
        weights: name -> weight when on; 1 for names left out.

    Raises:
        ValueError: a negative step or weight, or a weight or question for a name without start.

    Example:
        >>> phases = Phases({"cls": 0, "seg": 2000}, weights={"seg": 0.1})
        >>> phases.active("seg", 1999), phases.weight("seg", 2000)
        (False, 0.1)
        >>> phases.describe()
        'from step 0: cls; from step 2000: seg x 0.1'
    """

    def __init__(
        self,
        starts: Mapping[str, int],
        *,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        if not isinstance(starts, Mapping):
            raise TypeError(f"starts must map names to steps, got {starts!r}.")
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to numbers, got {weights!r}.")
        for name, start in starts.items():
            check_int("starts", start)
            if start < 0:
                raise ValueError(f"starts must be steps >= 0, got {start} for {name!r}.")
        self.starts = dict(starts)
        for name, weight in weights.items():
            self._start(name)
            check_number("weights", weight)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights must be >= 0 and finite, got {weight} for {name!r}.")
        self.weights = {name: float(weights.get(name, 1.0)) for name in starts}

    def active(self, name: str, step: int) -> bool:
        """Tell whether the term is on at this step."""
        check_int("step", step)
        return step >= self._start(name)

    def active_at(self, step: int) -> frozenset[str]:
        """Return the names of all terms that are on at this step."""
        return frozenset(name for name in self.starts if self.active(name, step))

    def weight(self, name: str, step: int) -> float:
        """Return the term's weight at this step, 0 while it is off."""
        return self.weights[name] if self.active(name, step) else 0.0

    def describe(self) -> str:
        """Return one line for the log: what is switched on when."""
        lines = []
        for start in sorted(set(self.starts.values())):
            terms = [
                name if self.weights[name] == 1 else f"{name} x {self.weights[name]:g}"
                for name, first in self.starts.items()
                if first == start
            ]
            lines.append(f"from step {start}: {', '.join(terms)}")
        return "; ".join(lines)

    def _start(self, name: str) -> int:
        if name not in self.starts:
            raise ValueError(f"name must be one of {sorted(self.starts)}, got {name!r}.")
        return self.starts[name]
