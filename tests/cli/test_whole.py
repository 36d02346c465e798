import pytest
import torch

from wsss_blocks.cli import whole_image, whole_mask


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


@pytest.mark.parametrize(("size", "seen"), [(None, (20, 40)), (8, (8, 8))])
def test_a_mask_comes_back_at_the_size_of_the_image(size, seen):
    sample = {
        "image": torch.rand(3, 20, 40, requires_grad=True),
        "labels": torch.tensor([1.0, 0.0]),
        "box": torch.tensor([0, 10, 20, 40]),
        "mask": torch.zeros(20, 40, dtype=torch.int64),
    }

    def pseudo_label(images, labels, box):
        assert images.shape == (1, 3, *seen)
        assert labels.tolist() == [[1, 0]]
        assert box.tolist() == [[0, seen[1] // 4, seen[0], seen[1]]]
        assert not (images * 2).requires_grad
        return torch.tensor([[[0, 255], [3, 1]]])

    found = whole_mask(pseudo_label, sample, size=size)
    assert found.dtype == torch.int64
    assert found.shape == (20, 40)
    quarters = [found[:10, :20], found[:10, 20:], found[10:, :20], found[10:, 20:]]
    assert [quarter.unique().tolist() for quarter in quarters] == [[0], [255], [3], [1]]
