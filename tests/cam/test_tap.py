import pytest
import torch
from contract import covers
from torch import nn

from wsss_blocks.cam import tap_output


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


@covers("tap_output", "properties")
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_are_on_the_path_and_values_stay(frozen):
    model, images = net().requires_grad_(not frozen), torch.rand(2, 3, 5, 6)
    expected = model(images)
    with tap_output(model[1]) as taps:
        found = model(images)
        model(images[:1])
    assert torch.equal(found, expected)
    assert [len(tap) for tap in taps] == [2, 1]
    (gradient,) = torch.autograd.grad(found.sum(), taps[0], retain_graph=True)
    weight = model[2].weight.detach().sum(0).expand(2, 4, 1, 1)
    assert torch.equal(gradient, weight.expand_as(gradient))
    assert taps[0].is_leaf is frozen
    if not frozen:  # training goes on as before
        found.sum().backward()
        assert model[0].weight.grad.any()


@covers("tap_output", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = net().to(dtype).requires_grad_(False)
    with tap_output(model[0]) as taps:
        out = model(torch.rand(1, 3, 4, 4, dtype=dtype))
    assert out.dtype == taps[0].dtype == dtype
    assert torch.equal(model[2](model[1](taps[0])), out)


@covers("tap_output", "degenerate")
def test_the_hook_goes_with_the_block():
    model, images = net().requires_grad_(False), torch.rand(1, 3, 3, 3)
    with tap_output(model[0]) as taps:
        pass
    assert taps == []
    with pytest.raises(KeyError), tap_output(model[0]):
        raise KeyError
    assert not model(images).requires_grad
    assert not model[0]._forward_hooks
    with tap_output(model) as taps:
        assert model(images[:0]).shape == (0, 2, 1, 1)
    assert taps[0].requires_grad


@covers("tap_output", "errors")
def test_errors():
    model, images = net(), torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got Tensor"):
        tap_output(images).__enter__()
    with (
        pytest.raises(ValueError, match=r"gradients on, got torch.no_grad"),
        tap_output(model[0]),
        torch.no_grad(),
    ):
        model(images)
    for bad, kind in ((lambda x: (x,), "tuple"), (lambda x: x.long(), "torch.int64")):
        model[1].forward = bad
        with (
            pytest.raises(TypeError, match=f"must return a floating-point tensor, got {kind}"),
            tap_output(model[1]),
        ):
            model(images)
