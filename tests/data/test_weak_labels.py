import io
import os
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_blocks.data import COCO_NAMES, VOC_NAMES, WeakLabels, write_mask
from wsss_blocks.data._plain_pickle import load_arrays

ROWS = {"a": ["dog"], "b": ["cat", "dog"], "c": []}
LABELS = WeakLabels(("cat", "dog"), ROWS)


def test_rows():
    assert LABELS["b"].tolist() == [1, 1]
    assert LABELS["c"].tolist() == [0, 0]
    assert LABELS["a"].dtype == torch.float32
    assert LABELS.counts() == {"cat": 1, "dog": 2}
    assert LABELS.ids == list(LABELS) == ["a", "b", "c"]
    assert len(LABELS) == 3
    assert "a" in LABELS
    assert "z" not in LABELS
    assert LABELS.classes("b") == ["cat", "dog"]
    assert repr(LABELS) == "WeakLabels(3 images, 2 classes)"
    with pytest.raises(KeyError, match="no labels for 'z' among 3 images"):
        LABELS["z"]


def test_returned_rows_are_copies():
    LABELS["a"].zero_()
    assert LABELS["a"].tolist() == [0, 1]


def test_subset_and_hash():
    assert LABELS.subset(["c", "a"]).ids == ["c", "a"]
    shuffled = WeakLabels(("cat", "dog"), {k: ROWS[k] for k in "cab"})
    assert shuffled == LABELS
    assert shuffled.hash == LABELS.hash
    assert WeakLabels(("dog", "cat"), ROWS) != LABELS
    assert WeakLabels(("cat", "dog"), {**ROWS, "c": ["cat"]}) != LABELS
    assert len(LABELS.hash) == 64


