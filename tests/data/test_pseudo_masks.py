"""Masks of another method: found, checked, moved with their images, and never the ground truth."""

import pickle

import PIL.Image
import pytest
import torch

from wsss_blocks import data
from wsss_blocks.data import (
    COCO,
    VOC2012,
    Augmented,
    COCOStuff,
    Compose,
    FolderDataset,
    PascalContext,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    Scenes,
    WithPseudoMasks,
    collate,
    open_dataset,
    step_loader,
    usable_images,
    write_mask,
)

SIZE = (6, 8)


def quarters(low=0, high=2):
    """Ids that differ left from right and above from below, so that a wrong move shows."""
    mask = torch.full(SIZE, low)
    mask[:3, 4:], mask[4:, :2] = high, 255
    return mask


class Pictures:
    """Two grey images whose red says what their mask is to hold."""

    names, ids = ("cat", "dog"), ["a", "b c"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = torch.full((3, *SIZE), 0.5)
        image[0] = quarters().clamp_max(3) / 3
        return data.new_sample(image, id=self.ids[index], labels=torch.ones(2))


@pytest.fixture
def masks(tmp_path):
    for name in Pictures.ids:
        write_mask(tmp_path / "masks of x" / f"{name}.png", quarters())
    return tmp_path / "masks of x"


def test_samples_get_the_mask_of_their_id(masks):
    write_mask(masks / "b c.png", quarters(1))
    pseudo = WithPseudoMasks(Pictures(), str(masks))
    assert (len(pseudo), pseudo.names, pseudo.ids) == (2, ("cat", "dog"), ["a", "b c"])
    for i, low in enumerate((0, 1)):
        sample, plain = pseudo[i], Pictures()[i]
        assert sample.keys() == {*plain, "pseudo_mask"}
        assert sample["pseudo_mask"].dtype == torch.int64
        assert torch.equal(sample["pseudo_mask"], quarters(low))
        assert torch.equal(sample["image"], plain["image"])
    restored = pickle.loads(pickle.dumps(pseudo))  # as worker processes get it
    assert torch.equal(restored[1]["pseudo_mask"], quarters(1))


def test_a_cached_sample_stays_as_it_is(masks):
    class Kept(Pictures):
        sample = Pictures()[0]

        def __getitem__(self, index):
            return self.sample

    assert "pseudo_mask" in WithPseudoMasks(Kept(), masks)[0]
    assert "pseudo_mask" not in Kept.sample


def test_missing_files_are_named(masks):
    with pytest.raises(FileNotFoundError, match=r"no folder of masks at .*gone"):
        WithPseudoMasks(Pictures(), masks / "gone")
    with pytest.raises(FileNotFoundError, match=r"no folder of masks at .*a\.png"):
        WithPseudoMasks(Pictures(), masks / "a.png")
    (masks / "b c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the masks of 1 of 2 images \(b c\.png\)"):
        WithPseudoMasks(Pictures(), masks)


def test_masks_that_do_not_fit_are_refused_when_read(masks):
    pseudo = WithPseudoMasks(Pictures(), masks)
    write_mask(masks / "a.png", quarters()[:, :5])
    with pytest.raises(ValueError, match=r"a\.png must have the size \(6, 8\) of .* got \(6, 5\)"):
        pseudo[0]
    write_mask(masks / "a.png", quarters(high=3))
    with pytest.raises(ValueError, match=r"a\.png must hold ids 0\.\.2 and 255, got 3"):
        pseudo[0]
    PIL.Image.new("RGB", SIZE[::-1]).save(masks / "a.png")
    with pytest.raises(ValueError, match=r"a\.png must be an indexed or grey mask .* got mode 'RG"):
        pseudo[0]
    assert torch.equal(pseudo[1]["pseudo_mask"], quarters())  # the others are fine


def test_masks_follow_scale_flip_and_crop(masks):
    steps = Compose(Resize((12, 16)), RandomHorizontalFlip(1.0), RandomCrop((20, 10)))
    moved = Augmented(WithPseudoMasks(Pictures(), masks), steps)
    seen = set()
    for seed in range(12):
        sample = moved[0, seed]
        mask, (top, left, bottom, right) = sample["pseudo_mask"], sample["box"].tolist()
        assert mask.shape == (20, 10)
        assert mask.dtype == torch.int64
        inside = torch.zeros_like(mask, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (mask[~inside] == 255).all()
        grown = quarters().repeat_interleave(2, 0).repeat_interleave(2, 1).flip(1)
        windows = [grown[:, c : c + 10] for c in range(7)]
        found = mask[top:bottom, left:right]
        hits = [c for c, window in enumerate(windows) if torch.equal(window, found)]
        assert hits, "no window of the mirrored mask"
        seen.add((top, hits[0]))
    assert len(seen) > 3


def test_masks_stay_where_the_image_is(masks):
    """The red channel holds the mask: both must move alike."""
    steps = Compose(RandomHorizontalFlip(0.5), RandomCrop((5, 11)))
    for seed in range(12):
        sample = Augmented(WithPseudoMasks(Pictures(), masks), steps)[0, seed]
        top, left, bottom, right = sample["box"].tolist()
        red = (3 * sample["image"][0]).round().long()[top:bottom, left:right]
        assert torch.equal(sample["pseudo_mask"].clamp_max(3)[top:bottom, left:right], red)


def test_masks_collate_and_load(masks):
    pseudo = WithPseudoMasks(Pictures(), masks)
    assert collate([pseudo[0], pseudo[1]])["pseudo_mask"].shape == (2, *SIZE)
    (batch,) = step_loader(pseudo, RandomCrop((7, 7)), batch_size=2, steps=1, workers=1)
    assert batch["pseudo_mask"].shape == (2, 7, 7)
    assert (batch["pseudo_mask"] == 255).all(2).any(1).all()  # the padding, a row


def test_masks_of_scenes_may_lie_anywhere(tmp_path):
    scenes = Scenes(size=1)
    for folder in ("masks", "SegmentationClass"):
        write_mask(tmp_path / folder / "train_00000.png", torch.zeros(96, 96, dtype=torch.uint8))
        assert "pseudo_mask" in WithPseudoMasks(scenes, tmp_path / folder)[0]


# --- ground truth ----------------------------------------------------------------------------


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", SIZE[::-1]).save(path)


def voc(root):
    data.write_voc_layout(root, train=2, val=1)
    return VOC2012(root, names=data.DIGIT_NAMES)


def context(root):
    photo(root / "VOC2010" / "JPEGImages" / "1.jpg")
    ids = root / "VOC2010" / "ImageSets" / "SegmentationContext" / "train.txt"
    ids.parent.mkdir(parents=True)
    ids.write_text("1\n")
    return PascalContext(root)


def coco(root):
    return COCO(data.write_coco_layout(root, train=2, val=1))


def coco_below_images(root):
    data.write_coco_layout(root, train=2, val=1)
    (root / "images").mkdir()
    (root / "train2014").rename(root / "images" / "train2014")
    return COCO(root)


def stuff(root):
    photo(root / "images" / "train2017" / "1.jpg")
    return COCOStuff(root)


def ade(root):
    photo(root / "images" / "training" / "1.jpg")
    return data.ADE20K(root)


def folder(*below, name="1.jpg"):
    def make(root):
        base = root.joinpath(*below)
        photo(base / name)
        return FolderDataset(base, None)

    return make


def class_folders(root):
    for name in ("cat/1.jpg", "dog/of mine/2.jpg"):
        photo(root / "train" / name)
    return open_dataset("folder", "train", root=root)


LAYOUTS = {
    "voc": (voc, ["VOC2012/SegmentationClass", "VOC2012/SegmentationClassAug"]),
    "context": (context, ["VOC2010/SegmentationClassContext"]),
    "coco": (coco, ["SegmentationClass/train2014", "masks/train2014", "masks"]),
    "coco below images": (coco_below_images, ["SegmentationClass/train2014", "masks/train2014"]),
    "stuff": (stuff, [f"{m}/train2017" for m in ("stuffthingmaps", "stuffthingmaps_trainval2017")]),
    "ade": (ade, ["annotations/training"]),
    "flat": (folder(), ["masks"]),
    "images": (folder("images"), ["masks"]),
    "split": (folder("train", "images"), ["train/masks"]),
    "classes": (class_folders, ["train/masks"]),
    "deep": (folder(name="2023/spring/1.jpg"), ["masks"]),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A data set, its root, and the folders of ground truth that it may have."""
    make, truths = LAYOUTS[request.param]
    (tmp_path / "data").mkdir()
    return make(tmp_path / "data"), tmp_path / "data", truths


def filled(folder, dataset):
    for name in dataset.ids:
        write_mask(folder / f"{name}.png", torch.zeros(1, 1, dtype=torch.uint8))
    return folder


def refused(dataset, folder):
    with pytest.raises(ValueError, match=r"folder must not be the ground truth .*, got .*nothing"):
        WithPseudoMasks(dataset, folder)


def test_ground_truth_is_refused(layout, monkeypatch):
    dataset, root, truths = layout
    for truth in truths:
        filled(root / truth, dataset)
        refused(dataset, root / truth)
        refused(dataset, filled(root / truth / "mine", dataset))  # and what lies in it
        refused(usable_images(dataset, keep_empty=True), root / truth)
        monkeypatch.chdir(root / truth)
        refused(dataset, ".")


def test_ground_truth_is_refused_behind_links(layout, tmp_path):
    dataset, root, truths = layout
    for i, truth in enumerate(truths):
        link, moved = tmp_path / f"harmless {i}", tmp_path / f"moved {i}"
        link.symlink_to(filled(root / truth, dataset))
        refused(dataset, link)
        (root / truth).rename(moved)  # the data set keeps a link to its masks
        (root / truth).symlink_to(moved)
        refused(dataset, root / truth)
        refused(dataset, root / ".." / root.name / truth)
        if not truth.endswith(("2014", "2017", "training")):
            refused(dataset, moved)
        (root / truth).unlink()


def test_ground_truth_is_refused_where_the_images_are_links(tmp_path):
    real = data.write_voc_layout(tmp_path / "disk", train=2, val=1)
    mine = tmp_path / "mine" / "VOC2012"
    mine.mkdir(parents=True)
    for name in ("JPEGImages", "ImageSets", "Annotations", "SegmentationClass"):
        (mine / name).symlink_to(real / name)
    dataset = VOC2012(tmp_path / "mine", names=data.DIGIT_NAMES)
    for base in (mine, real):
        refused(dataset, base / "SegmentationClass")
    copied = filled(mine / "SegmentationClassAug", dataset)
    refused(dataset, copied)


def test_an_output_folder_in_the_data_is_accepted(layout):
    dataset, root, _ = layout
    for name in ("runs/last/masks", "pseudo_masks", "masks of x", "runs/SegmentationClass"):
        pseudo = WithPseudoMasks(dataset, filled(root / name, dataset))
        assert pseudo.ids == dataset.ids


def test_names_of_folders_above_the_data_mean_nothing(tmp_path):
    root = tmp_path / "masks" / "annotations" / "data"
    dataset = folder()(root)
    assert WithPseudoMasks(dataset, filled(root / "mine", dataset)).ids == ["1"]
    far = filled(tmp_path / "masks" / "of another method", dataset)
    assert WithPseudoMasks(dataset, far).ids == ["1"]
