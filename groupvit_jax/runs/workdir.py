"""Whether a run may use a workdir."""

import uuid
from pathlib import Path


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
