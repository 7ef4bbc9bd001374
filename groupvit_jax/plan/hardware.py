"""Published figures of accelerators, and descriptions of machines that aren't there.

TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), system architecture of each. Bandwidth of
the data-centre network per chip: "How to Scale Your Model", jax-ml.github.io/scaling-book.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

GB, GIB = 1e9, 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      kind: what a topology's name begins with.
      peak_flops: dense bfloat16, FLOP/s.
      memory_bytes: of HBM that a program can use; the runtime keeps the rest.
      memory_bandwidth: of HBM, bytes/s.
      link_bandwidth: that a chip sends with, over all its links within a slice, bytes/s: half of
        what is published as bidirectional.
      network_bandwidth: that a chip sends with between slices, bytes/s.
      devices: JAX devices of a chip; the figures above are of the whole chip.
      host_cores: virtual cores of the cloud's hosts for each of their chips; 0 if unknown.
      multiply_adds: of its matrix units in a cycle; 0 if they are not published.
    """

    kind: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    devices: int = 1
    host_cores: float = 0.0
    multiply_adds: int = 0

    @property
    def clock_rate(self) -> float:
        """Cycles a second of the matrix units, from their size and peak; 0 if unknown."""
        return self.peak_flops / (2 * self.multiply_adds) if self.multiply_adds else 0.0


CHIPS = {
    chip.kind: chip
    for chip in (
        Chip(
            "v4", 275e12, 2 * 15.25 * GIB, 1228 * GB, 300 * GB, 6.25 * GB, 2, 60.0, 2 * 4 * 128**2
        ),
        Chip("v5e", 197e12, 15.75 * GIB, 819 * GB, 200 * GB, 3.125 * GB, 1, 28.0, 4 * 128**2),
        Chip("v5p", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB, 6.25 * GB, 1, 52.0, 2 * 4 * 128**2),
        Chip("v6e", 918e12, 31.25 * GIB, 1640 * GB, 400 * GB, 12.5 * GB, 1, 45.0, 4 * 256**2),
        Chip("tpu7x", 2307e12, 2 * 94.75 * GIB, 7380 * GB, 600 * GB, 12.5 * GB, 2, 56.0),
    )
}
EXAMPLES = "v5e:16x16, v6e:16x16, v5p:16x16x16, tpu7x:4x4x4 or v5e:1x1"
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is locked, for no chip is used
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are connected.

    Attributes:
      name: such as "v5e:16x16".
      num_slices: how many of these the network joins.
      chip: what it is made of.
      num_chips: in all slices.
      devices: descriptions that meshes can be made of; nothing can run on them.
    """

    name: str
    num_slices: int
    chip: Chip
    num_chips: int
    devices: tuple[jax.Device, ...]

    @property
    def num_hosts(self) -> int:
        """Machines that hold the chips, each a process of JAX."""
        return len({device.process_index for device in self.devices})

    @property
    def host_cores(self) -> float:
        """Virtual cores of each host; 0 if unknown."""
        return self.chip.host_cores * self.num_chips / self.num_hosts

    @property
    def one_chip(self) -> str:
        """Name of the topology of a single chip of this kind."""
        sides = self.name.count("x") + 1
        return f"{self.chip.kind}:{'x'.join(['1'] * sides)}"

    def __str__(self) -> str:
        return self.name if self.num_slices == 1 else f"{self.num_slices} x {self.name}"


def describe(name: str, num_slices: int = 1) -> Topology:
    """Returns the topology of a name such as "v5e:16x16".

    Args:
      name: kind of chip and the chips along each dimension.
      num_slices: how many such slices.

    Raises:
      ValueError: the name is unknown, XLA has no such topology, or libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        if name.split(":")[0].lower() in ("gpu", "cuda", "h100", "h200", "a100"):
            raise ValueError(
                f"--topology={name}: a GPU found, expected TPUs ({EXAMPLES}): JAX has no "
                "descriptions of GPUs that aren't there"
            )
        raise ValueError(
            f"--topology={name}: unknown, expected one of {', '.join(CHIPS)} and its chips along "
            f"each dimension, e.g. {EXAMPLES}"
        )
    if num_slices < 1:
        raise ValueError(f"--num_slices={num_slices}: expected at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name}: libtpu is not installed, expected the extra 'tpu' "
            "(pip install -e '.[tpu]'); it compiles on any machine"
        )
    sides = [int(side) for side in match[2].split("x")]
    devices = _topology_devices(name, sides, num_slices)
    chip = CHIPS[match[1]]
    return Topology(name, num_slices, chip, len(devices) // chip.devices, tuple(devices))


def _topology_devices(name: str, sides: Sequence[int], num_slices: int) -> Sequence[jax.Device]:
    options: dict[str, object] = {"num_slices": num_slices} if num_slices > 1 else {}
    if set(sides) == {1}:  # one chip is less than a host holds
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _libtpu_environment():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=name, **options
            ).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(
            f"--topology={name}: {first_line} found, expected e.g. {EXAMPLES}"
        ) from error


@contextlib.contextmanager
def _libtpu_environment() -> Iterator[None]:
    """Keeps libtpu, which reads them as it loads, from looking for chips of this machine."""
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
