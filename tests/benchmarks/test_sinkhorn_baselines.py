"""The baselines of the Sinkhorn benchmark compute what the block computes."""

import pytest

from benchmarks.baselines import sinkhorn_torch
from benchmarks.bench_sinkhorn import iterations_to, misplaced, ot_batch, ot_loop, problem
from wsss_blocks.refine import sinkhorn


@pytest.mark.parametrize("num_iters", [1, 7])
def test_all_candidates_agree(num_iters):
    p, steps = problem(3, 20, 4, "cpu", width=8), {"reg": 0.1, "num_iters": num_iters}
    ours = sinkhorn(p.cost, a=p.a, b=p.b, **steps)
    for peer in (
        sinkhorn_torch.published(*p, **steps),
        sinkhorn_torch.best(*p, **steps),
        ot_batch(p, **steps),
    ):
        assert misplaced(peer, ours) < 1e-5
    assert misplaced(ours, sinkhorn(p.cost, a=p.a, b=p.b, reg=0.1, num_iters=num_iters + 1)) > 1e-3


def test_the_image_loop_leaves_out_what_has_no_mass():
    p, steps = problem(2, 9, 5, "cpu", width=8), {"reg": 0.1, "num_iters": 5}
    p.b[0, [1, 3]] = 0
    p.a[1, :4] = 0
    p.a.div_(p.a.sum(1, keepdim=True))
    p.b.div_(p.b.sum(1, keepdim=True))
    ours = sinkhorn(p.cost, a=p.a, b=p.b, **steps)
    assert misplaced(sinkhorn_torch.published(*p, **steps), ours) < 1e-5


def test_the_number_of_iterations_to_the_optimum_is_the_least():
    exact = problem(2, 30, 4, "cpu", width=8).double()
    truth = sinkhorn(exact.cost, a=exact.a, b=exact.b, reg=0.05, method="newton")
    enough = iterations_to(exact, truth, 0.05, 1e-3)
    assert enough > 5
    peers = [ot_batch(exact, 0.05, n) for n in (enough - 1, enough)]
    assert misplaced(peers[0], truth) > 1e-3 >= misplaced(peers[1], truth)
    assert misplaced(ot_loop(exact, 0.05, 2000), truth) < 1e-3
