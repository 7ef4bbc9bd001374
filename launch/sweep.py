r"""Run or resume a sweep: many trainings that differ in some settings.

python -m launch.sweep --sweep=configs/sweeps/losses.py --output=sweeps/losses --jobs=2
python -m launch.sweep --sweep=configs/sweeps/groups.py --output=/shared/groups --backend=slurm \
        --sbatch='--gpus-per-node=8 --time=24:00:00' \
        --config.data.sources.gcc3m.pattern='/shared/gcc3m/{00000..00331}.tar'

--config=FILE replaces the sweep file's base configuration, --config.FIELD=VALUE changes all trials.
All trials are checked before any starts. See docs/sweeps.md.

Exit codes: 0 all trials are finished (or submitted); 1 some failed, the others are finished; 2
something is wrong with flags or trials, nothing was started; 143 stopped, the same command resumes
the sweep. With --trial they are those of launch.train.
"""

import argparse
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.layout import TRIAL_LOG_FILE
from groupvit_jax.runs.lock import LockLostError
from groupvit_jax.runs.sweep_files import Sweep, read_record, read_sweep
from groupvit_jax.sweep import cluster, overview, trial_process
from groupvit_jax.sweep import folder as folder_lib
from groupvit_jax.sweep.hparams import write_hparams
from groupvit_jax.sweep.local import POLL_SECONDS, Environment, LocalRunner, divide
from groupvit_jax.sweep.output import SweepOutput, open_output
from groupvit_jax.sweep.trials import command_of
from launch import common, sweep_plan

_HERE = Path(__file__).parent
# Flags of launch.train that this command passes on to its trials.
_PROCESS_FLAGS = ("distributed", "coordinator", "num_processes", "process_id", "compilation_cache")
_COUNT_DEVICES = (
    "import jax, json; d = jax.local_devices(); print(json.dumps([d[0].platform, len(d)]))"
)
# Width of tables where the output is no terminal: as of a wide one.
_WIDTH = 160


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line, `argv[0]` being the program.

    Returns:
      The flags, and the `--config.FIELD=VALUE` among the arguments.

    Raises:
      ValueError: a flag is unknown or missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--sweep", default="", help="a file with get_sweep()")
    add("--output", default="", help="folder or URL of the sweep, with a folder for each trial")
    add("--config", default="", help="base configuration in place of the sweep file's")
    add("--backend", default="local", choices=["local", "slurm", "kubernetes"])
    add("--jobs", type=_positive, default=None, help="trials at a time (locally 1 by default)")
    add("--retry", type=int, default=0, help="how often a trial that failed is tried again")
    add("--dry_run", action="store_true", help="check all trials, print their commands")
    add("--metric", default="", help="EVALUATOR/METRIC to compare by, such as validation/miou")
    add("--trial", type=int, default=None, help="run this trial only, as the jobs of clusters do")
    add("--devices", type=_positive, default=None, help="of a trial on a cluster, for the checks")
    add("--sbatch", default="", help="options of sbatch, such as '--gpus-per-node=8'")
    add("--manifest", default=str(_HERE / "gke_sweep.yaml"), help="of Kubernetes, to be filled in")
    for name in _PROCESS_FLAGS:
        add(f"--{name}", default="", help="as in launch.train")
    flags, rest = parser.parse_known_args(argv[1:])
    for argument in rest:
        if not re.match(r"--?(no)?config\.", argument):
            raise ValueError(f"{argument}: unexpected argument, expected flags (--NAME=VALUE)")
    if not flags.output:
        raise ValueError("--output: missing, expected a folder for the sweep")
    if not flags.sweep and flags.trial is None:
        raise ValueError("--sweep: missing, expected --sweep=FILE")
    return flags, rest


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        with common.bad_input_ends():
            flags, arguments = parse_flags(argv)
            is_job = flags.trial is not None
            runs_here = flags.backend == "local" and not flags.dry_run and not is_job
            with open_output(flags.output, runs_here) as output:
                if is_job:
                    return _run_trial(flags, output, _sweep_of_job(flags, arguments, output))
                return _run(flags, arguments, output)
    except KeyboardInterrupt:
        common.fail(128 + signal.SIGINT, "interrupted before any trial was started")
    except (StorageError, LockLostError) as error:
        common.fail(exit_codes.FAILED, error)


