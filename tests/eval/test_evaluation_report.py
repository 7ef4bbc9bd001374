import base64
import math
import re

import cv2
import numpy as np

from groupvit_jax.eval.evaluation_report import Example, write_report
from tests.report.test_document import parse


def example(size=(60, 90), **changes):
    truth = np.zeros(size, np.uint8)
    truth[:, size[1] // 2 :] = 1
    truth[:10] = 255
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    values = {"names": ["background", "dog"], "has_background": True, "text": "first <photo>"}
    return Example(image, truth.astype(np.int32) % 255, truth, **{**values, **changes})


def pictures(page):
    codes = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(c), np.uint8), cv2.IMREAD_COLOR) for c in codes
    ]


def test_everything_given_is_on_the_page(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(
        path,
        "Evaluation of <this>",
        header=["benchmark", "mIoU %"],
        rows=[("voc", 52.31)],
        facts={"protocol": "groupvit"},
        class_iou={"voc": {"dog": 0.5, "cat": math.nan}},
        examples={"voc": [example()], "context": [example(text="second")]},
    )
    page = path.read_text()
    text = parse(page)
    for expected in ("Evaluation of <this>", "52.3", "protocol", "50.0", "cat", "first <photo>"):
        assert expected in text
    assert text.index("context") > text.index("voc")
    assert len(pictures(page)) == 6
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_background_and_ignored_pixels_are_grey_and_classes_coloured(tmp_path):
    write_report(tmp_path / "r.html", "R", header=["a"], rows=[], examples={"x": [example()]})
    photo, prediction, truth = pictures((tmp_path / "r.html").read_text())
    assert photo.shape == (60, 90, 3)
    for picture in (prediction, truth):
        colourful = np.ptp(picture.astype(int), axis=-1)
        assert colourful[20:50, :40].mean() < 12
        assert colourful[50:, 60:].mean() > 40
    assert np.ptp(truth[:8].astype(int), axis=-1).mean() < 12


def test_the_page_stays_small_however_much_is_shown(tmp_path):
    many = {f"set {i}": [example((480, 640))] * 5 for i in range(2)}
    write_report(tmp_path / "r.html", "R", header=["a"], rows=[], examples=many)
    assert len(pictures((tmp_path / "r.html").read_text())) == 3 * 10
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


def test_a_report_without_pictures(tmp_path):
    write_report(tmp_path / "r.html", "R", header=["a"], rows=[(1.0,)])
    assert "1.0" in parse((tmp_path / "r.html").read_text())
