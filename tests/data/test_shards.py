import json
import sys
import tarfile
from pathlib import Path

import pytest
from shard_writing import pair, write_shards, write_tar

from wsss_blocks.data import ShardList, find_shards


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "cc3m", [3, 5, 2])


def names(shards):
    return [path.name for path in shards.paths]


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [
        ("", (3, 5, 2)),
        ("*.tar", (3, 5, 2)),
        ("0000[12].tar", (5, 2)),
        ("{00000..00002}.tar", (3, 5, 2)),
        ("{00002,00000}.tar", (2, 3)),
        ("00001.tar", (5,)),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_patterns(folder, pattern, counts, kind):
    shards = find_shards(kind(folder / pattern))
    assert isinstance(shards, ShardList)
    assert shards.counts == counts
    assert shards.samples == sum(counts)
    assert find_shards([folder / pattern]) == shards


def test_several_patterns_keep_their_order(folder, tmp_path):
    write_shards(tmp_path / "cc12m", [4])
    shards = find_shards([tmp_path / "cc12m", folder / "0000{2,1}.tar"])
    assert names(shards) == ["00000.tar", "00002.tar", "00001.tar"]
    assert shards.counts == (4, 2, 5)


def test_counts_come_from_the_side_car_then_the_list_then_the_tar(folder):
    (folder / "00000_stats.json").write_text(json.dumps({"successes": 77}))
    (folder / "00001_stats.json").unlink()
    (folder / "sizes.json").write_text(json.dumps({"00000.tar": 1, "00001.tar": 88}))
    assert find_shards(folder).counts == (77, 88, 2)
    (folder / "sizes.json").unlink()
    assert find_shards(folder).counts == (77, 5, 2)


def test_counting_looks_at_images_alone(tmp_path):
    members = pair("1") | pair("2", jpg=None, txt=b"no image")
    members |= {"3.PNG": b"x", "4.webp": b"x", "sub.d/5.jpeg": b"x", "sub.d/6.jpeg": b"x"}
    members |= {"._7.jpg": b"x", "8.jpg.txt": b"x", "9.jpg": b"x", "9.png": b"x"}
    write_tar(tmp_path / "a.tar", members)
    assert find_shards(tmp_path).counts == (6,)


def test_missing_shards_are_all_named(folder):
    (folder / "00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 4 shards do not exist: .*1.tar, .*3.tar\."):
        find_shards(f"{folder}/{{00000..00003}}.tar")
    write_shards(folder, [1, 1, 1])
    with pytest.raises(FileNotFoundError, match=r"20 of 23 shards do not exist: .*, \.\.\.\."):
        find_shards(f"{folder}/{{00000..00022}}.tar")
    with pytest.raises(FileNotFoundError, match=r"no shards \*.tar at .*x\*.tar"):
        find_shards(folder / "x*.tar")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no shards \*.tar at .*empty"):
        find_shards(folder / "empty")


def test_broken_shards(folder):
    shard = folder / "00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"00001.tar must be a tar file of samples"):
        find_shards(folder)  # in spite of its side-car
    shard.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match=r"00001.tar must be a tar file of samples"):
        find_shards(folder)
    (folder / "00001_stats.json").unlink()
    with tarfile.open(folder / "00000.tar") as tar:
        inside = tar.getmembers()[3].offset_data + 10
    shard.write_bytes(whole[:inside])
    with pytest.raises(ValueError, match=r"00001.tar must be a tar file .*unexpected end of data"):
        find_shards(folder)
    write_tar(shard, {"1.txt": b"no image"})
    with pytest.raises(ValueError, match=r"00001.tar must hold images \(jpg, .*got none"):
        find_shards(folder)
    shard.write_bytes(whole)
    (folder / "00001_stats.json").write_text('{"successes": 0}')
    with pytest.raises(ValueError, match=r"00001.tar must hold images"):
        find_shards(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"00001_stats.json is not a JSON file of counts"),
        ("[3]", r"00001_stats.json must hold a JSON object, got list"),
        ("{}", r"00001_stats.json must give the number of samples in 00001.tar, got None"),
        ('{"successes": "3"}', r"must give the number of samples in 00001.tar, got '3'"),
    ],
)
def test_broken_side_cars(folder, text, message):
    (folder / "00001_stats.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_shards(folder)


def test_refuses(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"patterns must name a shard once, got .*00000.tar again"):
        find_shards([folder, folder / "00000.tar"])
    with pytest.raises(ValueError, match="patterns must name shards, got none"):
        find_shards([])
    with pytest.raises(TypeError, match="patterns must be text or paths, got 3"):
        find_shards([3])
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ImportError, match=r"with braces needs .*wsss-blocks\[webdata\]"):
        find_shards(f"{folder}/{{00000,00001}}.tar")
