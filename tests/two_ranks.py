"""Run a script in two processes of one group."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_two_ranks(script: str, *arguments: str | Path, timeout: int = 90) -> None:
    """Run source code as rank 0 and 1: ``sys.argv[1]`` is the rank; each must print "equal"."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert all("equal" in out for out in outputs)


def torchrun_example(name: str, *options: str | Path) -> str:
    """Run an example under torchrun on two processes of the CPU; return what it printed."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(EXAMPLES / name), "--device", "cpu", *map(str, options),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