@given(
    st.dictionaries(
        st.text('ab/,"é ', min_size=1).map(str.strip).filter(len),
        st.sets(st.sampled_from(["x", "y,z", "w"])),
        max_size=5,
    ),
    st.sampled_from([".json", ".csv"]),
)
def test_round_trip(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("labels") / f"labels{suffix}"
    labels = WeakLabels(("x", "y,z", "w"), rows)
    labels.save(path)
    assert WeakLabels.load(path) == labels
    assert WeakLabels.load(path).ids == labels.ids
    assert os.listdir(path.parent) == [path.name]  # no temporary file is left


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "labels.json"
    LABELS.save(path)
    before = path.read_text()
    monkeypatch.setattr(WeakLabels, "classes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LABELS.save(path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["labels.json"]


def test_the_json_file_reads_well_and_may_be_edited(tmp_path):
    path = tmp_path / "labels.json"
    WeakLabels(("cat", "Hündin"), {"Café 1": ["cat", "Hündin"], "b": []}).save(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"names": ["cat", "Hündin"],'
    assert lines[1] == ' "counts": {"cat": 1, "Hündin": 1},'
    assert lines[2].startswith(f' "hash": "{WeakLabels.load(path).hash}"')
    assert lines[3:] == [' "labels": {', '  "Café 1": ["cat", "Hündin"],', '  "b": []', " }}"]
    path.write_text(path.read_text(encoding="utf-8").replace("[]", '["cat"]'), encoding="utf-8")
    assert WeakLabels.load(path).counts() == {"cat": 2, "Hündin": 1}
    WeakLabels(("cat",), {}).save(path)
    assert len(WeakLabels.load(path)) == 0


def test_names_reorder_and_must_agree(tmp_path):
    path = tmp_path / "labels.json"
    LABELS.save(path)
    assert WeakLabels.load(path, names=("dog", "cat"))["a"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"labels.json must have the 2 classes.*cat, cow"):
        WeakLabels.load(path, names=("dog", "cow"))


def test_long_csv(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\n1.a,dog\n1.a,cat\n2,dog; cat\n3,\n")
    labels = WeakLabels.from_csv(path)
    assert labels.names == ("cat", "dog")
    assert [labels[i].tolist() for i in ("1.a", "2", "3")] == [[1, 1], [1, 1], [0, 0]]
    assert WeakLabels.from_csv(path, names=("dog", "cow", "cat"))["2"].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"labels.csv must have the 1 classes of names, got 2"):
        WeakLabels.from_csv(path, names=("dog",))


@pytest.mark.parametrize(
    "text",
    [
        "id;cat;dog\na b;1;0\né;0;1\n",
        "\ufeffid;cat;dog\r\na b;1;0\r\né;0;1\r\n;;\r\n\r\n",
        '"id","cat","dog"\r\n"a b","1","0"\r\n"é","0","1"\r\n',
        "id\tcat\tdog\n a b \t1\t0\né\t0\t 1\n",
        "id;labels\na b;cat\né;dog\n",
        'id;class\na b;"cat;cat"\né;dog, dog\n',
        "\nid,label\na b,cat;cat\né,dog\n",
    ],
)
def test_tables_from_spreadsheets(tmp_path, text):
    path = tmp_path / "labels.CSV"
    path.write_bytes(text.encode())
    labels = WeakLabels.load(path)
    assert labels.names == ("cat", "dog")
    assert {i: labels.classes(i) for i in labels} == {"a b": ["cat"], "é": ["dog"]}


def test_the_first_separator_outside_quotes_counts(tmp_path):
    path = tmp_path / "labels.csv"
    names = ('a;b;"c', "d\te;f", "g,h")
    labels = WeakLabels(names, {"x;y": [names[1]], 'q"u': [], "z\u2028z": names})
    labels.save(path)
    assert WeakLabels.load(path) == labels
    path.write_text('"id, or so";"cat,dog";"cow"\na;1;0\n')
    assert WeakLabels.load(path).names == ("cat,dog", "cow")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "labels.csv"
    path.write_bytes("id,labels\nCafé,cat\n".encode(encoding))
    with pytest.raises(ValueError, match=r"labels.csv must be UTF-8 text, got byte 0x.*CSV UTF-8"):
        WeakLabels.load(path)


def test_ids_beyond_ascii_in_every_text_format(tmp_path):
    labels = WeakLabels(COCO_NAMES, {"Café 東京": ["dog"], "a b": []})
    for name in ("l.json", "l.csv"):
        labels.save(tmp_path / name)
        assert WeakLabels.load(tmp_path / name) == labels
    (tmp_path / "l.json").write_text(
        '\ufeff{"names": ["Hund"], "labels": {"Café": ["Hund"]}}', encoding="utf-8"
    )
    assert WeakLabels.load(tmp_path / "l.json").classes("Café") == ["Hund"]
    (tmp_path / "l.txt").write_text("Café東京 16\n", encoding="utf-8")
    assert WeakLabels.load(tmp_path / "l.txt", names=COCO_NAMES).classes("Café東京") == ["dog"]


def test_labels_of_voc_are_not_those_of_coco(tmp_path):
    labels = WeakLabels(VOC_NAMES, {"a": ["dog"]})
    for name in ("l.json", "l.csv"):
        labels.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} must have the 80 classes of names, got 20"):
            WeakLabels.load(tmp_path / name, names=COCO_NAMES)
    (tmp_path / "l.txt").write_text("a 0 79\n")
    with pytest.raises(ValueError, match=r"l.txt:1 must list class ids in \[0, 20\), got '0 79'"):
        WeakLabels.load(tmp_path / "l.txt", names=VOC_NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with a header"),
        ("id\na\n", "must start with a header"),
        ("id,cat,dog\na,1\n", ":2 must have an id and 2 more cells"),
        ("id,cat,dog\na,1,2\n", ":2 must hold 0 or 1 for each class, got '2'"),
        ("id,cat,dog\na,1,0\n\na,1,0\n", ":4 repeats the id 'a'"),
        ("id,cat,dog\n,1,0\n", ":2 must have an id"),
        ("id;cat;dog\na,1,0\n", ":2 must have an id and 2 more cells"),
        ("\nid,cat,cat\na,1,0\n", ":2 must name each class once, got cat, cat"),
        ("id;cat;;\na;1;;\n", ":1 must name each class once"),
        ('id,cat\n"a,1\n' + "x" * 200000, ":3 is not CSV: field larger"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"broken.csv.*{message}|broken.csv{message}"):
        WeakLabels.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"names": ["a"]}', '{"names": 3, "labels": {}}'])
def test_broken_json(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken.json is not a JSON file of weak labels"):
        WeakLabels.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"names": ["cat"], "labels": {"x": ["cow"]}}',
            "rows must hold known classes, got 'cow'",
        ),
        ('{"names": ["cat", "cat"], "labels": {}}', "names must be unique and at least one"),
        ('{"names": [], "labels": {}}', "names must be unique and at least one"),
        ('{"names": [["cat"]], "labels": {}}', "names must be a sequence of strings"),
        ('{"names": ["cat"], "labels": {"x": [1]}}', "rows must hold known classes, got 1 for 'x'"),
    ],
)
def test_json_of_other_classes(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken.json: {message}"):
        WeakLabels.load(path)


def test_json_with_bare_strings(tmp_path):
    path = tmp_path / "bare.json"
    path.write_text('{"names": ["c", "a", "t"], "labels": {"x": "cat"}}')
    with pytest.raises(ValueError, match=r"bare.json must give a list of class names"):
        WeakLabels.load(path)


def test_constructor_errors(tmp_path):
    with pytest.raises(ValueError, match="got 'cow' for 'a', which is not among the 2 names"):
        WeakLabels(("cat", "dog"), {"a": ["cow"]})
    with pytest.raises(ValueError, match="names must be unique"):
        WeakLabels(("cat", "cat"), {})
    with pytest.raises(ValueError, match="names must be unique and at least one"):
        WeakLabels((), {})
    for names in ("cat", None, 3, ("cat", 1)):
        with pytest.raises(TypeError, match="names must be a sequence of strings, got "):
            WeakLabels(names, {})
    for rows in ([("a", ["cat"])], None):
        with pytest.raises(TypeError, match=r"rows must map image ids to class names, got \w+"):
            WeakLabels(("cat",), rows)
    for rows in ({"a": "cat"}, {"a": None}, {"a": iter(["cat"])}, {1: ["cat"]}):
        with pytest.raises(TypeError, match=r"rows must map strings to collections .*, got .*: "):
            WeakLabels(("cat",), rows)
    with pytest.raises(ValueError, match=r"path must end in .json or .csv, got .*x.npy"):
        LABELS.save(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match=r"no label file at .*nothing.json"):
        WeakLabels.load(tmp_path / "nothing.json")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(ValueError, match=r"path must end in .json, .csv, .npy or .txt"):
        WeakLabels.load(tmp_path / "x.xlsx")
    for name in ("x.npy", "x.txt"):
        save_npy(tmp_path / "x.npy", {"a": [0, 1]})
        with pytest.raises(ValueError, match=rf"names must be given for .*{name}"):
            WeakLabels.load(tmp_path / name)


# --- the field's .npy -------------------------------------------------------------------------


def save_npy(path, value):
    np.save(path, value, allow_pickle=True)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, np.bool_, ">f4"])
