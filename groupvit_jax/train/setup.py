"""Checks all that a run needs and builds its parts, before the first compilation."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax import optim, parallel
from groupvit_jax.data.pipeline import contrastive
from groupvit_jax.data.text import tokenizers
from groupvit_jax.data.text.vocabulary import Vocabulary, read_vocabulary
from groupvit_jax.models import fused_attention
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.configuration import keep_recorded
from groupvit_jax.runs.validation import validate
from groupvit_jax.runs.workdir import check_writable
from groupvit_jax.train import state
from groupvit_jax.train.grad_cache import check_micro_batch_size
from groupvit_jax.train.methods.settings import LossSettings
from groupvit_jax.train.tasks import Task, find_task_errors, task_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Parts of a run other than its state.

    Attributes:
      config: the whole configuration.
      workdir: the run's folder.
      mesh: the devices.
      task: what is learnt.
      model: of the task: both towers, or the image tower with a segment head.
      vocabulary: of the tokenizer, to be kept in checkpoints.
      tokenizer: of the captions; evaluators need it too.
      examples: the sequence of training examples.
      num_steps: length of the run.
      schedule: learning rate by step.
      optimizer: with that schedule.
      abstract_state: shapes and shardings of the state.
    """

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    task: Task
    model: Any
    vocabulary: Vocabulary
    tokenizer: tokenizers.Tokenizer
    examples: contrastive.TrainExamples
    num_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    abstract_state: state.TrainState

    def fresh_state(self) -> state.TrainState:
        """Return the state before the first step, a function of the seed."""
        fresh, _ = state.create_sharded_state(
            self.model,
            self.optimizer,
            jax.random.key(self.config.seed),
            self.task.batch_shapes(self.config),
            self.mesh,
            self.config.parallel.rules,
            averaged=bool(self.config.optimizer.ema_decay),
        )
        return fresh


def build(config: ConfigDict, workdir: Path) -> Parts:
    """Return the parts; cheap checks come first.

    A run that resumes keeps what its record says of some fields (`runs.configuration`).

    Raises:
      ValueError: workdir, division of the batch, tokenizer or a setting is wrong.
      FileNotFoundError: a source matches no file.
    """
    check_writable(workdir)
    resumes = checkpoints.has_checkpoints(workdir)
    config = keep_recorded(config, workdir) if resumes else config
    if errors := validate(config, find_task_errors, resumes=resumes):
        raise ValueError("; ".join(errors))
    task = task_of(config)
    mesh = parallel.make_mesh(config.parallel.mesh.to_dict())
    parallel.check_batch_size(config.train.batch_size, mesh)
    check_micro_batch_size(config.train.micro_batch_size, config.train.batch_size, mesh)
    vocabulary = find_vocabulary(config.data.tokenizer.name, config.data.tokenizer.path, workdir)
    tokenizer = tokenizers.make_tokenizer(vocabulary, config.model.text.context_length)
    text = config.model.text
    tokenizers.check_text_tower(
        tokenizer,
        vocab_size=text.vocab_size,
        end_of_text_id=text.end_of_text_id,
        context_length=text.context_length,
    )
    if "tokens" in LossSettings(**config.loss).parts:
        check_start_token(tokenizer)
    model: Any = task.build_model(config)
    if config.model.fused_attention:
        by_device = by_device_setting(config.train.micro_batch_size, config.parallel.reduce_dtype)
        check_fused_attention(model.image_encoder, mesh, by_device)
    examples = task.make_examples(config, tokenizer)
    sizes = examples.num_samples, config.train.batch_size
    num_steps = training_steps(*sizes, config.train.num_steps, config.train.num_epochs)
    warmup_steps = run_length(*sizes, config.optimizer.warmup_steps, config.optimizer.warmup_epochs)
    schedule = optim.make_schedule(
        config.optimizer.learning_rate,
        num_steps,
        warmup_steps,
        start=config.optimizer.warmup_learning_rate,
        end=config.optimizer.final_learning_rate,
        batch_size_ratio=config.train.batch_size / config.optimizer.reference_batch_size,
        scaled_rates=config.optimizer.scaled_rates,
        update_lag=config.optimizer.update_lag,
    )
    shapes = task.batch_shapes(config)
    params = state.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    averaged = bool(config.optimizer.ema_decay)
    abstract = state.abstract_state(
        model, optimizer, shapes, mesh, config.parallel.rules, averaged=averaged
    )
    parts = Parts(
        config, workdir, mesh, task, model, vocabulary, tokenizer, examples, num_steps, schedule,
        optimizer, abstract,
    )  # fmt: skip
    _log_summary(parts)
    return parts


