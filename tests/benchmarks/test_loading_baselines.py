import PIL.Image
import pytest
import torch
from torchvision.transforms import v2

from benchmarks.baselines import torchvision_loading as plain
from benchmarks.bench_loading import write_photos
from wsss_blocks.data import new_sample, read_image, training_transform


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), (90, 70))[0]


@pytest.mark.parametrize("seed", range(12))
def test_exact_draws_and_computes_what_ours_does(photo, seed):
    image = plain.float_pixels(photo)
    theirs = plain.exact(image, torch.Generator().manual_seed(seed), size=64, scale=(0.5, 2.0))
    sample, generator = new_sample(image, id="a"), torch.Generator().manual_seed(seed)
    ours = training_transform(64)(sample, generator)["image"]
    torch.testing.assert_close(theirs, ours, atol=5e-6, rtol=0)


def test_decoders_agree(photo):
    image = plain.float_pixels(photo)
    torch.testing.assert_close(read_image(photo), image, atol=1e-7, rtol=0)
    for decode in (plain.pil_pixels, plain.decode_jpeg):
        pixels = decode(photo)
        assert pixels.dtype == torch.uint8
        torch.testing.assert_close(pixels / 255, image, atol=2 / 255, rtol=0)


def test_all_forms_resize_what_ours_resizes(photo):
    transform = training_transform(48, scale=(1.0, 1.0), flip=False, colour="none", square=True)
    ours = transform(new_sample(read_image(photo), id="a"), torch.Generator())["image"]
    for form, rounding in (
        (plain.published, 2 / 255),
        (plain.best, 2 / 255),
        (plain.unrounded, 1e-6),
    ):
        found = form([v2.Resize((48, 48))])(photo)
        assert found.shape == ours.shape
        torch.testing.assert_close(found, ours, atol=rounding, rtol=0)


def test_photos_of_the_benchmark_differ(photo):
    paths = sorted(photo.parent.iterdir())
    assert len({path.read_bytes() for path in paths}) == 8
    with PIL.Image.open(photo) as file:
        assert file.size == (90, 70)
