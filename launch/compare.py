"""Compare runs: which settings won, by how much, and whether that may be noise.

python -m launch.compare runs/first runs/second --output=comparison
python -m launch.compare sweeps/losses 'runs/more-*' --metric=validation/miou --output=comparison

Each RUN is the workdir of launch.train, a folder of such (a sweep) or a glob. Runs that differ only
in config.seed form one group. The table is printed and written to OUTPUT as comparison.md,
comparison.csv (a row for each run), comparison.json and comparison.html, a self-contained page.
docs/compare.md explains how to read it.

Exit codes: 0 done; 2 wrong flags or files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from groupvit_jax.compare import outputs
from groupvit_jax.compare.groups import Comparison, compare
from groupvit_jax.compare.metric import choose_metric
from groupvit_jax.compare.verdict import judge
from groupvit_jax.eval import results
from groupvit_jax.runs.bucket.outputs import output_folder
from groupvit_jax.runs.reading import find_runs, read_runs
from launch import common


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `argv[0]` is the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="workdir of a run, a folder of them or a quoted glob"
    )
    add("--output", required=True, help="output folder, or a URL")
    add(
        "--metric",
        default="",
        help="name in metrics.jsonl; default: config.checkpoint.best_metric, else the first "
        "evaluator's first metric, else the loss",
    )
    add(
        "--mode",
        default="",
        choices=["max", "min"],
        help="whether more or less is better; default: min for losses, norms and times, else max",
    )
    add(
        "--value",
        default="last",
        choices=["last", "best"],
        help="value of a run; best favours runs evaluated more often (default: last)",
    )
    return parser.parse_intermixed_args(argv[1:])  # runs before and after the flags


def main(flags: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    with common.bad_input_ends():
        return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    with output_folder(flags.output) as output:
        return _compare_into(flags, output)


def _compare_into(flags: argparse.Namespace, output: Path) -> int:
    runs = read_runs(find_runs(flags.runs))
    from groupvit_jax.compare import page  # imports Matplotlib, which errors and --help don't need

    comparison = compare(runs, choose_metric(runs, flags.metric, flags.mode), flags.value)
    contents = {
        "md": outputs.markdown(comparison),
        "csv": outputs.csv_text(comparison),
        "json": outputs.json_text(comparison),
        "html": page.page(comparison),
    }
    output.mkdir(parents=True, exist_ok=True)
    for ending, content in contents.items():
        results.write(output / f"comparison.{ending}", content)
    _print(comparison)
    print(f"compared {len(runs)} runs into {flags.output.rstrip('/')}/comparison.html")
    return 0


def _print(comparison: Comparison) -> None:
    header, rows = outputs.group_table(comparison)
    shown = Table()
    for i, name in enumerate(header):
        shown.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Into a file Rich would fold columns at 80 letters.
        everything = console.options.update(max_width=1000)
        console.width = max(console.width, console.measure(shown, options=everything).maximum)
    for line in (outputs.metric_line(comparison), shown, *comparison.notes):
        console.print(line, soft_wrap=True)
    console.print(judge(comparison).text.replace("`", ""), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(parse_flags(sys.argv)))
