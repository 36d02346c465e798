import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from contract import assert_same
from hugging_face_files import bert, vocabulary_file
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from torch import nn

import wsss_blocks
from wsss_blocks.backbones import _hugging_face
from wsss_blocks.metrics import (
    EvaluationProtocol,
    SplitEvaluator,
    read_metrics,
    write_metrics,
)
from wsss_blocks.metrics import record as metrics_record
from wsss_blocks.segmenters import (
    SegmentationNetwork,
    Segmenter,
    ZeroShotSegmenter,
    create_loda,
    load_pretrained,
    load_pretrained_loda,
    push_to_hub,
    save_pretrained,
    zero_shot_bank,
)

PROTOCOL = EvaluationProtocol(
    dataset="toy", split="val", num_images=3, scales=(1.0, 1.5), flip=True, refiner="none",
    labels_used=False, text="stand-in",
)  # fmt: skip
WITH_LABELS = replace(
    PROTOCOL, labels_used=True, refiner="PAR(dilations=(1, 2))", threshold=0.4,
    threshold_source="sweep on train masks",
)  # fmt: skip
REPO = "me/pets"


def segmenter(names=("猫", "großer | Hund"), *, size=32):
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=len(names) + 1, hidden_dim=4)
    return Segmenter(network, names=names, protocol=PROTOCOL, size=size).eval()


def loda(**options):
    torch.manual_seed(0)
    options = {"words": ["cat", "dog"], "dim": 4, "image_norm": True} | options
    return create_loda(**options).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.rand(1, 3, 24, 30, generator=torch.Generator().manual_seed(1)))


def scores(names=("猫", "großer | Hund")):
    evaluator = SplitEvaluator(len(names) + 1, names=("background", *names), replicates=20)
    for seed in range(3):
        ids = torch.from_numpy(np.random.default_rng(seed).integers(0, len(names) + 1, (2, 9, 9)))
        evaluator.update(str(seed), ids[0], ids[1])
    return evaluator.compute()


@pytest.fixture
def metrics(tmp_path):
    """What a run leaves."""
    path, found = tmp_path / "run" / "metrics.json", scores()
    protocols = {"seg_miou": PROTOCOL, "seg": PROTOCOL, "cam_miou": WITH_LABELS}
    results = {"seg_miou": found.miou, "seg": found, "cam_miou": 0.1234}
    extra = {"supervision": "image labels", "commit": "0a1b2c"}
    write_metrics(path, results, protocols, seed=7, command="train | tee", extra=extra)
    return path


