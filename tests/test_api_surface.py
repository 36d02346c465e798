"""The public names are recorded in api_surface.json: removing one is a decision, not a slip."""

import importlib
import inspect
import json
from pathlib import Path

import wsss_blocks

RECORD = Path(__file__).with_name("api_surface.json")


def surface() -> dict[str, dict[str, list[str]]]:
    return {
        package: {
            name: list(inspect.signature(getattr(module, name)).parameters)
            if callable(getattr(module, name))
            else []
            for name in sorted(module.__all__)
        }
        for package in wsss_blocks.__all__
        for module in [importlib.import_module(f"wsss_blocks.{package}")]
    }


def test_surface_is_as_recorded():
    recorded = json.loads(RECORD.read_text())
    assert surface() == recorded, (
        "the public surface changed; if you mean it, run python tests/test_api_surface.py "
        "and commit tests/api_surface.json with a line in CHANGELOG.md"
    )


def test_all_is_sorted_and_resolves():
    for package in wsss_blocks.__all__:
        module = importlib.import_module(f"wsss_blocks.{package}")
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
            assert not name.startswith("_")


if __name__ == "__main__":
    RECORD.write_text(json.dumps(surface(), indent=1) + "\n")
