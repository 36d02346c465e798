import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import captions as oracle
from strategies import generator, seeds

from wsss_blocks.backbones import SmallTextEncoder, TextVocabulary
from wsss_blocks.data import WordAugmentation, augment_words

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "em", "##bed")
PIECES += ("##ding", "##s", "photo", "[unused1]", "!", "red")
WORDPIECE = TextVocabulary.from_pieces(
    {piece: i for i, piece in enumerate(PIECES)}, special=[2, 3], mask_id=4, pad_id=0
)
ENDS = ("!", "ca", "t</w>", "cat</w>", "do", "g</w>", "dog</w>", "<start>", "<end>", "!</w>")
CLIP = TextVocabulary.from_pieces(
    {piece: i for i, piece in enumerate(ENDS)}, special=[7, 8], mask_id=None, pad_id=0
)
# embeddings, cat, dog !
IDS = torch.tensor([[2, 8, 9, 10, 11, 6, 3, 0], [2, 7, 14, 3, 0, 0, 0, 0]])
MASK = IDS > 0


def only(**rates):
    return {"mask_rate": 0.0, "replace_rate": 0.0, "delete_rate": 0.0} | rates


def lists(vocabulary):
    table = {name: getattr(vocabulary, name).tolist() for name in vocabulary._fields[:4]}
    return table | {"mask_id": vocabulary.mask_id, "pad_id": vocabulary.pad_id}


def captions(seed, vocabulary, *, batch, count):
    """Ids with special tokens at the start, the end and by chance within, and padding."""
    g = generator(seed)
    size = len(vocabulary.begins)
    first, last = vocabulary.special.nonzero()[:, 0].tolist()
    ids = torch.randint(size, (batch, count), generator=g)
    length = torch.randint(count + 1, (batch, 1), generator=g)
    place = torch.arange(count)
    ids[:, 0] = first
    ids = ids.where(place != length - 1, last).where(place < length, vocabulary.pad_id)
    return ids, place < length


@given(
    seeds,
    st.sampled_from([WORDPIECE, CLIP]),
    st.integers(1, 4),
    st.integers(1, 10),
    st.sampled_from([(0.3, 0.2, 0.4), (0.0, 0.0, 1.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.1)]),
)
def test_word_by_word_as_the_oracle(seed, vocabulary, batch, count, rates):
    if vocabulary.mask_id is None:
        rates = (0.0, *rates[1:])
    ids, mask = captions(seed, vocabulary, batch=batch, count=count)
    before = ids.clone(), mask.clone()
    names = ("mask_rate", "replace_rate", "delete_rate")
    out, kept = augment_words(
        ids, mask, vocabulary, **dict(zip(names, rates, strict=True)), generator=generator(seed)
    )
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])
    g = generator(seed)  # the same draws
    u = torch.rand(batch, count, generator=g).tolist()
    drawn = torch.randint(int(vocabulary.ordinary.sum()), (batch, count), generator=g).tolist()
    for b in range(batch):
        expected = oracle.augment(
            ids[b].tolist(), mask[b].tolist(), lists(vocabulary), rates, u[b], drawn[b]
        )
        assert (out[b].tolist(), kept[b].tolist()) == expected