class Hub:
    """A hub in a folder: each commit is a snapshot, laid out as the client's cache is."""

    def __init__(self, folder):
        self.calls, self.folder, self.private, self.error = [], folder, False, None
        self.heads = {}  # branch -> commit

    def __call__(self, **options):
        self.calls.append(("HfApi", options))
        return self

    def repo(self, repo_id):
        return self.folder / f"models--{repo_id.replace('/', '--')}"

    def files(self, repo_id=REPO, revision="main"):
        return self.repo(repo_id) / "snapshots" / self.heads[revision]

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create_repo", repo_id, private, exist_ok))
        if self.error:
            raise self.error
        if "main" not in self.heads:
            self.private = private
            self.move(repo_id, "main", {".gitattributes": b""})

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        self.heads.setdefault(branch, self.heads["main"])
        self.write_ref(repo_id, branch)

    def model_info(self, repo_id, *, revision):
        names = [p.name for p in self.files(repo_id, revision or "main").iterdir()]
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        sha = self.heads[revision or "main"]
        return SimpleNamespace(private=self.private, siblings=siblings, sha=sha)

    def create_commit(self, repo_id, operations, *, commit_message, revision, parent_commit):
        branch = revision or "main"
        assert parent_commit == self.heads[branch]
        assert "wsss-blocks" in commit_message
        content = {p.name: p.read_bytes() for p in self.files(repo_id, branch).iterdir()}
        for one in operations:
            if isinstance(one, huggingface_hub.CommitOperationAdd):
                content[one.path_in_repo] = Path(one.path_or_fileobj).read_bytes()
            else:
                del content[one.path_in_repo]
        self.move(repo_id, branch, content)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{self.heads[branch]}")

    def move(self, repo_id, branch, content):
        self.heads[branch] = f"{len(list(self.folder.rglob('*'))):040x}"
        folder = self.files(repo_id, branch)
        folder.mkdir(parents=True)
        for name, data in content.items():
            (folder / name).write_bytes(data)
        self.write_ref(repo_id, branch)

    def write_ref(self, repo_id, branch):
        ref = self.repo(repo_id) / "refs" / branch
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(self.heads[branch])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub for writing; for reading the real client without a network, and its cache."""
    found = Hub(tmp_path / "hub")
    found.folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found.folder))
    return found


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_hub_in_a_folder_takes_what_the_real_client_takes():
    for name in ("create_repo", "create_branch", "model_info", "create_commit"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        for parameter in inspect.signature(getattr(Hub, name)).parameters.values():
            assert parameter.name in real, name
            assert real[parameter.name].kind == parameter.kind, (name, parameter)


def test_a_folder_gives_the_same_segmenter_back(tmp_path, metrics):
    model, folder = segmenter(), tmp_path / "new" / "pets"
    save_pretrained(model, folder, metrics=metrics, license="apache-2.0", datasets=["me/cats"])
    assert names_in(folder) == ["README.md", "metrics.json", "segmenter.safetensors"]
    assert (folder / "metrics.json").read_bytes() == metrics.read_bytes()
    for source in (folder, str(folder)):
        loaded = load_pretrained(source)
        assert_same(logits(loaded), logits(model))
        assert (loaded.names, loaded.protocol, loaded.size) == (model.names, PROTOCOL, 32)
    assert not loaded.training
    assert_same(logits(Segmenter.load(folder / "segmenter.safetensors")), logits(model))


def test_metadata_of_the_card(tmp_path, metrics):
    save_pretrained(
        segmenter(), tmp_path / "a", metrics=metrics, license="mit", datasets=["me/cats"],
        repo_id=REPO,
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "a" / "README.md")
    data = card.data.to_dict()
    index = data.pop("model-index")
    assert data == {
        "license": "mit",
        "library_name": "wsss-blocks",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "weakly-supervised"],
        "datasets": ["me/cats"],
    }
    # Labels of the scored images helped the class maps: no leaderboard gets that number.
    recorded = read_metrics(metrics).results["seg_miou"]
    (only,) = card.data.eval_results
    assert only.metric_value == pytest.approx(100 * recorded)
    assert (only.metric_type, only.dataset_type, only.dataset_split) == ("mean_iou", "toy", "val")
    assert only.metric_args == {"protocol": PROTOCOL.describe()}
    assert card.data.model_name == index[0]["name"] == REPO


def test_each_number_of_the_card_has_its_protocol(tmp_path, metrics):
    save_pretrained(segmenter(), tmp_path / "a", metrics=metrics, license="mit")
    text = ModelCard.load(tmp_path / "a" / "README.md").text
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    recorded, interval = read_metrics(metrics), scores().interval
    shown = {row.split(" | ")[0][2:]: row for row in rows}
    # "seg/miou" is "seg_miou"; what is of one class stays in metrics.json.
    expected = {"seg_miou", "seg/mfpr", "seg/mfnr", "seg/pixel_accuracy", "seg/boundary_iou"}
    assert set(shown) == expected | {"cam_miou"}
    for name, row in shown.items():
        assert f"| {100 * recorded.results[name]:.2f}" in row
        protocol = WITH_LABELS if name == "cam_miou" else PROTOCOL
        assert row.endswith(f" | {protocol.describe()} |")
    low, high = (f"{round(100 * x, 4):g}" for x in (interval.low, interval.high))
    assert f"(95 % interval {low} to {high})" in shown["seg_miou"]
    assert "image labels were USED" in text
    run, hardware = recorded.run, recorded.run["hardware"]
    for line in (
        "**Seed**: 7", "**Commit**: 0a1b2c", "**Supervision**: image labels",
        f"**Date**: {run['date']}", f"**wsss-blocks**: {wsss_blocks.__version__}",
        "**Command**: train \\| tee", f"torch {hardware['torch']}",
        "**Supervision, as recorded**: image labels", "**Texts, as recorded**: stand-in",
    ):  # fmt: skip
        assert line in text
    assert "not recorded" not in text


def test_what_the_record_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_record, "_commit", lambda: None)  # an installed library
    write_metrics(
        tmp_path / "m.json", {"a": float("nan"), "b": 0.5}, replace(WITH_LABELS, text=None)
    )
    model = segmenter()
    model.protocol = replace(PROTOCOL, text=None)
    save_pretrained(model, tmp_path / "a", metrics=tmp_path / "m.json", tags=["image-segmentation"])
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert "| a | undefined | toy val" in card.text
    for fact in ("Seed", "Commit", "Supervision"):
        assert f"**{fact}**: not recorded" in card.text
    assert "## What it learnt from\n\nNot stated." in card.text
    assert "model-index" not in card.data.to_dict()
    assert card.data.tags == ["image-segmentation"]


def test_a_card_without_metrics_has_no_number(tmp_path):
    save_pretrained(segmenter(size=None), tmp_path / "toy")
    card = ModelCard.load(tmp_path / "toy" / "README.md")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "## Evaluation\n\nNo measured number was given." in card.text
    assert "## Licence\n\nNo licence was stated." in card.text
    assert f"by which it segments**: {PROTOCOL.describe()}." in card.text
    assert "**2 classes beside background**: 猫, großer \\| Hund." in card.text
    assert "shown to the network as it is" in card.text
    assert "large-fov (encoder small-cnn, num_classes 3, neck_dim 0, hidden_dim 4" in card.text
    assert not any(line.startswith("|") for line in card.text.splitlines())


def test_many_classes_are_counted(tmp_path):
    for number, shown in ((25, "c23, c24."), (26, "c9 and 16 more (`segmenter.names`).")):
        names = tuple(f"c{index}" for index in range(number))
        save_pretrained(segmenter(names), tmp_path / str(number))
        line = next(
            line for line in (tmp_path / str(number) / "README.md").read_text().splitlines()
            if "classes beside" in line
        )  # fmt: skip
        assert line.startswith(f"- **{number} classes beside background**: c0, c1, ")
        assert line.endswith(shown)


def test_the_lines_of_use_run(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save("photo.jpg")
    save_pretrained(segmenter(), "toy")
    save_pretrained(loda(), "loda")
    for folder in ("toy", "loda"):
        code = Path(folder, "README.md").read_text().split("```")[1].removeprefix("python\n")
        exec(code, {})
        assert Image.open("mask.png").size == (30, 20)
        Path("mask.png").unlink()


def test_a_card_that_a_person_edited_stays(tmp_path, metrics):
    folder = tmp_path / "a"
    save_pretrained(segmenter(), folder)
    save_pretrained(segmenter(), folder)  # says the same
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"README\.md is there .*replace=True"):
        save_pretrained(segmenter(("a", "b")), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (folder / "notes.txt").write_text("stays")
    save_pretrained(segmenter(), folder, metrics=metrics, replace=True)
    assert "Mine." not in card.read_text()
    assert "notes.txt" in names_in(folder)
    # Numbers of another model would be read as this one's, and are never thrown away.
    for again in (False, True):
        with pytest.raises(FileExistsError, match=r"metrics\.json is there .*give it as metrics"):
            save_pretrained(segmenter(), folder, replace=again)
    run = metrics.parent  # a folder of a run, with its own metrics
    save_pretrained(segmenter(), run, metrics=metrics)
    assert names_in(run) == ["README.md", "metrics.json", "segmenter.safetensors"]


def test_each_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    save_pretrained(segmenter(), folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def broken(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(segmenter(("a", "b")), folder, replace=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_metrics_that_do_not_fit(tmp_path, metrics):
    folder, path = tmp_path / "a", tmp_path / "m.json"
    with pytest.raises(FileNotFoundError, match=r"metrics must .*m\.json"):
        save_pretrained(segmenter(), folder, metrics=path)
    for text in ("{", '{"miou": 62.5}', '{"unit": "per cent"}', '{"unit": "per cent", "results": 1,'
                 '"protocol": {"a": {"dataset": 1}}, "run": {}}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=r"metrics must be a file of write_metrics.*m\.json"):
            save_pretrained(segmenter(), folder, metrics=path)
    content = json.loads(metrics.read_text())
    del content["protocol"]["cam_miou"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"m\.json: 'cam_miou' has no protocol"):
        save_pretrained(segmenter(), folder, metrics=path)
    write_metrics(path, {"seg": scores(("cat", "dog", "cow"))}, PROTOCOL)
    with pytest.raises(ValueError, match=r"its 3 classes, but .*m\.json scores 4 as 'seg'.*cat, c"):
        save_pretrained(segmenter(), folder, metrics=path)
    assert not folder.exists()
    save_pretrained(loda(), folder, metrics=path)  # it has no classes of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": " "}, "license must hold words"),
        ({"datasets": "pets"}, "datasets must hold words, .* got 'pets'"),
        ({"tags": [""]}, "tags must hold words"),
    ],
)
def test_empty_words(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_pretrained(segmenter(), tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_models_that_cannot_be_shared(tmp_path):
    with pytest.raises(TypeError, match="model must be a Segmenter or a LoDAModel, got Linear"):
        save_pretrained(nn.Linear(2, 1), tmp_path / "a")
    other = Segmenter(nn.Conv2d(3, 2, 1), names=("cat",), protocol=PROTOCOL)
    with pytest.raises(TypeError, match="network must be a SegmentationNetwork"):
        save_pretrained(other, tmp_path / "a")
    by_hand = loda()
    by_hand.recipe = None
    with pytest.raises(TypeError, match="model must be one of create_loda"):
        save_pretrained(by_hand, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_push_and_load(tmp_path, hub, metrics):
    model = segmenter()
    url = push_to_hub(model, REPO, metrics=metrics, license="mit", token="secret", private=True)
    assert url == f"https://hub/{REPO}/commit/{hub.heads['main']}"
    options = {"library_name": "wsss-blocks", "library_version": wsss_blocks.__version__}
    assert hub.calls == [
        ("HfApi", {"token": "secret", **options}), ("create_repo", REPO, True, True),
    ]  # fmt: skip
    expected = [".gitattributes", "README.md", "metrics.json", "segmenter.safetensors"]
    assert names_in(hub.files()) == expected
    text = (hub.files() / "README.md").read_text()
    assert f'load_pretrained("{REPO}")' in text
    assert f"# {REPO}\n" in text
    assert "secret" not in text
    loaded = load_pretrained(REPO)  # with the real client, from its cache
    assert_same(logits(loaded), logits(model))
    assert loaded.names == model.names


def test_a_newer_model_replaces_only_if_told_and_an_older_one_stays_reachable(hub, metrics):
    first = push_to_hub(segmenter(), REPO, metrics=metrics).rsplit("/", 1)[1]
    newer = segmenter(("a", "b"))
    with pytest.raises(FileExistsError, match=r"me/pets holds README\.md, metrics\.json, segm"):
        push_to_hub(newer, REPO)
    assert hub.heads["main"] == first
    push_to_hub(newer, REPO, replace=True)
    # The numbers of the older one are gone with it.
    assert names_in(hub.files()) == [".gitattributes", "README.md", "segmenter.safetensors"]
    assert load_pretrained(REPO).names == ("a", "b")
    assert load_pretrained(REPO, revision=first).names == segmenter().names
    push_to_hub(segmenter(("c", "d")), REPO, revision="trial", replace=True)
    assert load_pretrained(REPO, revision="trial").names == ("c", "d")
    assert load_pretrained(REPO).names == ("a", "b")


def test_what_must_be_private_is_not_pushed_into_a_public_repository(hub):
    hub.create_repo(REPO, private=False, exist_ok=True)
    with pytest.raises(ValueError, match=r"private must be False for me/pets, .* public"):
        push_to_hub(segmenter(), REPO, private=True)
    assert names_in(hub.files()) == [".gitattributes"]


def test_nothing_is_asked_of_the_hub_for_a_model_that_does_not_fit(tmp_path, hub, metrics):
    with pytest.raises(ValueError, match="its 4 classes, but"):
        push_to_hub(segmenter(("a", "b", "c")), REPO, metrics=metrics)
    for wrong in ("pets", "me/pets/x", "../pets", "", 3):
        with pytest.raises(ValueError, match="repo_id must be 'user/name', got"):
            push_to_hub(segmenter(), wrong)
    assert hub.calls == []


def response(status):
    # The client's own type of answer, from whichever HTTP library it uses.
    module = __import__(HfHubHTTPError.__mro__[1].__module__.split(".")[0])
    return module.Response(status, request=module.Request("GET", "https://hub"))


def http_error(kind, status, text):
    return kind(text, response=response(status))


def test_a_push_that_the_hub_refuses(hub):
    offline = HfHubHTTPError.__mro__[1]("no route")  # what its HTTP library raises is no OSError
    for error in (http_error(HfHubHTTPError, 403, "no right"), ConnectionError("gone"), offline):
        hub.error = error
        with pytest.raises(ConnectionError, match=r"me/pets: .*hf auth login.*save_pretrained"):
            push_to_hub(segmenter(), REPO)


def test_without_a_network_and_without_a_copy(hub):
    with pytest.raises(ConnectionError, match=r"me/else is no folder here.*HF_HUB_OFFLINE.*folder"):
        load_pretrained("me/else")
    push_to_hub(segmenter(), REPO)
    shutil.rmtree(hub.files())
    with pytest.raises(ConnectionError, match=REPO):
        load_pretrained(REPO)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (http_error(RepositoryNotFoundError, 404, "x"), FileNotFoundError, "neither a folder me/p"),
        (http_error(RevisionNotFoundError, 404, "x"), FileNotFoundError, "me/pets at 'v9' on the"),
        (http_error(HfHubHTTPError, 500, "down"), ConnectionError, "me/pets: .*HfHubHTTPError: do"),
    ],
)
def test_answers_of_the_hub(monkeypatch, error, kind, message):
    def asked(source, *, revision, token, allow_patterns):
        assert (source, revision, token) == (REPO, "v9", "secret")
        assert allow_patterns == ["segmenter.safetensors"]  # all that is downloaded
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    with pytest.raises(kind, match=message):
        load_pretrained(REPO, revision="v9", token="secret")


def test_sources_that_hold_something_else(tmp_path, hub):
    with pytest.raises(FileNotFoundError, match=r"holds no segmenter\.safetensors"):
        load_pretrained(tmp_path)
    hub.create_repo(REPO, private=False, exist_ok=True)
    with pytest.raises(FileNotFoundError, match=r"me/pets holds no segmenter\.safetensors"):
        load_pretrained(REPO)
    save_pretrained(loda(), tmp_path / "loda")
    with pytest.raises(FileNotFoundError, match="load_pretrained_loda reads one"):
        load_pretrained(tmp_path / "loda")
    (tmp_path / "segmenter.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"segmenter\.safetensors is truncated or no safetensors"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the file .*\.safetensors: Segmenter\.load"):
        load_pretrained(tmp_path / "segmenter.safetensors")
    with pytest.raises(ValueError, match="revision must be None for a folder"):
        load_pretrained(tmp_path, revision="main")
    # A path is a path: nothing is asked of the hub.
    for wrong in (Path(REPO), "../pets", "pets", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match="source must be a folder or a repository"):
            load_pretrained(wrong)


def test_models_of_images_and_texts_go_the_same_way(tmp_path, hub):
    model = loda()
    model.size = 48
    push_to_hub(model, REPO)
    assert names_in(hub.files()) == [".gitattributes", "README.md", "model.safetensors"]
    loaded = load_pretrained_loda(REPO)
    assert_same(loaded.encode_image(torch.ones(1, 3, 32, 32)), model.encode_image(
        torch.ones(1, 3, 32, 32)))  # fmt: skip
    assert (loaded.size, loaded.source) == (48, f"LoDA {REPO}")
    bank = zero_shot_bank(loaded, ["cat", "dog"], templates=["{}"])
    found = ZeroShotSegmenter(loaded, bank, size=48, sigma=None).segment(torch.rand(3, 20, 30))
    assert found.mask.shape == (20, 30)
    card = ModelCard.load(hub.files() / "README.md")
    assert "loda (encoder small-cnn, text_encoder small-text, words ['cat', 'dog']" in card.text
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*; load_pretrained reads"):
        load_pretrained_loda(tmp_path)


def test_word_pieces_travel_with_the_model(tmp_path, monkeypatch):
    parts = _hugging_face.bert_parts

    def small_parts(vocabulary):
        config, tokenizer = parts(vocabulary)
        return bert(vocab_size=config.vocab_size), tokenizer

    monkeypatch.setattr(_hugging_face, "bert_parts", small_parts)
    pieces, folder = vocabulary_file(tmp_path), tmp_path / "a"
    model = loda(text_encoder="bert-base", words=(), vocabulary=pieces, max_length=7)
    save_pretrained(model, folder)
    assert model.recipe["vocabulary"] == str(pieces)
    pieces.unlink()
    loaded = load_pretrained_loda(folder)
    ids = loaded.tokenize(["a red cat"])
    assert_same(loaded.encode_text(*ids), model.encode_text(*model.tokenize(["a red cat"])))
    # Nobody needs to know where the file lay.
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    save_pretrained(loda(), folder, replace=True)
    assert names_in(folder) == ["README.md", "model.safetensors"]
    load_pretrained_loda(folder)
