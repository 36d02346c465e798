"""Two gloo processes are started once; every test reads what they computed."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contract import assert_close

from wsss_blocks.distributed import (
    all_gather_with_grad,
    mean_over_ranks,
    rank,
    sum_over_ranks,
    world_size,
)
from wsss_blocks.losses import (
    affinity_counts,
    affinity_loss,
    affinity_matrix_counts,
    affinity_matrix_loss,
    background_consistency_counts,
    background_consistency_loss,
    balanced_segmentation_counts,
    balanced_segmentation_loss,
    cam_consistency_counts,
    cam_consistency_loss,
    class_token_contrast_counts,
    class_token_contrast_loss,
    cross_contrastive_counts,
    cross_contrastive_loss,
    global_implicit_alignment_counts,
    global_implicit_alignment_loss,
    multi_label_soft_margin_loss,
    patch_token_contrast_counts,
    patch_token_contrast_loss,
    segmentation_counts,
    segmentation_loss,
)
from wsss_blocks.memory import ClassTokenBank
from wsss_blocks.refine import affinity_labels, affinity_matrix_labels, feature_affinity

RANKS = 2
SPLITS = ((3, 1), (1, 3), (2, 2))  # images per rank; the last image contributes nothing


def random(*shape, seed):
    # not from strategies: the processes would import hypothesis, for nothing
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def union():
    """Four images whose foreground, background and ignored pixels are unevenly spread."""
    mask = torch.tensor(
        [
            [[0, 1, 1], [0, 2, 3], [0, 2, 255]],
            [[2, 2, 0], [255, 255, 255], [255, 255, 255]],
            [[1, 1, 1], [1, 3, 3], [0, 3, 2]],
            [[255, 255, 255], [255, 255, 255], [255, 255, 255]],
        ]
    )
    labels = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]]).double()
    return random(4, 5, 3, 3, seed=0), mask, labels


def projection():
    """The parameter that both ranks share."""
    return random(5, 5, seed=1).requires_grad_()


TEXT = random(5, 5, seed=2)


def cross(w, features, mask, labels, **options):
    features = torch.einsum("bdhw,de->behw", features, w)
    return cross_contrastive_loss(
        features, mask, labels, TEXT[:3], TEXT[3:], background_weight=0.5, **options
    )


def affinity(w, features, mask, labels, **options):
    near = feature_affinity(torch.einsum("bdhw,de->behw", features, w), radius=2)
    return affinity_loss(near, affinity_labels(mask, radius=2), **options)


def affinity_of_all(w, features, mask, labels, **options):
    tokens = torch.einsum("bdhw,de->behw", features, w).flatten(2)
    affinity = (tokens.mT @ tokens / 5).sigmoid()
    return affinity_matrix_loss(affinity, affinity_matrix_labels(mask), **options)


def background(w, x, mask, labels, **options):
    maps = torch.einsum("bdhw,de->behw", x, w)
    return background_consistency_loss(maps[:, :1], maps[:, 1:2], labels=labels, **options)


def cams(w, x, mask, labels, **options):
    maps = torch.einsum("bdhw,de->behw", x, w)
    return cam_consistency_loss(maps[:, :4], x[:, :4], labels=labels, **options)


def more(labels):
    """Unevenly spread in each split: 3, 2, 2 and 0 classes."""
    return labels.clone().index_fill(1, torch.tensor(0), 1) * labels.amax(1, keepdim=True)


def class_tokens(w, x, mask, labels, **options):
    tokens = torch.einsum("bdhw,de->behw", x, w).flatten(2).mT
    return class_token_contrast_loss(tokens[:, :3], more(labels), **options)


LOSSES = {
    "global_implicit_alignment": lambda w, x, mask, labels, **k: global_implicit_alignment_loss(
        x.mean((2, 3)) @ w, labels, TEXT[:3], TEXT[3:], **k
    ),
    "cross_contrastive": cross,
    "cross_contrastive_token": lambda *a, **k: cross(*a, pool="token", **k),
    "cross_contrastive_batch": lambda *a, **k: cross(*a, variant="batch", **k),
    "patch_token_contrast": lambda w, x, mask, labels, **k: patch_token_contrast_loss(
        torch.einsum("bdhw,de->behw", x, w), mask, **k
    ),
    "balanced_segmentation": lambda w, x, mask, labels, **k: balanced_segmentation_loss(
        torch.einsum("bdhw,de->behw", x, w), mask, **k
    ),
    "segmentation": lambda w, x, mask, labels, **k: segmentation_loss(
        torch.einsum("bdhw,de->behw", x, w), mask, **k
    ),
    "affinity": affinity,
    "affinity_matrix": affinity_of_all,
    "background_consistency": background,
    "cam_consistency": cams,
    "class_token_contrast": class_tokens,
}
CASES = [
    (name, split)
    for name in LOSSES
    for split in SPLITS
    if name != "cross_contrastive_batch" or split == (2, 2)  # gathers, so wants one B
]


# images per micro-batch of each rank; one may have no image, one nothing to add
ACCUMULATED = (((1, 1), (1, 1)), ((2, 1), (1, 0)), ((1, 0), (1, 2)))


def soft_margin(w, x, mask, labels, **options):
    return multi_label_soft_margin_loss((x.mean((2, 3)) @ w)[:, :3], labels, **options)


def soft_margin_share(*args, counts, gather_distributed):
    total = soft_margin(*args, reduction="sum")
    return mean_over_ranks(total, counts, gather_distributed=gather_distributed)


# no "cross_contrastive_batch": a micro-batch lacks the negatives of the others
SHARES = {
    "balanced_segmentation": lambda mask, labels: balanced_segmentation_counts(mask),
    "segmentation": lambda mask, labels: segmentation_counts(mask),
    "patch_token_contrast": lambda mask, labels: patch_token_contrast_counts(mask),
    "cross_contrastive": cross_contrastive_counts,
    "cross_contrastive_token": cross_contrastive_counts,
    "global_implicit_alignment": lambda mask, labels: global_implicit_alignment_counts(labels),
    "affinity": lambda mask, labels: affinity_counts(affinity_labels(mask, radius=2)),
    "affinity_matrix": lambda mask, labels: affinity_matrix_counts(affinity_matrix_labels(mask)),
    "background_consistency": lambda mask, labels: background_consistency_counts(labels),
    "cam_consistency": lambda mask, labels: cam_consistency_counts(labels, background=True),
    "class_token_contrast": lambda mask, labels: class_token_contrast_counts(more(labels)),
    "soft_margin": lambda mask, labels: torch.tensor(len(labels)),
}
WHOLE = {**LOSSES, "soft_margin": soft_margin}
SHARE = {**LOSSES, "soft_margin": soft_margin_share}


def accumulate(name, split, gather):
    """Loss and gradient of a step of several micro-batches, averaged over the ranks."""
    start = sum(sum(sizes) for sizes in split[: rank()])
    of_rank = [x[start : start + sum(split[rank()])] for x in union()]
    parts = list(zip(*(x.split(split[rank()]) for x in of_rank), strict=True))
    counts = sum(SHARES[name](mask, labels) for _, mask, labels in parts)
    w, total = projection(), 0.0
    for part in parts:
        loss = SHARE[name](w, *part, counts=counts, gather_distributed=gather)
        loss.backward()
        total = total + loss.detach()
    return sum_over_ranks(total) / RANKS, sum_over_ranks(w.grad) / RANKS


def rank_average(name, split, gather):
    """Loss and gradient as DistributedDataParallel has them: averaged over the ranks."""
    start = sum(split[: rank()])
    part = [x[start : start + split[rank()]] for x in union()]
    w = projection()
    loss = LOSSES[name](w, *part, gather_distributed=gather)
    (grad,) = torch.autograd.grad(loss, w)
    return sum_over_ranks(loss) / RANKS, sum_over_ranks(grad.contiguous()) / RANKS


def pushed():
    """Class tokens and labels of two steps; a rank has every second pair of images."""
    tokens = random(2, 2 * RANKS, 3, 5, seed=4)
    return tokens, (random(2, 2 * RANKS, 3, seed=5) > 0).double()


def bank_after(of_rank, gather):
    """Push two steps of one rank (None: of all), a reload between them."""
    bank = ClassTokenBank(3, 5, size=3, gather_distributed=gather, dtype=torch.float64)
    rows = slice(None) if of_rank is None else slice(2 * of_rank, 2 * of_rank + 2)
    for tokens, labels in zip(*pushed(), strict=True):
        bank.push(tokens[rows], labels[rows])
        state = {name: value.clone() for name, value in bank.state_dict().items()}
        bank = ClassTokenBank(3, 5, size=3, gather_distributed=gather, dtype=torch.float64)
        bank.load_state_dict(state)
    return dict(bank.state_dict())


def gathered_rows():
    return random(2 * RANKS, 3, seed=3)


def rank_loss(everyone, of_rank):
    return ((of_rank + 1) * everyone**3).sum() + everyone[of_rank].prod()


def worker(of_rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=of_rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    results = {"rank": rank(), "world_size": world_size()}
    x = gathered_rows()[2 * of_rank : 2 * of_rank + 2].requires_grad_()
    everyone = all_gather_with_grad(x)
    results["gathered"] = everyone.detach()
    (results["gathered_grad"],) = torch.autograd.grad(rank_loss(everyone, of_rank), x)

    # the sum that gathered rows take part in hands one gradient tensor to both of its terms
    w = projection()
    term = w[: RANKS**2] * 1  # made before the gather, hence differentiated after it
    shared = all_gather_with_grad(w[:RANKS]) + term
    results["term_grad"], _ = torch.autograd.grad((2 * shared).sum(), (term, w))
    strided = TEXT.T if of_rank else TEXT.T.contiguous()
    results["strided_sum"] = sum_over_ranks(strided)

    count = torch.tensor(of_rank * 3)  # nothing on rank 0
    results["sum"], results["count"] = sum_over_ranks(count), count
    total = torch.tensor(6.0 * of_rank)
    results["mean"] = mean_over_ranks(total, count, gather_distributed=True)
    results["local_mean"] = mean_over_ranks(total, count, gather_distributed=False)

    results["bank"] = bank_after(of_rank, gather=True)
    results["own_bank"] = bank_after(of_rank, gather=False)

    for case in CASES:
        results[case, True] = rank_average(*case, gather=True)
        results[case, False] = rank_average(*case, gather=False)
    for name in SHARES:
        for split in ACCUMULATED:
            for gather in (True, False):
                results[name, split, "accumulated", gather] = accumulate(name, split, gather)
    torch.save(results, f"{folder}/{of_rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(RANKS)]


@pytest.mark.ddp
def test_gather_is_the_concatenation_and_its_gradient_that_of_all_losses(ranks):
    everyone = gathered_rows().requires_grad_()
    total = rank_loss(everyone, 0) + rank_loss(everyone, 1)
    (expected,) = torch.autograd.grad(total, everyone)
    for result in ranks:
        assert_close(result["gathered"], everyone)
    assert_close(torch.cat([result["gathered_grad"] for result in ranks]), expected)


@pytest.mark.ddp
def test_gather_leaves_the_gradient_of_other_tensors_alone(ranks):
    for result in ranks:
        assert (result["term_grad"] == 2).all()


@pytest.mark.ddp
def test_sum_does_not_depend_on_memory_layout(ranks):
    for result in ranks:
        assert_close(result["strided_sum"], 2 * TEXT.T)


@pytest.mark.ddp
def test_a_bank_holds_the_tokens_of_all_ranks_as_one_process_would(ranks):
    whole = bank_after(None, gather=False)
    assert whole["num_pushed"].max() > 3, "the ring goes around"
    for result in ranks:
        assert_close(result["bank"]["tokens"], whole["tokens"])
        assert result["bank"]["num_pushed"].tolist() == whole["num_pushed"].tolist()
    pushed_alone = sum(result["own_bank"]["num_pushed"] for result in ranks)
    assert pushed_alone.tolist() == whole["num_pushed"].tolist()
    assert not torch.equal(ranks[0]["own_bank"]["tokens"], ranks[1]["own_bank"]["tokens"])


@pytest.mark.ddp
def test_sums_and_means(ranks):
    assert [(r["rank"], r["world_size"]) for r in ranks] == [(0, 2), (1, 2)]
    assert [r["sum"].item() for r in ranks] == [3, 3]
    assert [r["count"].item() for r in ranks] == [0, 3], "the argument was overwritten"
    assert [r["mean"].item() for r in ranks] == [0.0, 4.0]  # averages to 6 / 3
    assert [r["local_mean"].item() for r in ranks] == [0.0, 2.0]


@pytest.mark.ddp
@pytest.mark.parametrize("case", CASES, ids=str)
def test_average_over_ranks_is_the_single_process(ranks, case):
    w = projection()
    loss = LOSSES[case[0]](w, *union())
    (grad,) = torch.autograd.grad(loss, w)
    assert grad.abs().max() > 1e-3
    for result in ranks:
        assert_close(result[case, True][0], loss)
        assert_close(result[case, True][1], grad)
        # a mean of the ranks' own means is something else: the counts are uneven
        assert (result[case, False][1] - grad).abs().max() > 1e-4


@pytest.mark.ddp
@pytest.mark.parametrize("split", ACCUMULATED, ids=str)
@pytest.mark.parametrize("name", SHARES)
def test_micro_batches_of_all_ranks_add_up_to_the_single_process(ranks, name, split):
    w = projection()
    loss = WHOLE[name](w, *union())
    (grad,) = torch.autograd.grad(loss, w)
    assert grad.abs().max() > 1e-3
    for result in ranks:
        value, gradient = result[name, split, "accumulated", True]
        assert_close(value, loss)
        assert_close(gradient, grad)
        if (name, split) != ("soft_margin", ACCUMULATED[0]):  # as many images on each rank
            assert (result[name, split, "accumulated", False][1] - grad).abs().max() > 1e-4


def test_single_process():
    assert (rank(), world_size()) == (0, 1)
    x = torch.ones(2, 3, requires_grad=True)
    assert all_gather_with_grad(x) is x
    assert not sum_over_ranks(x).requires_grad
    for gather in (False, True):
        mean = mean_over_ranks(x.sum(), torch.tensor(3), gather_distributed=gather)
        assert mean == 2
        assert mean.requires_grad
        assert mean_over_ranks(x.sum() * 0, torch.tensor(0), gather_distributed=gather) == 0