def test_each_fate_of_a_word_of_four_pieces():
    masked, mask = augment_words(IDS, MASK, WORDPIECE, **only(mask_rate=1))
    assert masked.tolist() == [[2, 4, 4, 4, 4, 4, 3, 0], [2, 4, 4, 3, 0, 0, 0, 0]]
    assert torch.equal(mask, MASK)
    replaced, mask = augment_words(IDS, MASK, WORDPIECE, **only(replace_rate=1))
    assert WORDPIECE.ordinary[replaced[:, 1:3]].all()  # one for embeddings, one for cat
    assert replaced[:, 0].tolist() == [2, 2]
    assert replaced[:, 3:].tolist() == [[3, 0, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert mask.sum(1).tolist() == [4, 4]
    same, mask = augment_words(IDS, MASK, WORDPIECE, **only())
    assert torch.equal(same, IDS)
    assert torch.equal(mask, MASK)


def test_one_word_stays_and_each_may_be_it():
    ids = IDS[:1].repeat(2000, 1)
    out, mask = augment_words(
        ids, ids > 0, WORDPIECE, **only(delete_rate=1), generator=generator(0)
    )
    long = out[:, 1] == 8
    assert torch.equal(out[long], torch.tensor([[2, 8, 9, 10, 11, 3, 0, 0]]).expand_as(out[long]))
    assert torch.equal(out[~long], torch.tensor([[2, 6, 3] + [0] * 5]).expand_as(out[~long]))
    assert torch.equal(mask, out > 0)
    assert abs(float(long.float().mean()) - 0.5) < 0.045  # four standard deviations


def test_the_paddings_words_never_come_back_and_clips_pieces_hold_together():
    ids = torch.tensor([[7, 1, 2, 6, 0, 9, 8, 0]])  # cat, dog, a word of two "!"
    mask = torch.arange(8)[None] < 7
    seen = set()
    for seed in range(60):
        out, kept = augment_words(
            ids, mask, CLIP, **only(delete_rate=0.5), generator=generator(seed)
        )
        seen.add(tuple(out[0, : kept.sum()].tolist()))
        assert not out[~kept].any()
    cat, dog, bang = (1, 2), (6,), (0, 9)
    assert seen == {
        (7, *words, 8)
        for words in (cat, dog, bang, cat + dog, cat + bang, dog + bang, cat + dog + bang)
    }


def test_rates_of_twenty_thousand_words():
    count, words = 2000, 10
    encoder = SmallTextEncoder(["word", *("x" * n for n in range(2, 402))], max_length=words)
    ids, mask = encoder.tokenize(["word " * words] * count)
    out, kept = augment_words(ids, mask, encoder.vocabulary, generator=generator(0))
    total = count * words
    masked = int((out == 2).sum())
    replaced = int((out > 3).sum())
    deleted = total - int(kept.sum())
    for found, share in ((masked, 0.10), (replaced, 0.02 * 400 / 401), (deleted, 0.08)):
        bound = 4 * (total * share * (1 - share)) ** 0.5
        assert abs(found - total * share) < bound
    assert (out == 0).sum() == deleted
    # Every ordinary word is drawn as often as another.
    out, _ = augment_words(ids, mask, encoder.vocabulary, **only(replace_rate=1))
    times = out.flatten().bincount(minlength=404)
    assert not times[:3].any()
    assert int((times[3:].float() - total / 401).abs().max()) < 6 * (total / 401) ** 0.5


def test_words_are_changed_independently():
    encoder = SmallTextEncoder(["a", "b"], max_length=2)
    ids, mask = encoder.tokenize(["a b"] * 8000)
    out, _ = augment_words(
        ids, mask, encoder.vocabulary, **only(mask_rate=0.5), generator=generator(1)
    )
    both = (out == 2).float()
    assert abs(float(both.prod(1).mean()) - 0.25) < 4 * (0.25 * 0.75 / 8000) ** 0.5


@given(seeds)
def test_properties_of_random_captions(seed):
    ids, mask = captions(seed, WORDPIECE, batch=6, count=9)
    rates = {"mask_rate": 0.2, "replace_rate": 0.3, "delete_rate": 0.5}
    out, kept = augment_words(ids, mask, WORDPIECE, **rates, generator=generator(seed))
    assert ((out >= 0) & (out < len(PIECES))).all()
    assert (out[~kept] == 0).all()
    assert (kept.int().diff(dim=1) <= 0).all()  # real tokens first
    special = WORDPIECE.special
    for b in range(6):
        own, new = ids[b][mask[b]], out[b][kept[b]]
        assert own[special[own]].tolist() == new[special[new]].tolist()
        assert (~special[own]).any() == (~special[new]).any()  # a word before: a word after
    again, _ = augment_words(ids, mask, WORDPIECE, **rates, generator=generator(seed))
    assert torch.equal(out, again)
    small, _ = augment_words(ids.int(), mask, WORDPIECE, **rates, generator=generator(seed))
    assert small.dtype == torch.int32
    assert torch.equal(small.long(), out)


def test_the_global_generator_serves_too():
    torch.manual_seed(4)
    first = augment_words(IDS, MASK, WORDPIECE, **only(replace_rate=0.5))[0]
    torch.manual_seed(4)
    assert torch.equal(augment_words(IDS, MASK, WORDPIECE, **only(replace_rate=0.5))[0], first)


def test_module():
    rates = {"mask_rate": 0.3, "replace_rate": 0.2, "delete_rate": 0.1}
    module = WordAugmentation(WORDPIECE, **rates)
    expected = augment_words(IDS, MASK, WORDPIECE, **rates, generator=generator(7))
    for made in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        out = made(IDS, MASK, generator=generator(7))
        assert torch.equal(out[0], expected[0])
        assert torch.equal(out[1], expected[1])
    assert not module.state_dict()
    assert "mask_rate=0.3, replace_rate=0.2, delete_rate=0.1" in repr(module)
    assert module.to("meta").begins.is_meta
    assert WordAugmentation(WORDPIECE).delete_rate == 0.08


def test_nothing_to_change():
    none = torch.zeros_like(MASK)
    out, kept = augment_words(IDS, none, WORDPIECE, **only(delete_rate=1))
    assert not kept.any()
    assert not out.any()
    alone = torch.tensor([[2, 3]])
    out, kept = augment_words(alone, alone > 0, WORDPIECE, **only(delete_rate=1))
    assert torch.equal(out, alone)
    assert kept.all()
    assert augment_words(IDS[:0], MASK[:0], WORDPIECE)[0].shape == (0, 8)
    one = torch.tensor([[6]])
    assert torch.equal(augment_words(one, one > 0, WORDPIECE, **only(delete_rate=1))[0], one)


def test_refuses():
    def call(ids=IDS, mask=MASK, vocabulary=WORDPIECE, **rates):
        return augment_words(ids, mask, vocabulary, **rates)

    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\), got \(8,\)"):
        call(IDS[0], MASK[0])
    with pytest.raises(TypeError, match="ids must be an integer tensor"):
        call(IDS.float())
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\) with B=2, T=8"):
        call(mask=MASK[:, 1:])
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        call(mask=MASK.long())
    with pytest.raises(ValueError, match="mask must be on the device of ids"):
        call(mask=MASK.to("meta"))
    with pytest.raises(ValueError, match="vocabulary must be on the device of ids"):
        call(IDS.to("meta"), MASK.to("meta"))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 16\), got 0 to 16"):
        call(IDS.where(IDS != 14, 16))
    for make in (call, lambda **rates: WordAugmentation(WORDPIECE, **rates)):
        for name in ("mask_rate", "replace_rate", "delete_rate"):
            with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got 1.5"):
                make(**{name: 1.5})
            with pytest.raises(TypeError, match=f"{name} must be a number, got 'a'"):
                make(**{name: "a"})
        with pytest.raises(ValueError, match=r"must sum to 1 at most, got 1\.1"):
            make(mask_rate=0.5, replace_rate=0.5, delete_rate=0.1)
    for make in (
        lambda **rates: call(IDS[:, :1], MASK[:, :1], CLIP, **rates),
        lambda **rates: WordAugmentation(CLIP, **rates),
    ):
        with pytest.raises(ValueError, match=r"mask_rate must be 0 .*CLIP.* got 0\.1"):
            make()
        make(mask_rate=0)
    bare = WORDPIECE._replace(ordinary=torch.zeros(16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"replace_rate must be 0 .* ordinary words, got 0\.02"):
        call(vocabulary=bare)
    call(vocabulary=bare, replace_rate=0)
