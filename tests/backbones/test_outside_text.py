import sys

import pytest
import torch
from contract import covers

from wsss_blocks.backbones import TextBank, create_text_bank, outside_text


def unit(rows, dim, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=g), dim=-1)


@covers("outside_text", "oracle", "properties", "dtypes")
def test_each_source_gives_the_row_that_a_bank_would_have(tmp_path, monkeypatch):
    bank = TextBank.stand_in(["cat", "dog"], dim=16, seed=0)
    row = outside_text("stand-in", "letter", bank=bank)
    others = torch.cat([bank.classes, bank.background])
    for other in others:
        assert sum(float(a * b) for a, b in zip(row, other, strict=True)) == pytest.approx(0.75)
    assert torch.equal(row, outside_text("stand-in", "another prompt", bank=bank))
    assert row.dtype == torch.float32

    rows = unit(4, 8, 1)
    stored = TextBank(rows[:3], rows[3:], names=["cat", "dog", "letter"], source="a tower")
    stored.save(tmp_path / "bank.safetensors")
    file = str(tmp_path / "bank.safetensors")
    loaded = create_text_bank(file, ["dog", "cat"])
    assert torch.allclose(outside_text(file, "letter", bank=loaded), rows[2])

    asked = []

    def build(text, names):
        asked.append((text, names))
        return TextBank(rows[:1], None, names=names, source="a tower")

    home = sys.modules["wsss_blocks.backbones.outside_text"]  # the name is the function's, too
    monkeypatch.setattr(home, "create_text_bank", build)
    assert torch.allclose(outside_text("clip", "letter", bank=loaded), rows[0])
    assert asked == [("clip", ["letter"])]


@covers("outside_text", "errors", "degenerate")
def test_what_is_not_outside_or_not_there(tmp_path):
    bank = TextBank.stand_in(["cat"], dim=3, seed=0)
    assert outside_text("stand-in", "letter", bank=bank).shape == (3,)
    with pytest.raises(ValueError, match="prompt must be outside the classes, got 'cat'"):
        outside_text("stand-in", "cat", bank=bank)
    bank.save(tmp_path / "bank.safetensors")
    assert outside_text(str(tmp_path / "bank.safetensors"), "letter", bank=bank) is None
    with pytest.raises(ValueError, match="D must be at least K"):
        outside_text("stand-in", "letter", bank=TextBank.stand_in(["cat"], dim=2, seed=0))