def _run(flags: argparse.Namespace, arguments: Sequence[str], output: SweepOutput) -> int:
    """Check everything, then start or resume the sweep."""
    slots, devices = _slots(flags)
    root = output.folder
    planned = _plan(flags, arguments, output)
    for note in planned.notes:
        print(note)
    print(f"checking {len(planned.configs)} trials", flush=True)
    if devices:
        _use_devices_of_cpu(devices)
    if errors := sweep_plan.check(planned, root):
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        common.fail(exit_codes.BAD_INPUT, f"{len(errors)} trials are wrong, nothing was started")
    sweep = planned.sweep
    if old := read_sweep(root):
        folder_lib.check_same_sweep(output.name, old, sweep)
    if flags.dry_run:
        return _show_commands(flags, arguments, sweep, output)
    _write(sweep, output)
    output.upload()
    if flags.backend == "slurm":
        return _submit(flags, sweep, output)
    if flags.backend == "kubernetes":
        return _write_manifest(flags, arguments, sweep, output)
    if not flags.compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Trials that differ in numbers only, such as rates and seeds, compile to the same program.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / ".compilation_cache")
    return _run_here(sweep, output, slots, flags)


def _plan(
    flags: argparse.Namespace, arguments: Sequence[str], output: SweepOutput
) -> sweep_plan.Planned:
    name = output.name.rpartition("/")[2]
    return sweep_plan.plan(
        flags.sweep, name, config=flags.config, arguments=arguments, metric=flags.metric
    )


def _write(sweep: Sweep, output: SweepOutput) -> None:
    output.check_writable()
    folder_lib.create(output.folder, sweep, output.name)
    for trial in sweep.trials:
        write_hparams(trial, output.folder / trial.folder)


