"""Whether a run may use a workdir, and what it says when it no longer can."""

import uuid
from pathlib import Path


class WorkdirError(RuntimeError):
    """Raised when a run can't write to its workdir: a full disk, a lost mount, a removed folder."""

    def __init__(self, path: Path | str, what: str, error: Exception) -> None:
        """Take the path, what could not be written there, and why."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        super().__init__(
            f"{path}: {what} could not be written ({' '.join(str(reason).split())}); what was "
            "saved before is untouched, and the same command resumes from it once there is space"
        )


def check_writable(workdir: Path, flag: str = "--workdir") -> None:
    """Create `workdir` and a file in it, and remove the file again.

    Trying is the only reliable test: permission bits say nothing about quotas, read-only mounts or
    root squashing.

    Args:
      workdir: the folder.
      flag: the flag that names it, for the error message.

    Raises:
      ValueError: the folder or the file can't be created.
    """
    probe = workdir / f".probe-{uuid.uuid4().hex}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{flag}={workdir}: not writable ({error.strerror}), expected a folder that this "
            "user may create and write to"
        ) from error
