import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import retrieval as oracle
from strategies import generator, seeds

from wsss_blocks.metrics import retrieval as module
from wsss_blocks.metrics import retrieval_chance, retrieval_scores

KS = (1, 2, 5)


def problem(seed, images, captions, *, levels=None):
    """Features with many exact ties if ``levels`` is set: powers of two have exact norms."""
    g = generator(seed)
    if levels:
        rows = torch.eye(4, dtype=torch.float64)
        image, text = (rows[torch.randint(levels, (n,), generator=g)] for n in (images, captions))
    else:
        image, text = (torch.randn(n, 6, generator=g).double() for n in (images, captions))
    return image, text, torch.randint(images, (captions,), generator=g)


def check(found, expected):
    assert found.image_to_text == pytest.approx(tuple(expected[0]))
    assert found.text_to_image == pytest.approx(tuple(expected[1]))


@given(seeds, st.integers(1, 9), st.integers(1, 12), st.sampled_from([None, 1, 2, 4]))
def test_equals_the_loop_with_and_without_ties(seed, images, captions, levels):
    image, text, owner = problem(seed, images, captions, levels=levels)
    found = retrieval_scores(image, text, owner, ks=KS)
    assert found.ks == KS
    check(found, oracle.scores(image.tolist(), text.tolist(), owner.tolist(), KS))


@given(seeds, st.integers(1, 9), st.integers(1, 12), st.integers(1, 4))
def test_grouped_captions_equal_the_loop(seed, images, captions, numbers):
    image, text, owner = problem(seed, images, captions)
    groups = 10 * torch.randint(numbers, (captions,), generator=generator(seed)) - 20
    text = text[[groups.tolist().index(g) for g in groups.tolist()]]
    found = retrieval_scores(image, text, owner, ks=KS, groups=groups)
    rows = (image.tolist(), text.tolist(), owner.tolist(), groups.tolist())
    check(found, oracle.grouped_scores(*rows, KS))


@given(seeds, st.integers(1, 6), st.integers(1, 7), st.integers(1, 3))
def test_chance_equals_all_subsets(seed, images, captions, numbers):
    _, _, owner = problem(seed, images, captions)
    found = retrieval_chance(owner, images=images, ks=KS)
    of_image = [int((owner == n).sum()) for n in range(images)]
    for i, k in enumerate(KS):
        assert found.image_to_text[i] == pytest.approx(oracle.chance(of_image, captions, k))
        assert found.text_to_image[i] == pytest.approx(oracle.chance([1] * captions, images, k))
    groups = torch.randint(numbers, (captions,), generator=generator(seed))
    found = retrieval_chance(owner, images=images, ks=KS, groups=groups)
    used = groups.unique().tolist()
    own = {
        g: {o for o, h in zip(owner.tolist(), groups.tolist(), strict=True) if h == g} for g in used
    }
    of_image = [sum(n in images_of for images_of in own.values()) for n in range(images)]
    of_text = [len(own[g]) for g in used]
    for i, k in enumerate(KS):
        assert found.image_to_text[i] == pytest.approx(oracle.chance(of_image, len(used), k))
        assert found.text_to_image[i] == pytest.approx(oracle.chance(of_text, images, k))


def test_random_features_score_what_chance_says():
    image, text, owner = problem(0, 300, 900)
    found = retrieval_scores(image, text, owner)
    expected = retrieval_chance(owner, images=300)
    assert found.rsum == pytest.approx(expected.rsum, rel=0.35)
    assert found.text_to_image[2] == pytest.approx(10 / 300, abs=0.02)


def test_perfect_collapsed_and_worst_features():
    owner = torch.arange(20)
    eye = torch.eye(20)
    perfect = retrieval_scores(eye, 3 * eye, owner)
    assert perfect.image_to_text == perfect.text_to_image == (1.0, 1.0, 1.0)
    assert perfect.rsum == 600
    for constant in (torch.ones(20, 4), torch.zeros(20, 4)):
        assert retrieval_scores(constant, constant, owner).rsum == 0
    assert retrieval_scores(eye, -eye, owner).rsum == 0


def test_several_captions_and_images_without_one():
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 2]] + torch.tensor([0.1, 0.0, 0.0, 0.0])
    found = retrieval_scores(image, text, torch.tensor([0, 0, 2]), ks=(1, 3))
    # Image 1 is nobody's: it misleads caption 1 and asks for nothing, as image 3.
    assert found.image_to_text == (1.0, 1.0)
    assert found.text_to_image == pytest.approx((2 / 3, 1.0))


