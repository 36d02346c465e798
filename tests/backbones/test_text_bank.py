import copy
import pickle
import tempfile

import numpy as np
import pytest
import torch
from contract import assert_close, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.backbones import class_rows, unit
from safetensors.torch import save_file
from strategies import generator, seeds, small
from torch import nn

from wsss_blocks.backbones import TextBank, TextFeatures

NAMES = ["cat", "dog", "dining table"]


class Letters(nn.Module):
    """A text encoder that counts letters, with dropout to show in which mode it ran."""

    def __init__(self, dim=5, dtype=torch.float64):
        super().__init__()
        self.table = nn.Embedding(128, dim, dtype=dtype)
        nn.init.normal_(self.table.weight, generator=generator(0))
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def tokenize(self, texts):
        self.batches.append(len(texts))
        ids = torch.zeros(len(texts), 30, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor([ord(c) for c in text])
        return ids, ids != 0

    def forward(self, ids, mask):
        tokens = self.dropout(self.table(ids)) * mask[..., None]
        return TextFeatures(tokens, mask, mask & False, tokens.sum(1))


def rows(k=3, d=4, seed=0):
    return torch.randn(k, d, generator=generator(seed), dtype=torch.float64)


def bank(**kwargs):
    return TextBank(rows(), rows(2, seed=1), names=NAMES, source="test", **kwargs)


@covers("TextBank", "oracle")
@pytest.mark.parametrize("templates", [("a photo of {}",), ("a {}.", "the {} in it", "{}")])
def test_templates_are_averaged_and_normalised_again(templates):
    encoder = Letters()
    background = ("a photo of background", "sky")
    made = TextBank.from_encoder(encoder, NAMES, templates=templates, background=background)

    def embed(text):
        return [
            sum(float(encoder.table.weight[ord(c), d].detach()) for c in text) for d in range(5)
        ]

    expected = class_rows([[embed(t.replace("{}", name)) for t in templates] for name in NAMES])
    assert_close(made.classes, expected)
    assert_close(made.background, [unit(embed(text)) for text in background])
    assert made.names == tuple(NAMES)
    assert made.source == f"Letters: {', '.join(templates)}"


@covers("TextBank", "oracle")
@given(seeds, st.integers(1, 9), st.integers(0, 3))
def test_stand_in_has_the_promised_cosines(seed, k, spare):
    made = TextBank.stand_in([f"c{i}" for i in range(k)], dim=k + 1 + spare, seed=seed)
    everything = torch.cat([made.classes, made.background]).tolist()
    for i, a in enumerate(everything):
        for j, b in enumerate(everything):
            cosine = sum(x * y for x, y in zip(a, b, strict=True))
            assert cosine == pytest.approx(1 if i == j else 0.75, abs=1e-5)
    assert made.source == "stand-in"


@covers("TextBank", "oracle")
@given(seeds, seeds, st.integers(1, 9), st.integers(0, 3))
def test_another_stand_in_row_has_the_promised_cosines(seed, other, k, spare):
    made = TextBank.stand_in([f"c{i}" for i in range(k)], dim=k + 2 + spare, seed=seed)
    row = made.stand_in_row(seed=other)
    assert row.shape == (k + 2 + spare,)
    for t in [*made.classes.tolist(), *made.background.tolist()]:
        assert sum(x * y for x, y in zip(t, row.tolist(), strict=True)) == pytest.approx(
            0.75, abs=1e-5
        )
    assert sum(x * x for x in row.tolist()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(row, made.stand_in_row(seed=other))
    if spare:
        assert not torch.allclose(row, made.stand_in_row(seed=other + 1), atol=1e-3)


@covers("TextBank", "properties")
def test_another_row_of_part_of_a_bank():
    made = TextBank.stand_in(NAMES, dim=8, seed=3).select(NAMES[:1]).to(torch.bfloat16)
    row = made.stand_in_row(seed=1)
    assert row.dtype == torch.bfloat16
    assert_close(torch.cat([made.classes, made.background]) @ row, [0.75, 0.75])


@covers("TextBank", "properties")
def test_stand_in_depends_on_the_seed_alone():
    a, b = (TextBank.stand_in(NAMES, dim=8, seed=3) for _ in range(2))
    assert torch.equal(a.classes, b.classes)
    assert not torch.allclose(a.classes, TextBank.stand_in(NAMES, dim=8, seed=4).classes)


@covers("TextBank", "properties")
@given(seeds, small, st.integers(0, 2))
def test_rows_are_units_whatever_their_length(seed, k, m):
    classes, background = rows(k, seed=seed) * 7, rows(m, seed=seed + 1)
    names = [str(i) for i in range(k)]
    made = TextBank.from_arrays(classes.numpy(), background.numpy(), names=names, source="x")
    assert made.classes.shape == (k, 4)
    assert made.background.shape == (m, 4)
    assert_close(made.classes.norm(dim=1), torch.ones(k))
    assert_close(made.classes, [unit(row) for row in classes.tolist()])
    assert classes.norm(dim=1).max() > 1.1 or k == 0  # the input is left alone


@covers("TextBank", "properties")
def test_encoder_runs_in_eval_mode_in_batches_without_gradient():
    encoder = Letters().train()
    made = TextBank.from_encoder(encoder, NAMES, batch_size=3, source="letters v1")
    again = TextBank.from_encoder(encoder, NAMES)
    assert encoder.training
    assert encoder.batches == [3, 1, 4]
    assert_close(made.classes, again.classes)
    assert not made.classes.requires_grad
    assert made.source == "letters v1"
    assert list(made.parameters()) == []


@covers("TextBank", "module")
def test_state_copies_and_device_moves():
    made = bank()
    assert tuple(made.state_dict()) == ("classes", "background")
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other.classes, made.classes)
        assert (other.names, other.source) == (made.names, made.source)
    assert made.to(torch.float32).background.dtype == torch.float32


@covers("TextBank", "module")
def test_save_and_load(tmp_path):
    made, path = bank(), tmp_path / "bank.safetensors"
    made.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]
    for names in (None, NAMES):
        again = TextBank.load(path, names=names)
        assert_close(again.classes, made.classes)
        assert_close(again.background, made.background)
        assert (again.names, again.source) == (made.names, made.source)
    other = TextBank.load(path, background=rows(1, seed=5))
    assert_close(other.background, [unit(rows(1, seed=5)[0].tolist())])


