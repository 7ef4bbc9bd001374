import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from groupvit_jax.runs import config_check


def reference():
    config = ConfigDict()
    config.train = dict(batch_size=8, num_epochs=1.0, num_steps=placeholder(int))
    config.model = dict(depths=(1, 2), name="", flag=True)
    config.data = dict(sources=ConfigDict())
    config.evaluators = ConfigDict()
    return config


def test_a_good_configuration_has_no_errors():
    config = reference()
    config.train.num_steps = 5
    config.train.num_epochs = 2.0
    config.data.sources.mine = dict(kind="tfds")
    assert config_check.find_errors(config, reference()) == []


def test_every_error_is_found():
    config = reference()
    config.train.batchsize = 8
    with config.ignore_type():
        config.model.depths = "1, 2"
    del config.model.flag
    assert config_check.find_errors(config, reference()) == [
        "config.model.depths: '1, 2' found, expected a value like (1, 2)",
        "config.train.batchsize: no such field, the nearest is config.train.batch_size",
        "config.model.flag: missing, expected a value",
    ]


@pytest.mark.parametrize(("value", "good"), [(2, True), (2.5, True), ("2", False)])
def test_a_float_takes_numbers_only(value, good):
    config = reference()
    with config.ignore_type():
        config.train.num_epochs = value
    assert (config_check.find_errors(config, reference()) == []) == good


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("batch_size", "train.batch_size"),
        ("modle.depths", "model.depths"),
        ("train.num_step", "train.num_steps"),
    ],
)
def test_the_nearest_field_is_named(field, nearest):
    known = config_check.flatten(reference())
    assert config_check.unknown_field(field, known).endswith(f"the nearest is config.{nearest}")


def test_differences_are_listed_with_both_values():
    old, new = reference(), reference()
    new.train.batch_size = 16
    new.model.depths = (1, 2, 3)
    new.data.sources.mine = dict(kind="tfds")
    assert config_check.differences(old, new) == {
        "model.depths": ((1, 2), (1, 2, 3)),
        "train.batch_size": (8, 16),
        "data.sources.mine.kind": (None, "tfds"),
    }


def test_a_list_from_json_equals_the_tuple_it_was():
    old, new = reference(), reference()
    with old.ignore_type():
        old.model.depths = [1, 2]
    assert config_check.differences(old, new) == {}
