import torch

from wsss_blocks.cli import whole_image


def test_the_box_is_squeezed_with_the_image_and_the_mask_stays_behind():
    sample = {
        "id": "a",
        "image": torch.rand(3, 20, 40),
        "labels": torch.tensor([1.0, 0.0]),
        "box": torch.tensor([5, 10, 15, 40]),
        "pseudo_mask": torch.zeros(20, 40, dtype=torch.int64),
        "mask": torch.zeros(20, 40, dtype=torch.int64),
    }
    batch = whole_image(sample, size=80)
    assert set(batch) == {"image", "labels", "box", "pseudo_mask"}
    assert batch["image"].shape == (1, 3, 80, 80)
    assert batch["box"].tolist() == [[20, 20, 60, 80]]
    assert batch["pseudo_mask"].shape == (1, 20, 40)
    untouched = whole_image({"image": sample["image"]})
    assert torch.equal(untouched.pop("image")[0], sample["image"])
    assert not untouched