@covers("TextBank", "properties")
@given(st.permutations(NAMES), st.integers(1, 3))
def test_rows_are_taken_by_name(order, count):
    made, wanted = bank(), order[:count]
    some = made.select(wanted)
    assert (some.names, some.source) == (tuple(wanted), "test")
    assert_close(some.background, made.background)
    for name, row in zip(wanted, some.classes, strict=True):
        assert_close(row, made.classes[NAMES.index(name)])
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/bank.safetensors")
        loaded = TextBank.load(f"{folder}/bank.safetensors", names=wanted)
    assert (loaded.names, loaded.source) == (some.names, some.source)
    assert_close(loaded.classes, some.classes)
    assert_close(loaded.background, some.background)


@covers("TextBank", "module")
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    bank().save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TextBank.stand_in(NAMES, dim=8, seed=0).save(path)
    assert path.read_bytes() == before


@covers("TextBank", "dtypes")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_half_rows_become_float32(dtype):
    made = TextBank.from_arrays(rows().numpy().astype(dtype), None, names=NAMES, source="x")
    expected = torch.float64 if dtype == np.float64 else torch.float32
    assert made.classes.dtype == made.background.dtype == expected
    assert_close(made.classes, bank().classes, dtype=torch.bfloat16)
    assert torch.isfinite(made.to(torch.bfloat16).classes).all()


