"""Plan of a training run on hardware you don't have: memory, work, traffic, time, needs."""

import dataclasses
import logging
from collections.abc import Sequence

import flax.linen as nn
from ml_collections import ConfigDict

from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.plan import costs, flops
from groupvit_jax.plan.collectives import Collective, find_collectives
from groupvit_jax.plan.compiling import CompiledStep, Memory, compile_step
from groupvit_jax.plan.hardware import Topology
from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.kernel_schedule import kernel_cycles
from groupvit_jax.plan.needs import Needs, needs
from groupvit_jax.plan.prediction import Prediction, exposed_seconds, predict
from groupvit_jax.plan.program import parse_program
from groupvit_jax.runs.configuration import changed
from groupvit_jax.train.setup import run_length
from groupvit_jax.train.tasks import task_of

logger = logging.getLogger(__name__)

# CC3M, CC12M and YFCC14M, the training data of the published model (arXiv 2202.11094).
PUBLISHED_EXAMPLES = 2_891_445 + 11_156_203 + 14_615_499


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least seconds that a step can take, by what limits it.

    A perfect compiler would overlap all four, so the longest is the bound; no real step reaches it.

    Attributes:
      compute: the matrix products at the peak in bfloat16.
      memory: reading and writing HBM.
      links: collectives within a slice, or within a host of GPUs.
      network: collectives between slices or hosts.
    """

    compute: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(dataclasses.astuple(self))

    @property
    def limit(self) -> str:
        """Name of the longest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True)
