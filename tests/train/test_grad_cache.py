"""Micro-batches against the step in one pass, with noise of every kind."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from groupvit_jax import parallel
from groupvit_jax.models import build_model
from groupvit_jax.train import grad_cache
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.contrastive_task import make_contrastive_loss
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of
from tests.bounds import nudged
from tests.devices import first_devices
from tests.train import agreement
from tests.train.test_step import MESHES, host_batch, tiny_config

BATCH = 64
# Keeps the gradients as they are, and is quick to compile.
OPTIMIZER = optax.trace(decay=0.0)


LOSSES = {
    "published": {},
    "tokens": {"local_weight": 0.5, "identical_texts": "positives"},
    "prompts": {"local_weight": 0.5, "local_words": "prompts"},
    "methods": {
        **{"local_weight": 0.5, "local_words": "prompts", "local_seekers": "words"},
        **{"mixed_weight": 0.5, "distill_weight": 0.5, "pooled_weight": 0.5},
        "superpixel_weight": 0.5,
    },
}


@functools.cache
def parts(mesh, micro_batch_size, batch_size=BATCH, loss="published", reduce_dtype="auto"):
    """The configuration, the mesh, the state's shapes with shardings and the compiled step."""
    config = tiny_config()
    config.train.update(batch_size=batch_size, micro_batch_size=micro_batch_size)
    config.loss.update(LOSSES[loss])
    config.parallel.reduce_dtype = reduce_dtype
    config.model.image.update(depths=(2, 1), drop_path_rate=0.5)
    sizes = MESHES[mesh]
    mesh = parallel.make_mesh(sizes, first_devices(np.prod(list(sizes.values()))))
    shapes, model = task_of(config).batch_shapes(config), build_model(config.model)
    rules = config.parallel.rules
    decay = config.optimizer.ema_decay = 0.9 if config.loss.distill_weight else 0.0
    abstract = state_lib.abstract_state(model, OPTIMIZER, shapes, mesh, rules, averaged=bool(decay))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    loss_fn, groups = make_contrastive_loss(model, config, mesh), config.optimizer.groups
    step = make_train_step(loss_fn, OPTIMIZER, jnp.float32, mesh, shardings, groups, decay)
    return config, mesh, abstract, step.lower(abstract, shapes).compile()


def trained(leaf, name, rng):
    """Values of the size of trained ones: fresh ones magnify rounding a hundred times."""
    value = 0.1 * rng.normal(size=leaf.shape)
    return value + (1.0 if name.endswith(("scale", "var")) else 0.0)


