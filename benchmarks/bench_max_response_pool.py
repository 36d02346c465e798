"""Maximum response pooling of patches and words against bare top-k and mean.

Run ``python -m benchmarks.bench_max_response_pool [--quick] [--output DIR]``.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Options, compare, run
from wsss_blocks.pooling import max_response_pool

BARE = "topk and mean"
LOOP = "sample by sample"


def cases(options: Options) -> Iterator[dict[str, Any]]:
    few, dim = (2, 16) if options.quick else (64, 512)
    for device in options.devices:
        g = torch.Generator().manual_seed(0)
        patches = torch.randn(few, 196, dim, generator=g).to(device)
        words = torch.randn(4 * few, 25, dim, generator=g).to(device)
        lengths = torch.randint(5, 26, (4 * few, 1), generator=g)  # none below k: bare is right
        mask = (torch.arange(25) < lengths).to(device)
        of_patches = {BARE: top_mean, "ours": partial(max_response_pool, k=5)}
        of_words = {
            BARE: lambda x, mask=mask: top_mean(filled(x, mask)),
            LOOP: partial(one_by_one, mask=mask),
            "ours": partial(max_response_pool, k=5, mask=mask),
        }
        for what in ("forward", "forward and backward"):
            case = f"B{few} 196x{dim}, k=5: {what}"
            yield pooled(case, patches, of_patches, options, device)
            case = f"B{4 * few} up to 25x{dim}, k=5, padding masked: {what}"
            yield pooled(case, words, of_words, options, device)


def pooled(
    case: str,
    tokens: Tensor,
    ways: Mapping[str, Callable[[Tensor], Tensor]],
    options: Options,
    device: str,
) -> dict[str, Any]:
    def candidate(fn: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        if "backward" not in case:
            return lambda: fn(tokens)
        x = tokens.clone().requires_grad_()

        @torch.enable_grad()
        def gradient() -> Tensor:
            return torch.autograd.grad(fn(x).square().sum(), x)[0]

        return gradient

    return compare(
        case,
        {name: candidate(fn) for name, fn in ways.items()},
        reference="ours",
        options=options,
        device=device,
        bars={BARE: 1 / 1.3},
        tolerance=1e-5,
    )


def top_mean(tokens: Tensor) -> Tensor:
    return tokens.topk(5, 1).values.mean(1)


def filled(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(~mask.unsqueeze(2), float("-inf"))


def one_by_one(tokens: Tensor, mask: Tensor) -> Tensor:
    pairs = zip(tokens, mask, strict=True)
    return torch.stack([x[m].topk(min(5, int(m.sum())), 0).values.mean(0) for x, m in pairs])


if __name__ == "__main__":
    run("bench_max_response_pool", cases)
