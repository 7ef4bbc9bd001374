"""The folder of a sweep: creating it, resuming it, and the logs of its trials.

`groupvit_jax.runs.sweep_files` knows the files that record the sweep and how far each trial is.
"""

import datetime
from pathlib import Path

from groupvit_jax.runs import sweep_files
from groupvit_jax.runs.layout import SWEEP_FILE, TRIAL_LOG_FILE
from groupvit_jax.runs.sweep_files import Record, Sweep
from groupvit_jax.sweep.trials import command_of, override_label

# The first characters of the line that each attempt adds to a trial's log before its output.
ATTEMPT = "--- attempt "


def create(folder: Path, sweep: Sweep, name: str = "") -> None:
    """Write the sweep, and a workdir with a pending record for each trial that has none.

    Args:
      folder: the sweep's folder.
      sweep: the sweep.
      name: of the folder for commands, where it is a copy of one on a bucket.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep_files.write_sweep(folder, sweep)
    for trial in sweep.trials:
        workdir = folder / trial.folder
        workdir.mkdir(exist_ok=True)
        if not sweep_files.is_trial(workdir):
            command = tuple(command_of(sweep, trial, name or folder))
            sweep_files.write_record(workdir, Record(trial.id, trial.overrides, command))


def check_same_sweep(folder: Path | str, old: Sweep, new: Sweep) -> None:
    """Raise ValueError if trials of `old` have changed; trials may be added at the end.

    Folders are named by number: a changed trial would resume from the checkpoints of another one.
    """
    for i, before in enumerate(old.trials):
        after = new.trials[i] if i < len(new.trials) else None
        if after == before:
            continue
        if after is None:
            found = "not there any more"
        elif after.overrides == before.overrides:
            found = "the same with other values in its base configuration"
        else:
            found = override_label(after.overrides)
        raise ValueError(
            f"{folder}/{SWEEP_FILE}: trial {before.id} was {override_label(before.overrides)} and "
            f"is now {found}, expected the same trials (more may follow) or another --output"
        )


def log_tail(workdir: Path, lines: int = 8) -> list[str]:
    """Return the last lines of a trial's last attempt, its error as the very last.

    The error may not be last in the file: threads that read ahead still log while the process ends.
    """
    path = workdir / TRIAL_LOG_FILE
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    begun = max((i for i, line in enumerate(text) if line.startswith(ATTEMPT)), default=-1)
    text = text[begun + 1 :]
    error = [line for line in text if line.startswith("error: ")][-1:]
    return [line for line in text[-lines:] if line not in error] + error


def now() -> str:
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
