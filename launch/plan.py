"""Plans a run on chips that aren't there: compiles its step for them and says what it takes.

python -m launch.plan --config=configs/groupvit_gcc_yfcc_30e.py --topology=v5e:16x16
python -m launch.plan --config=configs/groupvit_base.py --topology=v5e:16x16,v6e:16x16 \
        --num_slices=1,2 --batch_sizes=4096,8192 --compare --output=plans

Any field of the configuration can be tried: --config.train.batch_size=8192. It needs no
accelerator, only the extra `tpu`, and minutes a topology. docs/plan.md tells how to read it.
"""

import itertools
import json
import logging
import os
from pathlib import Path

# The chips are described, not used. With libtpu installed JAX would look for them.
os.environ["JAX_PLATFORMS"] = "cpu"

import absl.logging
from absl import app, flags

from groupvit_jax.plan import hardware, table
from groupvit_jax.plan.plan import (
    PUBLISHED_EXAMPLES,
    find_largest_batch,
    make_plan,
    with_batch_size,
)
from launch import common

_CONFIG = common.define_config_flag()
_TOPOLOGY = flags.DEFINE_list("topology", [], f"Chips and how they lie: {hardware.EXAMPLES}; ...")
_NUM_SLICES = flags.DEFINE_list("num_slices", ["1"], "How many slices of a topology; several: each")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "Global batches; the configured one by default")
_COMPARE = flags.DEFINE_bool("compare", False, "Print one table instead of a page each.")
_LARGEST_BATCH = flags.DEFINE_bool(
    "largest_batch", False, "Also find the largest batch that fits, by 1 to 3 compilations more."
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", PUBLISHED_EXAMPLES, "Examples of an epoch; CC3M, CC12M and YFCC14M by default."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder to write plan.md and plan.json into.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    logging.getLogger("groupvit_jax").setLevel(logging.INFO)
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        plan_all()
    except ValueError as error:
        if not common.is_own(error):
            raise
        common.fail(common.BAD_INPUT, error)


def plan_all() -> None:
    """Plans every topology, number of slices and batch size; prints and writes what comes out."""
    config = _CONFIG.value
    if not _TOPOLOGY.value:
        raise ValueError(f"--topology: missing, expected e.g. {hardware.EXAMPLES}")
    batch_sizes = _integers("batch_sizes", _BATCH_SIZES.value) or [config.train.batch_size]
    slices = _integers("num_slices", _NUM_SLICES.value)
    # A misspelt topology is found before the first is compiled.
    described = [hardware.describe(*pair) for pair in itertools.product(_TOPOLOGY.value, slices)]
    plans, results, pages = [], [], []
    for topology, batch_size in itertools.product(described, batch_sizes):
        changed = with_batch_size(config, batch_size)
        plan = make_plan(changed, topology, _NUM_EXAMPLES.value)
        largest = find_largest_batch(changed, topology, plan) if _LARGEST_BATCH.value else None
        plans.append(plan)
        results.append(table.to_json(plan, largest))
        pages.append(table.details(plan, largest))
        if not _COMPARE.value:
            print(pages[-1], flush=True)
    if _COMPARE.value:
        pages.insert(0, table.comparison(plans))
        print(pages[0])
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.md").write_text("\n\n".join(pages) + "\n")
        (folder / "plan.json").write_text(json.dumps(results, indent=2) + "\n")


def _integers(flag: str, values: list[str]) -> list[int]:
    for value in values:
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"--{flag}={value}: expected whole numbers of at least 1")
    return [int(value) for value in values]


if __name__ == "__main__":
    app.run(main, flags_parser=common.parse_flags)
