"""Several processes train as one does, and end soon after one of them has died."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.runs import exit_codes
from tests.devices import xla_flags
from tests.launch.test_train import compare_two_steps, lines, same, small_config, write
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(shards):
    config = small_config(shards)
    # One stage, for each start traces the model; a hard assignment jumps where rounding decides.
    config.model.image.update(
        depths=(1,), num_group_tokens=(4,), num_output_groups=(4,), assignment="soft"
    )
    config.train.num_steps = 24
    config.checkpoint.every_steps = 4
    source = dict(kind="webdataset", pattern=shards)
    config.evaluators = dict(
        recall=dict(kind="retrieval", source=source, every_steps=12, resize=32, crop=32)
    )
    config.checkpoint.best_metric = "recall/image_to_text_r1"
    return config


def launch(arguments, num_devices, *, rank=0, count=1, port=0, log=None):
    """Starts one process of `count`."""
    joining = f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={rank}"
    flags = xla_flags(num_devices)
    return subprocess.Popen(
        [sys.executable, "-m", "launch.train", *arguments, *(joining if count > 1 else ())],
        stderr=log or subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
    )


@pytest.fixture
def launch_two():
    """Starts two processes with two devices each; each writes a log of its own."""
    started = []

    def start(folder, arguments, more=((), ())):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        pair = []
        for rank in range(2):
            with (folder / f"log{rank}").open("a") as log:
                every = [*arguments, *more[rank]]
                pair.append(launch(every, 2, rank=rank, count=2, port=port, log=log))
        started.extend(pair)
        return pair

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, processes):
    """Waits until `condition()`, as long as all processes live."""

    def check():
        assert all(process.poll() is None for process in processes)

    wait_until(condition, check)


def said(folder):
    return [(folder / f"log{rank}").read_text() for rank in range(2)]


def test_two_processes_train_like_one_also_when_disturbed(config, launch_two, tmp_path):
    config_flag = write(config, tmp_path / "c.json")
    arguments = config_flag, f"--workdir={tmp_path}/disturbed"
    for victim, sent, step in (
        (1, signal.SIGKILL, 4),
        (0, signal.SIGKILL, 8),
        (1, signal.SIGTERM, 16),
    ):
        pair = launch_two(tmp_path, arguments)
        wait_for((tmp_path / "disturbed" / "checkpoints" / str(step)).exists, pair)
        pair[victim].send_signal(sent)
        codes = [process.wait(PATIENCE) for process in pair]
        if sent == signal.SIGTERM:
            assert codes == [exit_codes.STOPPED, exit_codes.STOPPED], said(tmp_path)
            continue
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == exit_codes.LOST
        errors = [
            line for line in said(tmp_path)[1 - victim].splitlines() if line.startswith("error: ")
        ]
        assert len(errors) == 1
        assert "start the same command again on all hosts" in errors[0]
    pair = launch_two(tmp_path, arguments)
    assert [process.wait(PATIENCE) for process in pair] == [0, 0], said(tmp_path)
    assert said(tmp_path)[0].count("resuming after step") == 3

    undisturbed = config_flag, f"--workdir={tmp_path}/two"
    assert [process.wait(PATIENCE) for process in launch_two(tmp_path, undisturbed)] == [0, 0]
    assert lines(tmp_path / "disturbed")[-1]["step"] == config.train.num_steps
    for here, there in zip(lines(tmp_path / "disturbed"), lines(tmp_path / "two"), strict=True):
        assert (here["step"], here["loss"]) == (there["step"], there["loss"])
    assert same(load_pretrained(tmp_path / "disturbed"), load_pretrained(tmp_path / "two"))

    # One process from the start, and one that goes on where the two were after step 20.
    moved = tmp_path / "moved" / "checkpoints" / "20"
    shutil.copytree(tmp_path / "two" / "checkpoints" / "20", moved)
    for name, first in (("one", 1), ("moved", 21)):
        alone = launch([config_flag, f"--workdir={tmp_path}/{name}"], 4)
        errors = alone.communicate(timeout=PATIENCE)[1]
        assert alone.returncode == 0, errors
        compare_two_steps(lines(tmp_path / "two"), lines(tmp_path / name), first)


def test_a_process_that_fails_alone_says_why_and_ends_the_other(config, launch_two, tmp_path):
    arguments = write(config, tmp_path / "c.json"), f"--workdir={tmp_path}/run"
    missing = f"--config.data.sources.pairs.pattern={tmp_path}/none.tar"
    pair = launch_two(tmp_path, arguments, more=((), (missing,)))
    codes = [process.wait(PATIENCE) for process in pair]
    assert codes == [exit_codes.LOST, exit_codes.BAD_INPUT], said(tmp_path)
    assert "none.tar" in said(tmp_path)[1]
    assert "start the same command again on all hosts" in said(tmp_path)[0]
    pair = launch_two(tmp_path, [*arguments, missing])
    codes = [process.wait(PATIENCE) for process in pair]
    assert codes == [exit_codes.BAD_INPUT] * 2, said(tmp_path)
