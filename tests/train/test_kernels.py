"""The whole step with fused blocks, in Pallas's interpreter, against the step without."""

import numpy as np
import pytest

from groupvit_jax.models import build_model
from groupvit_jax.models.kernels import stacks
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
    """The metrics of each step, with noise of all kinds."""
    batches = [host_batch(tiny_config(), seed) for seed in range(NUM_STEPS)]

    def train(mesh, micro_batch_size=None):
        config = tiny_config()
        config.train.micro_batch_size = micro_batch_size
        config.model.image.drop_path_rate = 0.5
        run = Run(config, MESHES[mesh], build_model(config.model))
        return [run(batch) for batch in batches]

    found = {"plain": train("one")}
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
        patch.setattr(stacks, "MOST_ROWS", 2)
        run_stack = stacks.fused_blocks.run_stack
        patch.setattr(
            stacks.fused_blocks, "run_stack", lambda *args: used.append(args) or run_stack(*args)
        )
        for name, run in KERNELS.items():
            used.clear()
            found[name] = train(*run)
            assert used, name
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_steps_are_those_of_the_plain_blocks(histories, name):
    assert histories["plain"][0]["gradient_norm"] > 0
    for key in ("loss", "gradient_norm", "update_norm", "parameter_norm"):
        found, expected = ([step[key] for step in histories[run]] for run in (name, "plain"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=key)
