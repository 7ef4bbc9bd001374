"""Where blocks are scanned and parameters sharded: what travels, and that gradients stay equal."""

import jax
import numpy as np
import pytest

from groupvit_jax import optim, parallel
from groupvit_jax.models.two_tower import build_model
from groupvit_jax.plan.collectives import find_collectives
from groupvit_jax.plan.program import parse_program
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.contrastive_task import make_contrastive_loss
from groupvit_jax.train.tasks import task_of
from tests.bounds import nudged
from tests.devices import first_devices
from tests.train.test_grad_cache import assert_same
from tests.train.test_step import MESHES, host_batch, random_variables, tiny_config

pytestmark = pytest.mark.slow

BATCH_SIZE = 64
# Neither speeds up what runs once; unoptimised code compiles faster.
FAST_COMPILATION = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "True",
}


def compiled_gradients(sizes, scan_layers):
    """Returns the mesh, the compiled gradient of the loss, the state and the batch."""
    config = tiny_config()
    config.train.batch_size = BATCH_SIZE
    config.model.scan_layers = scan_layers
    config.model.image.assignment = "soft"
    config.model.image.update(depths=(2, 2))
    config.model.text.num_layers = 2
    config.data.augment.random_erasing = 0.0
    mesh = parallel.make_mesh(sizes, first_devices(np.prod(list(sizes.values()))))
    model, shapes = build_model(config.model), task_of(config).batch_shapes(config)
    params = state_lib.abstract_params(model, shapes)
    schedule = optim.make_schedule(config.optimizer.learning_rate, 10, 2)
    state, shardings = state_lib.create_sharded_state(
        model,
        optim.make_optimizer(config.optimizer, schedule, params),
        jax.random.key(1),
        shapes,
        mesh,
        config.parallel.rules,
    )
    variables = random_variables(model, shapes)
    state = state.replace(params=jax.device_put(variables["params"], shardings.params))
    loss_of = make_contrastive_loss(model, config, mesh)
    gradients = jax.jit(
        lambda state, batch: jax.grad(lambda p: loss_of(p, state, batch)[0])(state.params),
        out_shardings=shardings.params,
    )
    batch = parallel.to_global_batch(mesh, host_batch(config, 0))
    compiled = gradients.lower(state, batch).compile(compiler_options=FAST_COMPILATION)
    return mesh, compiled, state, batch


@pytest.fixture(scope="module")
def sharded():
    return compiled_gradients(MESHES["fsdp"], scan_layers=True)


def test_gradients_are_those_of_one_device_without_a_loop(sharded):
    _, compiled, state, batch = sharded
    found = compiled(state, batch)
    _, compiled, state, batch = compiled_gradients(MESHES["one"], scan_layers=False)
    near = [state.replace(params=nudged(state.params, units)) for units in (16, -16)]
    expected, *moved = ({"gradients": compiled(each, batch)} for each in (state, *near))
    assert_same({"gradients": found}, expected, moved)


def test_parameters_travel_over_fsdp_and_activations_do_not(sharded):
    mesh, compiled, state, _ = sharded
    program = parse_program(compiled.as_text())
    found = find_collectives(program, dict(mesh.shape), [0] * mesh.size)
    in_loops = [each for each in found if each.in_loop]
    kernels = jax.tree.leaves(state.params["image_encoder"]["stages_0"]["blocks_0"])
    of_a_block = sum(leaf.nbytes for leaf in kernels if leaf.ndim == 2)
    # Two stages of the image tower and the text tower, all of one width: three loops and their
    # reverse.
    gathered = [each for each in in_loops if each.kind == "all-gather"]
    assert gathered
    assert {each.axes for each in gathered} == {"fsdp"}
    assert max(each.num_bytes for each in gathered) < of_a_block
    # XLA for CPUs has no reduce-scatter: gradients are summed whole, and cut.
    summed = [each for each in in_loops if each.kind == "all-reduce" and each.axes == "fsdp"]
    assert [each.num_bytes for each in summed] == [of_a_block] * 3
    assert not [each for each in found if each.kind == "all-to-all"]