def test_npy_of_any_number_type(tmp_path, dtype):
    vectors = {"a": np.array([0, 1, 1], dtype), "b": np.zeros(3, dtype)}
    labels = WeakLabels.load(save_npy(tmp_path / "l.npy", vectors), names=("x", "y", "z"))
    assert labels["a"].tolist() == [0, 1, 1]
    assert labels["b"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_every_protocol_numpy_writes(protocol):
    content = {"a": np.array([0.0, 1.0], np.float32), "b": [1, 0], "c": [np.float64(1), 0]}
    found = load_arrays(io.BytesIO(pickle.dumps(content, protocol=protocol)))
    assert {k: v.tolist() for k, v in found.items()} == {"a": [0, 1], "b": [1, 0], "c": [1, 0]}


class Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    "attack",
    [
        lambda flag: Call(os.mkdir, flag),
        lambda flag: Call(eval, f"__import__('os').mkdir({flag!r})"),
        lambda flag: Call(exec, f"import os; os.mkdir({flag!r})"),
        lambda flag: Call(__import__, "antigravity"),
        lambda flag: Call(getattr, "", "upper"),
        lambda flag: Call(np.fromfile, flag),
        lambda flag: Call(io.open, flag, "w"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, attack):
    flag = str(tmp_path / "flag")
    path = save_npy(tmp_path / "l.npy", {"a": attack(flag)})
    with pytest.raises(ValueError, match=r"l.npy is not a plain pickle of label vectors: it asks"):
        WeakLabels.load(path, names=("x",))
    assert not os.path.exists(flag)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x02}",
        b"cnumpy\nndarray\n.",
        b"cnumpy\nndarray\n(S'x'\ndb.",  # state set on the name itself
        b"cnumpy\ndtype\n)\x81.",
        b"ccopyreg\n_reconstructor\n.",
        b"(S'ls'\nios\nsystem\n.",
        b"Ptoken\n.",
    ],
)
def test_broken_pickles_are_refused(raw):
    with pytest.raises(ValueError, match="not a plain pickle of label vectors"):
        load_arrays(io.BytesIO(raw))


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"a": 1},
        {"a": np.zeros((2, 2))},
        {"a": np.array(["x"])},
        {"a": np.array([None, {}], object)},
        {"a": ["x"]},
    ],
)
def test_other_contents_are_refused(content):
    with pytest.raises(ValueError, match="not a plain pickle of label vectors"):
        load_arrays(io.BytesIO(pickle.dumps(content)))


