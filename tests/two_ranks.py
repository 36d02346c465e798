"""Run scripts in fresh processes, alone or as the two ranks of a group.

They are forked from a process that has imported torch and its kin: new interpreters would spend
most of the time of these tests on that.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
_FORKS = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _FORKS.set_forkserver_preload(
        ["accelerate", "sklearn.datasets", "timm", "torch._dynamo", "torch.utils.tensorboard"]
    )


def run_script(
    path: Path,
    *arguments: str | Path,
    environments: Sequence[Mapping[str, str]] = ({},),
    timeout: int = 300,
) -> list[str]:
    """Run a file once per environment, all at a time; return what each printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(i)) for i in range(len(environments))]
        processes = [
            _FORKS.Process(
                target=_run, args=(path, list(map(str, arguments)), {**os.environ, **more}, output)
            )
            for more, output in zip(environments, outputs, strict=True)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout)
        finally:
            for process in processes:
                process.kill()
        told = [output.with_suffix(".err").read_text()[-3000:] for output in outputs]
        assert [process.exitcode for process in processes] == [0] * len(processes), told
        return [output.with_suffix(".out").read_text() for output in outputs]


def run_two_ranks(script: str, *arguments: str | Path, timeout: int = 90) -> None:
    """Run source code as rank 0 and 1: ``sys.argv[1]`` is the rank; each must print "equal"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(f"import os, sys\nsys.argv.insert(1, os.environ['RANK'])\n{script}")
        ranks = [{"RANK": "0"}, {"RANK": "1"}]
        told = run_script(path, *arguments, environments=ranks, timeout=timeout)
    assert all("equal" in out for out in told)


def run_example_on_two_ranks(name: str, *options: str | Path) -> str:
    """Run an example in two processes of the CPU as torchrun does; return what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return "".join(run_script(EXAMPLES / name, "--device", "cpu", *options, environments=ranks))


def _run(path: Path, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method(None, force=True)  # loaders start workers as they always do
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
