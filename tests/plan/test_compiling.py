import importlib.util

import jax
import numpy as np
import pytest

from configs import tiny
from groupvit_jax import parallel
from groupvit_jax.plan.compiling import compile_step, lower_step, needed_bytes
from groupvit_jax.plan.hardware import find_topology
from groupvit_jax.plan.instructions import instruction_costs
from groupvit_jax.plan.plan import make_plan
from groupvit_jax.plan.prediction import predict
from groupvit_jax.plan.program import parse_program
from groupvit_jax.train.tasks import task_of
from tests.devices import first_devices
from tests.plan.machines import host


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (512.00G) exceeds available HBM (15.75G).",
            512 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.05G of 15.75G hbm. Exceeded hbm capacity by 4.30G.",
            20.05 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: something else", None),
        ("INVALID_ARGUMENT: Used 20.05G of 15.75G hbm", None),
    ],
)
def test_messages_of_full_memory(message, expected):
    assert needed_bytes(message) == expected


def test_what_a_chip_holds_is_what_a_run_allocates():
    config = tiny.get_config()
    config.parallel.mesh.update(data=2, fsdp=2)
    memory = compile_step(config, host(4)).memory
    mesh = parallel.make_mesh(config.parallel.mesh.to_dict(), first_devices(4))
    shapes = task_of(config).batch_shapes(config)
    batch = parallel.to_global_batch(
        mesh, {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    )
    held = sum(array.addressable_shards[0].data.nbytes for array in batch.values())
    assert memory.batch == held
    whole = compile_step(tiny.get_config(), host(1)).memory
    # Three quarters of the parameters are split in two: those are the matrices.
    assert 0.45 * whole.parameters < memory.parameters < 0.75 * whole.parameters
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=0.01)
    assert memory.activations > 0
    assert memory.fits


def test_batch_that_does_not_divide():
    config = tiny.get_config()
    config.train.batch_size = 18
    with pytest.raises(ValueError, match=r"batch_size: 18 found, expected a multiple of 4"):
        compile_step(config, host(4))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)
def test_a_step_for_tpus():
    config = tiny.get_config()
    config.model.kernels = "plain"  # fused blocks compute their forward pass twice
    plan = make_plan(config, find_topology("v5e:2x2"), 1000)
    assert plan.memory.fits
    assert plan.program.flops_per_image == pytest.approx(plan.hand_flops, rel=0.05)
    reduced = sum(c.num_bytes for c in plan.program.collectives if c.purpose == "gradients")
    assert reduced >= 0.95 * plan.memory.parameters
    assert {c.axes for c in plan.program.collectives} == {"data"}
    assert 0 < plan.program.logits <= 4 * 16 * 48
    # Nearly all of the time comes from the cycles of the compiler.
    assert plan.program.prediction.estimated > 0.9
    assert plan.program.seconds > plan.program.bound.seconds


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra 'tpu') is not installed"
)
def test_a_product_for_tpus():
    """Counted by hand: a large product reads two matrices, writes one and keeps the units busy."""
    topology = find_topology("v5e:1x1")
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    n = 4096
    matrix = jax.ShapeDtypeStruct((n, n), "bfloat16", sharding=sharding)
    text = jax.jit(lambda x, y: x @ y).lower(matrix, matrix).compile().as_text()
    costs = instruction_costs(parse_program(text))
    assert sum(cost.flops for cost in costs) == 2 * n**3
    assert sum(cost.num_bytes for cost in costs) == pytest.approx(3 * 2 * n * n, rel=0.01)
    prediction = predict(costs, topology.chip)
    assert prediction.estimated == pytest.approx(1.0)
    assert prediction.matrix_seconds < prediction.seconds < 1.3 * prediction.matrix_seconds


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA plugin (the extra 'cuda') is not installed",
)
def test_a_step_for_gpus():
    config = tiny.get_config()
    topology = find_topology("h100:2x2")
    plan = make_plan(config, topology, 1000)
    lowered, *_ = lower_step(config, topology)
    analysis = lowered.compile({"xla_gpu_enable_triton_gemm": False}).memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    held += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    assert plan.memory.total == pytest.approx(held, rel=0.01)
    assert plan.memory.fits
    # Products by cuBLAS are counted too.
    assert plan.program.flops_per_image == pytest.approx(plan.hand_flops, rel=0.05)
    reduced = [c for c in plan.program.collectives if c.purpose == "gradients"]
    assert {(c.axes, c.crosses_slices, c.lanes) for c in reduced} == {("data", True, 2)}
    assert plan.program.prediction.estimated == 0
    assert plan.needs.hosts == 2
