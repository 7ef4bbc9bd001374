"""Tables in Markdown."""

import re
from collections.abc import Iterable, Sequence

# Markup inside a line. "<0.001", "a & b" and an underscore within a word are not, and stay legible.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|\b_|_\b")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain texts, its columns but the first aligned to the right."""
    lines = [[escape(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Return a text, from a file or a user, as one line of Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
