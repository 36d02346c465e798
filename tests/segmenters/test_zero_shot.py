import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracles import crf
from oracles import zero_shot as oracle
from PIL import Image
from strategies import generator, seeds
from tiny_open_clip import tiny_clip
from torch import nn

from wsss_blocks.backbones import OpenCLIPModel, TextBank, imagenet_templates
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.refine import DenseCRF, NoRefiner, PixelAdaptiveRefine
from wsss_blocks.segmenters import (
    ZeroShotSegmenter,
    select_classes,
    zero_shot_bank,
    zero_shot_protocol,
)

DIM = 5


class Given(nn.Module):
    """Answers with vectors that the test chose, whatever the image."""

    def __init__(self, pooled, patches, log=None):
        super().__init__()
        self.pooled, self.patches, self.log = nn.Parameter(pooled), nn.Parameter(patches), log

    def encode_image(self, images, normalize=True):
        return F.normalize(self.pooled, dim=1) if normalize else self.pooled

    def encode_patches(self, images):
        if self.log is not None:
            self.log.append(images.detach().clone())
        return self.patches


class GivenDense(Given):
    def encode_dense(self, images):
        return self.encode_image(images), self.patches

    def encode_patches(self, images):
        raise AssertionError("one pass is enough")


def bank(rows, background=True):
    names = [f"class {i}" for i in range(1, len(rows))]
    return TextBank(rows[1:], rows[:1] if background else None, names=names, source="given")


def problem(seed, batch=1, classes=12, grid=(3, 3), dtype=torch.float64):
    """Vectors with positive cosines, as those of CLIP's images and names are."""
    g = generator(seed)

    def near(*shape, spread):
        return 1 + spread * torch.randn(*shape, generator=g, dtype=dtype)

    rows = near(classes, DIM, spread=0.35).clamp_min(0.05)
    pooled = near(batch, DIM, spread=0.5).clamp_min(0.05)
    return pooled, near(batch, DIM, *grid, spread=1.0), rows


def expected(pooled, patches, rows, **options):
    found = [
        oracle.zero_shot(p.tolist(), q.permute(1, 2, 0).tolist(), rows.tolist(), **options)
        for p, q in zip(pooled, patches, strict=True)
    ]
    return torch.tensor(found)


@given(
    seeds, st.integers(1, 3), st.integers(2, 14), st.integers(1, 12), st.integers(1, 6),
    st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from([1, 3, 7]), st.integers(1, 4),
)  # fmt: skip
def test_oracle_without_refiner(seed, batch, classes, top, most, sigma, closing, side):
    pooled, patches, rows = problem(seed, batch, classes, (side, side + 1))
    patches.requires_grad_()
    options = {"top": top, "sigma": sigma, "most": most, "closing": closing}
    segmenter = ZeroShotSegmenter(Given(pooled, patches), bank(rows), size=12, **options).double()
    images = torch.rand(batch, 3, 11, 17, dtype=torch.float64, generator=generator(seed))
    masks = segmenter(images)
    assert masks.dtype == torch.int64
    assert_same(masks, expected(pooled, patches, rows, side=12, size=(11, 17), **options))
    # A division of its own for each level: 0.5 is not special.
    other = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows), size=12, threshold=0.3, **options
    ).double()
    wanted = expected(pooled, patches, rows, side=12, size=(11, 17), level=0.3, **options)
    assert_same(other(images), wanted)


@pytest.mark.parametrize("seed", range(4))
def test_oracle_with_the_binary_crf(seed):
    pooled, patches, rows = problem(seed, batch=2)
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=generator(seed))
    images = (images * 255).round() / 255  # the transcription takes whole levels
    constants = {"iterations": 3, "gaussian": (3.0, 3.0), "bilateral": (40.0, 13.0, 10.0)}
    options = {"top": 10, "sigma": None, "most": 3, "closing": 3}
    refiner = DenseCRF(**constants, method="exact")
    segmenter = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows), size=9, refiner=refiner, **options
    ).double()

    def refine(image, absent, present):
        return crf.dense_crf(image, [absent, present], *constants.values())

    wanted = []
    for i in range(2):
        one = (pooled[i : i + 1], patches[i : i + 1], rows)
        own = partial(refine, images[i].tolist())
        wanted.append(expected(*one, side=9, size=(9, 9), refine=own, **options))
    assert_same(segmenter(images), torch.cat(wanted))
    preset = DenseCRF.preset("simseg")
    assert {n: getattr(preset, n) for n in constants} == constants


