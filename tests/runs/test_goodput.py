import pytest

from groupvit_jax.runs import goodput


def test_shares_are_of_the_wall_time_of_all_starts():
    now = [100.0]
    first = goodput.Goodput(clock=lambda: now[0])
    now[0] += 2  # start-up
    with first.spending("stepping"):
        now[0] += 6
    with first.spending("saving"):
        now[0] += 2
    records = [{"step": 5, **first.record()}]
    assert records[0][goodput.SECONDS] == 10
    assert records[0]["goodput/stepping"] == pytest.approx(0.6)
    now[0] += 10  # steps after the checkpoint, then a kill
    records.append({"step": 9, **first.record()})

    now[0] = 500.0
    second = goodput.Goodput(goodput.spent_before(records, 5), clock=lambda: now[0])
    with second.spending("stepping"):
        now[0] += 20
    found = second.record()
    assert found[goodput.SECONDS] == 40
    assert found["goodput/lost"] == pytest.approx(10 / 40)
    assert found["goodput/stepping"] == pytest.approx(26 / 40)
    assert goodput.describe(found).startswith("stepping 65%, input 0%, saving 5%")


def test_metrics_of_older_versions_have_no_times():
    assert goodput.spent_before([{"step": 5, "loss": 1.0}], 5) == {}
    assert goodput.describe({"step": 5}) == ""
