import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import tiny
from groupvit_jax.data.pipeline.contrastive import TooManyBrokenSamplesError
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.interop import INITIALISERS
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.lock import LockLostError
from groupvit_jax.runs.workdir import WorkdirError
from groupvit_jax.train import setup
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.hooks import NonFiniteError
from groupvit_jax.train.initial_state import initial_state
from groupvit_jax.train.loop import Result, train
from launch import train as launch_train
from tests.devices import xla_flags
from tests.train import toy
from tests.waiting import PATIENCE

ONE_DEVICE = xla_flags(1)
NO_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None"


def small_config(shards):
    config = tiny.get_config()
    config.data.sources.pairs.pattern = shards
    config.tensorboard = False
    config.train.num_steps = 6
    config.checkpoint.every_steps = 3
    config.log_every_steps = 1
    config.model.image.update(
        depths=(1, 1), num_group_tokens=(4, 0), num_output_groups=(4,), width=16
    )
    config.model.text.update(num_layers=1, width=16)
    return config


@pytest.fixture(autouse=True)
def _restore_flags():
    """Flags are the process's; what one test parses must not reach those of another file."""
    with flagsaver.flagsaver():
        yield


@pytest.fixture
def config(shards):
    return small_config(shards)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def compare_two_steps(two, one, first):
    """Compares the steps `first` and `first + 1` of runs that were in one state before.

    Only these agree to the digit: where a gradient is mere rounding, Adam, which divides by its
    size, moves the parameter by a whole step in any direction, and later steps magnify this.
    """
    two, one = ({line["step"]: line for line in run} for run in (two, one))
    for step in (first, first + 1):
        # Some ten units of rounding, and a new model magnifies them a hundred times backward.
        for name, rtol in (("loss", 1e-5), ("gradient_norm", 1e-4)):
            np.testing.assert_allclose(two[step][name], one[step][name], rtol=rtol, err_msg=name)


def write(config, path):
    path.write_text(json.dumps(config.to_dict()))
    return f"--config={path}"


def launch(*arguments, before=""):
    """Runs the command in a process of its own, after the Python statements `before`."""
    code = f"{before}\nfrom absl import app\nfrom launch import common, train\n"
    code += "app.run(train.main, flags_parser=common.parse_flags)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": ONE_DEVICE},
    )


def outcome(process):
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def same(a, b):
    pairs = zip(jax.tree.leaves(a.variables), jax.tree.leaves(b.variables), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.batch_size": 12},
            r"config\.train\.batch_size: 12 found, expected a multiple of 8",
        ),
        ({"model.text.vocab_size": 100}, r"vocab_size is 100, the tokenizer's is 49408"),
        ({"checkpoint.every_steps": 0}, r"config\.checkpoint\.every_steps: 0 found"),
        ({"checkpoint.best_metric": "x/y"}, r"config\.checkpoint\.best_metric: 'x/y' found"),
        ({"checkpoint.best_mode": "most"}, r"config\.checkpoint\.best_mode: 'most' found"),
        (
            {"train.micro_batch_size": 6},
            r"config\.train\.micro_batch_size: 6 found, expected a divisor",
        ),
        (
            {"loss.kind": "hinge"},
            r"config\.loss\.kind: 'hinge' found, expected 'softmax' or 'sigmoid'",
        ),
        ({"loss.exchange": "tree"}, r"config\.loss\.exchange: 'tree' found"),
        ({"loss.block_size": 0}, r"config\.loss\.block_size: 0 found, expected a whole"),
        (
            {"loss.kind": "sigmoid"},
            r"config\.model\.initial_logit_bias: None found .* expected a number \(such as -10",
        ),
        (
            {"model.initial_logit_bias": -10.0},
            r"config\.model\.initial_logit_bias: -10\.0 found .* None for 'softmax'",
        ),
        ({"parallel.mesh.tensor": 3}, r"config\.parallel\.mesh"),
        ({"optimizer.warmup_steps": 9}, r"a warm-up of 9 steps found"),
        ({"train.num_steps": 0}, r"config\.train\.num_steps: 0 found"),
        ({"train.num_steps": None, "train.num_epochs": 0.001}, r"config\.train: 0 steps found"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message) as error:
        setup.build(config, tmp_path)
    assert "\n" not in str(error.value)


def test_a_pattern_that_matches_nothing_is_refused(config, tmp_path):
    config.data.sources.pairs.pattern = str(tmp_path / "*.tar")
    with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.pairs\.pattern"):
        setup.build(config, tmp_path)


