import pytest
from markdown_it import MarkdownIt

from groupvit_jax.report.markdown import escape, markdown_table

AWKWARD = [
    "a|b",
    "*x* **y**",
    "`code`",
    "<b>&amp;",
    "[a](b)",
    "_it_ a_b",
    "two\nlines",
    "\\|",
    "~~x~~",
]


def rendered(text):
    """The text of cells or of a paragraph, as a renderer shows it, and the tags in it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    return ["".join(c.content for c in token.children) for token in inline], kinds


@pytest.mark.parametrize("text", AWKWARD)
def test_escaped_text_is_shown_as_it_is(text):
    shown, kinds = rendered(escape(text))
    assert shown == [" ".join(text.split())]
    assert kinds <= {"text", "text_special"}


def test_cells_from_outside_stay_in_their_cells():
    shown, _ = rendered(markdown_table(["name", "value"], [(text, "1") for text in AWKWARD]))
    assert shown == ["name", "value", *(c for t in AWKWARD for c in (" ".join(t.split()), "1"))]


def test_columns_but_the_first_are_aligned_to_the_right():
    assert markdown_table(["a", "b"], [("x", "1")]).splitlines()[1] == "| --- | ---: |"


@pytest.mark.parametrize("text", ["<0.001", "a & b", "local_weight", "x > y"])
def test_text_without_markup_is_left_alone(text):
    assert escape(text) == text