@given(seeds, st.integers(1, 3), st.integers(2, 8), st.booleans())
def test_oracle_of_several_thresholds_and_given_classes(seed, batch, classes, dot):
    pooled, patches, rows = problem(seed, batch, classes, (2, 3))
    options = {"top": 10, "sigma": 0.5, "most": 2, "closing": 3}
    segmenter = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows), size=12, similarity="dot" if dot else "cosine",
        **options,
    ).double()  # fmt: skip
    images = torch.rand(batch, 3, 11, 17, dtype=torch.float64, generator=generator(seed))
    given = torch.rand(batch, classes - 1, generator=generator(seed)) < 0.6  # none, or all
    levels = (0.7, 0.0, 0.3)
    chosen = segmenter.masks_at(images, levels)
    known = segmenter.masks_at(images, levels, given=given.to(torch.uint8))
    assert chosen.shape == known.shape == (3, batch, 11, 17)
    assert chosen.dtype == known.dtype == torch.int64
    more = {"side": 12, "size": (11, 17), "alike": oracle.product if dot else oracle.cosine}
    for t, level in enumerate(levels):
        assert_same(chosen[t], expected(pooled, patches, rows, level=level, **more, **options))
        for i in range(batch):
            one = slice(i, i + 1)
            ids = (given[i].nonzero().flatten() + 1).tolist()
            wanted = expected(
                pooled[one], patches[one], rows, level=level, given=ids, **more, **options
            )
            assert_same(known[t, one], wanted)


def test_given_classes_are_drawn_whatever_they_score():
    # More classes than an image may have by itself, all below the threshold, and an image of none.
    pooled, patches, rows = problem(2, batch=2, classes=9, dtype=torch.float32)
    model = Given(pooled, patches)
    strict = ZeroShotSegmenter(model, bank(rows), size=12, sigma=9.0, most=1, closing=1)
    images = torch.rand(2, 3, 12, 12)
    assert not strict(images).any()
    given = torch.zeros(2, 8)
    given[0, [0, 2, 7]] = 1
    (found,) = strict.masks_at(images, (0.0,), given=given)
    assert set(found[0].unique().tolist()) - {0} <= {1, 3, 8}
    alone = [strict.masks_at(images, (0.0,), given=torch.eye(8)[[i, i]])[0, 0] for i in (0, 2, 7)]
    assert_same(found[0] > 0, torch.stack(alone).any(0))
    assert not found[1].any()


def test_several_thresholds_cost_one_pass_and_a_refiner_has_none():
    pooled, patches, rows = problem(4, batch=1, dtype=torch.float32)
    log, image = [], torch.rand(1, 3, 16, 16)
    plain = ZeroShotSegmenter(Given(pooled, patches, log), bank(rows), size=16, sigma=0.0)
    found = plain.masks_at(image, torch.linspace(0, 1, 5).tolist())
    assert len(log) == 1
    assert_same(found[2], plain(image))
    assert not found[-1].any()  # nothing is above 1
    covered = (found > 0).sum((1, 2, 3)).tolist()
    assert covered == sorted(covered, reverse=True)
    refined = ZeroShotSegmenter(
        Given(pooled, patches, log), bank(rows), size=16, sigma=0.0, refiner=NoRefiner()
    )
    found = refined.masks_at(image, (0.1, 0.9))
    assert_same(found[0], found[1])
    assert_same(found[0], refined(image))
    taken = refined.segment_scored(image[0]).taken[1:]
    assert_same(refined.masks_at(image, (0.1, 0.9), given=taken[None].float()), found)


def test_dot_products_see_the_length_of_patches():
    rows = torch.eye(3)
    patches = torch.zeros(1, 3, 1, 2)
    patches[0, :, 0, 0] = torch.tensor([0.0, 1.0, 0.0])  # looks like the class, but is short
    patches[0, :, 0, 1] = torch.tensor([9.0, 3.0, 9.0])
    pooled = torch.tensor([[0.1, 0.9, 0.1]])
    options = {"sigma": None, "most": 1, "size": None, "closing": 1}
    image = torch.rand(1, 3, 1, 2)
    for similarity, wanted in (("cosine", [1, 0]), ("dot", [0, 1])):
        segmenter = ZeroShotSegmenter(
            Given(pooled, patches), bank(rows), similarity=similarity, **options
        )
        assert segmenter(image).tolist() == [[wanted]]
        assert segmenter.protocol.text.endswith("dot products") == (similarity == "dot")