def test_the_length_of_a_run_comes_from_its_epochs(config, tmp_path):
    config.train.update(num_steps=None, num_epochs=30.0)
    config.optimizer.update(warmup_steps=None, warmup_epochs=2.0)
    parts = setup.build(config, tmp_path)
    per_epoch = parts.examples.num_samples / config.train.batch_size
    assert parts.num_steps == round(30 * per_epoch)
    rates = [float(parts.schedule(step)) for step in range(parts.num_steps)]
    assert abs(int(np.argmax(rates)) - 2 * per_epoch) <= 1


def test_a_workdir_that_is_not_writable_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = write(config, tmp_path / "c.json"), f"--workdir={tmp_path}/file/run"
    code, errors = outcome(launch(*arguments))
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: --workdir={tmp_path}/file/run: not writable")
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A finished run: its configuration, its folder, what it said."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(shards)
    config.tensorboard = True
    source = dict(kind="webdataset", pattern=shards)
    config.evaluators = dict(
        recall=dict(kind="retrieval", source=source, every_steps=3, resize=32, crop=32)
    )
    config.checkpoint.best_metric = "recall/image_to_text_r1"
    arguments = write(config, folder / "c.json"), f"--workdir={folder}/run"
    code, errors = outcome(
        launch(*arguments, before="import sys; sys.modules['tensorflow'] = None")
    )
    assert code == 0, errors
    return config, folder / "run", errors


def test_trains_where_tensorflow_is_not_installed(trained):
    config, workdir, errors = trained
    assert "TensorFlow is not installed" in errors
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4, 5, 6]
    assert load_pretrained(workdir).model_config.to_dict() == config.model.to_dict()


def test_evaluates_what_the_configuration_names(trained):
    _, workdir, _ = trained
    recalls = {line["step"]: line.get("recall/text_to_image_r10") for line in lines(workdir)}
    assert [step for step, recall in recalls.items() if recall is not None] == [3, 6]
    assert all(0 <= recalls[step] <= 1 for step in (3, 6))


def test_starts_from_the_parameters_of_another_run(trained, config, tmp_path, caplog):
    _, workdir, _ = trained
    config.init_from = str(workdir)
    parts = setup.build(config, tmp_path)
    checkpoints = Checkpointer(tmp_path / "checkpoints", CheckpointSettings(**config.checkpoint))
    with caplog.at_level("INFO"):
        state, position = initial_state(
            config, checkpoints, parts.abstract_state, parts.fresh_state, INITIALISERS
        )
    assert (int(state.step), position) == (0, None)
    toy.assert_same(
        jax.device_get({"params": state.params, "batch_stats": state.batch_stats}),
        load_pretrained(workdir).variables,
    )
    assert (
        state.params["logit_scale"].sharding == parts.abstract_state.params["logit_scale"].sharding
    )
    assert f"{workdir}: " in caplog.text


def test_a_run_repeats_from_its_json(trained, tmp_path):
    _, workdir, _ = trained
    again = f"--config={workdir}/config.json", f"--workdir={tmp_path}"
    code, errors = outcome(launch(*again, "--config.tensorboard=False"))
    assert code == 0, errors
    assert same(load_pretrained(workdir), load_pretrained(tmp_path))


def test_a_finished_run_has_nothing_to_do(trained, caplog):
    config, workdir, _ = trained
    with caplog.at_level("INFO"):
        assert train(config, workdir) == Result(step=6, complete=True)
    assert "all 6 steps of this run are done" in caplog.text


def test_another_architecture_is_refused_with_both_shapes(trained, config):
    _, workdir, _ = trained
    config.model.projector.hidden_dim = 32
    message = r"params/image_projector/.* is float32\[64\].*, expected float32\[32\]"
    with pytest.raises(ValueError, match=message) as error:
        train(config, workdir)
    assert "\n" not in str(error.value)


def test_another_model_of_the_same_shapes_is_refused(trained, config):
    _, workdir, _ = trained
    config.model.text.num_heads = 1
    with pytest.raises(ValueError, match=r"config\.model\.text\.num_heads: 2 -> 1"):
        train(config, workdir)


def test_another_setting_is_logged_and_the_run_goes_on(trained, config, caplog):
    _, workdir, _ = trained
    config.optimizer.weight_decay = 0.1
    assert train(config, workdir).complete
    assert "config.optimizer.weight_decay: 0.05 -> 0.1" in caplog.text


