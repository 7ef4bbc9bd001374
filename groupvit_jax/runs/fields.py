"""The fields of a configuration: the one table of what each may hold.

Choices are those of the module that implements them. Sets and evaluators, which are named by the
user, have rules by kind (`validation`).
"""

from collections.abc import Mapping
from typing import Any

from groupvit_jax import losses, optim, parallel
from groupvit_jax.data.text import nouns, vocabulary
from groupvit_jax.models import two_tower
from groupvit_jax.models.activations import ACTIVATIONS
from groupvit_jax.models.blocks import REMAT
from groupvit_jax.models.grouping import ASSIGNMENTS
from groupvit_jax.models.image_encoder import POSITION_EMBEDDINGS
from groupvit_jax.runs.rules import (
    Rule,
    by_pattern,
    each,
    number,
    one_of,
    optional,
    share,
    text,
    truth,
    whole,
)

# Fields that have got another name; neither is accepted under its old one.
MOVED = {"train.fused_attention": "model.fused_attention"}


def _spec() -> Rule:
    """Sharding of one array: for each dimension an axis, several axes or None."""

    def is_entry(entry: Any) -> bool:
        axes = entry if isinstance(entry, tuple | list) else (entry,)
        return entry is None or all(axis in parallel.AXES for axis in axes)

    return each("axes", Rule("axes", is_entry))


_SIZES = "whole numbers of at least {}, such as {}"
_MESH_SIZE = Rule(
    "a whole number of at least 1, or -1 for the devices that remain",
    lambda value: value == -1 or whole(1).holds(value),
)
_STEPS = Rule(
    "(first, last) steps, the first not behind the last, or (0, 0) for no trace",
    lambda value: each("", whole(0)).holds(value) and len(value) == 2 and value[0] <= value[1],
)

_MODEL: dict[str, Rule] = {
    "image.image_size": whole(1),
    "image.patch_size": whole(1),
    "image.width": whole(1),
    "image.num_heads": whole(1),
    "image.mlp_ratio": number(over=0.0),
    "image.depths": each(_SIZES.format(0, (6, 3, 3)), whole(0), least=1),
    "image.num_group_tokens": each(_SIZES.format(0, (64, 8, 0)), whole(0), least=1),
    "image.num_output_groups": each(_SIZES.format(1, (64, 8)), whole(1)),
    "image.width_factors": each(_SIZES.format(1, (1, 2, 2)), whole(1)),
    "image.position_embedding": one_of(POSITION_EMBEDDINGS),
    "image.assignment": one_of(ASSIGNMENTS),
    "image.temperature": number(over=0.0),
    "image.assign_eps": number(0.0),
    "image.init_std": number(over=0.0),
    "image.drop_path_rate": number(0.0, below=1.0),
    "image.patch_norm": truth(),
    "image.pre_norm": truth(),
    "image.activation": one_of(ACTIVATIONS),
    "image.norm_eps": number(over=0.0),
    "text.kind": one_of(two_tower.TEXT_TOWERS),
    "text.vocab_size": whole(1),
    "text.context_length": whole(3),  # start, one token, end
    "text.width": whole(1),
    "text.num_layers": whole(1),
    "text.num_heads": whole(1),
    "text.mlp_ratio": number(over=0.0),
    "text.end_of_text_id": whole(0),
    "projector.hidden_dim": whole(1),
    "projector.output_dim": whole(1),
    "initial_temperature": number(over=0.0),
    "share_logit_scale": truth(),
    "initial_logit_bias": optional(number()),
    "scan_layers": truth(),
    "remat": one_of(REMAT),
    "fused_attention": truth(),
    "kernels": one_of(("auto", "plain")),
    "dtype": one_of(two_tower.DTYPES),
}
_DATA: dict[str, Rule] = {
    "tokenizer.name": one_of(vocabulary.FILE_NAMES),
    "tokenizer.path": text(),
    "num_nouns": whole(0),
    "noun_kind": one_of(nouns.KINDS),
    "noun_bank": text(),
    "packed_length": whole(1),
    "augment.min_area": number(over=0.0),
    "augment.max_area": number(over=0.0),
    "augment.min_ratio": number(over=0.0),
    "augment.max_ratio": number(over=0.0),
    "augment.flip": share(),
    "augment.num_ops": whole(0),
    "augment.magnitude": number(0.0),
    "augment.magnitude_std": number(0.0),
    "augment.hue": share(),
    "augment.grayscale": share(),
    "augment.random_erasing": share(),
    "num_workers": optional(whole(0)),
    "prefetch": whole(1),
    "max_broken_fraction": share(),
    "index_dir": text(),
    "cache_dir": text(),
    "cache_gib": number(over=0.0),
}
_OPTIMIZER: dict[str, Rule] = {
    "learning_rate": number(over=0.0),
    "reference_batch_size": whole(1),
    "warmup_learning_rate": number(0.0),
    "final_learning_rate": number(0.0),
    "warmup_epochs": number(0.0),
    "warmup_steps": optional(whole(0)),
    "scaled_rates": one_of(optim.SCALED_RATES),
    "update_lag": whole(0),
    "weight_decay": number(0.0),
    "b1": number(0.0, below=1.0),
    "b2": number(0.0, below=1.0),
    "eps": number(over=0.0),
    "clip_norm": number(over=0.0),
    "ema_decay": number(0.0, below=1.0),
    "groups": by_pattern(
        "(regular expression, factor of at least 0) pairs, such as (('text_encoder/', 0.1),)",
        number(0.0),
    ),
}


