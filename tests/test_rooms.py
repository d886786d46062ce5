"""The rooms of the package: code uses of another room only what the room's ``__init__`` shows."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sppdet"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imported_modules(path: Path) -> set[str]:
    """Return the modules of sppdet that a file imports from."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in nodes if node.module and node.module.startswith("sppdet.")}


@pytest.mark.parametrize("room", ROOMS)
def test_other_rooms_are_used_through_their_init_alone(room):
    inside = [
        f"{path.name}: {module}"
        for path in (PACKAGE / room).rglob("*.py")
        for module in imported_modules(path)
        if module.count(".") > 1 and module.split(".")[1] != room
    ]
    assert not inside


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there_and_no_module_has_its_name(room):
    module = importlib.import_module(f"sppdet.{room}")
    modules = {path.stem for path in (PACKAGE / room).glob("*.py")}
    for name in module.__all__:
        shown = getattr(module, name)
        assert name not in modules or shown.__name__ == f"sppdet.{room}.{name}", (
            f"{name} is a module and something else"
        )
