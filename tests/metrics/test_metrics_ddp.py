from pathlib import Path

import pytest
from two_ranks import run_two_ranks

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from wsss_blocks.metrics import SegmentationEvaluator, ThresholdSweep

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)
pred = torch.randint(0, 4, (5, 6, 7), generator=g)
target = torch.randint(0, 4, (5, 6, 7), generator=g)
cam, labels = torch.rand(5, 3, 3, 3, generator=g), torch.ones(5, 3)
mine, whole = SegmentationEvaluator(4), SegmentationEvaluator(4)
swept, whole_sweep = ThresholdSweep(4), ThresholdSweep(4)
for i in range(5):
    whole.update(pred[i], target[i])
    whole_sweep.update(cam[i:i + 1], labels[i:i + 1], target[i:i + 1])
    if (i == 0) == (rank == 0):  # uneven shards: one image, four images
        mine.update(pred[i], target[i])
        swept.update(cam[i:i + 1], labels[i:i + 1], target[i:i + 1])
before = mine.counts.clone()
for _ in range(2):  # reducing twice must not count twice
    assert torch.equal(mine.all_reduce().compute().confusion, whole.compute().confusion)
    assert torch.equal(swept.all_reduce().compute().curve, whole_sweep.compute().curve)
assert torch.equal(mine.counts, before) and not torch.equal(before, whole.counts)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_score_like_one(tmp_path: Path):
    run_two_ranks(SCRIPT, tmp_path / "store")
