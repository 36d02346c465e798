"""Import the installed wheel: right files, right version, every public name resolves."""

import importlib
from importlib.metadata import entry_points, version
from pathlib import Path

import wsss_blocks

if __name__ == "__main__":
    folder = Path(wsss_blocks.__file__).resolve().parent
    assert "site-packages" in folder.parts, f"imported the source tree, not the wheel: {folder}"
    assert (folder / "py.typed").is_file(), "py.typed is missing from the wheel"
    assert version("wsss-blocks") == wsss_blocks.__version__
    (command,) = entry_points(group="console_scripts", name="wsss")
    assert callable(command.load())
    count = 0
    for package in wsss_blocks.__all__:
        module = importlib.import_module(f"wsss_blocks.{package}")
        for name in module.__all__:
            getattr(module, name)
            count += 1
    print(f"wheel {wsss_blocks.__version__}: {count} public names import")
