"""Hosts, input, storage and money that a planned run needs besides accelerators."""

import dataclasses

# Images a second and core, and bytes an image, by the kind of shards: measured with
# `python -m benchmarks.input` on a busy virtual machine of two cores (docs/input.md).
SHARDS = {
    "raw, from img2dataset": (323.0, 91_000),
    "prepared, JPEG": (762.0, 29_000),
    "prepared, pixels": (1246.0, 276_000),
}


@dataclasses.dataclass(frozen=True)
class Input:
    """Cores and bandwidth to feed one host from one kind of shards.

    Attributes:
      shards: kind of the shards.
      cores: of the host, busy with decoding and augmentation.
      bytes_per_second: that all hosts together read from storage.
    """

    shards: str
    cores: float
    bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Needs:
    """Requirements of a run besides its chips.

    Attributes:
      hosts: machines that hold the chips.
      images_per_second: that each host must deliver.
      host_cores: virtual cores that a cloud's host of these chips has; 0 if unknown.
      inputs: what that takes, by the kind of shards.
      checkpoint_bytes: of one checkpoint, without compression.
      checkpoint_seconds: between two of them.
      cost: of the whole run; None without a price.
    """

    hosts: int
    images_per_second: float
    host_cores: float
    inputs: tuple[Input, ...]
    checkpoint_bytes: float
    checkpoint_seconds: float
    cost: float | None

    @property
    def too_slow(self) -> tuple[str, ...]:
        """Kinds of shards from which the hosts' cores can't deliver the images in time."""
        if not self.host_cores:
            return ()
        return tuple(i.shards for i in self.inputs if i.cores > self.host_cores)


def needs(
    *,
    hosts: int,
    host_cores: float,
    images_per_second: float,
    checkpoint_bytes: float,
    checkpoint_seconds: float,
    chip_hours: float,
    price_per_chip_hour: float | None,
) -> Needs:
    """Return what a run at a given speed needs.

    Args:
      hosts: machines that hold the chips.
      host_cores: virtual cores of each; 0 if unknown.
      images_per_second: of all chips.
      checkpoint_bytes: of one checkpoint.
      checkpoint_seconds: between two of them.
      chip_hours: of the whole run.
      price_per_chip_hour: in any currency; None if not known.
    """
    per_host = images_per_second / hosts
    return Needs(
        hosts=hosts,
        images_per_second=per_host,
        host_cores=host_cores,
        inputs=tuple(
            Input(shards, per_host / per_core, images_per_second * num_bytes)
            for shards, (per_core, num_bytes) in SHARDS.items()
        ),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_seconds=checkpoint_seconds,
        cost=None if price_per_chip_hour is None else chip_hours * price_per_chip_hour,
    )
