"""The cell kernel of Triton: compiled for a GPU that is not there, and on one.

test_triton.py runs it in the interpreter.
"""

from pathlib import Path

import pytest
import torch
from contract import assert_close
from strategies import generator
from test_triton import needs_triton, resources

from wsss_blocks.ops.cell_kernel import cell_kernel
from wsss_blocks.ops.exact_kernel import exact_kernel


@needs_triton
@pytest.mark.parametrize("dims", [2, 5])
def test_compiles_for_sm_90_without_register_spills(dims, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.nvidia import compiler

    from wsss_blocks.ops import triton_cells as kernels

    tool = Path(compiler.__file__).with_name("bin") / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this triton comes without cuobjdump")
    types = dict.fromkeys(("to", "source", "values", "out"), "*fp32")
    types |= dict.fromkeys(("num_to", "num_source"), "*i32")
    types |= dict.fromkeys(("targets", "sources", "channels"), "i32")
    tile = {name: getattr(kernels, name) for name in ("POINTS", "SOURCES", "CHANNELS")}
    usage = resources(kernels._messages, types, {"DIMS": dims, **tile}, tool)
    assert usage["STACK"] == usage["LOCAL"] == 0, usage
    assert usage["REG"] <= 128, usage  # four programs of 128 threads on a multiprocessor


def problem(count=5000):
    g = generator(1)
    features = torch.rand(2, count, 5, generator=g) * torch.tensor([3.0, 3.0, 6.0, 6.0, 6.0])
    return features, torch.rand(2, 4, count, generator=g)


@pytest.mark.cuda
@pytest.mark.parametrize("count", [1, 63, 1000, 5000])
@pytest.mark.parametrize("cell", [1e-6, 1.0])
def test_equals_the_torch_form_and_all_pairs_on_a_gpu(count, cell):
    features, values = problem(count)
    out = cell_kernel(features.cuda(), cell=cell, backend="triton")(values.cuda())
    expected = cell_kernel(features.double(), cell=cell)(values.double())
    assert_close(out.cpu(), expected)
    if cell < 1e-3:
        assert_close(out.cpu(), exact_kernel(features.double())(values.double()))


@pytest.mark.cuda
def test_gradients_and_no_sync_on_a_gpu():
    features, values = problem()
    grad = torch.rand(values.shape, generator=generator(2))
    expected = values.double().requires_grad_()
    cell_kernel(features.double())(expected).backward(grad.double())
    on_gpu, given, wanted = features.cuda(), values.cuda().requires_grad_(), grad.cuda()
    cell_kernel(on_gpu)(given).backward(wanted)
    given.grad = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        cell_kernel(on_gpu)(given).backward(wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(given.grad.cpu(), expected.grad)
