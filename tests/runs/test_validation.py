"""The table of fields and the checks between them."""

import importlib
from pathlib import Path

import pytest

from configs import base, tiny
from groupvit_jax.eval.evaluators import find_evaluator_errors
from groupvit_jax.runs.config_check import flatten
from groupvit_jax.runs.fields import FIELDS
from groupvit_jax.runs.validation import validate
from groupvit_jax.train.tasks import find_task_errors

CONFIGS = sorted(
    path.stem for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "from_json")
)


def test_the_table_has_every_field_and_no_other():
    assert set(FIELDS) == set(flatten(base.get_config().to_dict()))


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_have_no_errors(name, tmp_path):
    """But for the paths to one's own files, which each config's first lines name."""
    config = importlib.import_module(f"configs.{name}").get_config()
    for field in ("init_from", "image_init_from", "text_init_from"):
        config[field] = str(tmp_path) if config[field] else ""
    if config.data.tokenizer.path:
        config.data.tokenizer.path = str(tmp_path)
    assert validate(config, find_task_errors, find_evaluator_errors) == []


def test_a_missing_and_an_unknown_field_are_both_found():
    config = tiny.get_config()
    config.train.batchsize = 8
    del config.model["dtype"]
    assert validate(config) == [
        "config.train.batchsize: no such field, the nearest is config.train.batch_size",
        "config.model.dtype: missing, expected 'bfloat16' or 'float32'",
    ]


def test_what_depends_on_a_wrong_field_is_not_checked():
    config = tiny.get_config()
    config.model.image.num_heads = 0
    config.model.image.patch_size = 5  # does not divide the image, but the model can't be judged
    (line,) = validate(config)
    assert line.startswith("config.model.image.num_heads: 0 found")


@pytest.mark.parametrize("value", [True, 1.0, "1", float("nan"), None, [1]])
def test_a_whole_number_is_nothing_else(value):
    config = tiny.get_config()
    with config.train.ignore_type():
        config.train.batch_size = value
    (line,) = validate(config)
    assert line.endswith("found, expected a whole number of at least 1")


@pytest.mark.parametrize(("value", "good"), [(2, True), (0.5, True), ("2", False), (0.0, False)])
def test_a_number_may_be_whole(value, good):
    config = tiny.get_config()
    with config.train.ignore_type():
        config.train.num_epochs = value
    assert (validate(config) == []) == good


def test_lists_of_json_are_tuples():
    config = tiny.get_config()
    with config.model.image.ignore_type():
        config.model.image.depths = [1, 1, 1]
    assert validate(config) == []


def test_the_sigmoid_loss_needs_a_bias():
    config = tiny.get_config()
    config.loss.kind = "sigmoid"
    (line,) = validate(config)
    assert line.startswith("config.model.initial_logit_bias: None found with config.loss.kind 'si")
    config.model.initial_logit_bias = -10.0
    assert validate(config) == []


def test_prompts_are_words_where_there_are_prompts():
    config = tiny.get_config()
    config.loss.update(local_words="prompts", local_weight=1.0)
    assert validate(config) == []
    config.data.num_nouns = 0
    assert validate(config) == [
        "config.loss.local_words: 'prompts' found with config.data.num_nouns 0, expected 'tokens' "
        "or prompts"
    ]


def test_losses_need_what_they_compare_with():
    config = tiny.get_config()
    config.loss.update(distill_weight=1.0, noun_bank_weight=1.0, superpixel_weight=1.0)
    config.model.image.update(num_group_tokens=(0,), depths=(3,), num_output_groups=())
    assert validate(config) == [
        "config.loss.distill_weight: 1.0 found, expected 0 without config.optimizer.ema_decay",
        "config.loss.noun_bank_weight: 1.0 found, expected 0 without config.data.noun_bank",
        "config.loss.superpixel_weight: 1.0 found, expected 0 with "
        "config.model.image.num_group_tokens (0,), which groups nothing",
    ]


def test_all_sources_have_a_weight_or_none_has():
    config = tiny.get_config()
    config.data.sources.more = dict(kind="webdataset", pattern="*.tar", weight=2.0)
    assert validate(config) == [
        "config.data.sources.pairs.weight: missing, expected a weight in all sources or in none"
    ]


def test_a_task_has_its_own_sources_and_evaluators():
    config = tiny.get_config()
    config.task = "segmentation"
    config.data.sources.pairs = dict(kind="benchmark", data_dir="data", split="train")
    config.evaluators.retrieval = dict(kind="retrieval")
    lines = validate(config, find_task_errors, find_evaluator_errors)
    assert [line.partition(":")[0] for line in lines] == ["config.evaluators.retrieval.kind"]
    config.train.micro_batch_size = 8
    assert len(validate(config, find_task_errors, find_evaluator_errors)) == 2


def test_wandb_that_is_not_installed_is_named(monkeypatch):
    config = tiny.get_config()
    config.wandb_project = "mine"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = validate(config)
    assert line.startswith("config.wandb_project: 'mine' found but wandb is not installed")
