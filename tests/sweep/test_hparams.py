import subprocess
import sys

import pytest

from configs import tiny
from groupvit_jax.runs.layout import TRIAL_SETTINGS_FILE
from groupvit_jax.sweep.hparams import write_hparams
from groupvit_jax.sweep.trials import make_trial

READ = """
import sys
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
(_, event) = [Event.FromString(raw) for raw in RawEventFileLoader(sys.argv[1]).Load()]
(value,) = event.summary.value
assert value.metadata.plugin_data.plugin_name == "hparams"
info = parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
print(info.group_name, {n: v.WhichOneof("kind") for n, v in sorted(info.hparams.items())})
"""


def test_tensorboard_gets_the_settings_once(tmp_path):
    pytest.importorskip("tensorboard")
    overrides = {"seed": 1, "model.image.depths": (1, 2), "tensorboard": True}
    trial = make_trial(3, overrides, tiny.get_config().to_dict())
    write_hparams(trial, tmp_path)
    content = (tmp_path / TRIAL_SETTINGS_FILE).read_bytes()
    write_hparams(trial, tmp_path)
    assert (tmp_path / TRIAL_SETTINGS_FILE).read_bytes() == content
    command = [sys.executable, "-c", READ, str(tmp_path / TRIAL_SETTINGS_FILE)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = {"model.image.depths": "string_value", "seed": "number_value"}
    assert result.stdout.strip() == f"{trial.folder} {kinds | {'tensorboard': 'bool_value'}}"


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_hparams(make_trial(0, {}, tiny.get_config().to_dict()), tmp_path)
    assert list(tmp_path.iterdir()) == []
