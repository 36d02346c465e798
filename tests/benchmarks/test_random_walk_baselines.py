"""The baselines of the random walk benchmark compute what the block computes."""

import pytest
import torch

from benchmarks.baselines import random_walk_dense
from benchmarks.bench_random_walk import problem
from wsss_blocks.refine import edge_affinity, random_walk


@pytest.mark.parametrize("radius", [2, 5])
@pytest.mark.parametrize("side", [3, 16])
def test_all_candidates_agree(side, radius):
    maps, edge = problem(side, "cpu")
    affinity = edge_affinity(edge, radius=radius)
    ours = random_walk(maps, affinity, beta=4.0, steps=16)[0]
    dense = affinity.to_dense()[0]
    peer = random_walk_dense.published(maps[0], dense, beta=4.0, doublings=4)
    torch.testing.assert_close(peer, ours, atol=1e-5, rtol=0)
    rows = random_walk_dense.compressed_rows(affinity.values[0], affinity.offsets, 4.0)
    stepped = random_walk_dense.walk_compressed(maps[0], rows, steps=16)
    torch.testing.assert_close(stepped, ours, atol=1e-5, rtol=0)
    fewer = random_walk_dense.walk_compressed(maps[0], rows, steps=8)
    assert (fewer - ours).abs().max() > 1e-3


def test_maps_are_zero_on_edges_and_edges_occur():
    maps, edge = problem(56, "cpu")
    assert (edge > 0.9).any()
    assert (edge == 0).any()
    assert (maps * (edge == 1) == 0).all()
