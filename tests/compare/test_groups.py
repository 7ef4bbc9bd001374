import math

import pytest

from groupvit_jax.compare.groups import compare
from groupvit_jax.compare.metric import Metric
from groupvit_jax.compare.statistics import holm, welch
from groupvit_jax.runs.reading import Run
from tests.compare.folders import MIOU, compared, run

LESS = Metric("validation/miou", "min", "")


def test_runs_that_differ_in_the_seed_alone_are_one_group():
    found = compared({0.0: [0.30, 0.32], 1.0: [0.40, 0.42, 0.47]})
    assert found.names == ("local_weight",)
    first, second = found.groups
    assert (first.label, second.label) == ("local_weight=1", "local_weight=0")
    assert first.mean == pytest.approx(0.43)
    assert first.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert [score.seed for score in first.scores] == ["0", "1", "2"]
    assert second.behind.value == pytest.approx(0.12)
    assert second.behind == welch(first.values, second.values)


def test_the_order_turns_round_where_less_is_better():
    values = {0.0: [0.3], 1.0: [0.4]}
    assert compared(values, LESS).groups[0].settings == ("0",)
    assert compared(values).groups[0].settings == ("1",)


def test_p_is_corrected_from_the_third_group_on():
    values = {i: [0.1 * i, 0.1 * i + 0.02, 0.1 * i + 0.05] for i in range(4)}
    found = compared(values).groups
    p = [welch(found[0].values, group.values).p for group in found[1:]]
    assert [group.behind.p for group in found[1:]] == pytest.approx([p[0], *holm(p[1:])])


def test_last_and_best_value_with_their_steps():
    points = [{"step": s, "validation/miou": v} for s, v in ((5, 0.2), (10, 0.5), (15, 0.4))]
    runs = [run({"a": 1}, 0.0)._replace(records=points), run({"a": 2}, 0.45)]
    by_last, by_best = compare(runs, MIOU), compare(runs, MIOU, "best")
    assert by_last.groups[0].settings == ("2",)
    assert by_best.groups[0].settings == ("1",)
    score = by_best.groups[0].scores[0]
    assert (score.last, score.last_step, score.best, score.best_step) == (0.4, 15, 0.5, 10)
    assert by_last.notes == ("The last values are of different steps, 10 to 15.",)


def test_runs_without_a_finished_value_come_last_and_do_not_count():
    runs = [
        run({"a": 1}, 0.3),
        run({"a": 1}, 0.9, seed=1, state="running"),
        run({"a": 1}, 0.1, seed=2, state="failed"),
        run({"a": 2}, None, state="pending"),
        run({"a": 2}, math.nan, seed=1),
        run({"a": 2}, 0.2, seed=2)._replace(records=[{"step": 10, "loss": 1.0}]),
    ]
    found = compare(runs, MIOU)
    assert [len(group.values) for group in found.groups] == [1]
    assert [score.run.state for score in found.others] == [
        "failed", "finished", "finished", "pending", "running",
    ]  # fmt: skip
    assert found.notes == (
        "5 of 6 runs are not compared: 1 failed, 2 finished without a value, 1 pending, 1 running.",
    )


def test_a_repeated_seed_counts_once():
    runs = [run({"a": 1}, value, seed, name=f"{value}") for value, seed in ((0.2, 0), (0.4, 0))]
    found = compare([*runs, run({"a": 1}, 0.5, seed=1)], MIOU)
    (group,) = found.groups
    assert group.values.tolist() == pytest.approx([0.3, 0.5])
    assert "1 of the runs repeat settings and seed" in found.notes[0]


def test_an_override_of_a_trial_to_come_is_among_the_settings():
    waiting = Run("w", run({}, None).path, {"a": 3.0}, False, ("", ""), "pending", "", [])
    found = compare([run({"a": 1.0, "b": 1}, 0.3), run({"a": 1.0, "b": 1}, 0.4, 1), waiting], MIOU)
    assert found.names == ("a",)
    assert found.others[0].settings == ("3",)


def test_all_combinations_have_main_effects_the_largest_first():
    runs = [
        run({"a": a, "b": b}, 0.1 + 0.01 * a + 0.1 * b + 0.001 * seed, seed)
        for a in (0, 1) for b in (0, 1) for seed in (0, 1)
    ]  # fmt: skip
    found = compare(runs, MIOU)
    assert list(found.effects) == ["b", "a"]
    assert found.effects["b"].range == pytest.approx(0.1)
    assert compare(runs[2:], MIOU).effects == {}


def test_equal_settings_are_one_unnamed_group():
    found = compare([run({"a": 1}, 0.3, seed) for seed in (0, 1)], MIOU)
    assert found.names == ()
    assert found.groups[0].label == "all settings the same"


def test_settings_changed_one_at_a_time_are_told_by_what_differs():
    usual = {"a": 0, "b": 0, "c": 0}
    runs = [run({**usual, name: 1}, 0.3) for name in usual] + [run(usual, 0.5)]
    found = compare(runs, MIOU)
    assert [group.label for group in found.groups] == ["baseline", "a=1", "b=1", "c=1"]
    assert found.notes[0].startswith("The baseline is a=0, b=0, c=0;")
    without = compare(runs[:3], MIOU).groups[0].label
    assert without == "a=0, b=0, c=1"
    product = [run({"a": i % 2, "b": i // 2}, 0.1 * i) for i in range(4)]
    assert compare(product, MIOU).groups[0].label == "a=1, b=1"
