"""Settings of trials for TensorBoard's HPARAMS page."""

import importlib.util
import time
from pathlib import Path

from groupvit_jax.runs.layout import TRIAL_SETTINGS_FILE
from groupvit_jax.runs.sweep_files import Trial


def write_hparams(trial: Trial, workdir: Path) -> None:
    """Write a trial's settings beside its event files, if TensorBoard is installed."""
    path = workdir / TRIAL_SETTINGS_FILE
    if path.exists() or importlib.util.find_spec("tensorboard") is None:
        return
    # TensorBoard's own modules: unlike `tf.summary`, they don't import TensorFlow.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    settings = {
        field: value if isinstance(value, bool | int | float | str) else str(value)
        for field, value in trial.overrides.items()
    }
    summary = hparams_pb(settings, trial_id=trial.folder, start_time_secs=time.time())
    with path.open("wb") as file:
        records = RecordWriter(file)
        records.write(
            Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        )
        records.write(Event(wall_time=time.time(), summary=summary).SerializeToString())
        records.flush()
