"""Device mesh, sharding rules as data, and global arrays from the arrays of hosts."""

import collections
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from groupvit_jax.typing import Int, PyTree

# Timeout of processes that wait while another one compiles or evaluates.
WAITING_MILLISECONDS = 3_600_000
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Types in which gradients are summed over the devices; "auto" is that of the computation.
REDUCE_DTYPES = ("auto", "float32")
# (regex, spec): the spec holds, per dimension, an axis, several axes or None.
Rules = Iterable[tuple[str, tuple[Any, ...]]]


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh with axes `data`, `fsdp` and `tensor`.

    The network between slices (TPU slices, GPU machines) is slower than the one within, so the
    axes that communicate least cross it: `data` as far as its size allows, then `fsdp`, then
    `tensor`. `data` sums gradients once a step, `fsdp` gathers parameters in every block, `tensor`
    sums activations in every block.

    Args:
      sizes: `config.parallel.mesh`; one size may be -1, for the remaining devices.
      devices: all devices by default.

    Raises:
      ValueError: an axis is missing or unknown, the product of the sizes isn't the number of
        devices, or the slices differ in size.
    """
    if set(sizes) != set(AXES):
        raise ValueError(f"config.parallel.mesh: axes {list(sizes)} found, expected {list(AXES)}")
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(
            f"config.parallel.mesh: {dict(sizes)} found, expected sizes whose product is the "
            f"{len(devices)} devices (at most one -1 takes those that remain)"
        )
    slice_sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    laid_out = _lay_out(shape, devices, slice_sizes)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _lay_out(
    shape: Sequence[int], devices: Sequence[jax.Device], slice_sizes: Mapping[int, int]
) -> np.ndarray:
    # A side of the torus is split only if no axis of the mesh has its size. jax.make_mesh never
    # splits sides on most chips, and so finds no axis of 4 devices on a torus of 16 x 16 x 16.
    if len(slice_sizes) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if len(set(slice_sizes.values())) > 1:
        raise ValueError(
            f"devices per slice: {dict(slice_sizes)} found, expected as many in every slice"
        )
    across, left = [], len(slice_sizes)
    # Every slice is used up: their number divides the product of the sizes.
    for size in shape:
        across.append(math.gcd(size, left))
        left //= across[-1]
    within = [size // slices for size, slices in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def partition_specs(tree: PyTree, rules: Rules) -> PyTree:
    """Return for each leaf the spec of the first rule whose regex is found in its path.

    Path parts are joined by "/". The paths of an optimizer's moments end like those of their
    parameters, so the same rules shard both. A leaf with fewer dimensions than its spec is
    replicated: a rule for matrices may match vectors of the same module.

    Args:
      tree: arrays or shapes.
      rules: `config.parallel.rules`.

    Raises:
      ValueError: no rule matches a leaf.
    """
    compiled = [(re.compile(regex), spec) for regex, spec in rules]

    def spec_of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        name = _name(path)
        for regex, spec in compiled:
            if regex.search(name):
                # Whether the sizes divide is checked by `shardings`, which knows the mesh.
                fits = len(spec) <= len(leaf.shape)
                return PartitionSpec(*spec) if fits else PartitionSpec()
        raise ValueError(f"config.parallel.rules: no rule for {name}, expected one that matches")

    return jax.tree_util.tree_map_with_path(spec_of, tree)


def shardings(mesh: Mesh, specs: PyTree, tree: PyTree) -> PyTree:
    """Return the shardings of `tree` on `mesh`, one per spec.

    Args:
      mesh: the device mesh.
      specs: output of `partition_specs` for `tree`.
      tree: arrays or shapes.

    Raises:
      ValueError: a spec names an unknown axis, or its axes don't divide the dimension.
    """

    def sharding(path: tuple[Any, ...], leaf: Any, spec: PartitionSpec) -> NamedSharding:
        # A spec may be shorter than the shape: further dimensions are not sharded.
        for size, axes in zip(leaf.shape, spec, strict=False):
            _check_divides(mesh, _name(path), leaf.shape, size, axes)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree, specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first dimension over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_mesh(mesh: Mesh) -> Mesh:
    """Return a mesh with the single axis `data` over this process's devices of `mesh`."""
    # Auto axes, as everywhere here: `make_mesh` defaults to Explicit ones.
    devices = list(mesh.local_devices)
    return jax.make_mesh((len(devices),), AXES[:1], axis_types=(AxisType.Auto,), devices=devices)