def test_grouping_makes_copies_right():
    image = torch.eye(2)[[0, 0, 1]]
    text = torch.eye(2)[[0, 0, 1]]
    owner, groups = torch.tensor([0, 1, 2]), torch.tensor([5, 5, 7])
    assert retrieval_scores(image, text, owner, ks=(1,)).rsum == pytest.approx(200 / 3)
    assert retrieval_scores(image, text, owner, ks=(1,), groups=groups).rsum == 200


@pytest.mark.parametrize("grouped", [False, True])
def test_blocks_change_nothing(monkeypatch, grouped):
    image, text, owner = problem(1, 23, 57)
    groups = torch.arange(57) // 2 if grouped else None
    whole = retrieval_scores(image, text, owner, groups=groups)
    for cells in (1, 60, 200):
        monkeypatch.setattr(module, "_CELLS", cells)
        assert retrieval_scores(image, text, owner, groups=groups) == whole


@given(seeds)
def test_order_and_norms_do_not_count(seed):
    image, text, owner = problem(seed, 7, 11)
    expected = retrieval_scores(image, text, owner, ks=KS)
    a, b = (torch.randperm(n, generator=generator(seed)) for n in (7, 11))
    scaled = text * torch.rand(11, 1, generator=generator(seed)) + 0
    assert retrieval_scores(image[a], scaled[b], a.argsort()[owner[b]], ks=KS) == expected


def test_memory_is_that_of_a_block():
    image, text = torch.randn(4000, 2), torch.randn(12000, 2)
    assert module._CELLS * 8 < 100 * 2**20
    assert max(len(b) for b in module._blocks(image, text, torch.tensor([[0, 1]]))) <= 1
    assert len(list(module._blocks(image, text, torch.tensor([[0, 1]])))) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    image, text, owner = problem(3, 9, 15)
    image, text = image.to(dtype).requires_grad_(), text.to(dtype)
    expected = retrieval_scores(image.double(), text.double(), owner, ks=KS)
    assert retrieval_scores(image, text, owner.int(), ks=list(KS)) == expected


def test_table_is_in_per_cent():
    scores = retrieval_scores(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), ks=(1,))
    lines = scores.table().splitlines()
    assert [line.split()[-1] for line in lines] == ["R@1", "100.00", "100.00", "200.00"]
    assert len({len(line) for line in lines[:3]}) == 1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"image": torch.rand(3)}, ValueError, r"image must have shape \(N, D\), got \(3,\)"),
        ({"text": torch.rand(4, 3)}, ValueError, r"text must have shape \(M, D\) with D=2"),
        ({"text_image": torch.zeros(3).long()}, ValueError, r"text_image must have .* M=4"),
        ({"text_image": torch.zeros(4)}, TypeError, "text_image must be an integer tensor"),
        ({"text_image": torch.tensor([0, 1, 3, 0])}, ValueError, r"rows in \[0, 3\), got 3"),
        ({"text_image": torch.tensor([0, -1, 2, 0])}, ValueError, r"rows in \[0, 3\), got -1"),
        ({"image": torch.ones(3, 2).long()}, TypeError, "image must be a floating-point"),
        ({"text": torch.full((4, 2), torch.nan)}, ValueError, "text must be finite"),
        ({"text": torch.ones(4, 2, device="meta")}, ValueError, "text must be on the device of im"),
        ({"ks": (0,)}, ValueError, "ks must be at least 1, got 0"),
        ({"ks": 5}, TypeError, "ks must be a sequence, got 5"),
        ({"groups": torch.zeros(3).long()}, ValueError, "groups must have shape .*M=4"),
        ({"groups": torch.zeros(4)}, TypeError, "groups must be an integer tensor"),
    ],
)
def test_refuses(changed, error, message):
    given = {"image": torch.rand(3, 2), "text": torch.rand(4, 2)}
    given |= {"text_image": torch.zeros(4).long()} | changed
    with pytest.raises(error, match=message):
        retrieval_scores(**given)


def test_chance_refuses():
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        retrieval_chance(torch.zeros(3).long(), images=0)
    with pytest.raises(ValueError, match=r"text_image must hold rows in \[0, 2\), got 2"):
        retrieval_chance(torch.tensor([0, 2]), images=2)
