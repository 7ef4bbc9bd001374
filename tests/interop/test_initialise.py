import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from groupvit_jax.interop import initialise_from
from groupvit_jax.interop.layout import flatten
from groupvit_jax.interop.original import write_original
from groupvit_jax.interop.save import save_pretrained
from tests.devices import first_devices
from tests.interop import weights

POSITIONS = "params/image_encoder/position_embedding"
TEXT_POSITIONS = "params/text_encoder/position_embedding"


@pytest.fixture
def path(small, tmp_path):
    save_pretrained(tmp_path / "export", small, "safetensors")
    return tmp_path / "export"


def start(path, config, seed=1):
    """Another random model of a configuration, started from a file."""
    own = jax.tree.map(jnp.asarray, weights.random_pretrained(config, seed).variables)
    params, batch_stats, report = initialise_from(path, own["params"], own["batch_stats"], config)
    return flatten({"params": params, "batch_stats": batch_stats}), flatten(own), report


def test_the_same_model_is_loaded_whole(path, small):
    found, _, report = start(path, small.model_config)
    expected = weights.flat(small)
    assert found.keys() == expected.keys() == set(report.loaded)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    counts = f"{len(expected)} loaded, 0 resized, 0 left at initialisation, 0 unused"
    assert report.lines() == [counts]


def test_another_resolution_and_context_are_resized(path, small):
    config = weights.small_config()
    config.image.image_size = 48
    config.text.context_length = 16
    found, _, report = start(path, config)
    assert report.resized == {
        POSITIONS: "8x8 to 12x12 patches, bicubic",
        TEXT_POSITIONS: "32 cut to 16 tokens",
    }
    assert found[POSITIONS].shape == (1, 144, 32)
    np.testing.assert_array_equal(found[TEXT_POSITIONS], weights.flat(small)[TEXT_POSITIONS][:16])
    assert len(report.loaded) == len(found) - 2


def test_what_does_not_fit_stays_and_is_told(path, small):
    config = weights.small_config()
    config.image.num_group_tokens = (16, 4, 0)
    config.share_logit_scale = True
    config.projector.output_dim = 8
    found, own, report = start(path, config)
    name = "params/text_projector/linear_out/kernel"
    assert report.initialised[name] == "shape (64, 32) in the file, (64, 8) in the model"
    for left in report.initialised:
        np.testing.assert_array_equal(found[left], own[left])
    assert "params/image_encoder/stages_1/group_token" in report.initialised
    assert report.unused == ("params/multi_label_logit_scale",)
    assert {*report.loaded, *report.initialised} == set(found)
    assert any(line.startswith(f"initialised {name}: shape") for line in report.lines())


def test_a_new_parameter_stays_at_its_initialisation(tmp_path, small):
    config = weights.small_config("gcc_redcaps")
    save_pretrained(tmp_path, weights.random_pretrained(config), "safetensors")
    _, _, report = start(tmp_path, small.model_config)
    assert report.initialised == {"params/multi_label_logit_scale": "not in the file"}


def test_shardings_and_dtypes_are_kept(path, small):
    mesh = Mesh(first_devices(8), ("data",))
    own = weights.random_pretrained(small.model_config, 1).variables

    def place(x):
        split = x.ndim > 0 and x.shape[0] % 8 == 0
        spec = PartitionSpec("data") if split else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    own = jax.tree.map(place, own)
    params, batch_stats, _ = initialise_from(
        path, own["params"], own["batch_stats"], small.model_config
    )
    found = {"params": params, "batch_stats": batch_stats}
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, found, own)
    assert all(jax.tree.leaves(same))
    for name, array in flatten(found).items():
        np.testing.assert_array_equal(array, weights.flat(small)[name])


def test_heads_of_a_pth_are_taken_from_the_configuration(tmp_path, small):
    from tests.interop.test_original import rewrite

    write_original(tmp_path / "model.pth", small)
    rewrite(tmp_path / "model.pth")
    config = weights.small_config()
    config.image.image_size = 48
    _, _, report = start(tmp_path / "model.pth", config)
    assert POSITIONS in report.resized
    assert not report.initialised


def test_weights_of_other_heads_are_refused(path):
    config = weights.small_config()
    config.image.num_heads = 4
    with pytest.raises(ValueError, match=r"export: model\.image\.num_heads is 2, but 4"):
        start(path, config)


def test_a_model_that_shares_nothing_is_refused(path):
    config = weights.small_config()
    own = {"params": {"other": jnp.zeros(3)}, "batch_stats": {}}
    with pytest.raises(ValueError, match=r"none of its \d+ tensors fits the model"):
        initialise_from(path, own["params"], own["batch_stats"], config)
