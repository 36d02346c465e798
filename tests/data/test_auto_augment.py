import sys

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import generator
from torchvision.transforms import v2

from wsss_blocks.data import AutoAugment, new_sample


def sample_of(height=24, width=31):
    pixels = torch.randint(256, (3, height, width), generator=generator(0))
    return new_sample(pixels.float() / 255, id="a", labels=torch.tensor([1.0, 0.0]))


def test_the_generator_decides_alone():
    sample, augment = sample_of(), AutoAugment()
    made = [augment(sample, generator(seed))["image"] for seed in range(16)]
    torch.manual_seed(7)
    for seed, image in enumerate(made):
        assert torch.equal(augment(sample, generator(seed))["image"], image)
        assert torch.equal(AutoAugment()(sample, generator(seed))["image"], image)
    assert len({image.numpy().tobytes() for image in made}) > 8


@pytest.mark.parametrize("fails", [False, True])
def test_no_other_random_state_changes(fails, monkeypatch):
    augment = AutoAugment()
    if fails:

        def fail(image):
            torch.rand(3)
            raise OSError("broken")

        monkeypatch.setattr(augment, "augment", fail)
    before = torch.get_rng_state()
    for seed in range(4):
        if fails:
            with pytest.raises(OSError, match="broken"):
                augment(sample_of(), generator(seed))
        else:
            augment(sample_of(), generator(seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sample_is_left_as_it_was():
    sample = sample_of()
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
    new = AutoAugment()(sample, generator(0))
    assert not torch.equal(new["image"], sample["image"])
    assert torch.equal(sample["image"], kept["image"])
    assert sample.keys() == kept.keys() == new.keys()
    for key in sample.keys() - {"image"}:
        assert new[key] is sample[key]


@pytest.mark.parametrize("size", [(24, 31), (1, 1), (3, 40)])
def test_size_and_range_stay(size):
    sample, augment = sample_of(*size), AutoAugment()
    for seed in range(40):
        image = augment(sample, generator(seed))["image"]
        assert (image.shape, image.dtype) == ((3, *size), torch.float32)
        assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize(("options", "grey"), [({}, 128), ({"fill": 1.0}, 255), ({"fill": 0}, 0)])
def test_equals_torchvision_by_hand(options, grey):
    sample, augment = sample_of(), AutoAugment(**options)
    by_hand = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=[grey] * 3)
    pixels = (sample["image"] * 255).round().byte().permute(1, 2, 0).numpy()
    for seed in range(25):
        found = augment(sample, generator(seed))["image"]
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator(seed))))
        expected = np.asarray(by_hand(Image.fromarray(pixels))).astype(np.float32) / np.float32(255)
        torch.testing.assert_close(found, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["mask", "pseudo_mask"])
def test_a_mask_is_refused(name):
    sample = sample_of() | {name: torch.zeros(24, 31, dtype=torch.int64)}
    with pytest.raises(ValueError, match="sample must hold no mask, which AutoAugment would not"):
        AutoAugment()(sample, generator(0))


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"fill must be in \[0, 1\], got 128"):
        AutoAugment(fill=128)
    with pytest.raises(TypeError, match="fill must be a number, got 'grey'"):
        AutoAugment(fill="grey")


def test_a_missing_pillow_is_named(monkeypatch):
    augment = AutoAugment()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"AutoAugment needs PIL.Image: .*wsss-blocks\[cli\]"):
        augment(sample_of(), generator(0))
