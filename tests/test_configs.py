"""Every shipped config parses, builds its model and names a sharding for every parameter."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from groupvit_jax.models import build_model
from groupvit_jax.parallel import make_mesh, partition_specs, shardings

CONFIGS = sorted(
    p.stem for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "from_json")
)


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_its_model_and_shards_it(name):
    config = load(name)
    model = build_model(config.model)
    size, context = config.model.image.image_size, config.model.text.context_length
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((1, config.data.packed_length), jnp.int32)
    ends = jax.ShapeDtypeStruct((1, 1 + config.data.num_nouns), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, text, ends)
    assert config.data.packed_length >= context
    config.parallel.mesh.update(data=1, fsdp=4, tensor=2)
    mesh = make_mesh(config.parallel.mesh.to_dict())
    params = shapes["params"]
    placed = shardings(mesh, partition_specs(params, config.parallel.rules), params)
    assert sum(not s.is_fully_replicated for s in jax.tree.leaves(placed)) > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_config_has_no_field_that_the_base_lacks(name):
    """A config may fill `data.sources` and `evaluators`; a new name elsewhere is a typo."""

    def fields(config, prefix=""):
        for key, value in config.items():
            yield prefix + key
            if hasattr(value, "items") and prefix + key not in ("data.sources", "evaluators"):
                yield from fields(value, f"{prefix}{key}.")

    assert set(fields(load(name))) == set(fields(load("base")))
