"""Triton's kernels: in the interpreter, compiled for a GPU that is not there, and on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_running_max import MODES, arguments, problem

from wsss_blocks.cam import cam_to_label
from wsss_blocks.ops import reference

FOLDER = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="triton is made for Linux only"
)


@needs_triton
def test_kernels_in_the_interpreter():
    files = ("interpreted.py", "interpreted_cells.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=FOLDER,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 92


SIZES = dict.fromkeys(
    ("channels", "classes", "source_height", "source_width", "height", "width"), "i32"
)


@needs_triton
@pytest.mark.parametrize("scores", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("mode", MODES)
def test_compiles_for_sm_90_without_register_spills(scores, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton.language as tl
    from triton.backends.nvidia import compiler

    from wsss_blocks.ops import triton as kernels

    tool = Path(compiler.__file__).with_name("bin") / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this triton comes without cuobjdump")
    exact = "fp64" if scores == "fp64" else "fp32"
    common = {
        "RELU": True,
        "MINMAX": True,
        "FIRST": int(mode == "channel"),
        "DTYPE": tl.float64 if exact == "fp64" else tl.float32,
    }
    cam = {"cam": f"*{scores}", "listed": "*i32", "counts": "*i32", "ranges": f"*{exact}", **SIZES}
    usage = resources(
        kernels._ranges, cam | {"labels": "*fp32"}, common | {"EVERY": 128, "BLOCK": 1024}, tool
    )
    assert usage["STACK"] == usage["LOCAL"] == 0, usage
    pointers = {"low": f"*{exact}", "high": f"*{exact}", "box": "*i64", "out": "*u8"}
    scalars = {"power": "fp32", "ignore_index": "i32"}
    tile = {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS, "LABEL": tl.int32, "BOX": True}
    flags = {"POWER": mode == "power", "PAIR": mode == "pair"}
    usage = resources(kernels._labels, cam | pointers | scalars, common | tile | flags, tool)
    assert usage["STACK"] == usage["LOCAL"] == 0, usage
    if exact == "fp32":  # four programs of 128 threads find room on a multiprocessor
        assert usage["REG"] <= 128, usage


def resources(kernel, types, constants, tool):
    """Compile a kernel without a GPU and read what its threads need."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 4})
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    listing = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(448, 448), (375, 500), (9, 31)])
def test_equals_the_reference_on_a_gpu(mode, size):
    cam, labels = problem(1, (16, 81, 28, 28), present=0.05, dtype=torch.float32)
    given = [
        x.cuda() if isinstance(x, torch.Tensor) else x
        for x in arguments(cam, labels, size, mode, box=torch.tensor([[2, 1, *size]] * 16))
    ]
    from wsss_blocks.ops import running_max, triton

    expected = reference.cam_to_label(*given)
    for run in (triton.cam_to_label, running_max.cam_to_label):
        assert (run(*given) != expected).double().mean() <= 1e-5


@pytest.mark.cuda
def test_offsets_beyond_32_bits_and_no_sync_on_a_gpu():
    cam = torch.rand(3000, 1, 2, 2, device="cuda")
    labels = torch.ones(3000, 1, device="cuda")
    cam_to_label(cam[:1], labels[:1], size=(1024, 1024), dtype=torch.uint8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = cam_to_label(cam, labels, size=(1024, 1024), dtype=torch.uint8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    last = cam_to_label(cam[-1:].cpu(), labels[-1:].cpu(), size=(1024, 1024), dtype=torch.uint8)
    assert (out[-1:].cpu() != last).double().mean() <= 1e-5