def _below(section: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"{section}.{name}": rule for name, rule in rules.items()}


FIELDS: dict[str, Rule] = {
    "seed": whole(0),
    "task": text(),
    "init_from": text(),
    "image_init_from": text(),
    "text_init_from": text(),
    **_below("model", _MODEL),
    "loss.kind": one_of(losses.KINDS),
    "loss.global_weight": number(0.0),
    "loss.multi_label_weight": number(0.0),
    "loss.local_weight": number(0.0),
    "loss.local_words": one_of(losses.LOCAL_WORDS),
    "loss.local_seekers": one_of(losses.LOCAL_SEEKERS),
    "loss.mixed_weight": number(0.0),
    "loss.mixed_cell": whole(1),
    "loss.distill_weight": number(0.0),
    "loss.pooled_weight": number(0.0),
    "loss.pooled_segments": whole(1),
    "loss.superpixel_weight": number(0.0),
    "loss.noun_bank_weight": number(0.0),
    "loss.identical_texts": one_of(losses.IDENTICAL_TEXTS),
    "loss.exchange": one_of(losses.EXCHANGES),
    "loss.block_size": whole(1),
    **_below("data", _DATA),
    "segmentation.class_names": each("names, such as ('background', 'cat')", text()),
    "segmentation.min_scale": number(over=0.0),
    "segmentation.max_scale": number(over=0.0),
    "segmentation.flip": share(),
    "segmentation.jitter": share(),
    "train.batch_size": whole(1),
    "train.micro_batch_size": optional(whole(1)),
    "train.num_epochs": number(over=0.0),
    "train.num_steps": optional(whole(1)),
    **_below("optimizer", _OPTIMIZER),
    **{f"parallel.mesh.{axis}": _MESH_SIZE for axis in parallel.AXES},
    "parallel.reduce_dtype": one_of(parallel.REDUCE_DTYPES),
    "parallel.rules": by_pattern(
        f"(regular expression, axes of each dimension) pairs with the axes {parallel.AXES}, such "
        "as (('fc1/kernel$', ('fsdp', 'tensor')), ('.*', ()))",
        _spec(),
    ),
    "checkpoint.every_steps": whole(1),
    "checkpoint.keep_last": whole(1),
    "checkpoint.best_metric": text(),
    "checkpoint.best_mode": one_of(("max", "min")),
    "log_every_steps": whole(1),
    "profile_steps": _STEPS,
    "tensorboard": truth(),
    "wandb_project": text(),
    "wandb_group": text(),
}
