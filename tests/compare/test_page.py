import itertools
import re

import numpy as np
import pytest

from groupvit_jax.compare.groups import compare
from groupvit_jax.compare.metric import Metric
from groupvit_jax.compare.page import page, setting_axis
from groupvit_jax.compare.settings import ABSENT
from tests.compare import browser
from tests.compare.folders import MIOU, run
from tests.report.test_document import parse


def learnt(settings, value, seed=0, state="finished"):
    """A run with a curve, up to a third of the steps where it hasn't finished."""
    steps = range(10, (200 if state == "finished" else 60) + 1, 10)
    written = [{"step": s, "validation/miou": value * s / 200, "loss": 4 - s / 100} for s in steps]
    return run(settings, 0.0, seed, state)._replace(records=written)


def grid(*values, seeds=3):
    """Runs of all combinations, with a little noise."""
    rng = np.random.default_rng(0)
    names = ("loss.local_weight", "optimizer.learning_rate", "model.image.assignment")
    return [
        learnt(
            dict(zip(names, setting, strict=False)),
            0.3 + 0.02 * values[0].index(setting[0]) + 0.003 * rng.normal(),
            seed,
        )
        for setting in itertools.product(*values)
        for seed in range(seeds)
    ]


CASES = {
    "four settings of three seeds": grid((0.0, 1.0), (3e-4, 1e-3)),
    "two runs": grid((0.0, 1.0), seeds=1),
    "one run": [learnt({"a": 1}, 0.3)],
    "sixty runs": grid(
        (0.0, 0.1, 0.5, 1.0, 2.0), (3e-4, 1e-3), ("hard", "soft", "gumbel"), seeds=2
    ),
    "a random search": [
        learnt(
            {"a": 0.05 * i + 0.01, "b": 10.0 ** (-i / 10), "c" * 40: f"value {i % 3}" * 5},
            0.3 + i / 1e3,
        )
        for i in range(30)
    ],
    "failed and unfinished": [
        *grid((0.0, 1.0)),
        learnt({"loss.local_weight": 1.0}, 0.9, 3, "failed"),
        run({"loss.local_weight": 2.0}, None, state="pending"),
    ],
    "none finished": [learnt({"a": i}, 0.3, state="running") for i in range(3)],
}


def page_of(name, metric=MIOU):
    return page(compare(CASES[name], metric))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("metric", [MIOU, Metric("loss", "min", "asked")], ids=["miou", "loss"])
def test_pages_are_whole_and_need_nothing_from_elsewhere(name, metric):
    content = page_of(name, metric)
    text = parse(content)
    assert not re.search(r"(src|href)=(?!\"#)|https?:|@import|url\((?!#)", content)
    assert f"Comparison of {len(CASES[name])} runs" in text
    assert "nan" not in re.sub("<script>.*?</script>", "", content, flags=re.DOTALL).lower()


def test_the_answer_comes_first_and_its_figures_agree_with_the_table():
    text = parse(page_of("four settings of three seeds"))
    first = re.search(r"is first: (\S+ ± \S+) % \(n=3\), (\S+) points ahead", text)
    assert text.index("is first") < text.index("best first")
    assert text.count(first[1]) >= 3  # sentence, bar, table
    for part in ("What each setting does by itself", "Settings and result", "While they learnt"):
        assert part in text


def test_a_long_table_comes_after_the_charts_and_bars_are_of_the_best():
    text = parse(page_of("sixty runs"))
    assert "the best 12 of 30" in text
    assert text.index("While they learnt") < text.index("Settings, best first")
    text = parse(page_of("two runs"))
    assert text.index("While they learnt") > text.index("Settings, best first")


def test_names_from_outside_are_escaped():
    runs = [learnt({"a": f"<script>{i}</script>"}, 0.3 + i) for i in range(2)]
    content = page(compare(runs, MIOU))
    assert "<script>0" not in content
    assert "&lt;script&gt;0" in content


def test_few_values_are_evenly_spaced_and_many_lie_where_they_are():
    labels, heights = setting_axis(["1", "10", "0.1", "1"])
    assert labels == {"0.1": 0.0, "1": 0.5, "10": 1.0}
    assert heights == [0.5, 1.0, 0.0, 0.5]
    many = [str(2.0 * i) for i in range(1, 12)]
    labels, heights = setting_axis([*many, ABSENT])
    assert heights[0] == 0.0
    assert heights[5] == pytest.approx(0.5)
    assert heights[-1] is None
    assert labels["10"] == pytest.approx(0.4)
    decades = [str(10.0 ** (-i / 4)) for i in range(20)]
    labels, heights = setting_axis(decades)
    assert heights[4] - heights[8] == pytest.approx(heights[8] - heights[12])
    assert set(labels) == {"1", "0.1", "0.01", "0.001", "0.0001"}
    assert setting_axis(["x", "x"]) == ({"x": 0.0}, [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("name", CASES)
def test_pages_in_a_browser(name, width, tmp_path):
    comparison = compare(CASES[name], MIOU)
    dark = width == 500
    found = browser.measure(page(comparison), tmp_path, width, dark)
    assert found["errors"] == []
    assert found["width"] <= found["room"]
    red = int(re.match(r"rgb\((\d+)", found["background"])[1])
    assert (red < 60) == dark
    assert found["rows"] == [
        1 + len(comparison.groups) + len(comparison.others),
        1 + len(CASES[name]),
    ]
    if "-" not in found["order"][0]:  # a click sorts upwards, the next one downwards
        up, down = (list(map(int, order)) for order in found["order"])
        assert (up, down) == (sorted(up), sorted(up, reverse=True))
    assert found["figures"] >= 2 or name == "none finished"
    if len(comparison.groups) > 1:
        assert "is first" in found["text"]


@pytest.mark.slow
def test_the_measuring_in_a_browser_finds_what_is_wrong(tmp_path):
    content = page_of("two runs")
    for broken, expected in (
        ('<p style="white-space: nowrap">' + "wide " * 400, None),
        ("<script>throw new Error('broken')</script>", "broken"),
        ('<figure><svg viewBox="0 0 9 9"><text x="0" y="5">long</text></svg></figure>', "long"),
    ):
        found = browser.measure(content.replace("</h1>", f"</h1>{broken}"), tmp_path, 1200)
        if expected is None:
            assert found["width"] > found["room"]
        else:
            assert expected in "".join(found["errors"])
