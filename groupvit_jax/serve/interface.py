"""The page's layout in Gradio: a place for photos, the settings, and the picture."""

import html
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from groupvit_jax.serve.page import Page, View, split_labels

TITLE = "GroupViT: segment any photo into any labels"
_STATIC = Path(__file__).parent / "static"
_FONTS = ("system-ui", "sans-serif")  # the browser's own: nothing is fetched
# Of a picture only its photos are sent back; maps and scores are computed anew.
_PHOTOS_OF_VIEW = """(view, ...rest) =>
  [(view && view.items || []).map(item => item.photo), ...rest]"""


def theme() -> Any:
    """Return the page's look, in fonts of the visitor's machine."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=("ui-monospace",)
    )


def css() -> str:
    """Return the page's style sheet."""
    return (_STATIC / "page.css").read_text(encoding="utf-8")


def build(page: Page) -> gr.Blocks:
    """Lay the page out and connect its events with the functions of `page`."""
    # `analytics_enabled` also decides whether Gradio asks its server for the newest version.
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_heading(page), elem_id="heading", js_on_load=None, apply_default_css=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=1, min_width=300, elem_id="settings"):
                drop = gr.HTML(
                    html_template=_drop_template(page),
                    js_on_load=_script("drop.js"),
                    elem_id="drop",
                    apply_default_css=False,
                    most=page.limits.photos,
                    megabytes=page.limits.megabytes,
                )
                settings = _settings(page)
            with gr.Column(scale=3, min_width=300, elem_id="result"):
                view = gr.HTML(
                    html_template="",
                    js_on_load=_script("view.js"),
                    elem_id="view",
                    apply_default_css=False,
                )
        _connect(page, drop, view, settings)
    # Photos wait in `serve.worker`, which has the bounds; Gradio's own queue of one event at a time
    # would make visitors wait for all photos of another.
    return blocks.queue(default_concurrency_limit=None, api_open=False)


def _settings(page: Page) -> list[Any]:
    """Return the inputs that follow the photo: labels, background and threshold."""
    labels = gr.Dropdown(
        choices=list(page.vocabulary),
        value=list(page.labels),
        multiselect=True,
        allow_custom_value=True,
        max_choices=page.limits.labels,
        label="Labels",
        info="Any words; Enter or a comma ends one. Also name what else is in the photo.",
        visible=not page.has_head,
        elem_id="labels",
    )
    background = gr.Checkbox(
        value=False,
        label="Background",
        info="Pixels may have none of the labels.",
        visible=not page.has_head,
        elem_id="background",
    )
    threshold = gr.Slider(
        minimum=0.01,
        maximum=1,
        step=0.01,
        value=page.threshold,
        label="Threshold",
        info="The score that a label has to reach.",
        visible=False,
        elem_id="threshold",
    )
    return [labels, background, threshold]


def _connect(page: Page, drop: gr.HTML, view: gr.HTML, settings: list[Any]) -> None:
    labels, background, threshold = settings
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def upload(event: gr.EventData, *values: Any) -> Iterator[View]:
        example = getattr(event, "example", None)
        if isinstance(example, int) and 0 <= example < len(page.examples):
            yield from page.example(example, *values)
        else:
            yield from page.upload(getattr(event, "files", None), *values)

    def again(records: Any, *values: Any) -> Iterator[Any]:
        if records:
            yield from page.again(records, *values)
        else:
            yield gr.skip()

    # Gradio looks whether a function is a generator, which wrappers (of type checks) hide.
    upload, again = inspect.unwrap(upload), inspect.unwrap(again)
    # "multiple": by default an upload during another one would be lost.
    drop.upload(upload, settings, view, trigger_mode="multiple", **hidden)
    # `input` of a dropdown misses labels that are not among its choices.
    for event in (labels.change, background.input, threshold.input):
        event(
            again, [view, *settings], view, js=_PHOTOS_OF_VIEW, trigger_mode="always_last", **hidden
        )
    labels.change(_separated, labels, labels, trigger_mode="always_last", **hidden)
    background.change(lambda on: gr.Slider(visible=on), background, threshold, **hidden)


def _separated(labels: list[str] | None) -> Any:
    """Return tags separated at the commas that were typed or pasted, if there are any."""
    separate = split_labels(labels or [])
    return gr.skip() if separate == labels else separate


def _heading(page: Page) -> str:
    text = "Masks for any words, from a model that learned from captions alone."
    if page.has_head:
        names = html.escape(", ".join(page.labels))
        text = f"The model's segment head knows {len(page.labels)} classes: {names}."
    return f"<h1>Segment a photo</h1><p>{text}</p>"


def _drop_template(page: Page) -> str:
    examples = "".join(
        f'<button type="button" data-example="{number}" title="{html.escape(photo.name)}">'
        f'<img src="{photo.url}" alt="Example: {html.escape(photo.name)}"></button>'
        for number, photo in enumerate(page.examples)
    )
    template = (_STATIC / "drop.html").read_text(encoding="utf-8")
    return template.replace("EXAMPLES", examples)


def _script(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