def _slots(flags: argparse.Namespace) -> tuple[list[Environment], int | None]:
    """Return the environment variables of each slot, and the number of devices of a trial.

    The number is None where trials have the devices that this process has. Accelerators are
    counted by a process of its own: this one must not take their memory.
    """
    if flags.backend != "local":
        return [], flags.devices or 1
    jobs = flags.jobs or 1
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return divide("cpu", 0, jobs), None
    command = [sys.executable, "-c", _COUNT_DEVICES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"JAX finds no devices: {result.stderr.strip().splitlines()[-1]}")
    platform, count = json.loads(result.stdout.splitlines()[-1])
    slots = divide(platform, count, jobs, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return slots, count if platform == "cpu" else count // jobs


def _use_devices_of_cpu(devices: int) -> None:
    """Make this process check with as many devices of the CPU as a trial has of its kind."""
    jax.config.update("jax_platforms", "cpu")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def _show_commands(
    flags: argparse.Namespace, arguments: Sequence[str], sweep: Sweep, output: SweepOutput
) -> int:
    more = _process_flags(flags)
    for trial in sweep.trials:
        print(shlex.join(command_of(sweep, trial, output.name, more)))
    numbers = [trial.id for trial in sweep.trials]
    if flags.backend == "slurm":
        print(shlex.join(_sbatch(flags, sweep, output, numbers)))
    if flags.backend == "kubernetes":
        print(json.dumps(_manifest(flags, arguments, sweep, output), indent=2))
    return 0


def _run_here(
    sweep: Sweep, output: SweepOutput, slots: Sequence[Environment], flags: argparse.Namespace
) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    root, more = output.folder, _process_flags(flags)
    runner = LocalRunner(
        sweep, root, slots, retry=flags.retry, say=say, more=more, name=output.name
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # nohup
            signal.signal(number, lambda signum, frame: runner.stop())
    if console.is_terminal:
        with Live(
            console=console,
            get_renderable=lambda: Group(*reversed(_view(sweep, root))),
            refresh_per_second=1,
            transient=True,
        ):
            runner.run(output.upload)
    else:
        runner.run(output.upload)
    output.finish()
    return _conclude(sweep, output, runner.was_stopped, console)


def _view(sweep: Sweep, root: Path) -> tuple[Table, str]:
    found = overview.rows(sweep, root)
    return overview.render(found), overview.summary(found)


def _conclude(sweep: Sweep, output: SweepOutput, was_stopped: bool, console: Console) -> int:
    """Print how the trials ended and return the exit code."""
    root = output.folder
    console.print(*_view(sweep, root), sep="\n")
    states = [read_record(root / trial.folder).state for trial in sweep.trials]
    if all(state == "finished" for state in states):
        return 0
    for trial, state in zip(sweep.trials, states, strict=True):
        if state == "failed":
            log = f"{output.name}/{trial.folder}/{TRIAL_LOG_FILE}"
            console.print(f"failed: {log}", markup=False, highlight=False, soft_wrap=True)
    if was_stopped:
        print("stopped: start the same command again to go on")
        return exit_codes.STOPPED
    print("start the same command again with --retry=N to try those that failed again")
    return exit_codes.FAILED


def _sbatch(
    flags: argparse.Namespace, sweep: Sweep, output: SweepOutput, trials: Sequence[int]
) -> list[str]:
    script, options = _HERE / "slurm.sbatch", shlex.split(flags.sbatch)
    cache = _process_flags(flags, ("compilation_cache",))
    return cluster.sbatch_command(
        sweep, output.name, trials, script=script, jobs=flags.jobs, options=options, arguments=cache
    )


def _submit(flags: argparse.Namespace, sweep: Sweep, output: SweepOutput) -> int:
    """Submit the trials that are neither finished nor in Slurm's queue."""
    root = output.folder
    there = cluster.queued(root)
    due = cluster.unfinished(sweep, root, flags.retry)
    trials = [number for number in due if number not in there]
    Console(width=_WIDTH).print(*_view(sweep, root), sep="\n")
    for number in due:
        if number in there:
            print(f"trial {number}: still in the queue, as job {there[number]}_{number}")
    if not trials:
        print("nothing to submit")
        return 0
    command = _sbatch(flags, sweep, output, trials)
    print(shlex.join(command))
    job = cluster.submit(command, root, trials)
    output.upload()
    print(f"submitted {len(trials)} trials as job array {job}; the same command resumes it")
    return 0


def _manifest(
    flags: argparse.Namespace, arguments: Sequence[str], sweep: Sweep, output: SweepOutput
) -> dict:
    url = output.name if is_remote(output.name) else ""
    template = cluster.read_template(Path(flags.manifest), needs_volume=not url)
    own = [f"--sweep={flags.sweep}", *arguments]
    own += [f"--config={flags.config}"] if flags.config else []
    own += [f"--metric={flags.metric}"] if flags.metric else []
    return cluster.job_manifest(
        template, sweep, jobs=flags.jobs or len(sweep.trials), arguments=own, url=url
    )


def _write_manifest(
    flags: argparse.Namespace, arguments: Sequence[str], sweep: Sweep, output: SweepOutput
) -> int:
    is_url = is_remote(output.name)  # which kubectl can't read
    path = Path(f"{sweep.name}.yaml") if is_url else output.folder / cluster.MANIFEST_FILE
    cluster.write_manifest(path, _manifest(flags, arguments, sweep, output))
    print(f"kubectl apply -f {path}")
    return 0


def _sweep_of_job(
    flags: argparse.Namespace, arguments: Sequence[str], output: SweepOutput
) -> Sweep:
    """Return the sweep whose trial a job of a cluster is to run."""
    sweep = read_sweep(output.folder)
    if sweep is None:
        if not flags.sweep:
            raise ValueError(
                f"--output={output.name}: no sweep.json found, expected one or --sweep=FILE"
            )
        planned = _plan(flags, arguments, output)
        if planned.errors:
            raise ValueError("; ".join(planned.errors.values()))
        sweep = planned.sweep
        _write(sweep, output)
    elif is_remote(output.name):
        # Each job uploads the record of its own trial: those of others may be missing.
        folder_lib.create(output.folder, sweep, output.name)
    if not 0 <= flags.trial < len(sweep.trials):
        raise ValueError(f"--trial={flags.trial}: expected 0 to {len(sweep.trials) - 1}")
    return sweep


def _run_trial(flags: argparse.Namespace, output: SweepOutput, sweep: Sweep) -> int:
    """Run one trial to its end and return the exit code of launch.train."""
    trial, more = sweep.trials[flags.trial], _process_flags(flags)
    root, name = output.folder, output.name
    if int(flags.process_id or 0):
        # Only process 0 keeps the record: the others become the trial at once.
        if read_record(root / trial.folder).state == "finished":
            return 0
        command = command_of(sweep, trial, name, more)
        os.execv(command[0], command)
    process = trial_process.start_trial(sweep, trial, root, name=name, more=more, wait=True)
    if process is None:
        print(f"{trial.folder}: finished already")
        return 0
    asked = threading.Event()

    def stop(signum: int, frame: object) -> None:
        asked.set()
        process.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    print(f"{trial.folder}: started, its log is {name}/{trial.folder}/{TRIAL_LOG_FILE}", flush=True)
    while (code := process.poll()) is None:
        output.upload(trial=trial.folder)
        time.sleep(POLL_SECONDS)
    # Schedulers may signal every process of a job, the trial too.
    record = process.record_end(was_asked=asked.is_set() or code == exit_codes.STOPPED)
    output.finish(trial=trial.folder)
    print(f"{trial.folder}: {record.state} (exit status {code})")
    if record.state != "finished":
        print("\n".join(folder_lib.log_tail(process.workdir)))
    return code if code >= 0 else 128 - code


def _process_flags(flags: argparse.Namespace, names: Sequence[str] = _PROCESS_FLAGS) -> list[str]:
    given = {name: getattr(flags, name) for name in names}
    return [f"--{name}={value}" for name, value in given.items() if value]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} found, expected a number of at least 1")
    return int(text)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    for name in ("train", "data"):  # trials log it themselves
        logging.getLogger(f"groupvit_jax.{name}").setLevel(logging.ERROR)
    sys.exit(main(sys.argv))
