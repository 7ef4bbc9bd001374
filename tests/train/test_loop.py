import json
import os
import shutil
import signal
import subprocess
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.runs.workdir import WorkdirError
from groupvit_jax.train import hooks
from groupvit_jax.train.hooks import NonFiniteError
from tests.train import kills, toy
from tests.waiting import PATIENCE


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


class Recorder:
    """An evaluator that remembers the steps it was called after."""

    def __init__(self, values=None, name="recall"):
        self.name, self.values, self.calls = name, values or {}, []

    def __call__(self, variables):
        assert set(variables) == {"params", "batch_stats"}
        self.calls.append(float(variables["params"]["logit_scale"]))
        return {"r1": self.values.get(len(self.calls), 0.5)}


class Steps(hooks.Hook):
    """Remembers the steps done, and does something after one of them."""

    def __init__(self, at=0, action=None):
        self.at, self.action, self.steps = at, action, []

    def after_step(self, context):
        self.steps.append(context.step)
        if context.step == self.at:
            self.action()


def test_trains_logs_and_saves_at_the_configured_steps(tmp_path):
    context = toy.run(tmp_path, 12, save_every=5, log_every=4)
    assert context.step == 12
    assert int(context.state.step) == 12
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12]
    assert lines(tmp_path)[-1]["loss"] < lines(tmp_path)[0]["loss"]
    assert saved_steps(tmp_path) == [10, 12]


def test_evaluators_run_at_their_interval_and_at_the_end(tmp_path):
    often, once = Recorder(), Recorder(name="classes")
    toy.run(tmp_path, 10, evaluators=[(often, 4), (once, 0)], log_every=5)
    written = {line["step"]: line for line in lines(tmp_path)}
    assert list(written) == [4, 5, 8, 10]
    assert [step for step, line in written.items() if "recall/r1" in line] == [4, 8, 10]
    assert [step for step, line in written.items() if "classes/r1" in line] == [10]
    assert [step for step, line in written.items() if "loss" in line] == [5, 10]


def test_the_best_by_an_evaluation_is_saved_and_kept(tmp_path):
    recall = Recorder({1: 0.2, 2: 0.9, 3: 0.3})
    toy.run(tmp_path, 20, evaluators=[(recall, 4)], save_every=10, best_metric="recall/r1")
    assert saved_steps(tmp_path) == [8, 16, 20]


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    whole = toy.run(tmp_path / "whole", 12)
    toy.run(tmp_path / "parts", 5)
    parts = toy.run(tmp_path / "parts", 12)
    toy.assert_same(parts.state, whole.state)
    kept = ("step", "loss", "gradient_norm")
    for a, b in zip(lines(tmp_path / "parts"), lines(tmp_path / "whole"), strict=True):
        assert [a[name] for name in kept] == [b[name] for name in kept]


def test_other_devices_see_the_same_batches_and_losses(tmp_path):
    one = toy.run(tmp_path / "one", 20, log_every=1, mesh=toy.make_mesh(1, 1))
    toy.run(tmp_path / "moved", 10, log_every=1, mesh=toy.make_mesh(8, 1))
    moved = toy.run(tmp_path / "moved", 20, log_every=1, mesh=toy.make_mesh(2, 4))
    losses = [[line["loss"] for line in lines(tmp_path / run)] for run in ("one", "moved")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one.state.params,
        moved.state.params,
    )


def poisoned(bad_step):
    def read(first_step):
        for step, batch in enumerate(toy.batches(first_step), first_step + 1):
            yield {"x": batch["x"] * np.float32(np.nan if step == bad_step else 1.0)}

    return read


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_a_loss_that_is_not_finite_stops_the_run_before_a_save(tmp_path, log_every):
    with pytest.raises(NonFiniteError, match=r"^step 7: loss is nan$"):
        toy.run(tmp_path, 20, read=poisoned(7), log_every=log_every, save_every=5)
    assert saved_steps(tmp_path) == [5]
    assert all(line["step"] <= 5 or log_every == 1 for line in lines(tmp_path))
    assert toy.run(tmp_path, 10).step == 10  # the good checkpoint resumes


def test_a_run_that_diverges_stops(tmp_path):
    mesh = toy.make_mesh(1, 1)
    step = toy.make_train_step(mesh, toy.init_state())

    def diverging(state, batch):
        state, metrics = step(state, batch)
        return state.replace(params=jax.tree.map(lambda x: x * x * 1e30, state.params)), metrics

    with jax.transfer_guard("allow"), pytest.raises(NonFiniteError, match=r"step \d: "):
        toy.run(tmp_path, 20, train_step=jax.jit(diverging), save_every=1)


