"""Runs with a moving average and all that builds on it: saved, resumed, evaluated and exported."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from groupvit_jax.data.text.noun_bank import write_noun_bank
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.prepare.noun_counts import read_nouns
from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner
from groupvit_jax.train import setup
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.loop import train
from launch.train import evaluators_of
from tests.launch.test_train import lines, same, small_config, write
from tests.train import toy
from tests.waiting import PATIENCE


def final_state(config, workdir):
    parts = setup.build(config, workdir)
    checkpoints = Checkpointer(workdir / "checkpoints", CheckpointSettings(**config.checkpoint))
    state, _ = checkpoints.restore_latest(parts.abstract_state)
    checkpoints.close()
    return jax.device_get(state)


# Not by a signal from here: on a busy machine it could come after the last step.
KILLED_AT_STEP_6 = """
import os, signal
from absl import app
from groupvit_jax.train.checkpointer import Checkpointer
from launch import common, train

save = Checkpointer.save

def save_or_die(self, step, *arguments):
    self.wait()
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step, *arguments)

Checkpointer.save = save_or_die
app.run(train.main, flags_parser=common.parse_flags)
"""


@pytest.mark.slow
def test_a_killed_run_equals_an_undisturbed_one_bit_for_bit(shards, tmp_path, caplog):
    """With every option that the configuration has beside the published method."""
    config = small_config(shards)
    config.optimizer.ema_decay = 0.9
    config.loss.update(
        local_weight=0.5, local_words="prompts", local_seekers="words", mixed_weight=0.5,
        distill_weight=0.5, pooled_weight=0.5, superpixel_weight=0.5, noun_bank_weight=0.5,
    )  # fmt: skip
    options = Options(shards, str(tmp_path / "shards"), superpixels=True, noun_bank=8)
    prepare(options, local_runner(1))
    nouns, width = read_nouns(options.output), config.model.projector.output_dim
    config.data.noun_bank = str(tmp_path / "bank.npz")
    embeddings = np.random.default_rng(0).normal(size=(len(nouns), width))
    write_noun_bank(config.data.noun_bank, nouns, embeddings)
    source = dict(kind="webdataset", pattern=f"{tmp_path}/shards/*.tar")
    config.data.sources.pairs = source
    config.evaluators = dict(
        recall=dict(kind="retrieval", source=source, every_steps=3, resize=32, crop=32)
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(config, whole, make_evaluators=evaluators_of).complete
    arguments = write(config, tmp_path / "config.json"), f"--workdir={killed}"
    process = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_6, *arguments], timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert (killed / "checkpoints" / "3").exists()
    config.optimizer.ema_decay = 0.5  # kept as the run began
    assert train(config, killed, make_evaluators=evaluators_of).complete
    assert "config.optimizer.ema_decay: 0.9, with which the run" in caplog.text
    state, resumed = (final_state(config, workdir) for workdir in (whole, killed))
    toy.assert_same(resumed, state)
    last = lines(whole)[-1]
    assert all(last[f"{name}/loss"] > 0 for name in ("distill", "superpixel", "noun_bank"))
    scores = [lines(run)[-1]["recall/image_to_text_r1"] for run in (whole, killed)]
    assert scores[0] == scores[1]
    # What others read is the average, not the parameters.
    toy.assert_same(load_pretrained(whole).variables, state.average)
    assert not np.array_equal(state.average["params"]["logit_scale"], state.params["logit_scale"])
    save_pretrained(tmp_path / "export", load_pretrained(killed), "safetensors")
    assert same(load_pretrained(whole), load_pretrained(tmp_path / "export"))
