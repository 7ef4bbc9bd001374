"""Imports point one way: each floor of the package imports only from the floors above it."""

import ast
import builtins
import dis
import types
from collections import Counter
from pathlib import Path

import pytest

# A package imports from lines above its own, never from its own line. `launch/` may import all.
FLOORS = [
    {"typing", "processes", "foreign"},
    {"parallel", "optim"},
    {"models"},
    {"losses"},
    {"data"},
    {"scenes"},
    {"runs"},
    {"report"},
    {"prepare"},
    {"train", "eval", "interop"},
    {"segmenter", "plan", "sweep", "compare"},
    {"serve"},
]
FLOORS_OF_DATA = [
    {"storage"},
    {"images", "text"},
    {"sources"},
    {"eval_sets"},
    {"pipeline"},
]
FILES = sorted(Path("groupvit_jax").rglob("*.py"))


def room_of(module, house="groupvit_jax"):
    """The first name below `house` in a dotted name, or None."""
    below = module.removeprefix(f"{house}.")
    return below.split(".")[0] if below != module else None


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(room, floors):
    return next((i for i, floor in enumerate(floors) if room in floor), None)


def check_floors(path, house, floors):
    here = room_of(".".join(path.with_suffix("").parts), house)
    for module in imported_modules(path):
        there = room_of(module, house)
        if here == there or None in (floor_of(here, floors), floor_of(there, floors)):
            continue
        assert floor_of(there, floors) < floor_of(here, floors), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    for module in imported_modules(path):
        assert module.split(".")[0] not in ("launch", "configs", "tests"), f"{path}: {module}"
    check_floors(path, "groupvit_jax", FLOORS)
    check_floors(path, "groupvit_jax.data", FLOORS_OF_DATA)


@pytest.mark.parametrize(
    ("house", "floors"), [("groupvit_jax", FLOORS), ("groupvit_jax.data", FLOORS_OF_DATA)]
)
def test_every_room_stands_on_one_floor(house, floors):
    rooms = {
        path.stem if path.is_file() else path.name for path in Path(*house.split(".")).iterdir()
    }
    found = sorted(rooms - {"__init__", "__pycache__"})
    assert found == sorted(room for floor in floors for room in floor)


def test_no_folder_holds_more_than_twenty_modules():
    files = [path for path in (*FILES, *Path("launch").rglob("*.py")) if path.stem != "__init__"]
    folders = Counter(path.parent for path in files)
    assert {folder: number for folder, number in folders.items() if number > 20} == {}


def test_files_and_functions_can_be_read_at_a_glance():
    too_long = {}
    for folder in ("groupvit_jax", "launch", "configs"):
        for path in Path(folder).rglob("*.py"):
            text = path.read_text()
            if text.count("\n") > 400:
                too_long[str(path)] = text.count("\n")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = node.end_lineno - node.lineno + 1
                    if length > 60:
                        too_long[f"{path}: {node.name}"] = length
    assert too_long == {}


def codes_of(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_of(constant)


def test_every_global_name_is_defined():
    """Linters can't tell: for them, the dimensions in shape strings are undefined names, too."""
    undefined = []
    for folder in ("groupvit_jax", "launch", "configs", "benchmarks", "tests"):
        for path in Path(folder).rglob("*.py"):
            used, known = set(), {*vars(builtins), "__name__", "__file__", "__path__"}
            for code in codes_of(compile(path.read_text(), str(path), "exec")):
                for instruction in dis.get_instructions(code):
                    if instruction.opname == "LOAD_GLOBAL":
                        used.add(instruction.argval)
                    elif instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
                        known.add(instruction.argval)
            undefined += [f"{path}: {name}" for name in used - known]
    assert undefined == []


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
