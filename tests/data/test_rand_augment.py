import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import generator
from timm.data.auto_augment import rand_augment_transform

from wsss_blocks.data import RandAugment, new_sample


def sample_of(height=24, width=31):
    pixels = torch.randint(256, (3, height, width), generator=generator(0))
    return new_sample(pixels.float() / 255, id="a", labels=torch.tensor([1.0, 0.0]))


def image_of(sample):
    pixels = (sample["image"] * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def test_the_generator_decides_alone():
    sample, augment = sample_of(), RandAugment()
    made = [augment(sample, generator(seed))["image"] for seed in range(12)]
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    torch.manual_seed(7)
    for seed, image in enumerate(made):
        assert torch.equal(augment(sample, generator(seed))["image"], image)
        assert torch.equal(RandAugment()(sample, generator(seed))["image"], image)
    assert len({image.numpy().tobytes() for image in made}) > 6


@pytest.mark.parametrize("fails", [False, True])
def test_no_other_random_state_changes(fails, monkeypatch):
    augment = RandAugment()
    if fails:

        def fail(image):
            random.random()
            np.random.rand()  # noqa: NPY002
            raise OSError("broken")

        monkeypatch.setattr(augment, "augment", fail)

    def states():
        _, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()

    before = states()
    for seed in range(4):
        if fails:
            with pytest.raises(OSError, match="broken"):
                augment(sample_of(), generator(seed))
        else:
            augment(sample_of(), generator(seed))
    assert states() == before


def test_the_sample_is_left_as_it_was():
    sample = sample_of()
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
    new = RandAugment()(sample, generator(1))
    assert not torch.equal(new["image"], sample["image"])
    assert torch.equal(sample["image"], kept["image"])
    assert sample.keys() == kept.keys() == new.keys()
    for key in sample.keys() - {"image"}:
        assert new[key] is sample[key]


@pytest.mark.parametrize("size", [(24, 31), (1, 1), (3, 40)])
def test_size_and_range_stay(size):
    sample, augment = sample_of(*size), RandAugment()
    for seed in range(40):
        image = augment(sample, generator(seed))["image"]
        assert (image.shape, image.dtype) == ((3, *size), torch.float32)
        assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize(
    ("options", "config", "grey"),
    [
        ({}, "rand-m9-mstd0.5-inc1", 115),
        ({"config": "rand-m3-n1", "fill": 1.0}, "rand-m3-n1", 255),
        ({"fill": 0.0}, "rand-m9-mstd0.5-inc1", 0),
    ],
)
def test_equals_timm_by_hand(options, config, grey):
    sample, augment = sample_of(), RandAugment(**options)
    by_hand = rand_augment_transform(config, {"img_mean": (grey,) * 3})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    for seed in range(25):
        found = augment(sample, generator(seed))["image"]
        drawn = int(torch.randint(2**31, (), generator=generator(seed)))
        random.seed(drawn)
        np.random.seed(drawn)  # noqa: NPY002
        expected = np.asarray(by_hand(image_of(sample))).astype(np.float32) / np.float32(255)
        torch.testing.assert_close(found, torch.from_numpy(expected).permute(2, 0, 1))
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@pytest.mark.parametrize("name", ["mask", "pseudo_mask"])
def test_a_mask_is_refused(name):
    sample = sample_of() | {name: torch.zeros(24, 31, dtype=torch.int64)}
    with pytest.raises(ValueError, match="sample must hold no mask, which RandAugment would not"):
        RandAugment()(sample, generator(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": "augmix-m3"}, ValueError, "config must be in timm's notation.*got 'augmix-m3'"),
        ({"config": "rand-m9-x3"}, ValueError, "config must be in timm's notation"),
        ({"config": "rand-mx9"}, ValueError, "config must be in timm's notation"),
        ({"config": "rand-m9.5"}, ValueError, "config must be in timm's notation"),
        ({"config": None}, ValueError, "config must be in timm's notation.*got None"),
        ({"fill": 115}, ValueError, r"fill must be in \[0, 1\], got 115"),
        ({"fill": "grey"}, TypeError, "fill must be a number, got 'grey'"),
    ],
)
def test_wrong_settings(options, error, message):
    with pytest.raises(error, match=message):
        RandAugment(**options)


def test_a_missing_pillow_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"RandAugment needs PIL.Image: .*wsss-blocks\[cli\]"):
        RandAugment()(sample_of(), generator(0))


def test_importing_it_does_not_import_timm():
    code = (
        "import sys; sys.modules['timm'] = None; "
        "from wsss_blocks.data.rand_augment import RandAugment; print(RandAugment.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "RandAugment\n", done.stderr
