import math
import re
from html.parser import HTMLParser

import cv2
import jinja2
import numpy as np
import pytest

from groupvit_jax.report import document

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
EMPTY = {"meta", "img"}


class Checker(HTMLParser):
    """Counts what is open, and collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(content):
    checker = Checker()
    checker.feed(content)
    checker.close()
    assert checker.open == []
    return "".join(checker.text)


def evaluation(**changes):
    content = {"title": "A < B", "header": ["name", "value"], "rows": [], "facts": {}}
    content |= {"benchmarks": [], "class_iou": {}, "examples": {}, "curve": "", "remarks": []}
    return document.render("evaluation", **{**content, **changes})


def cells(page):
    return [cell.strip() for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]


def test_page_is_complete_and_refers_to_nothing_outside():
    page = evaluation(facts={"x & y": "<b>"}, rows=[("a<b", 1)])
    text = parse(page)
    for expected in ("A < B", "x & y", "<b>", "a<b"):
        assert expected in text
    assert not re.search(r"(src|href)=\"(?!data:)|https?:|url\(", page)


def test_floats_have_one_digit_and_nan_is_a_dash():
    page = evaluation(rows=[("c", 1.25), ("d", math.nan), ("e", 3), ("f", 2.0)])
    assert cells(page) == ["c", "1.2", "d", "-", "e", "3", "f", "2.0"]


def test_a_value_that_the_template_needs_and_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        document.render("evaluation", header=[], rows=[])


def bars(page):
    """Names, widths as shares and values of the bars, as drawn."""
    found = re.findall(r'<span title="[^"]*">(.*?)</span>\s*<i style="--share: (\S+?)"></i>(\S+?)<',
                       page)  # fmt: skip
    return [(name, float(share), value) for name, share, value in found]


def test_bars_are_as_long_as_their_values():
    values = [("a<b", 80.0), ("cat", 20.0), ("never seen", math.nan)]
    page = evaluation(benchmarks=["voc"], class_iou={"voc": values})
    assert bars(page) == [
        ("a&lt;b", 0.8, "80.0"), ("cat", 0.2, "20.0"), ("never seen", 0.0, "-")
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0), ("jpeg", 60)])
def test_pictures_are_inside(kind, tolerance):
    smooth = cv2.GaussianBlur(NOISE, (0, 0), 3)
    url = document.data_url(smooth, kind)
    assert url.startswith(f"data:image/{kind};base64,")
    with_pictures = evaluation(benchmarks=["x"], examples={"x": [([url, url], "a <caption>")]})
    assert with_pictures.count(f'src="{url}"') == 2
    assert "a <caption>" in parse(with_pictures)


def test_png_keeps_every_pixel_and_jpeg_is_smaller():
    import base64

    code = document.data_url(NOISE).partition(",")[2]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], NOISE)
    assert len(document.data_url(NOISE, "jpeg")) < 0.7 * len(document.data_url(NOISE))


def test_write_creates_the_folder(tmp_path):
    path = tmp_path / "new" / "report.html"
    content = {"title": "T", "header": ["ä"], "rows": [], "facts": {}, "benchmarks": []}
    document.write(path, "evaluation", **content, class_iou={}, examples={}, curve="", remarks=[])
    assert "ä" in path.read_text(encoding="utf-8")