def test_sigterm_saves_and_the_same_command_goes_on(config, tmp_path):
    config.train.num_steps = 100_000
    config.checkpoint.every_steps = 100_000
    arguments = write(config, tmp_path / "c.json"), f"--workdir={tmp_path}/run"
    for _ in range(2):
        process = launch(*arguments)
        while "step " not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        code, errors = outcome(process)
        assert code == 143, errors
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == [*range(1, steps[-1] + 1)]
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert json.loads(starts[1])["step"] > 0


def test_too_many_broken_samples_stop_the_run(config, tmp_path):
    bad = tmp_path / "bad.tar"
    with tarfile.open(config.data.sources.pairs.pattern) as good, tarfile.open(bad, "w") as tar:
        for member in good:
            content = good.extractfile(member).read()
            if member.name.endswith("jpg"):
                content = content[: member.size // (2 if member.name < "000020" else 1)]
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    config.data.sources.pairs.pattern = str(bad)
    config.data.max_broken_fraction = 0.001
    with pytest.raises(TooManyBrokenSamplesError, match=r"max_broken_fraction=0\.001"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NonFiniteError("step 7: loss is nan"), 1),
        (TooManyBrokenSamplesError("90 of 100 samples were broken"), 1),
        (StorageError("s3://pairs/0.tar: PermissionError: Forbidden"), 1),
        (LockLostError("runs/a: run-1.lock is no longer this run's"), 1),
        (WorkdirError(Path("runs/a"), "the metrics of step 3", OSError(28, "No space left")), 1),
    ],
)
def test_a_failed_training_ends_with_one_line(monkeypatch, capsys, tmp_path, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(launch_train, "train", fail)
    flags.FLAGS(["launch.train", "--config=configs/tiny.py", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        launch_train.main([])
    assert end.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_full_disk_is_one_line_whatever_was_being_written(monkeypatch, capsys, tmp_path):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch_train, "train", fail)
    flags.FLAGS(["launch.train", "--config=configs/tiny.py", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        launch_train.main([])
    assert end.value.code == exit_codes.FAILED
    said = f"error: {tmp_path}: a file could not be written (No space left on device); what was "
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_trains_and_the_other_says_why_not(config, tmp_path):
    arguments = write(config, tmp_path / "c.json"), f"--workdir={tmp_path}/run"
    ended = [outcome(process) for process in [launch(*arguments), launch(*arguments)]]
    assert sorted(code for code, _ in ended) == [0, exit_codes.BAD_INPUT]
    errors = max(ended)[1]
    assert re.search(r"error: --workdir=.* in use by process \d+ on \S+ since 20", errors)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("workdir", ["", "az://bucket/run"])  # adlfs is not installed
def test_a_workdir_that_is_no_folder_is_one_line(capsys, workdir):
    flags.FLAGS(["launch.train", "--config=configs/tiny.py", f"--workdir={workdir}"])
    with pytest.raises(SystemExit) as end:
        launch_train.main([])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --workdir")


@pytest.mark.slow
def test_killed_runs_of_the_real_model_equal_an_undisturbed_one(config, tmp_path):
    config.train.num_steps = 60
    argument = write(config, tmp_path / "c.json")
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = launch(argument, f"--workdir={tmp_path}/killed")
        skipped = rng.integers(1, 4)
        while skipped:
            skipped -= " being saved" in process.stderr.readline()
            assert process.poll() is None
        process.kill()
        process.wait()
    for run in ("killed", "whole"):
        code, errors = outcome(launch(argument, f"--workdir={tmp_path}/{run}"))
        assert code == 0, errors
    assert same(load_pretrained(tmp_path / "killed"), load_pretrained(tmp_path / "whole"))
    losses = [
        [(line["step"], line["loss"]) for line in lines(tmp_path / run)]
        for run in ("killed", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_moved_to_other_devices_has_the_same_losses(config, tmp_path):
    """Five steps on eight devices, the rest on one, against eight all along."""
    config.model.image.assignment = "soft"  # a hard one jumps where rounding decides a tie
    config.train.num_steps = 10
    config.checkpoint.every_steps = 5
    assert train(config, tmp_path / "whole").complete
    moved = tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    os.rename(tmp_path / "whole" / "checkpoints" / "5", moved / "checkpoints" / "5")
    arguments = write(config, tmp_path / "c.json"), f"--workdir={moved}"
    code, errors = outcome(launch(*arguments))
    assert code == 0, errors
    assert [line["step"] for line in lines(moved)] == [6, 7, 8, 9, 10]
    compare_two_steps(lines(tmp_path / "whole"), lines(moved), 6)
