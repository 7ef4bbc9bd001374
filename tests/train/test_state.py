import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs import tiny
from groupvit_jax import optim, parallel
from groupvit_jax.models.two_tower import build_model
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.tasks import task_of
from tests.devices import first_devices

MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 2, "fsdp": 4, "tensor": 1},
    "tensor": {"data": 4, "fsdp": 1, "tensor": 2},
}


@pytest.fixture(scope="module")
def setup():
    config = tiny.get_config()
    config.model.text.update(vocab_size=64, end_of_text_id=63, num_layers=1)
    model = build_model(config.model)
    shapes = task_of(config).batch_shapes(config)
    schedule = optim.make_schedule(config.optimizer.learning_rate, 20, 2)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    return config, model, optimizer, shapes


@pytest.fixture(scope="module")
def states(setup):
    config, model, optimizer, shapes = setup

    def create(sizes):
        mesh = parallel.make_mesh(sizes, first_devices(np.prod(list(sizes.values()))))
        key = jax.random.key(3)
        return state_lib.create_sharded_state(
            model, optimizer, key, shapes, mesh, config.parallel.rules
        )

    return {name: create(sizes) for name, sizes in MESHES.items()}


def test_batch_shapes(setup):
    shapes = setup[3]
    assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == {
        "image": ((16, 32, 32, 3), jnp.uint8),
        "text": ((16, 64), jnp.int32),
        "text_ends": ((16, 4), jnp.int32),
        "text_ids": ((16, 4), jnp.int32),
        "text_overflow": ((16,), jnp.int32),
        "index": ((16,), jnp.int32),
    }


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def axes_of(entry):
    return (entry,) if isinstance(entry, str) else entry or ()


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_every_leaf_has_the_sharding_its_rule_names(setup, states, name):
    config, state = setup[0], states[name][0]
    split = set()
    for path, leaf in leaves(state).items():
        spec = next(spec for regex, spec in config.parallel.rules if re.search(regex, path))
        wanted = P(*spec) if len(spec) <= leaf.ndim else P()
        assert leaf.sharding.spec == wanted, path
        expected = [
            size // np.prod([MESHES[name][axis] for axis in axes_of(entry)], dtype=int)
            for size, entry in zip(leaf.shape, (*wanted, *[()] * leaf.ndim), strict=False)
        ]
        assert leaf.addressable_shards[0].data.shape == tuple(expected), path
        if expected != list(leaf.shape):
            split.add(path)
    assert any(p.startswith("params/image_encoder") and "attn/qkv/kernel" in p for p in split)
    for moment in ("mu", "nu"):
        assert any(f"/{moment}/text_encoder/token_embedding" in p for p in split)


def test_moments_lie_beside_their_parameters(states):
    for state, _ in states.values():
        adam = optax.tree.get(state.opt_state, "ScaleByAdamState")
        for moments in (adam.mu, adam.nu):
            assert jax.tree.all(
                jax.tree.map(lambda p, m: p.sharding == m.sharding, state.params, moments)
            )


def test_shardings_are_those_of_the_state(states):
    for state, shardings in states.values():
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, shardings))


def test_initial_values_do_not_depend_on_the_mesh(states):
    # What this and the noise of every step rely on.
    assert jax.config.jax_threefry_partitionable
    expected = leaves(states["one"][0])
    for name in ("fsdp", "tensor"):
        for path, leaf in leaves(states[name][0]).items():
            if path == "key":
                leaf, expected[path] = jax.random.key_data(leaf), jax.random.key_data(leaf)
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_seed_decides_the_values(setup):
    _, model, optimizer, shapes = setup

    # One leaf only, which is quick to compile.
    @jax.jit
    def create(key):
        state = state_lib.init_state(model, optimizer, key, shapes)
        return state.replace(params=state.params["image_projector"], opt_state=())

    one, other = create(jax.random.key(3)), create(jax.random.key(4))
    kernels = [state.params["linear_out"]["kernel"] for state in (one, other)]
    assert not np.array_equal(*kernels)
    assert one.key != other.key
    assert one.step == 0


def test_abstract_state_is_the_states_shape(setup, states):
    config, model, optimizer, shapes = setup
    mesh = parallel.make_mesh(MESHES["fsdp"])
    abstract = state_lib.abstract_state(model, optimizer, shapes, mesh, config.parallel.rules)
    same = jax.tree.map(
        lambda a, x: (a.shape, a.dtype, a.sharding) == (x.shape, x.dtype, x.sharding),
        abstract,
        states["fsdp"][0],
    )
    assert jax.tree.all(same)


def test_rule_that_does_not_divide_names_the_parameter(setup):
    _, model, optimizer, shapes = setup
    mesh = parallel.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    rules = ((r"stages_1/group_token", (None, "fsdp")), (r".*", ()))
    with pytest.raises(
        ValueError, match=r"params/image_encoder/stages_1/group_token .*\(1, 4, 32\)"
    ):
        state_lib.create_sharded_state(model, optimizer, jax.random.key(0), shapes, mesh, rules)