def test_patches_are_those_that_are_compared():
    pooled, patches, rows = problem(1, batch=2, dtype=torch.float32)
    log = []
    segmenter = ZeroShotSegmenter(Given(pooled, patches, log), bank(rows), size=24)
    assert_same(segmenter.patches(torch.rand(2, 3, 30, 20)), patches)
    assert log[0].shape == (2, 3, 24, 24)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        segmenter.patches(torch.rand(3, 30, 20))


def test_the_likelier_class_covers_the_other():
    # Both maps peak in the upper left; the second class scores better.
    rows = torch.eye(4)[[3, 0, 1]]
    pooled = torch.tensor([[0.6, 0.8, 0.0, 0.1]])
    patches = torch.zeros(1, 4, 2, 2)
    patches[0, 0] = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    patches[0, 1] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    patches[0, 2] = 0.1
    options = {"sigma": None, "size": None, "closing": 1}
    segmenter = ZeroShotSegmenter(Given(pooled, patches), bank(rows), **options)
    assert segmenter(torch.rand(1, 3, 2, 2)).tolist() == [[[2, 1], [0, 0]]]
    swapped = ZeroShotSegmenter(Given(pooled[:, [1, 0, 2, 3]], patches), bank(rows), **options)
    assert swapped(torch.rand(1, 3, 2, 2)).tolist() == [[[1, 1], [0, 0]]]


def test_a_negative_score_can_win():
    # Order decides, not the product of mask and score, in which a negative one never shows.
    rows = torch.eye(3)
    pooled, patches = torch.tensor([[-0.5, -0.2, -0.4]]), torch.zeros(1, 3, 1, 2)
    patches[0, 1, 0, 0] = 1
    segmenter = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows), sigma=None, size=None, closing=1
    )
    assert segmenter(torch.rand(1, 3, 1, 2)).tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    "refiner", [None, NoRefiner(), PixelAdaptiveRefine.pamr(), DenseCRF.preset("simseg")]
)
def test_a_batch_is_its_images(refiner):
    """Images with other numbers of classes, and with none, beside each other."""
    pooled, patches, rows = problem(3, batch=4, classes=14)
    pooled[0] = rows[4]
    taken = select_classes(F.normalize(pooled) @ F.normalize(rows).T)
    assert len(set(taken.sum(1).tolist())) > 1
    images = torch.rand(4, 3, 20, 28, generator=generator(0))

    def built(chosen):
        model = Given(pooled[chosen].float(), patches[chosen].float())
        return ZeroShotSegmenter(model, bank(rows.float()), size=24, refiner=refiner)

    together = built(slice(None))(images)
    assert together.shape == (4, 20, 28)
    for i in range(4):
        one = slice(i, i + 1)
        assert_same(built(one)(images[one]), together[one])
    assert_same(built(slice(0, 0))(images[:0]), together[:0])


def test_one_pass_where_the_model_offers_it():
    pooled, patches, rows = problem(1, dtype=torch.float32)
    images = torch.rand(1, 3, 16, 16)
    found = [
        ZeroShotSegmenter(kind(pooled, patches), bank(rows), sigma=0.5, size=16)(images)
        for kind in (Given, GivenDense)
    ]
    assert_same(*found)


def test_images_are_squeezed_as_pillow_does():
    pooled, patches, rows = problem(1, dtype=torch.float32)
    photo = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    log = []
    segmenter = ZeroShotSegmenter(Given(pooled, patches, log), bank(rows), size=24)
    assert segmenter.segment(photo).mask.shape == (60, 40)
    wanted = np.asarray(Image.fromarray(photo).resize((24, 24), Image.Resampling.BILINEAR))
    small = (log[0][0].permute(1, 2, 0) * 255).numpy()
    assert np.abs(small - wanted).max() <= 1  # pillow rounds to whole levels, twice
    # Without a size the model sees the image as it is.
    whole = ZeroShotSegmenter(Given(pooled, patches, log), bank(rows), size=None)
    assert whole.segment(photo).mask.shape == (60, 40)
    assert log[1].shape == (1, 3, 60, 40)