def test_the_first_array_that_is_not_finite_is_named():
    state = toy.init_state()
    hooks.check_finite(state, 3)
    params = state.params | {"logit_scale": jnp.inf}
    with pytest.raises(NonFiniteError, match=r"^step 3: logit_scale is not finite$"):
        hooks.check_finite(state.replace(params=params), 3)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_the_run_goes_on_from_there(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stopped = toy.run(tmp_path / "parts", 20, save_every=50, more_hooks=[Steps(7, terminate)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.step == 7
    assert not stopped.is_last
    assert saved_steps(tmp_path / "parts") == [7]
    finished = toy.run(tmp_path / "parts", 20, save_every=50)
    toy.assert_same(finished.state, toy.run(tmp_path / "whole", 20).state)


def test_sigterm_ends_the_wait_for_a_batch(tmp_path):
    arrived = threading.Event()

    def stuck(first_step):
        yield from toy.batches(first_step, num_steps=4)
        arrived.wait(PATIENCE)

    soon = Steps(4, threading.Timer(0.2, terminate).start)
    assert toy.run(tmp_path, 20, read=stuck, more_hooks=[soon]).step == 4
    assert saved_steps(tmp_path) == [4]
    arrived.set()


def test_readers_that_were_stopped_too_do_not_spoil_the_save(tmp_path):
    def stopped_readers(first_step):
        batches = toy.batches(first_step)
        yield from (next(batches) for _ in range(3))
        terminate()
        raise RuntimeError("a worker got SIGTERM")

    assert toy.run(tmp_path, 20, read=stopped_readers).step <= 3
    assert len(saved_steps(tmp_path)) == 1


def test_an_error_of_the_reader_is_raised(tmp_path):
    def broken(first_step):
        yield from toy.batches(first_step, num_steps=3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        toy.run(tmp_path, 20, read=broken)


def test_data_that_end_too_early_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="the training data have ended"):
        toy.run(tmp_path, 20, read=lambda first_step: toy.batches(first_step, num_steps=3))


def test_an_implicit_transfer_in_a_step_is_an_error(tmp_path):
    step = toy.make_train_step(toy.make_mesh(1, 1), toy.init_state())

    def careless(state, batch):
        return step(state, {"x": batch["x"] + np.ones((8, 4), np.float32)})

    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
        toy.run(tmp_path, 3, train_step=careless)


def test_speed_counts_training_and_waiting_but_not_evaluation():
    now = [0.0]
    metrics = hooks.StepMetrics(clock=lambda: now[0])
    log = hooks.LogMetrics(metrics, every_steps=2, batch_size=10)
    for step in (1, 2):
        with metrics.waiting_for_input():
            now[0] += 1.0
        with metrics.training():
            now[0] += 3.0
        metrics.add(step, {"loss": jnp.ones(())})
        context = hooks.StepContext(step, 10, toy.init_state())
        log.after_step(context)
        now[0] += 100.0  # an evaluation
    assert context.record == {
        "loss": 1.0,
        "images_per_second": 2.5,
        "seconds_per_step": 4.0,
        "input_wait_seconds_per_step": 1.0,
    }
    assert hooks.progress_text(context) == (
        "loss 1.0000  2.5 images/s  input wait 25%  0:00:32 left"
    )


def test_slow_input_is_warned_of_once(caplog):
    now = [0.0]
    metrics = hooks.StepMetrics(clock=lambda: now[0])
    log = hooks.LogMetrics(metrics, every_steps=1, batch_size=10)

    def take_step(step, waiting):
        with metrics.waiting_for_input():
            now[0] += waiting
        with metrics.training():
            now[0] += 10.0 - waiting
        log.after_step(hooks.StepContext(step, 10, toy.init_state()))

    take_step(1, waiting=0.9)
    assert not caplog.records
    take_step(2, waiting=2.5)
    take_step(3, waiting=2.5)
    (record,) = caplog.records
    assert "up to step 2 the devices waited for input 25 % of the time" in record.getMessage()
    assert "config.data.num_workers" in record.getMessage()


def test_prompts_without_room_are_warned_of_once(caplog):
    metrics = hooks.StepMetrics()
    log = hooks.LogMetrics(metrics, every_steps=1, batch_size=100)
    for step, share in enumerate((0.01, 0.02, 0.5), start=1):
        metrics.add(step, {"loss": jnp.ones(()), "text_overflow": jnp.asarray(share)})
        log.after_step(hooks.StepContext(step, 10, toy.init_state()))
    (record,) = caplog.records
    assert "step 2: 2.0 % of the images lost a prompt" in record.getMessage()
    assert "config.data.packed_length" in record.getMessage()


def test_a_profile_is_written_for_the_steps_asked_for(tmp_path):
    profile = hooks.Profile((2, 3), tmp_path / "profile")
    toy.run(tmp_path, 5, more_hooks=[profile])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_killed_run_ends_with_the_parameters_of_an_undisturbed_one(tmp_path):
    kills.disturb(tmp_path, kills=1, processes=1, seed=0, num_steps=60)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, 6), (2, 3)])
def test_kills_and_full_disks_lose_nothing(tmp_path, processes, number):
    ends = kills.disturb(tmp_path, number, processes, seed=0)
    assert sum(ends[name] for name in kills.DISTURBANCES) == number


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is left to root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_space(tmp_path, small_disk):
    toy.run(small_disk / "run", 2, width=1 << 13, save_every=1)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 200_000))  # a state is 400,000 bytes
    message = r"checkpoints: the state after step \d could not be written \(.*No space left"
    with pytest.raises(WorkdirError, match=message) as error:
        toy.run(small_disk / "run", 6, width=1 << 13, save_every=1)
    assert "\n" not in str(error.value)
    filler.unlink()
    toy.run(small_disk / "run", 6, width=1 << 13, save_every=1)
    toy.run(tmp_path / "undisturbed", 6, width=1 << 13, save_every=1)
    fresh = toy.abstract(toy.make_mesh(1, 1), toy.init_state(width=1 << 13))
    toy.assert_same(
        toy.last_state(small_disk / "run", fresh), toy.last_state(tmp_path / "undisturbed", fresh)
    )


def test_a_folder_removed_during_the_run_is_not_made_anew(tmp_path):
    class Remove(hooks.Hook):
        def after_step(self, context):
            if context.step == 4:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(WorkdirError, match=r"step 5 could not be written \(.*removed"):
        toy.run(tmp_path / "run", 9, save_every=5, log_every=3, more_hooks=[Remove()])
    assert not (tmp_path / "run").exists()
