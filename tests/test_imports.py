"""Imports point one way: typing <- parts <- {train, eval, interop} <- segmenter <- launch."""

import ast
from pathlib import Path

import pytest

LAYERS = [
    {"typing"},
    {"models", "losses", "data", "parallel", "optim"},
    {"train", "eval", "interop"},
    {"segmenter", "plan", "sweep", "compare"},
]
FILES = sorted(Path("groupvit_jax").rglob("*.py"))


def package_of(module):
    """The part of the package that a dotted name stands in, or None."""
    parts = module.split(".")
    return parts[1] if parts[0] == "groupvit_jax" and len(parts) > 1 else None


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(package):
    return next(i for i, layer in enumerate(LAYERS) if package in layer)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    here = package_of(".".join(path.with_suffix("").parts))
    for module in imported_modules(path):
        top = module.split(".")[0]
        assert top not in ("launch", "configs", "tests"), f"{path} imports {module}"
        there = package_of(module)
        if here in (None, "__init__") or there in (None, here):
            continue
        if any(there in layer for layer in LAYERS):
            assert level(there) < level(here), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_commands_define_flags(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("DEFINE_"), f"{path}:{node.lineno}: {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_tensorflow_is_never_imported_at_module_level(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            assert not any(n.split(".")[0] == "tensorflow" for n in names), path
            assert "clu.metric_writers" not in names, f"{path}: it imports TensorFlow"