def test_scores_and_why_classes_were_taken():
    pooled, patches, rows = problem(5, dtype=torch.float32)
    segmenter = ZeroShotSegmenter(Given(pooled, patches), bank(rows), sigma=0.5, size=16)
    image = torch.rand(3, 16, 16)
    wanted = F.normalize(pooled) @ F.normalize(rows).T
    assert_close(segmenter.scores(image[None]), wanted)
    found = segmenter.segment_scored(image)
    assert found.names == ("background", *segmenter.names)
    assert_close(found.scores, wanted[0])
    assert_same(found.taken, select_classes(wanted, sigma=0.5)[0])
    assert found.threshold == pytest.approx(oracle.threshold(wanted[0].tolist(), 10, 0.5))
    assert set(found.segmentation.mask.unique().tolist()) <= {
        0,
        *found.taken.nonzero().flatten().tolist(),
    }
    assert_same(found.segmentation.mask, segmenter(image[None])[0])
    plain = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows, background=False), sigma=None, size=16,
        score_background=False,
    )  # fmt: skip
    found = plain.segment_scored(image)
    assert (found.names, found.threshold) == (plain.names, None)
    assert_close(found.scores, wanted[0, 1:])
    assert found.taken.sum() == 5
    ids = plain(image[None]).unique().tolist()
    assert {i - 1 for i in ids if i} <= set(found.taken.nonzero().flatten().tolist())


