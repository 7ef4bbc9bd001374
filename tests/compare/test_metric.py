import math

import pytest

from groupvit_jax.compare.metric import Format, Metric, choose_metric, make_format
from tests.compare.folders import run

RECORDED = {"step": 10, "loss": 1.0, "grad_norm": 2.0, "val/top1": 0.1, "voc/iou/dog": 0.2,
            "voc/miou": 0.3, "voc/images": 4.0}  # fmt: skip


def recorded(wanted=("", ""), config=None, records=(RECORDED,)):
    return run(config or {}, 0.1)._replace(wanted=wanted, records=list(records))


@pytest.mark.parametrize(
    ("given", "name", "mode"),
    [
        (recorded(), "val/top1", "max"),
        (recorded(config={"evaluators.voc.kind": "benchmark"}), "voc/miou", "max"),
        (recorded(wanted=("grad_norm", "max")), "grad_norm", "max"),
        (recorded(wanted=("never/measured", "max")), "val/top1", "max"),
        (recorded(records=[{"step": 1, "loss": 2.0}]), "loss", "min"),
        (recorded(records=[{"step": 1, "speed": 2.0}]), "speed", "max"),
    ],
)
def test_the_default_is_what_runs_name_then_evaluators_then_the_loss(given, name, mode):
    metric = choose_metric([given])
    assert (metric.name, metric.mode) == (name, mode)
    assert metric.why


@pytest.mark.parametrize(
    ("name", "mode"),
    [("loss", "min"), ("grad_norm", "min"), ("voc/miou", "max")],
)
def test_the_name_says_whether_less_is_better_unless_told(name, mode):
    assert choose_metric([recorded()], name).mode == mode
    assert choose_metric([recorded()], name, "max").mode == "max"
    assert choose_metric([recorded(wanted=(name, "min"))], name).mode == "min"


def test_a_wrong_name_is_told_with_the_nearest_and_all_others():
    with pytest.raises(ValueError, match="--metric=voc/mIoU: no run") as error:
        choose_metric([recorded()], "voc/mIoU")
    message = str(error.value)
    assert "the nearest is voc/miou; recorded: loss, grad_norm, val/top1, voc/miou" in message
    assert "dog" not in message  # of hundreds of classes
    assert "\n" not in message


def test_runs_without_metrics_are_an_error():
    with pytest.raises(ValueError, match="1 runs: no metrics recorded yet"):
        choose_metric([recorded(records=[])])


def test_shares_are_shown_in_per_cent_with_the_digits_that_differ():
    miou = Metric("voc/miou", "max", "")
    wide = make_format(miou, [0.30, 0.42, math.nan])
    assert wide.full(0.4213, 0.0071) == "42.1 ± 0.7 %"
    assert wide.difference(-0.051) == "5.1 points"
    assert wide.difference(0.0001) == "less than 0.1 points"
    assert wide.difference(0.0) == "0.0 points"
    narrow = make_format(miou, [0.4210, 0.4213])
    assert narrow.plain(0.42134) == "42.134"
    loss = make_format(Metric("loss", "min", ""), [2.51, 2.53])
    assert loss.full(2.5213) == "2.521"
    assert loss.difference(0.02) == "0.020"
    assert make_format(Metric("loss", "min", ""), []) == Format(1.0, 1, "")
    assert Format(1.0, 1, "").plain(math.nan) == "-"
