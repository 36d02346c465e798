"""Class maps of training images, kept in a store."""

import pytest
import torch
from torch import nn

from wsss_blocks.cli import write_train_cams
from wsss_blocks.data import CamStore, Scenes


class Maps(nn.Module):
    """Two kinds of maps, one of which needs the image labels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 10, 1)
        self.drop = nn.Dropout(0.9)
        self.calls = 0

    def forward(self, images, labels):
        self.calls += 1
        cam = self.drop(self.head(images[..., ::8, ::8]))
        return {"cam": cam, "shown": cam * labels[:, :, None, None]}


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return Maps().train()


@pytest.mark.parametrize("name", ["cam", "shown"])
def test_store_holds_the_maps_of_present_classes(maps, name, tmp_path):
    scenes = Scenes(size=3)
    folder = write_train_cams(
        maps, scenes, tmp_path / "cams", name=name, model=maps, dtype="float16", size=64
    )
    assert maps.training, "the mode comes back"
    store = CamStore(folder)
    assert list(store.names) == list(scenes.names)
    for i, image in enumerate(scenes.ids):
        pixels = torch.nn.functional.interpolate(
            scenes[i]["image"][None], size=(64, 64), mode="bilinear"
        )
        labels = scenes[i]["labels"]
        expected = maps.eval()(pixels, labels[None])["cam"][0] * labels[:, None, None]
        torch.testing.assert_close(store.dense(image), expected, atol=2e-3, rtol=1e-3)
        assert store[image].image_size == (96, 96)


def test_what_is_stored_stays_and_other_weights_are_refused(maps, tmp_path):
    scenes, options = Scenes(size=3), {"name": "cam", "model": maps}
    write_train_cams(maps, scenes, tmp_path, **options)
    calls = maps.calls
    write_train_cams(maps, scenes, tmp_path, **options)
    assert maps.calls == calls + 1, "only the look at what maps there are"
    nn.init.ones_(maps.head.weight)
    with pytest.raises(ValueError, match="weights"):
        write_train_cams(maps, scenes, tmp_path, **options)


def test_a_wrong_name_leaves_nothing(maps, tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of cam, shown, got 'text_cam'"):
        write_train_cams(maps, Scenes(size=1), tmp_path / "cams", name="text_cam", model=maps)
    assert not (tmp_path / "cams").exists()
