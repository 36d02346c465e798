"""Which form of an operation runs, and that the custom operator is well formed."""

import subprocess
import sys

import pytest
import torch

from wsss_blocks.cam import cam_to_label
from wsss_blocks.ops import _dispatch


def arguments(backend="torch"):
    cam, labels = torch.randn(2, 3, 4, 5), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    low, high = torch.full((2,), 0.2), torch.full((2,), 0.6)
    box = torch.tensor([[0, 1, 8, 9], [2, 2, 6, 9]])
    return (cam, labels, low, high, box, 8, 9, None, True, True, 255, torch.uint8, backend)


def test_a_cpu_tensor_goes_to_torch(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1)
    assert _dispatch.choose_backend("auto", x) == _dispatch.choose_backend("torch", x) == "torch"
    monkeypatch.setattr(_dispatch, "_triton_installed", lambda: True)
    with pytest.raises(ValueError, match="backend must be 'auto' or 'torch' for tensors on cpu"):
        _dispatch.choose_backend("triton", x)
    monkeypatch.setattr(_dispatch, "_triton_installed", lambda: False)
    with pytest.raises(ValueError, match="backend must be 'auto' or 'torch' without triton"):
        _dispatch.choose_backend("triton", x)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'torch', 'triton', got 1"):
        cam_to_label(torch.rand(1, 1, 2, 2), torch.ones(1, 1), size=(2, 2), backend=1)


def test_auto_takes_triton_on_a_gpu_unless_switched_off(monkeypatch):
    class OnGPU:
        is_cuda = True

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("WSSS_BLOCKS_DISABLE_TRITON", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_dispatch, "_triton_installed", lambda: True)
    assert _dispatch.choose_backend("auto", OnGPU()) == "triton"
    assert _dispatch.choose_backend("torch", OnGPU()) == "torch"
    monkeypatch.setenv("WSSS_BLOCKS_DISABLE_TRITON", "1")
    assert _dispatch.choose_backend("auto", OnGPU()) == "torch"
    assert _dispatch.choose_backend("triton", OnGPU()) == "triton"
    monkeypatch.delenv("WSSS_BLOCKS_DISABLE_TRITON")
    monkeypatch.setattr(_dispatch, "_triton_installed", lambda: False)
    assert _dispatch.choose_backend("auto", OnGPU()) == "torch"


def test_the_custom_operator_is_well_formed():
    torch.library.opcheck(_dispatch.cam_to_label, arguments())


def test_export_keeps_one_operator():
    class Label(torch.nn.Module):
        def forward(self, cam, labels):
            return cam_to_label(cam, labels, size=(8, 9))

    cam, labels = arguments()[:2]
    program = torch.export.export(Label(), (cam, labels))
    assert torch.equal(program.module()(cam, labels), cam_to_label(cam, labels, size=(8, 9)))
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert "wsss_blocks.cam_to_label.default" in called


def test_triton_is_not_imported_before_it_runs():
    code = (
        "import sys, torch\n"
        "from wsss_blocks.cam import cam_to_label\n"
        "cam_to_label(torch.rand(1, 2, 4, 4), torch.ones(1, 2), size=(8, 8))\n"
        "print('wsss_blocks.ops.triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
