import builtins
import getpass
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wsss_blocks
from wsss_blocks import _environment

ROOT = Path(__file__).resolve().parents[1]


def report(capsys):
    assert wsss_blocks.environment() is None
    lines = capsys.readouterr().out.splitlines()
    return {line[:15].rstrip(): line[16:] for line in lines}


def printed(capsys):
    wsss_blocks.environment()
    return capsys.readouterr().out


def test_versions_are_those_installed(capsys):
    found = report(capsys)
    assert found["wsss-blocks"] == wsss_blocks.__version__
    assert found["python"].startswith("{}.{}.{} ".format(*sys.version_info))
    assert found["torch"] == f"{torch.__version__}, {torch.get_num_threads()} threads"
    for name in ("timm", "open_clip_torch", "einops", "POT", "numpy", "torchvision"):
        assert found[name] == importlib.metadata.version(name)
    assert re.fullmatch(r"\d+ cores, \d+ usable", found["CPU"])
    assert "GPU" in printed(capsys)


def test_every_optional_package_is_named(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        line
        for extra in ("cli", "text", "webdata", "seg", "export", "examples")
        for line in project["optional-dependencies"][extra]
        if not line.startswith("wsss-blocks")
    ]
    names = {re.split(r"[\[<>=;! ]", line)[0] for line in lines}
    assert names == set(_environment._OPTIONAL)
    text = printed(capsys)
    assert all(name in text for name in names)


def test_a_gpu_and_its_memory(capsys, monkeypatch):
    gpu = SimpleNamespace(name="Toy GPU", total_memory=24 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    text = printed(capsys)
    assert "GPU 0           Toy GPU, 24.0 GiB, sm_90\nGPU 1 " in text
    assert "no GPU" not in text

    def broken(index):
        raise RuntimeError("driver")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert "CUDA fails with RuntimeError" in printed(capsys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "GPU             no GPU\n" in printed(capsys)


def test_missing_packages_are_said_to_be_missing(capsys, monkeypatch):
    version = importlib.metadata.version

    def without(name):
        if name in ("timm", "tqdm", "triton"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    text = printed(capsys)
    assert re.search(r"^timm +not installed$", text, re.MULTILINE)
    assert re.search(r"^triton +not installed$", text, re.MULTILINE)
    assert re.search(r"^not installed .*\btqdm\b", text, re.MULTILINE)
    assert not re.search(r"^optional .*\btqdm\b", text, re.MULTILINE)


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_a_torch_that_cannot_be_imported(capsys, monkeypatch, error):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise error(f"{Path.home()}/libcudart.so")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    text = printed(capsys)
    torch_version = importlib.metadata.version("torch")
    assert f"torch           {torch_version}, import fails with {error.__name__}\n" in text
    assert str(Path.home()) not in text
    monkeypatch.setattr(_environment, "_version", lambda name: None)
    assert "torch           not installed" in printed(capsys)


def test_settings_without_paths_or_names(capsys, monkeypatch):
    home = str(Path.home())
    values = {
        "WSSS_BLOCKS_VALIDATE": "1",
        "WSSS_SHARED_DATA": f"{home}/photos of the family",
        "WSSS_OWNER": "ada.lovelace",
        "TRITON_INTERPRET": "True",
        "OMP_NUM_THREADS": "4,2",
        "MY_WSSS_SECRET": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    text = printed(capsys)
    line = next(line for line in text.splitlines() if line.startswith("variables"))
    for expected in (
        "OMP_NUM_THREADS=4,2",
        "TRITON_INTERPRET=True",
        "WSSS_BLOCKS_VALIDATE=1",
        "WSSS_OWNER=(set)",
        "WSSS_SHARED_DATA=(set)",
    ):
        assert expected in line
    assert "MY_WSSS" not in text
    for secret in (home, "photos", "lovelace", str(ROOT), sys.prefix):
        assert secret not in text
    if len(getpass.getuser()) > 3:
        assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)


def test_nothing_is_imported_before_it_is_called():
    code = (
        "import sys, wsss_blocks; wsss_blocks.environment; from wsss_blocks import environment;"
        "assert 'environment' in dir(wsss_blocks);"
        "print([m for m in ('torch', 'numpy', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_unknown_attributes_are_still_refused():
    with pytest.raises(AttributeError, match="no attribute 'enviroment'"):
        wsss_blocks.enviroment  # noqa: B018
