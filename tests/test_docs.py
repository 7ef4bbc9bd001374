"""The commands of the documentation exist, and take the flags that they are shown with."""

import re
import shlex
from pathlib import Path

import pytest

from launch import overrides

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_DEFINED = re.compile(r"""DEFINE_\w+\(\s*"(\w+)|["']--(\w+)["']""")
# Flags whose names aren't literals in their module: fields of a class, or of a loop.
_OTHERS = {
    "prepare": ("max_side", "short_side", "image_column", "caption_column"),
    "evaluate": ("background_rule", "partial_patches", "pamr_place"),
}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The commands of a page's blocks: module and arguments; what follows a comment is left out."""
    found = []
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"python -m launch\.(\w+)(.*)", line)
            if match:
                words = shlex.split(match[2], comments=True)
                found.append((match[1], words))
    return found


def flags_of(module: str) -> set[str]:
    text = (ROOT / "launch" / f"{module}.py").read_text()
    if "common.define" in text:
        text += (ROOT / "launch" / "common.py").read_text()
    names = {a or b for a, b in _DEFINED.findall(text)}
    return {*names, *_OTHERS.get(module, ()), *re.findall(r'"(\w+)"', text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_flags_exist(page):
    for module, words in commands(page):
        assert (ROOT / "launch" / f"{module}.py").is_file(), module
        known = flags_of(module)
        options = words[: words.index("--")] if "--" in words else words
        for name in (re.match(r"--(no)?([\w.]+)", word) for word in options):
            if name and not name[2].startswith("config."):
                assert name[2] in known or f"no{name[2]}" in known, f"launch.{module} {name[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_of_commands_are_valid(page):
    for module, words in commands(page):
        paths = [w.partition("=")[2] for w in words if w.startswith("--config=")]
        # Placeholders such as configs/X.py, and configurations that a run has recorded.
        if not paths or not (ROOT / paths[0]).is_file():
            continue
        changes = [f"--config={ROOT / paths[0]}", *overrides.overrides_in(words)]
        _, errors = overrides.read(["", *changes])
        assert not errors, f"launch.{module}: {errors}"


def test_the_published_run_can_be_followed_from_installing_to_export():
    found = commands(ROOT / "docs" / "reproduce.md")
    assert {module for module, _ in found} == {"prepare", "plan", "train", "evaluate", "export"}
    for module, words in found:
        if module == "train":
            errors = overrides.find_errors(overrides.read(["", *_with_root(words)])[0])
            assert not errors
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for link in re.findall(r"\]\((\w+\.md)\)", page):
        assert (ROOT / "docs" / link).is_file(), link


def _with_root(words: list[str]) -> list[str]:
    return [w.replace("--config=", f"--config={ROOT}/") for w in words]
