import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from groupvit_jax.report import document

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
    content = document.page(
        "A < B",
        [
            document.heading("First"),
            document.paragraph("x & y"),
            document.table(["name", "value"], [("a<b", 1.25), ("c", 3)]),
            document.legend(["sky"], np.array([[1, 2, 3]], np.uint8)),
            document.scenes(["one", "two"], [([IMAGE, IMAGE], "a <caption>")]),
            document.line_chart("loss", {"train": [(0.0, 2.0), (10.0, 1.0)]}),
        ],
    )
    text = parse(content)
    for expected in ("A < B", "x & y", "a<b", "1.2", "a <caption>", "sky"):
        assert expected in text
    assert not re.search(r"(src|href)=\"(?!data:)", content)


def test_chart_places_points_in_order_and_leaves_out_what_is_not_finite():
    chart = document.line_chart("loss", {"train": [(0.0, 2.0), (5.0, math.nan), (10.0, 1.0)]})
    points = re.search(r'points="([^"]+)"', chart)[1].split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1
    assert y0 < y1  # SVG's y points down
    parse(chart)


def test_chart_without_points_says_so():
    assert "no points" in document.line_chart("mIoU", {"validation": []})


def bars(chart):
    """Names and lengths of the bars, as drawn."""
    names = re.findall(r'text-anchor="end"[^>]*>([^<]+)', chart)
    return names, [float(width) for width in re.findall(r'<rect [^>]*?width="([^"]+)"', chart)]


def test_bars_are_sorted_and_as_long_as_their_values():
    values = {"cat": 20.0, "a<b": 80.0, "never seen": math.nan, "dog": 40.0}
    chart = document.bar_chart("IoU", values, full=100.0)
    names, lengths = bars(chart)
    assert names == ["a&lt;b", "dog", "cat", "never seen"]
    assert lengths[0] == 2 * lengths[1] == 4 * lengths[2] > 100
    assert lengths[3] == 0
    text = parse(chart)
    for expected in ("80.0", "40.0", "20.0", "IoU"):
        assert expected in text
    assert "nan" not in text


@pytest.mark.parametrize("values", [{}, {"a": 0.0}, {"a": math.nan}])
def test_bars_of_nothing_are_a_chart_too(values):
    parse(document.bar_chart("IoU", values))


def test_171_bars_do_not_overlap_and_long_names_are_whole_when_pointed_at():
    names = [f"class-{i:03d}" for i in range(170)] + ["a name that is far too long for its room"]
    chart = document.bar_chart("IoU", {name: 50.0 for name in names})
    corners = re.findall(r'<rect x="([^"]+)" y="([^"]+)"', chart)
    assert len(set(corners)) == 171
    assert len({x for x, _ in corners}) == 3
    assert f"<title>{names[-1]}</title>" in chart
    assert parse(chart).count("class-") == 170


def test_photos_are_far_smaller_than_pictures():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(document.photo(image)) < 0.7 * len(document.picture(image))
    assert "data:image/jpeg" in document.photo(image)


def test_write_creates_the_folder(tmp_path):
    document.write(tmp_path / "new" / "report.html", "content")
    assert (tmp_path / "new" / "report.html").read_text() == "content"


def test_only_what_is_html_stays_as_it_is_in_a_table_that_sorts():
    rows = [(document.Html("<b>1</b>"), "<i>"), ("2", math.nan)]
    content = document.page("T", [document.table(["rank", "x"], rows, sortable=True)])
    assert "<td><b>1</b></td><td>&lt;i&gt;</td>" in content
    assert "<script>" in content
    parse(content)
    assert "<script>" not in document.page("T", [document.table(["rank"], [("1",)])])


def test_chart_of_a_range_with_bands_and_colours_given():
    chart = document.line_chart(
        "loss",
        {"train <1>": [(0.0, 3.0), (10.0, 2.0)], "one point": [(5.0, 2.5)]},
        bands={"train <1>": [(0.0, 2.9, 3.1), (10.0, 1.9, 2.1)]},
        colours={"train <1>": "#111111", "one point": "#222222"},
        y_range=(2.0, 3.0),
    )
    line = [float(y) for y in re.findall(r'<polyline points="\S+?,(\S+) \S+?,(\S+)"', chart)[0]]
    assert line == [12.0, 250.0]  # the range fills the chart
    (band,) = re.findall(r'<polygon points="([^"]+)" fill="#111111"', chart)
    heights = [float(point.split(",")[1]) for point in band.split()]
    assert heights[0] < 12.0 < heights[3] < heights[1] < 250.0 < heights[2]
    assert '<circle cx="320.0" cy="131.0" r="3" fill="#222222">' in chart
    assert parse(chart).count("one point") == 1  # when pointed at; the legend is elsewhere


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.27, 0.34, [0.28, 0.3, 0.32, 0.34]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (3.0, 3.0, [3]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
    assert document.ticks(low, high) == pytest.approx(expected)
