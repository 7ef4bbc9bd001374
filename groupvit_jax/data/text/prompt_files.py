"""Reads prompts and labels that people keep in files."""

from collections.abc import Mapping
from pathlib import Path

from groupvit_jax.foreign import naming, read_table, read_text

Prompts = list[str] | dict[str, list[str]]


def read_lines_of(path: Path) -> list[str]:
    """Return the lines of a text file that aren't blank, without spaces around them.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with naming(path):
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_prompts(path: Path) -> Prompts:
    """Return templates: a line each, or from TOML or JSON a list, or a table by class.

        "*" = ["a photo of a {}."]          # all classes that aren't named
        crane = ["a photo of a crane, a bird.", "a photo of a crane on a lake."]

    Returns:
      A list, or a dictionary by class with "" for the others.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has another form.
    """
    if path.suffix.lower() not in (".toml", ".json"):
        return read_lines_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with naming(path):
        found = read_table(path)
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
        if not isinstance(found, Mapping):
            raise ValueError("expected a list of texts, or a table of lists by class")
        by_class = {str(k): [v] if isinstance(v, str) else v for k, v in found.items()}
        for name, texts in by_class.items():
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise ValueError(f"{name}: {texts!r} found, expected a list of texts")
        return {"" if name == "*" else name: texts for name, texts in by_class.items()}
