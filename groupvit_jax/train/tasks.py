"""The table of tasks: `config.task` chooses model, examples and loss; all else is shared."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax.data.pipeline.contrastive import TrainExamples, make_train_examples
from groupvit_jax.data.pipeline.segmentation import MaskedAugmentation, make_masked_examples
from groupvit_jax.data.text.noun_bank import MOST_NOUNS, read_noun_bank
from groupvit_jax.data.text.tokenizers import Tokenizer
from groupvit_jax.models import build_model
from groupvit_jax.models.segmentation import with_segment_head
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.config_check import flatten
from groupvit_jax.runs.validation import Values, line
from groupvit_jax.train import contrastive_task, segmentation_task, state
from groupvit_jax.train.step import LossFn


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts that differ between tasks; all take the whole configuration.

    Attributes:
      build_model: the model.
      make_examples: the sequence of training examples.
      batch_shapes: shapes of the global batches.
      make_loss: the loss of a step, from model, configuration and mesh.
      unused: fields without a meaning in this task, with the value that they must keep: a field
        that is set and ignored would be a silent mistake.
    """

    build_model: Callable[[ConfigDict], nn.Module]
    make_examples: Callable[[ConfigDict, Tokenizer], TrainExamples]
    batch_shapes: Callable[[ConfigDict], state.BatchShapes]
    make_loss: Callable[[Any, ConfigDict, Mesh], LossFn]
    unused: Mapping[str, object] = dataclasses.field(default_factory=dict)


def _augmentation(segmentation: Mapping[str, Any]) -> MaskedAugmentation:
    """Return the fields of `config.segmentation` that augment."""
    names = [field.name for field in dataclasses.fields(MaskedAugmentation)]
    return MaskedAugmentation(**{name: segmentation[name] for name in names})


def _superpixel_grid(weight: float, image_size: int, patch_size: int) -> int:
    """Return the patches in height and width of which batches have the superpixels; 0 for none."""
    return image_size // patch_size if weight else 0


TASKS = {
    "contrastive": Task(
        build_model=lambda config: build_model(config.model),
        make_examples=lambda config, tokenizer: make_train_examples(
            config.data,
            tokenizer,
            image_size=config.model.image.image_size,
            seed=config.seed,
            superpixel_grid=_superpixel_grid(
                config.loss.superpixel_weight,
                config.model.image.image_size,
                config.model.image.patch_size,
            ),
            bank_rows=read_noun_bank(config.data.noun_bank).rows
            if config.loss.noun_bank_weight
            else None,
        ),
        batch_shapes=lambda config: state.batch_shapes(
            config.train.batch_size,
            config.model.image.image_size,
            config.data.packed_length,
            num_texts=1 + config.data.num_nouns,  # the caption and its prompts
            superpixel_grid=_superpixel_grid(
                config.loss.superpixel_weight,
                config.model.image.image_size,
                config.model.image.patch_size,
            ),
            num_bank_nouns=MOST_NOUNS if config.loss.noun_bank_weight else 0,
        ),
        make_loss=contrastive_task.make_contrastive_loss,
    ),
    "segmentation": Task(
        build_model=lambda config: with_segment_head(
            build_model(config.model), len(config.segmentation.class_names)
        ),
        make_examples=lambda config, tokenizer: make_masked_examples(
            config.data.sources.to_dict(),
            config.segmentation.class_names,
            augment=_augmentation(config.segmentation.to_dict()),
            image_size=config.model.image.image_size,
            seed=config.seed,
            local_copy=local_copy,
        ),
        batch_shapes=lambda config: state.masked_batch_shapes(
            config.train.batch_size, config.model.image.image_size
        ),
        make_loss=lambda model, config, mesh: segmentation_task.make_segmentation_loss(
            model,
            mesh,
            fused_attention=config.model.fused_attention,
            kernels=config.model.get("kernels", "auto"),
            reduce_dtype=config.parallel.get("reduce_dtype", "auto"),
        ),
        unused={"text_init_from": "", "train.micro_batch_size": None},
    ),
}


def find_task_errors(values: Values) -> list[str]:
    """Return a line if there is no such task, and for each field that it would ignore.

    Args:
      values: the configuration's, as `runs.validation` hands them in.
    """
    name = values.get("task", "contrastive")
    if name not in TASKS:
        return [line("task", name, " or ".join(map(repr, TASKS)))]
    return [
        line(field, values.get(field), f"{value!r} with config.task {name!r}")
        for field, value in TASKS[name].unused.items()
        if values.get(field) != value
    ]


def task_of(config: ConfigDict) -> Task:
    """Return the task of a configuration.

    A configuration recorded before tasks existed has no `config.task` and is contrastive.

    Raises:
      ValueError: there is no such task, or a field is set that has no meaning in it.
    """
    if errors := find_task_errors(flatten(config.to_dict())):
        raise ValueError("; ".join(errors))
    return TASKS[config.get("task", "contrastive")]
