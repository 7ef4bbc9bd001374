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


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("batch_size", "train.batch_size"),
        ("modle.depths", "model.depths"),
        ("train.num_step", "train.num_steps"),
    ],
)
def test_the_nearest_field_is_named(field, nearest):
    known = config_check.flatten(reference().to_dict())
    assert config_check.unknown_field(field, known).endswith(f"the nearest is config.{nearest}")


def test_differences_are_listed_with_both_values():
    old, new = reference(), reference()
    new.train.batch_size = 16
    new.model.depths = (1, 2, 3)
    new.data.sources.mine = dict(kind="tfds")
    assert config_check.differences(old.to_dict(), new.to_dict()) == {
        "model.depths": ((1, 2), (1, 2, 3)),
        "train.batch_size": (8, 16),
        "data.sources.mine.kind": (None, "tfds"),
    }


def test_a_list_from_json_equals_the_tuple_it_was():
    old, new = reference(), reference()
    with old.ignore_type():
        old.model.depths = [1, 2]
    assert config_check.differences(old.to_dict(), new.to_dict()) == {}
