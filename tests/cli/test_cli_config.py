import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from wsss_blocks.cli import RunConfig, load_config, parse_config, save_config, start_run


@dataclass(frozen=True)
class Config(RunConfig):
    layer: int | None = 2
    scales: tuple[float, ...] = (1.0,)
    files: tuple[Path, ...] = ()


PRESETS = {
    "scenes": Config(),
    "voc": Config(data="voc", preset="voc", steps=7, layer=None, scales=(1.0, 0.5)),
    "fast": Config(preset="fast", steps=1),
}


def test_preset_is_named_like_the_data_unless_given():
    assert parse_config(PRESETS, args=[]) == PRESETS["scenes"]
    assert parse_config(PRESETS, args=["--data", "voc"]) == PRESETS["voc"]
    assert parse_config(PRESETS, args=["--preset", "fast"]).steps == 1


def test_preset_of_another_name_is_found_by_its_data():
    presets = PRESETS | {
        "ade": Config(data="ade20k", preset="ade", steps=3),
        "ade-fast": Config(data="ade20k", preset="ade-fast", steps=1),
    }
    assert parse_config(presets, args=["--data", "ade20k"]) == presets["ade"]
    assert parse_config(presets, args=["--data=ade20k", "--lr", "2"]).lr == 2
    chosen = parse_config(presets, args=["--data", "ade20k", "--preset", "ade-fast"])
    assert chosen == presets["ade-fast"]
    # the name goes before the data of another preset
    moved = {"first": Config(data="voc", preset="first"), **presets}
    assert parse_config(moved, args=["--data", "voc"]) == presets["voc"]
    assert parse_config(moved, args=[]) == moved["first"]
    # --data alone is overridden where another preset is asked for
    assert parse_config(presets, args=["--data", "voc", "--preset", "ade"]).data == "voc"


def test_options_override_the_preset():
    cfg = parse_config(
        PRESETS,
        args=[
            "--data",
            "voc",
            "--steps",
            "9",
            "--layer",
            "3",
            "--scales",
            "2",
            "1",
            "--no-evaluate",
        ],
    )
    assert (cfg.steps, cfg.layer, cfg.scales, cfg.evaluate) == (9, 3, (2.0, 1.0), False)
    assert cfg.preset == "voc"


@pytest.mark.parametrize("args", [["--preset", "nothing"], ["--stepz", "3"], ["--data", "coco"]])
def test_unknown_words_end_with_exit_code_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(PRESETS, args=args)
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_config_survives_the_file(tmp_path):
    cfg = dataclasses.replace(
        PRESETS["voc"], root=Path("a b/c"), files=(Path("x.jpg"), Path("y.jpg")), layer=4
    )
    save_config(tmp_path / "new" / "config.json", cfg, names=("cat", "dog"))
    loaded, rest = load_config(tmp_path / "new" / "config.json", Config())
    assert loaded == cfg
    assert rest == {"names": ["cat", "dog"]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.json"]


def test_none_in_the_file_overrides_the_default(tmp_path):
    save_config(tmp_path / "c.json", PRESETS["voc"])
    assert load_config(tmp_path / "c.json", Config())[0].layer is None


def test_broken_file_is_named(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json must be JSON"):
        load_config(tmp_path / "c.json", Config())


def test_old_file_is_kept_when_writing_fails(tmp_path, monkeypatch):
    save_config(tmp_path / "c.json", PRESETS["scenes"])
    before = (tmp_path / "c.json").read_text()
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        save_config(tmp_path / "c.json", PRESETS["voc"])
    assert (tmp_path / "c.json").read_text() == before


@pytest.mark.parametrize("name", ["steps", "batch_size", "save_every"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        start_run(dataclasses.replace(Config(), **{name: 0}))
