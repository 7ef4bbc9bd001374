r"""Plans a run on hardware you don't have, by compiling its training step for it.

python -m launch.plan --config=configs/groupvit_gcc_yfcc_30e.py --topology=v5e:16x16
python -m launch.plan --config=configs/groupvit_base.py --topology=v5e:16x16,v6e:16x16 \
        --num_slices=1,2 --batch_sizes=4096,8192 --compare --output=plans

Any field of the configuration can be tried: --config.train.batch_size=8192. It needs no
accelerator, only the extra `tpu` or `cuda`, and minutes a topology. docs/plan.md explains the
output.
"""

import argparse
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Sequence

# The chips are described, not used; with a plugin for them installed, JAX would look for them.
os.environ["JAX_PLATFORMS"] = "cpu"

from ml_collections import ConfigDict

from groupvit_jax.plan import hardware, table
from groupvit_jax.plan.plan import (
    PUBLISHED_EXAMPLES,
    find_largest_batch,
    make_plan,
)
from groupvit_jax.runs import configuration, exit_codes
from groupvit_jax.runs.bucket.outputs import output_folder
from launch import common, overrides


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """Parse the command line, `argv[0]` being the program.

    Raises:
      ValueError: a flag is wrong; errors of the configuration end the process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, help="file of a configuration; --config.FIELD=VALUE changes it"
    )
    parser.add_argument(
        "--topology",
        required=True,
        help="kinds of chips and their number along each dimension, separated by commas: "
        f"{hardware.EXAMPLES}; the path of a GPU's description (.toml) can replace the kind",
    )
    parser.add_argument(
        "--num_slices", default="1", help="slices of each topology of TPUs, separated by commas"
    )
    parser.add_argument(
        "--batch_sizes", default="", help="global, separated by commas; default: the configured one"
    )
    parser.add_argument("--compare", action="store_true", help="print one table instead of pages")
    parser.add_argument(
        "--largest_batch",
        action="store_true",
        help="also find the largest batch that fits, in 1 to 3 more compilations",
    )
    parser.add_argument(
        "--num_examples",
        type=int,
        default=PUBLISHED_EXAMPLES,
        help="examples of an epoch (default: %(default)s, CC3M, CC12M and YFCC14M)",
    )
    parser.add_argument(
        "--price_per_chip_hour", type=float, help="price in any currency, for the cost of the run"
    )
    parser.add_argument("--output", default="", help="folder for plan.md and plan.json, or a URL")
    flags, rest = parser.parse_known_args(argv[1:])
    for argument in rest:
        if not re.match(r"--?(no)?config\.", argument):
            raise ValueError(f"{argument}: unexpected argument, expected flags (--NAME=VALUE)")
    config, errors = overrides.read_valid(argv)
    if errors:
        common.fail(exit_codes.BAD_INPUT, *errors)
    return flags, config


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    try:
        flags, config = parse_flags(argv)
    except (ValueError, OSError) as error:
        common.fail(exit_codes.BAD_INPUT, error)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("groupvit_jax").setLevel(logging.INFO)
    with common.bad_input_ends():
        plan_all(flags, config)


def plan_all(flags: argparse.Namespace, config: ConfigDict) -> None:
    """Plan every topology, number of slices and batch size; print and write the plans."""
    batch_sizes = _integers("batch_sizes", flags.batch_sizes) or [config.train.batch_size]
    slices = _integers("num_slices", flags.num_slices)
    # Describe all topologies first, so that a misspelt one is found before minutes of compiling.
    names = flags.topology.split(",")
    described = [hardware.find_topology(*pair) for pair in itertools.product(names, slices)]
    plans, results, pages = [], [], []
    for topology, batch_size in itertools.product(described, batch_sizes):
        sized = configuration.changed(config, {"train.batch_size": batch_size})
        plan = make_plan(sized, topology, flags.num_examples, flags.price_per_chip_hour)
        largest = find_largest_batch(sized, topology, plan) if flags.largest_batch else None
        plans.append(plan)
        results.append(table.to_json(plan, largest))
        pages.append(table.details(plan, largest))
        if not flags.compare:
            print(pages[-1], flush=True)
    if flags.compare:
        pages.insert(0, table.comparison(plans))
        print(pages[0])
    if flags.output:
        with output_folder(flags.output) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan.md").write_text("\n\n".join(pages) + "\n")
            (folder / "plan.json").write_text(json.dumps(results, indent=2) + "\n")


def _integers(flag: str, text: str) -> list[int]:
    values = text.split(",") if text else []
    for value in values:
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"--{flag}={value}: expected whole numbers of at least 1")
    return [int(value) for value in values]


if __name__ == "__main__":
    main(sys.argv)
