"""Descriptions of machines you don't have, for the compiler."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from groupvit_jax.plan.chips import GPUS, TPUS, Chip, Gpu, read_gpu

EXAMPLES = "v5e:16x16, v6e:16x16, v5p:16x16x16, tpu7x:4x4x4, v5e:1x1, h100:8 or h100:8x8"
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is locked, for no chip is used
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and their connections.

    Attributes:
      name: such as "v5e:16x16".
      num_slices: number of them that the network joins.
      chip: the kind of chip.
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
        """Name of the topology of a single chip of this kind of TPU."""
        sides = self.name.rpartition(":")[2].count("x") + 1
        return f"{self.chip.kind}:{'x'.join(['1'] * sides)}"

    def island_of(self, device: jax.Device) -> int:
        """Return the number of the slice, or of the host of GPUs, within which links are fast."""
        if self.chip.gpu:
            return device.process_index
        return getattr(device, "slice_index", None) or 0

    def __str__(self) -> str:
        return self.name if self.num_slices == 1 else f"{self.num_slices} x {self.name}"


def find_topology(name: str, num_slices: int = 1) -> Topology:
    """Return the topology of a name such as "v5e:16x16" or "h100:8x8".

    Args:
      name: kind of chip and the TPUs along each dimension, or the GPUs of one host, or the hosts
        and the GPUs of each. In place of a kind, the path of a GPU's description.
      num_slices: number of such slices of TPUs.

    Raises:
      ValueError: the name is unknown, XLA has no such topology, or the compiler is not installed.
    """
    kind, _, shape = name.rpartition(":")
    is_gpu = kind in GPUS or kind.endswith(".toml")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or not (is_gpu or kind in TPUS):
        raise ValueError(
            f"--topology={name}: unknown, expected one of {', '.join((*TPUS, *GPUS))} or the path "
            "of a GPU's description (.toml), and its chips along each dimension, e.g. "
            f"{EXAMPLES}"
        )
    if num_slices < 1:
        raise ValueError(f"--num_slices={num_slices}: expected at least 1")
    sides = [int(side) for side in shape.split("x")]
    if is_gpu:
        return _gpus(name, kind, sides, num_slices)
    _check_installed(name, ("libtpu",), "tpu")
    devices = _tpu_devices(name, sides, num_slices)
    chip = TPUS[kind]
    return Topology(name, num_slices, chip, len(devices) // chip.devices, tuple(devices))


def _check_installed(name: str, modules: Sequence[str], extra: str) -> None:
    if all(importlib.util.find_spec(module) is None for module in modules):
        raise ValueError(
            f"--topology={name}: {modules[0]} is not installed, expected the extra '{extra}' "
            f"(pip install -e '.[{extra}]'); it compiles on any machine"
        )


def _tpu_devices(name: str, sides: Sequence[int], num_slices: int) -> Sequence[jax.Device]:
    options: dict[str, object] = {"num_slices": num_slices} if num_slices > 1 else {}
    if set(sides) == {1}:  # one chip is less than a host holds
        options["chips_per_host_bounds"] = (1, 1, 1)
    with _libtpu_environment():
        return _devices(name, platform="tpu", topology_name=name, **options)


def _devices(name: str, **description: Any) -> Sequence[jax.Device]:
    try:
        return topologies.get_topology_desc(**description).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(
            f"--topology={name}: {first_line} found, expected e.g. {EXAMPLES}"
        ) from error


def _gpus(name: str, kind: str, sides: Sequence[int], num_slices: int) -> Topology:
    chip = read_gpu(kind)
    assert chip.gpu is not None
    if num_slices > 1:
        raise ValueError(f"--num_slices={num_slices}: expected 1 with GPUs; give hosts x GPUs")
    hosts, gpus = (1, *sides) if len(sides) == 1 else sides if len(sides) == 2 else (0, 0)
    if not 1 <= gpus <= chip.gpu.host_gpus or hosts < 1:
        raise ValueError(
            f"--topology={name}: expected hosts x GPUs of each, at most {chip.gpu.host_gpus}, or "
            f"the GPUs of one host, e.g. {chip.kind}:4 or {chip.kind}:8x{chip.gpu.host_gpus}"
        )
    _check_installed(name, ("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda")
    devices = _devices(
        name,
        platform="cuda",
        topology_name=chip.kind,
        target_config=target_config(chip.gpu),
        topology=f"1x{hosts}x{gpus}",
    )
    return Topology(name, 1, chip, len(devices), tuple(devices))


def target_config(gpu: Gpu) -> str:
    """Return XLA's description of a GPU, a `GpuTargetConfigProto` in text form.

    The limits of threads, blocks and registers are those of every compute capability from 8.0 on
    (CUDA C++ Programming Guide, "Compute Capabilities").
    """
    major, _, minor = gpu.compute_capability.partition(".")
    return f"""\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  threads_per_core_limit: 2048
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.fp32_lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.memory_bandwidth:.0f}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


@contextlib.contextmanager
def _libtpu_environment() -> Iterator[None]:
    """Keep libtpu, which reads them as it loads, from looking for chips of this machine."""
    # A user's own settings win, and stay afterwards.
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