class StepWork:
    """Work of the compiled step, known only of a step that fits.

    Attributes:
      flops_per_image: of the matrix products that the chips compute, recomputation included.
      traffic: bytes that one chip reads from and writes to its HBM in a step.
      logits: bytes of the largest logits that one chip holds at once.
      launches: operations that one device starts in a step, on a GPU about a kernel each.
      collectives: in the program's order.
      bound: on a step.
      prediction: of one chip's own work.
      exchange_seconds: of collectives during which the chip does nothing else.
    """

    flops_per_image: float
    traffic: float
    logits: int
    launches: int
    collectives: tuple[Collective, ...]
    bound: Bound
    prediction: Prediction
    exchange_seconds: float

    @property
    def seconds(self) -> float:
        """Predicted, of a step."""
        return max(self.prediction.seconds + self.exchange_seconds, self.bound.seconds)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
      topology: its name, and the number of slices.
      num_chips: in all slices.
      mesh_shape: size of each axis by name.
      batch_size: global.
      num_steps: of the run.
      memory: of one chip.
      hand_flops: FLOPs an image of the step, counted by hand, nothing computed twice.
      useful_flops: without those spent on padding.
      peak_flops: of all chips, FLOP/s.
      program: None if the step does not fit.
      compile_seconds: wall time of tracing and compiling.
      compile_cpu_seconds: of all their threads.
      needs: of hosts, input, storage and money; None if the step does not fit.
    """

    topology: str
    num_chips: int
    mesh_shape: dict[str, int]
    batch_size: int
    num_steps: int
    memory: Memory
    hand_flops: float
    useful_flops: float
    peak_flops: float
    program: StepWork | None
    compile_seconds: float
    compile_cpu_seconds: float
    needs: Needs | None = None

    @property
    def images_per_second(self) -> float | None:
        """Predicted, of all chips."""
        return self.batch_size / self.program.seconds if self.program else None

    @property
    def most_images_per_second(self) -> float | None:
        """By the bound, of all chips."""
        return self.batch_size / self.program.bound.seconds if self.program else None

    @property
    def useful_mfu(self) -> float | None:
        """Share of the chips' peak that goes into useful FLOPs, as predicted."""
        rate = self.images_per_second
        return None if rate is None else rate * self.useful_flops / self.peak_flops

    @property
    def days(self) -> float | None:
        """Predicted, of the whole run."""
        return self.num_steps * self.program.seconds / 86400 if self.program else None

    @property
    def chip_hours(self) -> float | None:
        """Predicted, of the whole run."""
        return None if self.days is None else self.days * 24 * self.num_chips


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest global batch that fits.

    Attributes:
      batch_size: 0 if not even one example a shard does.
      memory: of one chip at that batch, as compiled.
      compiled: the batch sizes that were compiled to find it.
    """

    batch_size: int
    memory: Memory | None
    compiled: tuple[int, ...]


def make_plan(
    config: ConfigDict,
    topology: Topology,
    num_examples: int,
    price_per_chip_hour: float | None = None,
) -> Plan:
    """Compile the step of `config` for `topology` and work out a plan of the run.

    Args:
      config: the whole configuration.
      topology: from `hardware.find_topology`.
      num_examples: of an epoch, for configurations without `train.num_steps`.
      price_per_chip_hour: in any currency.

    Raises:
      ValueError: the configuration doesn't fit the topology, or the run has no step.
    """
    train = config.train
    num_steps = run_length(num_examples, train.batch_size, train.num_steps, train.num_epochs)
    if num_steps < 1:
        raise ValueError(
            f"--num_examples={num_examples}: {train.num_epochs} epochs at batch "
            f"{train.batch_size} are {num_steps} steps, expected at least 1"
        )
    step = compile_step(config, topology)
    batch_size, output_dim = train.batch_size, config.model.projector.output_dim
    hand_flops, useful_flops = count_flops(
        task_of(config).build_model(config),
        batch_size=batch_size,
        num_texts=1 + config.data.num_nouns,
        packed_length=config.data.packed_length,
    )
    plan = Plan(
        topology=str(topology),
        num_chips=topology.num_chips,
        mesh_shape=step.mesh_shape,
        batch_size=batch_size,
        num_steps=num_steps,
        memory=step.memory,
        hand_flops=hand_flops,
        useful_flops=useful_flops,
        peak_flops=topology.chip.peak_flops * topology.num_chips,
        program=_analyse(step, topology, batch_size, output_dim) if step.text else None,
        compile_seconds=step.seconds,
        compile_cpu_seconds=step.cpu_seconds,
    )
    if plan.program is None or plan.images_per_second is None or plan.chip_hours is None:
        return plan
    return dataclasses.replace(
        plan,
        needs=needs(
            hosts=topology.num_hosts,
            host_cores=topology.host_cores,
            images_per_second=plan.images_per_second,
            checkpoint_bytes=step.state_bytes,
            checkpoint_seconds=config.checkpoint.every_steps * plan.program.seconds,
            chip_hours=plan.chip_hours,
            price_per_chip_hour=price_per_chip_hour,
        ),
    )


def count_flops(
    model: nn.Module, *, batch_size: int, num_texts: int, packed_length: int
) -> tuple[float, float]:
    """Return the FLOPs an image over whole rows of text, and without padding, by hand."""
    assert isinstance(model, TwoTower | SegmentationModel)  # all that tasks build
    padded, useful = (
        flops.training_flops(model, rows=rows, num_texts=num_texts, batch_size=batch_size)
        for rows in ([packed_length], flops.useful_rows(num_texts))
    )
    return padded, useful


def find_largest_batch(config: ConfigDict, topology: Topology, first: Plan) -> LargestBatch:
    """Find the largest global batch that fits, by the line through compiled batch sizes.

    A chip's memory is nearly a line in the batch. The line through `first` and half or twice its
    batch says where it meets the available memory; that batch is compiled, and the line drawn
    again, until one fits of which the next attempt is no larger than 2 % more.

    Args:
      config: the whole configuration.
      topology: what to fit into.
      first: its plan at the configured batch.
    """
    # Batch sizes are multiples of the shards, and of the micro-batch.
    shards = first.mesh_shape["data"] * first.mesh_shape["fsdp"]
    unit = max(shards, config.train.get("micro_batch_size") or 1)
    known = {first.batch_size: first.memory}
    second = first.batch_size * 2 if first.memory.fits else first.batch_size // 2 // unit * unit
    candidate = max(second, unit)
    # At most three more programs: each takes minutes to compile.
    for _ in range(3):
        if candidate in known:
            break
        known[candidate] = compile_step(
            changed(config, {"train.batch_size": candidate}), topology
        ).memory
        candidate = _where_full({size: memory.total for size, memory in known.items()},
                                first.memory.available, unit)  # fmt: skip
        logger.info("%s: the largest batch seems to be %d", topology, candidate)
        fitting = max((size for size, memory in known.items() if memory.fits), default=0)
        if fitting <= candidate <= 1.02 * fitting:
            break
    best = max((size for size, memory in known.items() if memory.fits), default=0)
    return LargestBatch(best, known.get(best), tuple(sorted(known)))


def _where_full(totals: dict[int, float], available: float, unit: int) -> int:
    """The batch at which the line through the two points nearest to full reaches `available`."""
    nearest = sorted(totals, key=lambda size: abs(totals[size] - available))[:2]
    low, high = sorted(nearest)
    slope = (totals[high] - totals[low]) / (high - low)
    if slope <= 0:
        return max(totals)
    full = low + (available - totals[low]) / slope
    return max(int(full) // unit * unit, unit)


def _analyse(step: CompiledStep, topology: Topology, batch_size: int, output_dim: int) -> StepWork:
    program = parse_program(step.text)
    chip, num_devices = topology.chip, len(topology.devices)
    collectives = find_collectives(program, step.mesh_shape, step.slice_of)
    found = instruction_costs(program, kernel_cycles(program, topology.one_chip))
    device_flops = sum(cost.count * cost.flops for cost in found)
    traffic = sum(cost.count * cost.num_bytes for cost in found)
    return StepWork(
        flops_per_image=device_flops * num_devices / batch_size,
        traffic=float(traffic * chip.devices),
        logits=costs.logits_bytes(program, output_dim),
        launches=sum(cost.launches for cost in found),
        collectives=tuple(collectives),
        bound=bound(topology, device_flops, traffic, collectives),
        prediction=predict(found, chip),
        exchange_seconds=exposed_seconds(collectives, chip),
    )


def bound(
    topology: Topology, device_flops: int, traffic: int, collectives: Sequence[Collective]
) -> Bound:
    """Return the roofline of a step (doi:10.1145/1498765.1498785), links and network included.

    Args:
      topology: the chips.
      device_flops: of one device.
      traffic: bytes to and from one device's HBM.
      collectives: of the program.
    """
    # Figures of a chip are shared by its devices, each of which runs the program.
    chip, n = topology.chip, topology.chip.devices
    within = sum(c.sent_bytes for c in collectives if not c.crosses_slices)
    network = sum(c.network_bytes for c in collectives if c.crosses_slices)
    return Bound(
        compute=n * device_flops / chip.peak_flops,
        memory=n * traffic / chip.memory_bandwidth,
        links=n * within / chip.link_bandwidth,
        network=n * network / chip.network_bandwidth,
    )
