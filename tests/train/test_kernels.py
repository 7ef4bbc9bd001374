"""The whole step with fused blocks, in Pallas's interpreter, against the step without."""

import numpy as np
import pytest

from groupvit_jax.models import build_model
from groupvit_jax.models.kernels import stacks
from tests.train import agreement
from tests.train.test_step import MESHES, Run, host_batch, tiny_config

pytestmark = pytest.mark.slow  # five steps to compile, four of them with kernels

NUM_STEPS = 5
# (mesh, size of micro-batches) of a batch of 16
KERNELS = {
    "one device": ("one", None),
    "8 devices": ("fsdp", None),
    "quarters": ("one", 4),
    "halves on 8 devices": ("data", 8),
}


@pytest.fixture(scope="module")
def histories():
    """The metrics of each step, with noise of all kinds, all from the states of the plain run.

    On their own, runs drift apart: Adam divides rounding by itself where a gradient is zero.
    """
    batches = [host_batch(tiny_config(), seed) for seed in range(NUM_STEPS)]

    def make_run(mesh, micro_batch_size=None):
        config = tiny_config()
        config.train.micro_batch_size = micro_batch_size
        config.model.image.drop_path_rate = 0.5
        return Run(config, MESHES[mesh], build_model(config.model))

    states, plain, bounds = agreement.record(make_run("one"), batches)
    found = {"plain": plain, "bounds": bounds}
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
        patch.setattr(stacks, "MOST_ROWS", 2)
        run_stack = stacks.fused_blocks.run_stack
        patch.setattr(
            stacks.fused_blocks, "run_stack", lambda *args: used.append(args) or run_stack(*args)
        )
        for name, settings in KERNELS.items():
            used.clear()
            run, found[name] = make_run(*settings), []
            for state, batch in zip(states, batches, strict=True):
                run.state = agreement.place(run, state)
                found[name].append(run(batch))
            assert used, name
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_steps_are_those_of_the_plain_blocks(histories, name):
    assert histories["plain"][0]["gradient_norm"] > 0
    plain, bounds = histories["plain"], histories["bounds"]
    names = ("loss", "global/loss", "multi_label/loss")
    agreement.assert_steps_agree(histories[name], plain, bounds, names)
    norms = [step["gradient_norm"] for step in plain]
    moved = [bound["gradient_norm"] for bound in bounds]
    for step, (metrics, norm, bound) in enumerate(zip(histories[name], norms, moved, strict=True)):
        np.testing.assert_allclose(
            metrics["gradient_norm"], norm, rtol=1e-5, atol=bound, err_msg=f"step {step}"
        )
    assert np.median(np.divide(moved, norms)) < 1e-3