@pytest.mark.parametrize(
    ("columns", "image", "names", "hint"),
    [
        (20, "2007_000032", 80, "20 columns are those of voc; ids such as 2007_000032 .* of voc"),
        (80, "COCO_val2014_000000000042", 20, "80 columns are those of coco or coco-object; .* of"),
        (80, "000000000139", None, "80 columns .*; ids such as 000000000139 are those of coco"),
        (150, "ADE_val_00000001", 20, "150 columns are those of ade20k"),
        (21, "a", 20, "one of the 21 columns may be background"),
        (3, "2007_000032", 2, "ids such as 2007_000032 are those of voc"),
        (3, "a", 2, None),
    ],
)
def test_npy_of_another_data_set(tmp_path, columns, image, names, hint):
    path = save_npy(tmp_path / "l.npy", {image: np.zeros(columns)})
    words = None if names is None else [f"class {k}" for k in range(names)]
    with pytest.raises(ValueError, match=r"l\.npy") as error:
        WeakLabels.load(path, names=words)
    text = str(error.value)
    if names is None:
        assert text.startswith(f"names must be given for {path}: the format has no class names.")
    else:
        assert f"{path} has {columns} label columns, but names has {names}: is it the" in text
    if hint is None:
        assert text.endswith("data set?")
    else:
        assert re.search(rf"[.?] {hint}", text)


def test_npy_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"l.npy must hold 0 or 1 for each class, not so for 'a'"):
        WeakLabels.load(save_npy(tmp_path / "l.npy", {"a": np.array([0.5])}), names=("x",))
    with pytest.raises(ValueError, match=r"l.npy is not .* dictionary.*float64"):
        WeakLabels.load(save_npy(tmp_path / "l.npy", np.zeros((2, 3))), names=("x",))
    (tmp_path / "l.npy").write_bytes(b"\x80\x04}.")
    with pytest.raises(ValueError, match=r"l.npy is not a .npy file"):
        WeakLabels.load(tmp_path / "l.npy", names=("x",))


# --- other sources ----------------------------------------------------------------------------


