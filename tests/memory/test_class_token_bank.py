import copy
import io
import pickle

import hypothesis.strategies as st
import pytest
import torch
from contract import assert_close, assert_same, covers
from hypothesis import given
from oracles import cti as oracle
from strategies import generator, random_labels, seeds, small

from wsss_blocks.memory import ClassTokenBank, StoredTokens


def images(g, batch, classes=3, dim=4):
    tokens = torch.randn(batch, classes, dim, generator=g, dtype=torch.float64)
    return tokens, random_labels(batch, classes, g)


def filled(seed=0, steps=4, batch=3, **settings):
    g = generator(seed)
    bank = ClassTokenBank(3, 4, **{"size": 5, "dtype": torch.float64, **settings})
    for _ in range(steps):
        bank.push(*images(g, batch))
    return bank


def in_order(bank, c):
    """The tokens of a class, oldest first."""
    pushed, size = int(bank.num_pushed[c]), bank.size
    return [bank.tokens[c, i % size] for i in range(max(0, pushed - size), pushed)]


@covers("ClassTokenBank", "oracle")
@given(
    seeds, st.lists(st.integers(0, 7), max_size=5), st.integers(1, 4), small, small, st.booleans()
)
def test_oracle(seed, batches, size, classes, dim, normalize):
    g = generator(seed)
    bank = ClassTokenBank(classes, dim, size=size, normalize=normalize, dtype=torch.float64)
    lists = oracle.Bank(classes, size, normalize)
    for batch in batches:  # a batch may hold more images of a class than are kept
        tokens, labels = images(g, batch, classes, dim)
        bank.push(tokens, labels)
        lists.push(tokens.tolist(), labels.tolist())
        found = bank.prototypes()
        assert_close(found.tokens, torch.tensor(lists.prototypes(dim), dtype=torch.float64))
        assert bank.num_stored.tolist() == [len(stored) for stored in lists.lists]
        assert found.valid.tolist() == [len(stored) == size for stored in lists.lists]
    for c, stored in enumerate(lists.lists):
        ours = in_order(bank, c)
        assert len(ours) == len(stored)
        for a, b in zip(ours, stored, strict=True):
            assert_close(a, torch.tensor(b, dtype=torch.float64))


@covers("ClassTokenBank", "properties")
def test_one_batch_or_many_images():
    tokens, labels = images(generator(1), 12)
    whole, parts = (ClassTokenBank(3, 4, size=5, dtype=torch.float64) for _ in range(2))
    whole.push(tokens, labels)
    for part in zip(tokens.split(5), labels.split(5), strict=True):
        parts.push(*part)
    assert_same(tuple(whole.state_dict().values()), tuple(parts.state_dict().values()))


@covers("ClassTokenBank", "properties")
def test_classes_are_valid_one_by_one():
    bank = ClassTokenBank(3, 4, size=4, min_entries=2)
    tokens = torch.rand(1, 3, 4)
    for labels in ([1, 1, 0], [1, 0, 0], [1, 0, 0]):
        bank.push(tokens, torch.tensor([labels]))
    found = bank.prototypes()
    assert isinstance(found, StoredTokens)
    assert found.valid.tolist() == [True, False, False]
    assert bool((found.tokens[2] == 0).all())
    assert bank.num_stored.tolist() == [3, 1, 0]
    assert bank.sample(2).valid.tolist() == [True, False, False]
    # the official wait: each class full
    full = ClassTokenBank(1, 4, size=2)
    for wanted in (False, True):
        full.push(tokens[:, :1], torch.ones(1, 1))
        assert bool(full.prototypes().valid.all()) is wanted


@covers("ClassTokenBank", "properties")
def test_stored_tokens_are_constants_of_unit_variance():
    bank = ClassTokenBank(2, 50, size=3)
    tokens = (5 * torch.randn(3, 2, 50, generator=generator(2)) + 2).requires_grad_()
    bank.push(tokens, torch.ones(3, 2))
    assert not bank.prototypes().tokens.requires_grad
    assert bank.tokens.mean(2).abs().max() < 1e-5
    assert (bank.tokens.var(2, correction=0) - 1).abs().max() < 1e-3
    kept = bank.tokens.clone()
    with torch.no_grad():
        tokens.zero_()
    assert_same(bank.tokens, kept)


@covers("ClassTokenBank", "properties")
def test_samples_are_stored_tokens_of_the_class():
    bank = filled(min_entries=1)
    drawn = bank.sample(200, generator=generator(5))
    assert drawn.tokens.shape == (200, 3, 4)
    assert_same(drawn.tokens, bank.sample(200, generator=generator(5)).tokens)
    assert not torch.equal(drawn.tokens, bank.sample(200, generator=generator(6)).tokens)
    for c in range(3):
        stored = bank.tokens[c, : int(bank.num_stored[c])]
        equal = (drawn.tokens[:, c, None] == stored).all(2)
        assert bool((equal.sum(1) == 1).all())
        assert bool((equal.sum(0) > 10).all()), "each one is drawn"
    # the default generator too, and a class without tokens
    torch.manual_seed(0)
    first = bank.sample(3).tokens
    torch.manual_seed(0)
    assert_same(bank.sample(3).tokens, first)
    assert bool((ClassTokenBank(2, 3).sample(4).tokens == 0).all())


