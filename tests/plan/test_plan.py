import dataclasses
import json

import pytest

from configs import base, tiny
from groupvit_jax.plan import plan as plan_lib
from groupvit_jax.plan import table
from groupvit_jax.plan.collectives import Collective
from groupvit_jax.plan.compiling import CompiledStep, Memory
from groupvit_jax.plan.plan import bound, find_largest_batch, make_plan
from groupvit_jax.runs.configuration import changed
from tests.plan.machines import host


@pytest.fixture(scope="module")
def plan():
    return make_plan(tiny.get_config(), host(4), 1000)


def collective(num_bytes, crosses_slices=False):
    return Collective(
        "all-gather", "data", 4, "f32", num_bytes, 2, False, True, crosses_slices, "loss"
    )


def test_bound_is_what_takes_longest():
    topology = host(4)
    found = bound(topology, 197 * 10**12, 819 * 10**9 // 2, [collective(10**9)])
    assert found.compute == pytest.approx(1.0)
    assert found.memory == pytest.approx(0.5)
    assert found.links == pytest.approx(2 * 0.75 * 1e9 / 200e9)
    assert found.network == 0
    assert (found.seconds, found.limit) == (found.compute, "compute")
    slow = bound(topology, 1, 1, [collective(10**12, crosses_slices=True)])
    assert slow.links == 0
    assert slow.limit == "network"


def test_a_chip_of_two_devices():
    topology = host(4)
    chip = dataclasses.replace(topology.chip, devices=2)
    pairs = dataclasses.replace(topology, chip=chip, num_chips=2)
    one, two = (bound(t, 10**12, 10**9, [collective(10**6)]) for t in (topology, pairs))
    assert two.compute == pytest.approx(2 * one.compute)
    assert two.links == pytest.approx(2 * one.links)


def test_a_plan_needs_a_step():
    config = base.get_config()
    with pytest.raises(ValueError, match=r"--num_examples=10: 30.0 epochs at batch 4096 are 0"):
        make_plan(config, host(1), 10)


def test_rates_follow_from_the_prediction(plan):
    seconds = plan.program.seconds
    assert seconds >= plan.program.bound.seconds
    assert plan.images_per_second == pytest.approx(16 / seconds)
    assert plan.most_images_per_second == pytest.approx(16 / plan.program.bound.seconds)
    assert plan.useful_mfu == pytest.approx(16 * plan.useful_flops / seconds / (4 * 197e12))
    assert plan.days == pytest.approx(20 * seconds / 86400)  # 20 steps
    assert plan.chip_hours == pytest.approx(plan.days * 24 * 4)
    assert plan.program.flops_per_image == pytest.approx(plan.hand_flops, rel=0.05)


def memory_of(total, available=100.0):
    return Memory(0.0, 0.0, 0.0, float(total), 0.0, 0.0, available)


@pytest.mark.parametrize(("configured", "most"), [(16, 4), (64, 4)])
def test_largest_batch(plan, monkeypatch, configured, most):
    """Memory is 20 + batch / 2 and a little more, as compiled: 158 fit, in multiples of 4: 156."""
    compiled = []

    def compile_step(config, topology):
        B = config.train.batch_size
        compiled.append(B)
        return CompiledStep({}, (), memory_of(20 + B / 2 + B**2 / 20_000), "", 0.0, 0.0, 0.0)

    monkeypatch.setattr(plan_lib, "compile_step", compile_step)
    config = changed(tiny.get_config(), {"train.batch_size": configured})
    first = dataclasses.replace(
        plan, batch_size=configured, memory=compile_step(config, host(4)).memory
    )
    found = find_largest_batch(config, host(4), first)
    assert 0.97 * 157 < found.batch_size <= 157
    assert found.batch_size % 4 == 0
    assert found.memory.fits
    assert len(compiled) <= most
    assert set(found.compiled) == set(compiled)


def test_no_batch_fits(plan, monkeypatch):
    full = CompiledStep({}, (), memory_of(200), "", 0.0, 0.0, 0.0)
    monkeypatch.setattr(plan_lib, "compile_step", lambda config, topology: full)
    first = dataclasses.replace(plan, memory=memory_of(300))
    found = find_largest_batch(tiny.get_config(), host(4), first)
    assert (found.batch_size, found.memory) == (0, None)
    assert "No batch was found that fits" in table.details(first, found)


def test_page(plan):
    page = table.details(plan)
    assert page.startswith("## host, batch 16\n\n4 chips; mesh: data 4, fsdp 1, tensor 1; 20 steps")
    assert "**Fits: " in page
    for word in ("parameters", "optimizer", "activations", "batch", "all-reduce", "gradients"):
        assert f"| {word} |" in page
    assert "of the compiled program" in page
    assert "chip-hours" in page
    # A CPU's compiler gives no cycles.
    assert "**At best: " in page
    assert "(by the roofline of each instruction: no cycles are known)" in page
    for part in ("optimizer and norms", "image: grouping", "losses"):
        assert f"| {part} |" in page
    assert "| hosts | 1 |" in page
    assert "| cost |" not in page


def test_price(plan):
    priced = dataclasses.replace(plan.needs, cost=1234.5)
    assert "| cost | 1,234 |" in table.details(dataclasses.replace(plan, needs=priced))


def test_an_input_that_is_too_slow(plan):
    weak = dataclasses.replace(plan.needs, host_cores=plan.needs.inputs[1].cores + 1)
    assert weak.too_slow == ("raw, from img2dataset",)
    assert "can't keep up" in table.details(dataclasses.replace(plan, needs=weak))
    unknown = dataclasses.replace(weak, host_cores=0.0)
    assert unknown.too_slow == ()


def test_a_plan_that_does_not_fit(plan):
    small = dataclasses.replace(plan.memory, available=plan.memory.total - 2**30)
    full = dataclasses.replace(plan, memory=small, program=None)
    page = table.details(full)
    assert "**Does not fit: " in page
    assert "1.00 GiB over" in page
    header, _, *rows = table.comparison([plan, full]).splitlines()
    columns = [line.count("|") for line in (header, *rows)]
    assert len(set(columns)) == 1
    assert "| yes |" in rows[0]
    assert "| no |" in rows[1]


def test_json(plan):
    values = json.loads(json.dumps(table.to_json(plan)))
    assert values["fits"] is True
    assert values["memory"]["parameters"] == plan.memory.parameters
    assert values["program"]["collectives"][0]["kind"] in ("all-reduce", "all-gather")
    assert values["images_per_second"] == pytest.approx(plan.images_per_second)
    assert values["program"]["prediction"]["parts"][0]["seconds"] > 0
    assert values["needs"]["checkpoint_bytes"] > 3 * plan.memory.parameters