def test_from_folders(tmp_path):
    for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpeg", "dog/notes.txt", "3.png", ".x/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    labels = WeakLabels.from_folders(tmp_path)
    assert labels.names == ("cat", "dog")
    assert {i: labels.classes(i) for i in labels} == {
        "3": [],
        "cat/1": ["cat"],
        "cat/2": ["cat"],
        "dog/1": ["dog"],
    }
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        WeakLabels.from_folders(tmp_path / "gone")
    assert WeakLabels.from_folders(tmp_path, names=("dog", "cat"))["dog/1"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"must have the 1 classes of names, got 2"):
        WeakLabels.from_folders(tmp_path, names=("dog",))
    fewer = WeakLabels.from_folders(tmp_path, exclude=("cat", "other"))
    assert fewer.names == ("dog",)
    assert fewer.ids == ["3", "dog/1"]
    with pytest.raises(ValueError, match="must have a folder for each class"):
        WeakLabels.from_folders(tmp_path / "cat")


def test_from_voc_xml(tmp_path):
    objects = (
        "<object><name>dog</name><difficult>1</difficult><part><name>head</name></part></object>"
    )
    (tmp_path / "a.xml").write_text(f"<annotation>{objects}{objects}</annotation>")
    (tmp_path / "b.xml").write_text("<annotation></annotation>")
    labels = WeakLabels.from_voc_xml(tmp_path, ["a", "b"])
    assert [labels.classes(i) for i in labels] == [["dog"], []]
    assert labels.names == VOC_NAMES
    with pytest.raises(ValueError, match=r"a.xml names \['dog'\], not among the 1 names"):
        WeakLabels.from_voc_xml(tmp_path, ["a"], names=("cat",))
    with pytest.raises(FileNotFoundError, match=r"no annotation at .*c.xml; pass labels"):
        WeakLabels.from_voc_xml(tmp_path, ["c"])
    (tmp_path / "d.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"d.xml is not XML"):
        WeakLabels.from_voc_xml(tmp_path, ["d"])


def test_from_masks(tmp_path):
    write_mask(tmp_path / "a.png", np.array([[0, 2], [255, 2]], np.uint8))
    write_mask(tmp_path / "b.png", np.array([[0, 255]], np.uint8))
    labels = WeakLabels.from_masks(tmp_path, ["a", "b"], names=("cat", "dog"))
    assert [labels.classes(i) for i in labels] == [["dog"], []]
    with pytest.raises(ValueError, match=r"a.png has the class id 2, but names has 1"):
        WeakLabels.from_masks(tmp_path, ["a"], names=("cat",))
    with pytest.raises(FileNotFoundError, match=r"no image at .*c.png"):
        WeakLabels.from_masks(tmp_path, ["c"], names=("cat", "dog"))
    with pytest.raises(ValueError, match="workers must be at least 1"):
        WeakLabels.from_masks(tmp_path, ["a"], names=("cat", "dog"), workers=0)


@pytest.mark.parametrize("mode", ["P", "L", "1", "I;16"])
def test_masks_of_every_mode(tmp_path, mode):
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    elif mode == "1":
        image = Image.fromarray(ids.astype(bool))
    elif mode != "L":
        image = Image.fromarray(ids.astype(np.uint16))
    image.save(tmp_path / "a.png")
    assert WeakLabels.from_masks(tmp_path, ["a"], names=("cat",)).classes("a") == ["cat"]
    image.convert("RGB").save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png must be an indexed or grey mask .* mode 'RGB'"):
        WeakLabels.from_masks(tmp_path, ["b"], names=("cat",))


def test_a_truncated_mask_is_named(tmp_path):
    write_mask(tmp_path / "a.png", np.random.default_rng(0).integers(0, 3, (40, 40), np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(OSError, match=r"a.png cannot be read as an image"):
        WeakLabels.from_masks(tmp_path, ["a"], names=("cat", "dog"))


def test_masks_with_other_ids(tmp_path):
    lookup = torch.full((256,), 255, dtype=torch.uint8)
    lookup[[7, 9]] = torch.tensor([1, 2], dtype=torch.uint8)
    write_mask(tmp_path / "a.png", np.array([[9, 3, 255]], np.uint8))
    write_mask(tmp_path / "b.png", np.array([[9, 7]], np.uint8))
    labels = WeakLabels.from_masks(tmp_path, "ab", names=("cat", "dog"), mask_ids=lookup)
    assert [labels.classes(i) for i in labels] == [["dog"], ["cat", "dog"]]


def test_from_coco_txt(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("COCO_1 0 79\n\nCOCO_2\n")
    labels = WeakLabels.load(path, names=COCO_NAMES)
    assert [labels.classes(i) for i in labels] == [["person", "toothbrush"], []]
    for text, message in (
        ("a 0\na 1\n", r"train.txt:2 repeats the id 'a'"),
        ("a 80\n", r"train.txt:1 must list class ids in \[0, 80\), got '80'"),
        ("a cat\n", r"train.txt:1 must list class ids"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            WeakLabels.from_coco_txt(path, names=COCO_NAMES)
    with pytest.raises(FileNotFoundError, match="no label file at"):
        WeakLabels.from_coco_txt(tmp_path / "gone.txt", names=COCO_NAMES)


def test_from_coco_json(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(
        '{"categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],'
        ' "images": [{"id": 1, "file_name": "x/a.jpg"}, {"id": 2, "file_name": "b.jpg"}],'
        ' "annotations": [{"image_id": 1, "category_id": 7, "iscrowd": 1},'
        ' {"image_id": 1, "category_id": 7}]}'
    )
    labels = WeakLabels.from_coco_json(path)
    assert labels.names == ("cat", "dog")
    assert {i: labels.classes(i) for i in labels} == {"a": ["dog"], "b": []}
    assert WeakLabels.from_coco_json(path, names=("dog", "cat"))["a"].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"instances.json must have the 1 classes .* cat"):
        WeakLabels.from_coco_json(path, names=("dog",))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"instances.json is not a COCO instances file"):
        WeakLabels.from_coco_json(path)
    with pytest.raises(FileNotFoundError, match="no annotation file at"):
        WeakLabels.from_coco_json(tmp_path / "gone.json")


# --- real label files -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voc_file(shared_data):
    return shared_data / "labels" / "voc12" / "cls_labels_onehot.npy"


@pytest.mark.real_data
def test_the_fields_voc_file(voc_file):
    labels = WeakLabels.load(voc_file, names=VOC_NAMES)
    assert len(labels) == 12031
    assert labels.classes("2007_000032") == ["aeroplane", "person"]
    listed = (voc_file.parent / "train_aug.txt").read_text().split()
    per_image = labels.subset(listed)._matrix.sum(1)
    assert np.bincount(per_image).tolist() == [0, 6249, 3104, 969, 210, 46, 4]
    with pytest.raises(ValueError, match="has 20 label columns, but names has 80"):
        WeakLabels.load(voc_file, names=COCO_NAMES)


@pytest.mark.real_data
def test_xml_labels_against_the_fields_file(shared_data, voc_file):
    # On these 472 images annotations, masks and the label file name the same classes.
    labels = WeakLabels.load(voc_file, names=VOC_NAMES)
    root = shared_data / "VOCdevkit" / "VOC2012"
    ids = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    assert len(ids) == 472
    from_xml = WeakLabels.from_voc_xml(root / "Annotations", ids)
    assert [i for i in ids if not torch.equal(from_xml[i], labels[i])] == []


@pytest.mark.real_data
def test_the_fields_coco_list(shared_data):
    labels = WeakLabels.load(shared_data / "labels" / "coco14" / "train.txt", names=COCO_NAMES)
    assert len(labels) == 82081
    assert labels.classes("COCO_train2014_000000000009") == ["bowl", "orange", "broccoli"]
    assert max(labels.counts(), key=labels.counts().get) == "person"


@pytest.mark.real_data
def test_coco_names_are_those_of_the_annotations(shared_data):
    path = shared_data / "coco_small" / "annotations" / "instances_val.json"
    labels = WeakLabels.from_coco_json(path)
    assert labels.names == COCO_NAMES
    masks = path.parents[1] / "masks" / "val"
    from_masks = WeakLabels.from_masks(masks, labels, names=COCO_NAMES)
    differing = [i for i in labels if not torch.equal(labels[i], from_masks[i])]
    assert differing == []