def test_bilinear_maps_are_not_blocks():
    pooled, patches, rows = problem(2, grid=(2, 2), dtype=torch.float32)
    options = {"sigma": None, "most": 2, "size": 16, "closing": 1}
    blocks, smooth = (
        ZeroShotSegmenter(Given(pooled, patches), bank(rows), upsampling=mode, **options)(
            torch.rand(1, 3, 16, 16)
        )
        for mode in ("nearest", "bilinear")
    )
    assert_same(blocks, blocks[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert not torch.equal(smooth, blocks)


def small(**options):
    model = OpenCLIPModel(tiny_clip())
    names = ["cat", "dog", "sky"]
    made = zero_shot_bank(model, names, templates=["a photo of a {}.", "{}"])
    return ZeroShotSegmenter(model, made, **({"sigma": None, "size": 48} | options))


def test_with_an_open_clip_model(tmp_path):
    photo = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    segmenter = small(refiner=DenseCRF.preset("simseg")).train()
    found = segmenter.segment(tmp_path / "photo.png")
    assert segmenter.training
    assert all(part.training for part in segmenter.modules())
    assert found.names == ("background", "cat", "dog", "sky")
    assert len(found.present()) > 1
    assert_same(found.mask, segmenter.segment(photo).mask)
    assert_same(found.mask, segmenter.segment(torch.from_numpy(photo).permute(2, 0, 1) / 255).mask)
    assert_same(copy.deepcopy(segmenter).segment(photo).mask, found.mask)
    assert "4 classes" not in repr(segmenter)
    assert "3 classes, no data set none" in repr(segmenter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    images = torch.rand(1, 3, 48, 48, generator=generator(0))
    segmenter = small()
    wanted, scores = segmenter(images), segmenter.scores(images)
    segmenter.to(dtype)
    found = segmenter(images.to(dtype))
    assert found.dtype == torch.int64
    assert (found == wanted).float().mean() > (0.999 if dtype == torch.float64 else 0.8)
    assert segmenter.scores(images.to(dtype)).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    tolerance = torch.float32 if dtype == torch.float64 else dtype
    assert_close(segmenter.scores(images.to(dtype)), scores, dtype=tolerance)
    assert segmenter.segment(images[0]).mask.shape == (48, 48)


def test_compile():
    pooled, patches, rows = problem(7, batch=2, dtype=torch.float32)
    segmenter = ZeroShotSegmenter(Given(pooled, patches), bank(rows), sigma=0.5, size=16)
    assert_compiles(segmenter, torch.rand(2, 3, 20, 24))


def test_compiled_masks_of_more_given_classes_than_an_image_can_have():
    pooled, patches, rows = problem(7, batch=2, dtype=torch.float32)
    segmenter = ZeroShotSegmenter(Given(pooled, patches), bank(rows), most=1, size=16, closing=1)
    labels = torch.ones(2, 11)
    wanted = segmenter.masks_at(torch.rand(2, 3, 16, 16), (0.3,), given=labels)
    assert len(wanted.unique()) > 2
    assert_compiles(lambda x: segmenter.masks_at(x, (0.3,), given=labels), torch.rand(2, 3, 16, 16))


def test_degenerate():
    pooled, patches, rows = problem(0, classes=2, dtype=torch.float32)
    image = torch.rand(1, 3, 10, 14)
    # One name and the background cannot stand out by a deviation: nothing, or asked for, it.
    assert not ZeroShotSegmenter(Given(pooled, patches), bank(rows), size=16)(image).any()
    asked = ZeroShotSegmenter(Given(pooled, patches), bank(rows), size=16, sigma=None)
    assert asked(image).unique().tolist() == [0, 1]
    alone = ZeroShotSegmenter(
        Given(pooled, patches), bank(rows), size=16, score_background=False, closing=1
    )
    assert alone(image).unique().tolist() == [0, 1]
    # A map without contrast, as of one patch, covers nothing.
    flat = patches[:, :, :1, :1]
    for size, x in ((16, flat), (16, flat.expand(-1, -1, 3, 3)), (None, 0 * patches)):
        found = ZeroShotSegmenter(Given(pooled, x.clone()), bank(rows), size=size, sigma=None)
        assert not found(image).any()
    dot = torch.rand(1, 3, 1, 1)
    assert asked(dot).shape == (1, 1, 1)


def test_the_bank():
    model = OpenCLIPModel(tiny_clip(), source="tiny").train()
    templates = ["a photo of a {}.", "the {}", "{}"]
    spoken = {"tvmonitor": "monitor"}
    made = zero_shot_bank(model, ["tvmonitor", "dog"], templates=templates, spoken=spoken)
    assert model.training
    assert made.names == ("tvmonitor", "dog")
    assert made.source == "tiny: 3 templates; tvmonitor: monitor"
    model.eval()
    for word, row in zip(
        ["background", "monitor", "dog"], [*made.background, *made.classes], strict=True
    ):
        rows = []
        for template in templates:
            ids, mask = model.tokenize([template.format(word)])
            vector = model.encode_text(ids, mask)[0].detach().double()
            rows.append(vector / vector.norm())
        mean = torch.stack(rows).mean(0)
        assert_close(row, mean / mean.norm())
    without = zero_shot_bank(model, ["dog"], templates=["{}"], background=None, source="mine")
    assert without.background.shape == (0, 6)
    assert without.source == "mine: {}"
    for names, options, message in (
        (["dog", "dog"], {}, "names must be one or more different names"),
        (["dog", "background"], {}, "names must be one or more different names"),
        (["dog", "cat"], {"spoken": {"cat": "dog"}}, "names must be one or more different"),
        ([], {}, "names must be one or more different names"),
        (["dog"], {"spoken": {"cat": "kitten"}}, r"spoken must be for names, got \['cat'\]"),
        (["dog"], {"templates": ["a photo"]}, "templates must each hold one"),
    ):
        with pytest.raises(ValueError, match=message):
            zero_shot_bank(model, names, **options)
    with pytest.raises(TypeError, match="names must be a sequence"):
        zero_shot_bank(model, "dog")


def test_published_protocols(monkeypatch):
    voc = zero_shot_protocol("voc21")
    assert (len(voc.names), voc.top, voc.sigma, voc.most) == (20, 10, 1.0, 5)
    assert (voc.size, voc.closing, voc.dataset) == (288, 7, "voc")
    assert voc.spoken == {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"}
    context = zero_shot_protocol("context60")
    assert (len(context.names), context.top, context.dataset) == (59, 30, "context")
    assert {"pottedplant", "tvmonitor", "bedclothes"} <= set(context.names)
    coco = zero_shot_protocol("coco_object81")
    assert (len(coco.names), coco.top, coco.dataset) == (80, 10, "coco-object")
    with pytest.raises(ValueError, match="name must be one of 'voc21', 'context60', 'coco_obj"):
        zero_shot_protocol("coco_stuff")

    model = OpenCLIPModel(tiny_clip(), source="tiny")
    segmenter = ZeroShotSegmenter.from_protocol("voc21", model)
    assert segmenter.bank.source.startswith("tiny: 80 templates; diningtable: table; ")
    said = ["background", *(voc.spoken.get(n, n) for n in voc.names)]
    rows = torch.cat([segmenter.bank.background, segmenter.bank.classes])
    for i in (0, 1, 11, 20):
        alone = zero_shot_bank(model, [said[i]], templates=imagenet_templates(), background=None)
        assert_close(rows[i], alone.classes[0])
    stated = segmenter.protocol
    assert stated.refiner == (
        "binary DenseCRF(iterations=3, gaussian=(3.0, 3.0), bilateral=(40.0, 13.0, 10.0), "
        "method='auto') + closing 7"
    )
    assert (stated.size_policy, stated.labels_used, stated.threshold) == ("288 square", False, None)
    assert stated.text.endswith("; the 5 best names above mean + 1 deviations of the 10 best")
    assert EvaluationProtocol.from_dict(stated.to_dict()) == stated
    found = segmenter.segment(torch.rand(3, 30, 40))
    assert found.mask.shape == (30, 40)

    few = imagenet_templates()[:1]
    monkeypatch.setattr("wsss_blocks.segmenters.name_bank.imagenet_templates", lambda: few)
    other = ZeroShotSegmenter.from_protocol("context60", model, crf=False, sigma=0.5, size=32)
    assert (other.top, other.sigma, other.size, other.refiner) == (30, 0.5, 32, None)
    assert (other.protocol.refiner, other.protocol.threshold) == ("closing 7", 0.5)
    assert len(ZeroShotSegmenter.from_protocol("coco_object81", model).names) == 80


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top": 0}, ValueError, "top must be at least 1, got 0"),
        ({"most": 0}, ValueError, "most must be at least 1, got 0"),
        ({"sigma": float("nan")}, ValueError, "sigma must be finite"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 2.0}, TypeError, "size must be an int"),
        ({"similarity": "euclid"}, ValueError, "similarity must be one of 'cosine', 'dot'"),
        ({"upsampling": "cubic"}, ValueError, "upsampling must be one of 'nearest', 'bilinear'"),
        ({"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\], got 1.5"),
        ({"closing": 4}, ValueError, "size must be odd, got 4"),
        ({"palette": torch.zeros(2, 3, dtype=torch.uint8)}, ValueError, "palette must have shape"),
    ],
)
def test_errors(options, error, message):
    pooled, patches, rows = problem(0)
    with pytest.raises(error, match=message):
        ZeroShotSegmenter(Given(pooled, patches), bank(rows), **options)


def test_more_errors():
    pooled, patches, rows = problem(0, dtype=torch.float32)
    model = Given(pooled, patches)
    with pytest.raises(ValueError, match="bank must have a background row with score_background"):
        ZeroShotSegmenter(model, bank(rows, background=False))
    segmenter = ZeroShotSegmenter(model, bank(rows), size=16)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        segmenter(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\], not normalised"):
        segmenter(9 * torch.rand(1, 3, 8, 8))
    x = torch.rand(1, 3, 8, 8)
    for thresholds, error, message in (
        ((), ValueError, "thresholds must hold one at least, got none"),
        ((0.5, 1.5), ValueError, r"thresholds must be in \[0, 1\], got 1.5"),
        (0.5, TypeError, "thresholds must be a sequence, got 0.5"),
        ((None,), TypeError, "thresholds must be"),
    ):
        with pytest.raises(error, match=message):
            segmenter.masks_at(x, thresholds)
    for given_labels, message in (
        (torch.ones(1, 12), "given must have shape .*background column too many"),
        (torch.ones(2, 11), r"given must have shape \(B, K\) with B=1"),
        (torch.full((1, 11), 2.0), "given must be multi-hot"),
    ):
        with pytest.raises(ValueError, match=message):
            segmenter.masks_at(x, (0.5,), given=given_labels)
    other = ZeroShotSegmenter(model, bank(torch.rand(4, DIM + 1)), size=16)
    with pytest.raises(ValueError, match=r"what model.encode_image returns must have shape .*D=6"):
        other(torch.rand(1, 3, 8, 8))
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        segmenter.segment("gone.jpg")
