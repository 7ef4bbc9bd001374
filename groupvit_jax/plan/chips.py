"""Published figures of accelerators: TPUs here, GPUs in a file each.

TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), system architecture and machine types of
each. Size of the matrix units, bandwidth of the data-centre network per chip: "How to Scale Your
Model", jax-ml.github.io/scaling-book. GPUs: `gpus/*.toml` name their sources.
"""

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

GB, GIB = 1e9, 2.0**30
_GPUS = Path(__file__).parent / "gpus"
# JAX's default; the rest is left to libraries, fragmentation and other programs.
_MEMORY_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU's description for the CUDA compiler.

    Attributes:
      name: the driver's.
      compute_capability: e.g. "9.0".
      multiprocessors: streaming multiprocessors of the GPU.
      fp32_lanes: float32 units of a multiprocessor.
      clock_ghz: at most.
      memory_bytes: of the whole GPU.
      memory_bandwidth: bytes/s.
      l2_bytes: of the level 2 cache.
      shared_memory: bytes of a multiprocessor.
      shared_memory_per_block: bytes that a block can ask for.
      host_gpus: GPUs of a host.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    fp32_lanes: int
    clock_ghz: float
    memory_bytes: float
    memory_bandwidth: float
    l2_bytes: int
    shared_memory: int
    shared_memory_per_block: int
    host_gpus: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      kind: first part of a topology's name.
      peak_flops: dense bfloat16, FLOP/s.
      memory_bytes: of HBM that a program can use; the runtime keeps the rest.
      memory_bandwidth: of HBM, bytes/s.
      link_bandwidth: at which a chip sends over all its links within a slice, or a host of GPUs,
        bytes/s: half of the published bidirectional figure.
      network_bandwidth: at which a chip sends between slices or hosts, bytes/s.
      devices: JAX devices of a chip; the figures above are of the whole chip.
      host_cores: virtual cores of a cloud's host for each of its chips; 0 if unknown.
      multiply_adds: of the matrix units in a cycle; 0 if unknown.
      gpu: more about a GPU; None of a TPU.
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
    gpu: Gpu | None = None

    @property
    def clock_rate(self) -> float:
        """Cycles a second of the matrix units, from their size and peak; 0 if unknown."""
        return self.peak_flops / (2 * self.multiply_adds) if self.multiply_adds else 0.0


# Peak FLOP/s, HBM and its bandwidth, links, network, devices of a chip, host cores, multiply-adds.
TPUS = {
    chip.kind: chip
    for chip in (
        Chip("v4", 275e12, 2 * 15.25 * GIB, 1228 * GB, 300 * GB, 6.25 * GB, 2, 60.0, 8 * 128**2),
        Chip("v5e", 197e12, 15.75 * GIB, 819 * GB, 200 * GB, 3.125 * GB, 1, 28.0, 4 * 128**2),
        Chip("v5p", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB, 6.25 * GB, 1, 52.0, 8 * 128**2),
        Chip("v6e", 918e12, 31.25 * GIB, 1640 * GB, 400 * GB, 12.5 * GB, 1, 45.0, 4 * 256**2),
        Chip("tpu7x", 2307e12, 2 * 94.75 * GIB, 7380 * GB, 600 * GB, 12.5 * GB, 2, 56.0),
    )
}
GPUS = tuple(sorted(path.stem for path in _GPUS.glob("*.toml")))


def read_gpu(kind: str) -> Chip:
    """Read the description of a GPU.

    Args:
      kind: one of `GPUS`, or the path of a file like those in `gpus/`.

    Raises:
      ValueError: the file can't be read, or a field is missing, unknown or of a wrong type.
    """
    path = _GPUS / f"{kind}.toml" if kind in GPUS else Path(kind)
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{kind}: {error} found, expected a GPU's description in TOML") from error
    own = {field.name for field in dataclasses.fields(Gpu)}
    shared = {"peak_flops", "memory_bytes", "memory_bandwidth", "link_bandwidth",
              "network_bandwidth", "host_cores"}  # fmt: skip
    if wrong := (own | shared) ^ set(values):
        expected = ", ".join(sorted(own | shared))
        raise ValueError(f"{kind}: {min(wrong)} missing or unknown, expected {expected}")
    gpu = Gpu(**{field.name: _typed(kind, field, values) for field in dataclasses.fields(Gpu)})
    rates = {field.name: _typed(kind, field, values)
             for field in dataclasses.fields(Chip) if field.name in shared}  # fmt: skip
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _MEMORY_FRACTION))
    rates["memory_bytes"] *= fraction
    return Chip(kind=path.stem, gpu=gpu, **rates)


def _typed(kind: str, field: dataclasses.Field[Any], values: dict[str, Any]) -> Any:
    value = values[field.name]
    expected = next(known for known in (int, float, str) if field.type is known)
    accepted = (int, float) if expected is float else (expected,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ValueError(f"{kind}: {field.name} = {value!r} found, expected {expected.__name__}")
    return expected(value)