def local_copies(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return copies on each device of this process, for computations without the other processes.

    Args:
      mesh: the mesh of all processes; a collective, so all of them must call it.
      tree: arrays on `mesh` with any sharding, or on the host.
    """
    sharding = replicated(local_mesh(mesh))

    def is_local_copy(leaf: Any) -> bool:
        on_device = isinstance(leaf, jax.Array)
        return on_device and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    if all(map(is_local_copy, jax.tree.leaves(tree))):
        return tree
    copies = jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))(tree)

    def keep_own(array: jax.Array) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return jax.tree.map(keep_own, copies)


def copy_to_first_process(tree: PyTree) -> PyTree:
    """Return NumPy copies of arrays in process 0 and None elsewhere; all processes must call it.

    One array at a time is gathered, so that the devices need memory for the largest one only; those
    with a copy on every device are not sent at all. Of a random key the words are returned.
    """

    def copy(leaf: jax.Array) -> np.ndarray | None:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_replicated:
            assert isinstance(leaf.sharding, NamedSharding), leaf.sharding
            leaf = jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
        # On a CPU the device's memory itself would be returned, which the next step overwrites.
        return np.array(jax.device_get(leaf.addressable_data(0))) if is_first else None

    is_first = jax.process_index() == 0
    copies = jax.tree.map(copy, tree)
    return copies if is_first else None


def wait_for_processes(key: str) -> None:
    """Wait until all processes have arrived.

    A collective alone gives up after half a minute, less than the difference between two
    processes' compile times.

    Args:
      key: name of the barrier, the same in all processes.
    """
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=WAITING_MILLISECONDS)


def by_first_process(task: Callable[[], Any]) -> Any:
    """Run a task in process 0 and return its result in every process; all processes must call it.

    Args:
      task: returns what JSON can hold.

    Raises:
      ValueError: the task's error, in every process.
    """
    if jax.process_count() == 1:
        return task()
    outcome = dict(result=None, error="")
    if jax.process_index() == 0:
        try:
            outcome["result"] = task()
        except ValueError as error:
            outcome["error"] = str(error)
    wait_for_processes("first")  # the task may take longer than a collective waits
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8).astype(np.int32)
    # All processes must broadcast arrays of one shape, and only the first knows the outcome's.
    size = int(broadcast_one_to_all(np.int32(text.size)))
    sent = broadcast_one_to_all(np.resize(text, size))
    outcome = json.loads(np.asarray(sent, np.uint8).tobytes())
    if outcome["error"]:
        raise ValueError(outcome["error"])
    return outcome["result"]


def sum_over_processes(counts: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Return the sum of all processes' int64 counts; all processes must call it."""
    if jax.process_count() == 1:
        return counts
    wait_for_processes("counted")
    # JAX has no int64 by default: send halves of 30 bits, whose sums fit int32, and join them.
    halves = np.stack([counts >> 30, counts & (2**30 - 1)]).astype(np.int32)
    high, low = np.asarray(process_allgather(halves), np.int64).sum(axis=0)
    return (high << 30) + low


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Return the number of this process's part of every batch, and the number of parts.

    Processes whose devices differ on axis `tensor` only read the same part.

    Raises:
      ValueError: the rows of two processes overlap in part.
    """
    num_shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    shards: dict[int, set[int]] = collections.defaultdict(set)
    indices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((num_shards,))
    for device, (rows,) in indices.items():
        shards[device.process_index].add(rows.indices(num_shards)[0])
    # Sorted, so that all processes number the parts alike.
    parts = sorted({tuple(sorted(part)) for part in shards.values()})
    # Parts that overlap have more rows together than the batch; ones of unequal size can't be fed.
    if sum(map(len, parts)) != num_shards or len(set(map(len, parts))) != 1:
        raise ValueError(
            f"config.parallel.mesh: {dict(mesh.shape)} found, expected sizes by which "
            f"{len(shards)} processes hold whole and equal parts of a batch"
        )
    return parts.index(tuple(sorted(shards[jax.process_index()]))), len(parts)


def to_global_batch(mesh: Mesh, host_batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return the global, sharded batch from each process's `batch_part`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in host_batch.items()
    }


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Return the sharded array of an array that every process holds in full."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless the devices and the hosts divide the global batch evenly."""
    num_shards = num_batch_shards(mesh)
    expected = math.lcm(num_shards, jax.process_count())
    if batch_size < 1 or batch_size % expected:
        raise ValueError(
            f"config.train.batch_size: {batch_size} found, expected a multiple of {expected} "
            f"({mesh.shape['data']} data x {mesh.shape['fsdp']} fsdp shards, "
            f"{jax.process_count()} hosts)"
        )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_divides(mesh: Mesh, name: str, shape: tuple[int, ...], size: int, axes: Any) -> None:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    unknown = set(axes) - set(mesh.shape)
    if unknown:
        raise ValueError(
            f"config.parallel.rules: axes {sorted(unknown)} found for {name}, expected some of "
            f"{list(mesh.shape)}"
        )
    num_shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % num_shards:
        raise ValueError(
            f"config.parallel.rules: {name} with shape {tuple(shape)} found, expected its "
            f"dimension of {size} to divide by mesh axes {'x'.join(axes)} = {num_shards}"
        )
