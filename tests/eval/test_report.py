import math
import re
from html.parser import HTMLParser

import numpy as np

from groupvit_jax.eval import report

IMAGE = np.zeros((4, 4, 3), np.uint8)
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


def test_page_is_complete_and_refers_to_nothing_outside():
    content = report.page(
        "A < B",
        [
            report.heading("First"),
            report.paragraph("x & y"),
            report.table(["name", "value"], [("a<b", 1.25), ("c", 3)]),
            report.legend(["sky"], np.array([[1, 2, 3]], np.uint8)),
            report.scenes(["one", "two"], [([IMAGE, IMAGE], "a <caption>")]),
            report.line_chart("loss", {"train": [(0.0, 2.0), (10.0, 1.0)]}),
        ],
    )
    text = parse(content)
    for expected in ("A < B", "x & y", "a<b", "1.2", "a <caption>", "sky"):
        assert expected in text
    assert not re.search(r"(src|href)=\"(?!data:)", content)


def test_chart_places_points_in_order_and_leaves_out_what_is_not_finite():
    chart = report.line_chart("loss", {"train": [(0.0, 2.0), (5.0, math.nan), (10.0, 1.0)]})
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1
    assert y0 < y1  # SVG's y points down
    parse(chart)


def test_chart_without_points_says_so():
    assert "no points" in report.line_chart("mIoU", {"validation": []})


def test_write_creates_the_folder(tmp_path):
    report.write(tmp_path / "new" / "report.html", "content")
    assert (tmp_path / "new" / "report.html").read_text() == "content"
