import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsss_blocks.training import param_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 3))
        self.temperature = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)
        self.head_aux = nn.Linear(3, 2, bias=False)


def by_name(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_each_parameter_gets_its_rate_and_decay():
    model = Model()
    groups = param_groups(
        model, lr=0.1, weight_decay=0.05, multipliers={"head": 5.0, "head.": 10.0, "encoder.1": 0.5}
    )
    expected = {
        "pos_embed": (0.1, 0.0),
        "temperature": (0.1, 0.0),
        "encoder.0.weight": (0.1, 0.05),
        "encoder.0.bias": (0.1, 0.0),
        "encoder.1.weight": (0.05, 0.0),
        "encoder.1.bias": (0.05, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
        "head_aux.weight": (0.5, 0.05),
    }
    found = by_name(model, groups)
    assert set(found) == set(expected)
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name
    names = [g["name"] for g in groups]
    assert len(set(names)) == len(names) == 6


def test_frozen_and_shared_parameters():
    model = Model()
    model.encoder.requires_grad_(False)
    model.head_aux.weight = model.head.weight
    found = by_name(model, param_groups(model, lr=1.0, multipliers={"encoder.": 2.0}))
    assert set(found) == {"pos_embed", "temperature", "head.weight", "head.bias"}
    sizes = [len(g["params"]) for g in param_groups(model, lr=1.0)]
    assert sum(sizes) == 4
    assert 0 not in sizes


def test_no_decay_names_parts_not_substrings():
    model = nn.ModuleDict({"embed": nn.Linear(2, 2), "embedding": nn.Linear(2, 2)})
    groups = param_groups(model, lr=1.0, weight_decay=0.1, no_decay=("embed",))
    found = by_name(model, groups)
    assert found["embed.weight"] == (1.0, 0.0)
    assert found["embedding.weight"] == (1.0, 0.1)


@given(st.floats(1e-6, 10), st.floats(0, 1), st.floats(0.01, 100))
def test_an_optimizer_takes_the_groups(lr, weight_decay, factor):
    model = Model()
    optimizer = torch.optim.AdamW(
        param_groups(model, lr=lr, weight_decay=weight_decay, multipliers={"head.": factor})
    )
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["head. decay"] == pytest.approx(lr * factor)
    assert rates["decay"] == pytest.approx(lr)


def test_refuses():
    with pytest.raises(ValueError, match=r"none starts with 'heads\.'"):
        param_groups(Model(), lr=0.1, multipliers={"heads.": 10.0})
    with pytest.raises(ValueError, match=r"multipliers\['head'\] must be positive"):
        param_groups(Model(), lr=0.1, multipliers={"head": 0.0})
    with pytest.raises(ValueError, match="lr must be positive"):
        param_groups(Model(), lr=0.0)
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight_decay must be >= 0"):
            param_groups(Model(), lr=0.1, weight_decay=bad)


def test_a_model_without_parameters_has_no_group():
    assert param_groups(nn.ReLU(), lr=0.1) == []
