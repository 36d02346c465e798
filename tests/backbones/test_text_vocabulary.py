import pytest
import torch
from hypothesis import given
from oracles import captions as oracle
from strategies import generator, seeds, small

from wsss_blocks.backbones import TextVocabulary


def bools(*numbers, size):
    return [i in numbers for i in range(size)]


def test_word_pieces():
    pieces = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "em": 5, "##bed": 6}
    pieces |= {"cat": 7, "a": 8, ",": 9, "[unused1]": 10, "##s": 11, "don't": 12, "Äpfel": 13}
    table = TextVocabulary.from_pieces(pieces, special=[2, 3], mask_id=4, pad_id=0)
    assert table.begins.tolist() == [i not in (6, 11) for i in range(14)]
    assert not table.ends.any()
    assert table.special.tolist() == bools(2, 3, size=14)
    assert table.ordinary.tolist() == bools(5, 7, 13, size=14)
    assert (table.mask_id, table.pad_id) == (4, 0)


@pytest.mark.parametrize(("mark", "expected"), [("Ġ", (3,)), ("▁", (3, 7))])
def test_marks_in_front(mark, expected):
    pieces = {"<s>": 0, "<pad>": 1, "</s>": 2, f"{mark}cat": 3, "cat": 4, f"{mark}a": 5}
    pieces |= {f"{mark}3d": 6, f"{mark}Ãªhm": 7}
    table = TextVocabulary.from_pieces(pieces, special=[0, 2], mask_id=None, pad_id=1)
    assert table.begins.tolist() == bools(3, 5, 6, 7, size=8)
    assert not table.ends.any()
    # Bytes that look like letters are no word of the byte-level encoding.
    assert table.ordinary.tolist() == bools(*expected, size=8)


def test_marks_behind():
    pieces = {"!": 0, "ca": 1, "t</w>": 2, "cat</w>": 3, "dog": 4, "!</w>": 5, "ä½ł</w>": 6}
    pieces |= {"<start_of_text>": 7, "<end_of_text>": 8}
    table = TextVocabulary.from_pieces(pieces, special=[7, 8], mask_id=None, pad_id=0)
    assert not table.begins.any()
    assert table.ends.tolist() == bools(2, 3, 5, 6, size=9)
    assert table.ordinary.tolist() == bools(3, size=9)
    ids = torch.tensor([[7, 1, 2, 3, 4, 2, 8, 0]])
    mask = torch.arange(8)[None] < 7
    assert table.starts(ids, mask)[0].tolist() == bools(1, 3, 4, size=8)


def test_without_marks_each_id_is_a_word_and_holes_are_none():
    table = TextVocabulary.from_pieces({"cat": 0, "dog": 3}, special=[0], mask_id=None, pad_id=0)
    assert table.begins.all()
    assert table.ordinary.tolist() == bools(3, size=4)


@given(seeds, small, small)
def test_starts_as_the_oracle(seed, batch, count):
    g = generator(seed)
    begins, ends, special = (torch.rand(6, generator=g) < 0.4 for _ in range(3))
    table = TextVocabulary(begins, ends, special, begins, None, 0)
    ids = torch.randint(6, (batch, count), generator=g)
    mask = torch.rand(batch, count, generator=g) < 0.7
    expected = [
        oracle.starts(i, m, begins.tolist(), ends.tolist(), special.tolist())
        for i, m in zip(ids.tolist(), mask.tolist(), strict=True)
    ]
    assert table.starts(ids, mask).tolist() == expected
    assert table.starts(ids.int(), mask).tolist() == expected
