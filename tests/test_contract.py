"""Each public block has a test, or a reason in words, for each check of the contract."""

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
from contract import CHECKS, EXEMPT, NEVER_EMPTY
from torch import nn

TESTS = Path(__file__).parent
PACKAGES = ("pooling", "heads", "decoders", "memory", "cam", "refine", "losses", "backbones")


def public_blocks() -> set[str]:
    """Functions, and modules that are not the twin of a function."""
    names = set()
    for package in PACKAGES:
        module = importlib.import_module(f"wsss_blocks.{package}")
        functions = {n for n in module.__all__ if inspect.isfunction(getattr(module, n))}
        twins = {re.sub(r"_", "", n).lower() for n in functions}
        names |= functions
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, nn.Module):
                stem = name.lower()
                if stem not in twins and stem.removesuffix("loss") not in twins:
                    names.add(name)
    return names


def covered() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "covers":
                    block, *checks = (ast.literal_eval(a) for a in call.args)
                    found[block].update(checks)
    return found


def test_table_is_complete():
    blocks, cover = public_blocks(), covered()
    missing = [
        f"{b}: {c}"
        for b in sorted(blocks)
        for c in CHECKS
        if c not in cover[b] and c not in EXEMPT.get(b, {})
    ]
    assert not missing, "no test and no reason for:\n" + "\n".join(missing)


def test_table_names_only_what_exists():
    blocks, cover = public_blocks(), covered()
    assert not set(EXEMPT) - blocks
    assert not set(cover) - blocks
    both = [f"{b}: {c}" for b, row in EXEMPT.items() for c in row if c in cover[b]]
    assert not both, f"exempt although a test covers it: {both}"


@pytest.mark.parametrize("check", NEVER_EMPTY)
def test_vital_checks_are_never_exempt(check):
    assert not [b for b, row in EXEMPT.items() if check in row]
