"""Optimal transport of pixels to classes against POT and plain torch loops.

Run ``python -m benchmarks.bench_sinkhorn [--quick] [--output DIR]``.

Equal iterations, and equal accuracy: 50 iterations at a small ``reg`` are far from the optimum, so
the peers get as many as they need for a plan within 1e-3 of it (sum of absolute differences per
problem). Costs are cosine distances of noisy pixels to the vectors of their classes; the masses of
pixels are uniform, those of classes random, unlike the share of their pixels.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ot
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, compare, run
from benchmarks.baselines import sinkhorn_torch
from wsss_blocks.refine import sinkhorn

try:
    from geomloss import ot as geomloss_ot
except ImportError:
    geomloss_ot = None

BATCH_LOG, BATCH_EXP = "ot.batch, log", "ot.batch, exp domain"
NUMPY, LOOP, BATCHED = "ot.sinkhorn, numpy, float64", "torch, image by image", "torch, batched"
GEOMLOSS = "geomloss"


class Problem(NamedTuple):
    """What is transported, on the device of the case."""

    cost: Tensor
    a: Tensor
    b: Tensor

    def double(self) -> "Problem":
        """Return it in double precision, the masses adding up to 1 there too."""
        a, b = self.a.double(), self.b.double()
        return Problem(self.cost.double(), a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True))


def cases(options: Options) -> Iterator[dict[str, Any]]:
    many, few = ((4, 49, 5), (2, 64, 4)) if options.quick else ((32, 784, 21), (16, 1024, 10))
    for device in options.devices:
        yield iterations(options, device, *many)
        yield ragged(options, device, *((3, 49, 5) if options.quick else (16, 1369, 6)))
        yield gradient(options, device, *many)
        yield optimum(options, device, *few, reg=0.05)
        yield optimum(options, device, *few, reg=0.01)
        yield optimum(options, device, *few, reg=0.05, easy=True)
        yield optimum(options, device, *few, reg=0.01, easy=True)


def iterations(
    options: Options, device: str, batch: int, pixels: int, classes: int
) -> dict[str, Any]:
    p, steps = problem(batch, pixels, classes, device), {"reg": 0.1, "num_iters": 20}
    return compare(
        f"20 iterations, B{batch} {pixels}x{classes}, reg 0.1",
        {
            BATCH_LOG: lambda: ot_batch(p, **steps),
            BATCH_EXP: lambda: ot_batch(p, **steps, method="sinkhorn"),
            LOOP: lambda: sinkhorn_torch.published(*p, **steps),
            BATCHED: lambda: sinkhorn_torch.best(*p, **steps),
            'ours, method="log"': lambda: sinkhorn(p.cost, a=p.a, b=p.b, method="log", **steps),
            "ours": lambda: sinkhorn(p.cost, a=p.a, b=p.b, **steps),
        },
        reference="ours",
        options=options,
        device=device,
        bars={BATCH_LOG: 3},
        difference=misplaced,
        tolerance=1e-5,
    )


def ragged(options: Options, device: str, batch: int, pixels: int, classes: int) -> dict[str, Any]:
    """Images with other numbers of cells and classes, as a training step has them."""
    p, steps = problem(batch, pixels, classes, "cpu"), {"reg": 0.1, "num_iters": 20}
    g = torch.Generator().manual_seed(1)
    for n in range(batch):
        p.a[n, torch.randperm(pixels, generator=g)[: int(n * pixels / (2 * batch))]] = 0
        p.b[n, torch.randperm(classes, generator=g)[: n % (classes - 1)]] = 0
    p.a.div_(p.a.sum(1, keepdim=True))
    p.b.div_(p.b.sum(1, keepdim=True))
    p = Problem(*(x.to(device) for x in p))
    return compare(
        f"20 iterations, ragged, B{batch} up to {pixels}x{classes}, reg 0.1",
        {
            LOOP: lambda: sinkhorn_torch.published(*p, **steps),
            "ours": lambda: sinkhorn(p.cost, a=p.a, b=p.b, **steps),
        },
        reference="ours",
        options=options,
        device=device,
        difference=misplaced,
        tolerance=1e-5,
    )


def gradient(
    options: Options, device: str, batch: int, pixels: int, classes: int
) -> dict[str, Any]:
    """The gradient of a loss on the plan with respect to the costs."""
    p, steps = problem(batch, pixels, classes, device), {"reg": 0.1, "num_iters": 20}
    weight = torch.rand(p.cost.shape, generator=torch.Generator().manual_seed(2)).to(device)
    p.cost.requires_grad_()

    @torch.enable_grad()
    def through(plan: Callable[[], Tensor]) -> Tensor:
        (found,) = torch.autograd.grad((plan() * weight).sum(), p.cost)
        return found

    return compare(
        f"20 iterations and their gradient, B{batch} {pixels}x{classes}, reg 0.1",
        {
            BATCH_LOG: lambda: through(lambda: ot_batch(p, **steps, grad="autodiff")),
            BATCHED: lambda: through(lambda: sinkhorn_torch.best(*p, **steps)),
            "ours": lambda: through(lambda: sinkhorn(p.cost, a=p.a, b=p.b, **steps)),
        },
        reference="ours",
        options=options,
        device=device,
        difference=misplaced,
        tolerance=1e-3,
    )


def optimum(
    options: Options,
    device: str,
    batch: int,
    pixels: int,
    classes: int,
    *,
    reg: float,
    easy: bool = False,
) -> dict[str, Any]:
    """Easy: unstructured pixels and even masses, where few iterations do and the lead is small."""
    p = problem(batch, pixels, classes, device, easy=easy)
    exact = p.double()
    truth = sinkhorn(exact.cost, a=exact.a, b=exact.b, reg=reg, method="newton")
    off = misplaced(sinkhorn(p.cost, a=p.a, b=p.b, reg=reg, method="newton"), truth)
    if not off <= 1e-5:
        raise AssertionError(f"The plan at reg {reg} is {off:.3g} away from the optimum.")
    steps = {"reg": reg, "num_iters": iterations_to(exact, truth, reg, 1e-3)}
    result = compare(
        f"optimal plan{', easy' * easy}, B{batch} {pixels}x{classes}, reg {reg} "
        f"({steps['num_iters']} iterations; ours within {off:.0e})",
        {
            BATCH_LOG: lambda: ot_batch(p, **steps),
            BATCH_EXP: lambda: ot_batch(p, **steps, method="sinkhorn"),
            NUMPY: None if device == "cuda" else lambda: ot_loop(p, **steps),
            GEOMLOSS: None if geomloss_ot is None else lambda: geomloss_plan(p, **steps),
            BATCHED: lambda: sinkhorn_torch.best(*p, **steps),
            "ours": lambda: sinkhorn(p.cost, a=p.a, b=p.b, reg=reg, method="newton"),
        },
        reference="ours",
        options=options,
        device=device,
        bars={} if easy else {BATCH_LOG: 8},
        difference=misplaced,
    )
    for row in result["rows"]:
        if row["name"] in (BATCH_LOG, BATCHED) and not row["difference"] <= 2e-3:
            raise AssertionError(f"{row['name']} is {row['difference']:.3g} away from the optimum.")
    return result


def iterations_to(exact: Problem, truth: Tensor, reg: float, within: float) -> int:
    """Return the least number of iterations whose plans are that near to the optimum."""

    def near(n: int) -> bool:
        plan = sinkhorn(exact.cost, a=exact.a, b=exact.b, reg=reg, num_iters=n)
        return misplaced(plan, truth) <= within

    low, high = 0, 1
    while not near(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if near(middle) else (middle, high)
    return high


def ot_batch(
    p: Problem, reg: float, num_iters: int, method: str = "log_sinkhorn", grad: str = "detach"
) -> Tensor:
    options = {"max_iter": num_iters, "tol": 0, "method": method, "grad": grad}
    return ot.batch.solve_batch(p.cost, reg, a=p.a, b=p.b, **options).plan


def ot_loop(p: Problem, reg: float, num_iters: int) -> Tensor:
    cost, a, b = (x.double().numpy() for x in p)
    options = {"numItermax": num_iters, "stopThr": 0, "warn": False}
    plans = [ot.sinkhorn(*x, reg, **options) for x in zip(a, b, cost, strict=True)]
    return torch.stack([torch.from_numpy(plan) for plan in plans])


def geomloss_plan(p: Problem, reg: float, num_iters: int) -> Tensor:
    return geomloss_ot.solve_batch(p.cost, reg=reg, a=p.a, b=p.b, maxiter=num_iters).plan


def misplaced(a: Tensor, b: Tensor) -> float:
    """Return the largest sum of absolute differences of a problem."""
    return float((a.detach().double() - b.detach().double()).abs().sum((1, 2)).max())


def problem(
    batch: int, pixels: int, classes: int, device: str, *, width: int = 64, easy: bool = False
) -> Problem:
    g = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(batch, classes, width, generator=g), dim=2)
    kinds = torch.randint(0, classes, (batch, pixels, 1), generator=g).expand(-1, -1, width)
    noise = torch.randn(batch, pixels, width, generator=g)
    features = F.normalize(noise if easy else text.gather(1, kinds) + 0.17 * noise, dim=2)
    a = torch.full((batch, pixels), 1 / pixels)
    b = torch.rand(batch, classes, generator=g) + 0.05
    b = torch.ones_like(b) if easy else b
    b = b / b.sum(1, keepdim=True)
    return Problem((1 - features @ text.mT).to(device), a.to(device), b.to(device))


if __name__ == "__main__":
    run("bench_sinkhorn", cases)
