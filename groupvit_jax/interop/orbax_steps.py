"""Training checkpoints, read for inference: parameters and statistics without the optimizer."""

from pathlib import Path

from groupvit_jax.data.text.vocabulary import read_vocabulary
from groupvit_jax.interop.layout import check_variables, flatten, unflatten
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.runs import checkpoints


def read_orbax(step: Path) -> Pretrained:
    """Read a step's model, on one host, however many devices wrote it.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an array doesn't fit the configuration, which the message names.
    """
    run = checkpoints.read_config(step)
    if "model" not in run:
        raise ValueError(
            f"{step / checkpoints.CONFIG}: no field 'model', expected a run's configuration"
        )
    has_head = run.get("task") == "segmentation"
    class_names = tuple(run.segmentation.get("class_names", ())) if has_head else ()
    if has_head and not class_names:
        raise ValueError(
            f"{step / checkpoints.CONFIG}: no name in 'segmentation.class_names', expected the "
            "segment head's"
        )
    flat = flatten(checkpoints.read_model(step))
    # The oldest checkpoints hold no vocabulary, but name the file that training read.
    tokenizer = checkpoints.stored_vocabulary(step) or read_vocabulary(
        run.data.tokenizer.name, run.data.tokenizer.path
    )
    found = Pretrained(run.model, unflatten(flat), tokenizer, class_names=class_names)
    check_variables(flat, found.build_model(), step / checkpoints.MODEL)
    return found