def find_vocabulary(name: str, path: str, workdir: Path) -> Vocabulary:
    """Return the vocabulary of a run; if its file is gone, the checkpoints' copy.

    Args:
      name: `config.data.tokenizer.name`.
      path: `config.data.tokenizer.path`.
      workdir: the run's folder.

    Raises:
      ValueError: the checkpoints of the workdir are of another vocabulary, or there is no such
        kind.
      FileNotFoundError: there is no file at the path, and no checkpoint.
    """
    stored = checkpoints.last_vocabulary(workdir)
    is_gone = bool(path) and not Path(path).exists()
    if stored and stored.name == name and is_gone:
        logger.warning("%s is gone: the checkpoint's vocabulary is used", path)
        return stored
    found = read_vocabulary(name, path)
    if stored and found != stored:
        raise ValueError(
            f"config.data.tokenizer: {found.name} with fingerprint {found.fingerprint} found, but "
            f"--workdir={workdir} holds checkpoints of {stored.name} {stored.fingerprint}; use "
            "their vocabulary or another --workdir"
        )
    return found


def by_device_setting(micro_batch_size: int | None, reduce_dtype: str) -> str:
    """Return the setting that has each device encode its own rows by itself; "" for none."""
    if micro_batch_size is not None:
        return "config.train.micro_batch_size"
    return "config.parallel.reduce_dtype 'float32'" if reduce_dtype == "float32" else ""


def check_fused_attention(encoder: ImageEncoder, mesh: Mesh, by_device: str) -> None:
    """Raise ValueError if the image tower's attention can't be one kernel on this mesh.

    Args:
      encoder: the image tower.
      mesh: the device mesh.
      by_device: from `by_device_setting`.
    """
    platform, heads = mesh.devices.flat[0].platform, encoder.num_heads
    found = None
    if platform not in fused_attention.KERNELS:
        found = f"True found on {platform}, expected one of {', '.join(fused_attention.KERNELS)}"
    elif by_device and mesh.shape["tensor"] > 1:
        shards = f"{mesh.shape['tensor']} tensor shards"
        found = f"True found with {by_device} and {shards}, expected one of them"
    elif heads % mesh.shape["tensor"]:
        found = (
            f"True found with {heads} heads on {mesh.shape['tensor']} tensor shards, expected "
            "shards that divide them"
        )
    # cuDNN's attention takes 16-bit numbers only.
    elif platform == "gpu" and encoder.dtype == jnp.float32:
        found = "True found with config.model.dtype 'float32', expected 'bfloat16' on a GPU"
    if found:
        raise ValueError(f"config.model.fused_attention: {found}")


def check_start_token(tokenizer: tokenizers.Tokenizer) -> None:
    """Raise ValueError if alignment with tokens would leave out a caption's first word.

    The first token of a row is never a word: in both towers it is the start token.
    """
    if not tokenizers.has_start_token(tokenizer):
        raise ValueError(
            "config.loss.local_words: 'tokens' found with a vocabulary without a start token, "
            "expected one with it or 'prompts'"
        )


def run_length(num_examples: int, batch_size: int, num_steps: int | None, num_epochs: float) -> int:
    """Return the number of steps of a run or of its warm-up.

    Args:
      num_examples: examples of an epoch.
      batch_size: global.
      num_steps: takes precedence over the epochs.
      num_epochs: length in epochs.
    """
    return round(num_epochs * num_examples / batch_size) if num_steps is None else num_steps


def training_steps(
    num_examples: int, batch_size: int, num_steps: int | None, num_epochs: float
) -> int:
    """Return the `run_length` of a run; raise ValueError if that is no step."""
    found = run_length(num_examples, batch_size, num_steps, num_epochs)
    if found < 1:
        raise ValueError(
            f"config.train: {found} steps found ({num_examples} examples, batch size "
            f"{batch_size}), expected at least 1"
        )
    return found


def _log_summary(parts: Parts) -> None:
    config = parts.config
    num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(parts.abstract_state.params))
    num_samples = parts.examples.num_samples
    logger.info(
        "%s parameters; %s examples; %d steps of %d images (%.2f epochs); %s on mesh %s",
        f"{num_params:,}", f"{num_samples:,}", parts.num_steps, config.train.batch_size,
        parts.num_steps * config.train.batch_size / num_samples,
        f"{jax.device_count()} x {jax.devices()[0].device_kind}", dict(parts.mesh.shape),
    )  # fmt: skip