@covers("TextBank", "errors")
def test_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"classes must have shape \(K, D\), got \(3,\)"):
        TextBank(torch.rand(3), None, names=NAMES, source="x")
    with pytest.raises(ValueError, match=r"background must have shape \(M, D\) with D=4"):
        TextBank(rows(), torch.rand(1, 5), names=NAMES, source="x")
    with pytest.raises(TypeError, match="classes must be a floating-point tensor"):
        TextBank(torch.ones(3, 4, dtype=torch.long), None, names=NAMES, source="x")
    with pytest.raises(ValueError, match="finite rows that are not zero"):
        TextBank(rows() * torch.tensor([[1], [0], [1]]), None, names=NAMES, source="x")
    with pytest.raises(ValueError, match="finite rows that are not zero"):
        TextBank(rows() / 0, None, names=NAMES, source="x")
    with pytest.raises(ValueError, match="names must be K=3 > 0 distinct names"):
        TextBank(rows(), None, names=["cat", "dog"], source="x")
    with pytest.raises(ValueError, match="names must be K=3 > 0 distinct names"):
        TextBank(rows(), None, names=["cat", "dog", "cat"], source="x")
    with pytest.raises(ValueError, match=r"dim must be at least K \+ 1 = 4, got 3"):
        TextBank.stand_in(NAMES, dim=3, seed=0)
    with pytest.raises(ValueError, match=r"D must be at least K \+ 2 = 5 .* got 4"):
        TextBank.stand_in(NAMES, dim=4, seed=0).stand_in_row(seed=0)
    with pytest.raises(ValueError, match=r"source must be 'stand-in' .* got 'test'"):
        bank().stand_in_row(seed=0)
    for templates in ((), ("a photo",), ("{} {}",)):
        with pytest.raises(ValueError, match=r"templates must each hold one '\{\}'"):
            TextBank.from_encoder(Letters(), NAMES, templates=templates)
    with pytest.raises(ValueError, match="names must hold a class at least"):
        TextBank.from_encoder(Letters(), [], background=())
    path = tmp_path / "x.safetensors"
    bank().save(path)
    with pytest.raises(
        ValueError, match=r"x\.safetensors: 2 of 3 are missing \('cow', 'sheep'\); it holds 'cat', "
    ):
        TextBank.load(path, names=["cow", "cat", "sheep"])
    with pytest.raises(ValueError, match="2 > 0 distinct names"):
        TextBank.load(path, names=["cat", "cat"])
    with pytest.raises(ValueError, match=r"the bank \(test\): 1 of 1 are missing \('cow'\)"):
        bank().select(["cow"])
    with pytest.raises(ValueError, match="names must be K=0 > 0"):
        bank().select([])
    with pytest.raises(ValueError, match="background must have shape") as caught:
        TextBank.load(path, background=torch.rand(1, 5))
    assert "safetensors" not in str(caught.value)  # the argument is wrong, not the file
    whole = path.read_bytes()
    for part in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"not safetensors" * 9):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"x\.safetensors must be a whole safetensors file"):
            TextBank.load(path)
    with pytest.raises(FileNotFoundError, match="none"):
        TextBank.load(tmp_path / "none.safetensors")
    for metadata in ({"names": "cat"}, {"names": "3"}):
        save_file({"classes": rows()}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"x\.safetensors must hold its names as a JSON list"):
            TextBank.load(path)
    save_file({"classes": rows()}, path, metadata={"names": '["cat"]'})
    with pytest.raises(ValueError, match=r"x\.safetensors must hold a text bank: names must"):
        TextBank.load(path)
    save_file({"classes": torch.ones(3, 4, dtype=torch.long)}, path)
    with pytest.raises(TypeError, match=r"x\.safetensors must hold a text bank: classes must be"):
        TextBank.load(path, names=NAMES)
    save_file({"classes": rows()}, path)
    with pytest.raises(ValueError, match="names must be given"):
        TextBank.load(path)
    assert len(TextBank.load(path, names=NAMES).background) == 0
    save_file({"rows": rows()}, path)
    with pytest.raises(ValueError, match="must hold a tensor 'classes'"):
        TextBank.load(path, names=NAMES)


@covers("TextBank", "degenerate")
def test_one_class_without_background():
    made = TextBank.from_encoder(Letters(), ["cat"], background=())
    assert made.classes.shape == (1, 5)
    assert made.background.shape == (0, 5)
    assert TextBank.stand_in(["cat"], dim=2, seed=0).classes.shape == (1, 2)
    with pytest.raises(ValueError, match="K=0 > 0"):
        TextBank(rows(0), None, names=[], source="x")


@pytest.mark.real_data
def test_real_clip_rows(shared_data):
    folder = shared_data / "clip_text"
    classes = np.load(folder / "zegclip_voc12_single.npy")
    stuff = np.load(folder / "zegclip_coco_single.npy")[80:].mean(0, keepdims=True)
    made = TextBank.from_arrays(
        classes, stuff, names=[f"class {i}" for i in range(20)], source="ZegCLIP"
    )
    assert made.classes.shape == (20, 512)
    cosines = made.classes @ made.background.mT
    assert 0.75 < float(cosines.min()) < float(cosines.max()) < 0.95
