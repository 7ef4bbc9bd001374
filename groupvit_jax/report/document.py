"""Pages as one HTML file each: templates filled in by Jinja2, pictures and charts inside."""

import base64
import functools
from pathlib import Path

import jinja2
import numpy as np

from groupvit_jax.report import visualize
from groupvit_jax.typing import UInt8


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("groupvit_jax.report"),
        autoescape=True,  # names come from files and from users
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write(path: Path, template: str, **content: object) -> None:
    """Write a page; the file's folder is created.

    Args:
      path: of the file.
      template: its name in `templates/`, without the ending.
      content: what it shows: `title` and the names in the template; text is escaped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(template, **content), encoding="utf-8")


def render(template: str, **content: object) -> str:
    """Return a page; see `write`."""
    return _templates().get_template(f"{template}.html.jinja").render(content)


def data_url(image: UInt8[np.ndarray, "H W 3"], kind: str = "png") -> str:
    """Return an image as the address of itself: a PNG with every pixel as it is, or a "jpeg"."""
    data = visualize.png(image) if kind == "png" else visualize.jpeg(image)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