@functools.cache
def result_of(mesh, micro_batch_size, loss="published", units=0, reduce_dtype="auto"):
    """Metrics, BatchNorm's statistics and gradients after a step from `units` beside."""
    config, mesh, abstract, step = parts(
        mesh, micro_batch_size, loss=loss, reduce_dtype=reduce_dtype
    )
    rng = np.random.default_rng(1)

    def value(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "key":
            return jax.device_put(jax.random.key(3), leaf.sharding)
        array = trained(leaf, name, rng) if "params" in name or "stats" in name else 0
        return jax.device_put(np.broadcast_to(array, leaf.shape).astype(leaf.dtype), leaf.sharding)

    state = jax.tree_util.tree_map_with_path(value, abstract)
    params = jax.device_put(
        nudged(state.params, units), jax.tree.map(lambda x: x.sharding, state.params)
    )
    state = state.replace(params=params)
    state, metrics = step(state, parallel.to_global_batch(mesh, host_batch(config, 0)))
    found = {"metrics": metrics, "stats": state.batch_stats, "gradients": state.opt_state.trace}
    return jax.device_get(found)


def assert_same(found, expected, moved):
    """Compares with results from parameters that are moved in their last places, too."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected["gradients"]))
    agreement.assert_leaves_agree(found, expected, moved, largest)


def whole_batch(loss="published"):
    """The result of one device in one piece, and those of moved parameters."""
    return result_of("one", None, loss), [result_of("one", None, loss, u) for u in (16, -16)]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh", "parts_of_batch"),
    [
        ("one", 4),
        ("data", 8),
        ("fsdp", 2),
        # Every mesh and every number of parts twice, each in other company.
        *(
            pytest.param(mesh, n, marks=slow)
            for mesh, n in (("one", 8), ("data", 2), ("fsdp", 8), ("tensor", 4), ("tensor", 2))
        ),
    ],
)
def test_micro_batches_give_the_step_of_the_whole_batch(mesh, parts_of_batch):
    assert_same(result_of(mesh, BATCH // parts_of_batch), *whole_batch())


@pytest.mark.parametrize(
    ("mesh", "loss"),
    [
        ("data", "tokens"),
        *(pytest.param("fsdp", loss, marks=slow) for loss in ("tokens", "prompts", "methods")),
    ],
)
def test_micro_batches_align_as_the_whole_batch(mesh, loss):
    expected, moved = whole_batch(loss)
    assert_same(result_of(mesh, BATCH // 8, loss), expected, moved)
    names = (
        ("local", "mixed", "distill", "pooled", "superpixel") if loss == "methods" else ("local",)
    )
    assert all(np.isfinite(expected["metrics"][f"{name}/loss"]) for name in names)
    # The statistics are those of images and texts, not of their parts.
    published = result_of("one", None, "published")
    jax.tree.map(np.testing.assert_array_equal, expected["stats"], published["stats"])


@pytest.mark.parametrize(
    "mesh", ["data", *(pytest.param(mesh, marks=slow) for mesh in ("fsdp", "tensor"))]
)
def test_devices_that_encode_their_own_rows_give_the_step_of_the_whole_batch(mesh):
    """With `parallel.reduce_dtype`; in float32 it changes where sums are, not their values."""
    assert_same(result_of(mesh, None, reduce_dtype="float32"), *whole_batch())


def test_noise_is_on():
    """Else the test above would not see that it is the same."""
    model = parts("one", None)[0].model.image
    assert model.assignment == "gumbel"
    assert model.drop_path_rate > 0
    assert parts("one", None)[0].data.augment.random_erasing > 0


def computations(program):
    """The lines of each computation of a compiled program, by name."""
    found, name = {}, ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def within_loops(program):
    """All lines that a loop repeats."""
    found = computations(program)
    waiting = re.findall(r"body=%?([\w.\-]+)", program)
    seen = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            called = re.findall(r"%([\w.\-]+)", "\n".join(found[name]))
            waiting += [other for other in called if other in found]
    return [line for name in seen for line in found[name]]


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_gradients_are_summed_over_the_devices_behind_the_loop(mesh):
    program = parts(mesh, BATCH // {"data": 8, "fsdp": 2}[mesh])[-1].as_text()
    collective = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
    repeated = within_loops(program)
    assert any(" dot(" in line or "custom-call" in line for line in repeated)  # the encoders
    assert not [line for line in repeated if re.search(collective, line)]
    assert re.search(collective, program)


def test_memory_follows_the_micro_batch():
    def temporary(*given):
        return parts(*given)[-1].memory_analysis().temp_size_in_bytes

    whole, quarter = temporary("one", None), temporary("one", BATCH // 4)
    assert quarter < whole / 2
    # Twice the batch in micro-batches of the same size: the features double, no activations do.
    assert temporary("one", BATCH // 4, 2 * BATCH) < 1.3 * quarter


@pytest.mark.parametrize("size", [0, 12, 24, 128])
def test_a_micro_batch_that_does_not_divide_is_named(size):
    mesh = parts("data", BATCH // 8)[1]
    expected = (
        rf"^config\.train\.micro_batch_size: {size} found, expected a divisor of "
        r"config\.train\.batch_size 64 and a multiple of 8 \(8 data x 1 fsdp shards\)$"
    )
    with pytest.raises(ValueError, match=expected):
        grad_cache.check_micro_batch_size(size, BATCH, mesh)


def test_a_micro_batch_that_divides_is_taken():
    mesh = parts("data", BATCH // 8)[1]
    for size in (None, 8, 16, 32, 64):
        grad_cache.check_micro_batch_size(size, BATCH, mesh)
