import dataclasses
import json

import pytest

from groupvit_jax.eval import results
from groupvit_jax.eval.protocol import Protocol

USUAL = Protocol(background_threshold=0.5)
OTHER = {
    "resize": (1024, 448),
    "window": 400,
    "stride": 100,
    "num_kept": 3,
    "background_threshold": 0.4,
    "background_rule": "constant",
    "prompts": ("my {}",),
    "class_prompts": (("crane", ("a bird",)),),
    "partial_patches": "pad",
    "pamr_iterations": 10,
    "pamr_dilations": (1, 2),
    "pamr_place": "window",
}


def shown(protocol):
    """The table and the lines below it."""
    entry = {
        "metrics": {"miou": 0.5},
        "protocol": "groupvit",
        "images": 2,
        "settings": {"protocol": json.loads(json.dumps(dataclasses.asdict(protocol)))},
        "changed": results.changed_settings(protocol, USUAL),
    }
    return [*results.table({"mine": entry})[1], *results.remarks({"mine": entry})]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_setting_that_changes_a_figure_is_shown(field):
    assert shown(USUAL) == shown(dataclasses.replace(USUAL))
    assert shown(dataclasses.replace(USUAL, **{field: OTHER[field]})) != shown(USUAL)


def test_templates_of_a_class_are_named():
    protocol = dataclasses.replace(USUAL, class_prompts=OTHER["class_prompts"])
    assert shown(protocol)[1] == [
        "Templates of mine: a photo of a {}.",
        "Templates of mine for 'crane': a bird",
    ]
