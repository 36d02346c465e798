import copy
import io

import hypothesis.strategies as st
import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    assert_same,
    covers,
)
from hypothesis import given
from oracles import memory as oracle
from strategies import generator, seeds
from torch import nn

from wsss_blocks.memory import EMA


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).to(
        dtype
    )


def change(model, g):
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.randn(x.shape, generator=g))
        for x in model.buffers():
            x.copy_(torch.rand(x.shape, generator=g) * 9)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@covers("EMA", "oracle")
@given(
    seeds,
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_oracle(seed, steps, decay, warmup, average_buffers):
    g, model = generator(seed), network()
    change(model, g)
    ema = EMA(model, decay=decay, warmup=warmup, average_buffers=average_buffers)
    history = [state(model)]
    for _ in range(steps):
        change(model, g)
        ema.update(model)
        history.append(state(model))
    assert int(ema.num_updates) == steps
    parameters = dict(model.named_parameters())
    for name, actual in ema.model.state_dict().items():
        values = [h[name].flatten().tolist() for h in history]
        if name in parameters or (average_buffers and actual.is_floating_point()):
            each = zip(*values, strict=True)
            wanted = [oracle.ema(v, decay, warmup) for v in each]
            expected = torch.tensor(wanted, dtype=torch.float64)
            # The ramp is computed in float32.
            assert_close(
                actual.flatten(), expected, dtype=torch.float32 if warmup else torch.float64
            )
        else:
            assert actual.flatten().tolist() == values[-1]


@covers("EMA", "properties")
def test_limits_and_independence():
    model, g = network(), generator(1)
    ema = EMA(model, decay=0.0)
    start = state(ema.model)
    change(model, g)
    for name, value in ema.model.state_dict().items():
        assert_same(value, start[name])
    before = state(model)
    ema.update(model)
    for name, value in ema.model.state_dict().items():
        assert_same(value, model.state_dict()[name])
        assert_same(model.state_dict()[name], before[name])
    change(model, g)
    assert not torch.equal(ema.model[0].weight, model[0].weight)
    frozen = EMA(model, decay=1.0)
    kept = state(frozen.model)
    model[0].weight.data.zero_()
    frozen.update(model)
    assert_same(frozen.model[0].weight, kept["0.weight"])


@covers("EMA", "properties")
def test_runs_in_evaluation_mode_without_training_anything():
    model = network().train()
    ema = EMA(model)
    assert model.training
    assert all(x.requires_grad for x in model.parameters())
    assert not any(x.requires_grad for x in ema.parameters())
    system = nn.ModuleList([model, ema]).train()
    assert system[1].training
    assert not any(m.training for m in ema.model.modules())
    x = torch.randn(5, 3, dtype=torch.float64)
    means = ema.model[1].running_mean.clone()
    assert_same(ema(x), ema(x))
    assert_same(ema(x), copy.deepcopy(model).eval()(x).detach())
    assert_same(ema.model[1].running_mean, means)


@covers("EMA", "properties")
def test_resume_is_exact():
    """Saving after two updates and going on gives what an unbroken run gives, ramp included."""

    def run(ema, model, seeds):
        for seed in seeds:
            change(model, generator(seed))
            ema.update(model)

    model = network()
    unbroken = EMA(model, warmup=True)
    run(unbroken, model, [1, 2, 3, 4])
    model = network()
    first = EMA(model, warmup=True)
    run(first, model, [1, 2])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    model = network()
    second = EMA(model, warmup=True)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(second, model, [3, 4])
    assert_same(list(second.state_dict().values()), list(unbroken.state_dict().values()))


class Wrapped(nn.Module):
    """An ordinary model that calls its part ``module``."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(3, 2, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.module(x) * self.scale


def test_wrappers_are_looked_through():
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model = Wrapped()
        keys = ["num_updates", "model.scale", "model.module.weight", "model.module.bias"]
        plain, wrapped = EMA(model, decay=0.5), EMA(wrap(model), decay=0.5)
        assert sorted(plain.state_dict()) == sorted(wrapped.state_dict()) == sorted(keys)
        change(model, generator(3))
        plain.update(wrap(model))
        wrapped.update(model)
        assert_same(list(plain.state_dict().values()), list(wrapped.state_dict().values()))
        assert not torch.equal(plain.model.scale, torch.ones(()))


def test_distributed_wrapper_is_looked_through():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        model = Wrapped()
        ema = EMA(model, decay=0.0)
        change(model, generator(9))
        ema.update(torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager"))
    finally:
        torch.distributed.destroy_process_group()
    assert_same(list(ema.model.state_dict().values()), list(model.state_dict().values()))


def test_parts_may_be_compiled_later():
    model = Wrapped()
    ema = EMA(model, decay=0.0)
    change(model, generator(4))
    model.module = torch.compile(model.module, backend="eager")
    ema.update(model)
    assert_same(ema.model.module.weight, model.module.weight.detach())


def test_tied_weights_move_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = EMA(model, decay=0.5)
    start = ema.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1
    ema.update(model)
    assert ema.model[0].weight is ema.model[1].weight
    assert_close(ema.model[0].weight, start + 0.5)


@covers("EMA", "gradcheck")
def test_gradients_reach_the_input_only():
    ema = EMA(network())
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator(5), requires_grad=True)
    assert_gradcheck(ema, x)
    ema(x).sum().backward()
    assert all(p.grad is None for p in ema.parameters())


@covers("EMA", "module")
def test_module():
    model = nn.Linear(3, 2, dtype=torch.float64)
    ema = EMA(model, decay=0.9, warmup=True)
    x = torch.randn(4, 3, dtype=torch.float64)
    keys = ("num_updates", "model.weight", "model.bias")
    assert_module(ema, model(x).detach(), x, state_keys=keys)
    assert "decay=0.9, warmup=True" in repr(ema)
    twin = copy.deepcopy(ema)
    change(model, generator(6))
    twin.update(model)
    assert (int(twin.num_updates), int(ema.num_updates)) == (1, 0)


@covers("EMA", "dtypes")
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype, warmup):
    model = nn.Linear(3, 2, dtype=dtype)
    ema = EMA(model, decay=0.5, warmup=warmup)
    start = ema.model.weight.clone().double()
    change(model, generator(7))
    ema.update(model)
    decay = 0.1 if warmup else 0.5
    assert ema.model.weight.dtype == dtype
    expected = decay * start + (1 - decay) * model.weight.double()
    # The ramp is computed in float32.
    loose = warmup and dtype == torch.float64
    assert_close(ema.model.weight, expected, dtype=torch.float32 if loose else dtype)
    x = torch.ones(1, 3, dtype=dtype)
    assert ema(x).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        out = ema(torch.ones(1, 3, dtype=dtype))
    assert bool(out.isfinite().all())


@covers("EMA", "dtypes")
def test_a_float32_average_follows_a_bfloat16_model():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    half, full = EMA(model, decay=0.999), EMA(model, decay=0.999).float()
    nn.init.constant_(model.weight, 2.0)
    for _ in range(3):
        half.update(model)
        full.update(model)
    assert half.model.weight.item() == 1.0
    assert full.model.weight.item() == pytest.approx(2 - 0.999**3, rel=1e-6)


@covers("EMA", "compile")
def test_compile():
    ema = EMA(network(torch.float32))
    assert_compiles(ema, torch.randn(4, 3))


@covers("EMA", "errors")
def test_errors():
    for decay in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got"):
            EMA(nn.Linear(3, 2), decay=decay)
    ema = EMA(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="only one of both has 'bias'"):
        ema.update(nn.Linear(3, 2, bias=False))
    with pytest.raises(ValueError, match=r"weight of model must have shape \(2, 3\), got \(2, 4\)"):
        ema.update(nn.Linear(4, 2))
    assert int(ema.num_updates) == 0


@covers("EMA", "degenerate")
@pytest.mark.parametrize("warmup", [False, True])
def test_models_without_parameters_or_buffers(warmup):
    ema = EMA(nn.ReLU(), warmup=warmup)
    ema.update(nn.ReLU())
    assert int(ema.num_updates) == 1
    assert ema(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
    norm = nn.BatchNorm1d(2, affine=False)
    ema = EMA(norm, warmup=warmup)
    norm(torch.randn(4, 2, generator=generator(8)))
    ema.update(norm)
    assert_same(list(ema.model.state_dict().values()), list(norm.state_dict().values()))
    assert ema.model.num_batches_tracked.item() == 1