@covers("ClassTokenBank", "properties", "module")
def test_resume_is_exact():
    g = generator(7)
    bank = filled(7, steps=3)
    buffer = io.BytesIO()
    torch.save(bank.state_dict(), buffer)
    buffer.seek(0)
    resumed = ClassTokenBank(3, 4, size=5, dtype=torch.float64)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(4):
        tokens, labels = images(g, 2)
        bank.push(tokens, labels)
        resumed.push(tokens, labels)
    assert_same(tuple(resumed.state_dict().values()), tuple(bank.state_dict().values()))
    assert_same(resumed.prototypes(), bank.prototypes())


@covers("ClassTokenBank", "module")
def test_module():
    bank = filled()
    assert tuple(bank.state_dict()) == ("tokens", "num_pushed")
    assert not list(bank.parameters())
    assert "3, 4, size=5, min_entries=5, normalize=True" in repr(bank)
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert_same(other.prototypes(), bank.prototypes())
        other.push(*images(generator(1), 2))
        assert not torch.equal(other.tokens, bank.tokens)


@covers("ClassTokenBank", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens, labels = images(generator(3), 4)
    tokens = tokens.to(dtype)
    expected = ClassTokenBank(3, 4, size=3, dtype=torch.float64)
    expected.push(tokens.double(), labels)
    for stored_as in (torch.float32, torch.float64, torch.bfloat16):
        for y in (labels, labels.bool(), labels.to(torch.uint8)):
            bank = ClassTokenBank(3, 4, size=3, dtype=stored_as)
            with torch.autocast("cpu", torch.bfloat16, enabled=stored_as == torch.bfloat16):
                bank.push(tokens, y)
                found = bank.prototypes()
            assert found.tokens.dtype == bank.sample(1).tokens.dtype == stored_as
            assert_close(
                found.tokens,
                expected.prototypes().tokens,
                dtype=torch.bfloat16 if stored_as == torch.bfloat16 else torch.float32,
            )
    # a half-precision model with a bank inside
    assert filled().to(torch.bfloat16).num_pushed.dtype == torch.int64


@covers("ClassTokenBank", "compile")
def test_compile():
    torch._dynamo.reset()
    bank, compiled = filled(), filled()

    def step(bank, tokens, labels):
        bank.push(tokens, labels)
        return bank.prototypes()

    run = torch.compile(step, fullgraph=True, dynamic=True, backend="eager")
    g = generator(9)
    for batch in (3, 2):
        tokens, labels = images(g, batch)
        assert_same(run(compiled, tokens, labels), step(bank, tokens, labels))
    assert_same(compiled.num_pushed, bank.num_pushed)


@covers("ClassTokenBank", "errors")
def test_errors():
    bank = ClassTokenBank(3, 4, dtype=torch.float64)
    tokens, labels = images(generator(0), 2)
    for name, sizes in (("num_classes", (0, 4)), ("dim", (3, 0))):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            ClassTokenBank(*sizes)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        ClassTokenBank(3, 4, size=0)
    with pytest.raises(ValueError, match="min_entries must be at least 1, got 0"):
        ClassTokenBank(3, 4, min_entries=0)
    with pytest.raises(ValueError, match="min_entries must be at most size=30, got 31"):
        ClassTokenBank(3, 4, min_entries=31)
    with pytest.raises(ValueError, match=r"tokens must have shape .* K=3, D=4, got \(2, 2, 4\)"):
        bank.push(tokens[:, 1:], labels)
    with pytest.raises(TypeError, match="tokens must be a floating-point tensor"):
        bank.push(tokens.long(), labels)
    with pytest.raises(ValueError, match="tokens must be on the device of the bank"):
        bank.push(tokens.to("meta"), labels)
    with pytest.raises(ValueError, match="tokens must be finite"):
        bank.push(tokens / 0, labels)
    with pytest.raises(ValueError, match="background column too many"):
        bank.push(tokens, torch.ones(2, 4))
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        bank.push(tokens, labels - 1)
    with pytest.raises(ValueError, match="batch must be at least 0, got -1"):
        bank.sample(-1)
    assert int(bank.num_pushed.sum()) == 0, "nothing of a refused batch is stored"


@covers("ClassTokenBank", "degenerate")
def test_degenerate():
    bank = filled()
    before = {k: v.clone() for k, v in bank.state_dict().items()}
    tokens, labels = images(generator(1), 2)
    bank.push(tokens, 0 * labels)
    bank.push(tokens[:0], labels[:0])
    assert_same(tuple(bank.state_dict().values()), tuple(before.values()))
    assert bank.sample(0).tokens.shape == (0, 3, 4)
    one = ClassTokenBank(1, 1, size=1)
    assert one.prototypes().valid.tolist() == [False]
    one.push(torch.full((2, 1, 1), 7.0), torch.ones(2, 1))
    assert_same(one.prototypes().tokens, torch.zeros(1, 1))  # a layer norm of one channel
    assert one.num_pushed.tolist() == [2]
    constant = ClassTokenBank(1, 4)
    constant.push(torch.full((1, 1, 4), 3.0), torch.ones(1, 1))
    assert bool((constant.tokens == 0).all())
