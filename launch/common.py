"""Shared by the commands: configuration flags, one-line errors, logging, processes."""

import contextlib
import hashlib
import logging
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
import jax
from absl import flags
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.prepare.files import check_store
from groupvit_jax.runs.exit_codes import BAD_INPUT
from launch import supervision

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
# Without one of them JAX takes the process for one outside of Slurm.
_SLURM_VARIABLES = (
    "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID",
)  # fmt: skip

# Flags defined by the functions below belong to the command that calls them, for its --help.
flags.disclaim_key_flags()


def define_config_flag() -> flags.FlagHolder[str]:
    """Define `--config`; `launch.configuration` reads it and `--config.FIELD=VALUE`."""
    return flags.DEFINE_string(
        "config", "", "A file with get_config(), or the config.json of a recorded run."
    )


def define_workdir_flag() -> flags.FlagHolder[str]:
    """Define `--workdir`."""
    if "workdir" in flags.FLAGS:  # by another command in this process
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["workdir"])
    return flags.DEFINE_string(
        "workdir", "", "Folder of the run: checkpoints, metrics, configuration; created if missing."
    )


def define_process_flags() -> None:
    """Define the flags of distributed start-up and of the compilation cache."""
    if "distributed" in flags.FLAGS:  # by another command in this process
        return
    flags.DEFINE_enum(
        "distributed",
        "off",
        ["off", "auto"],
        "auto: join the processes that JAX finds by itself (TPU pod, Slurm, Kubernetes, MPI).",
    )
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, to join by hand with the next two flags."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes join.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_string(
        "compilation_cache", "", "Folder or URL that keeps compiled programs for later starts."
    )


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder, for later starts of the same command.

    A folder for each kind of processor: home folders are shared, and a program of one may hold
    instructions that another lacks. JAX_COMPILATION_CACHE_DIR and --compilation_cache name another
    folder, JAX_ENABLE_COMPILATION_CACHE=false keeps none. Call it before JAX is used.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "groupvit_jax" / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"compiled programs are not kept: {folder}: {error.strerror}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # By default programs of less than a second are left out: those of each new photo size.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """Return a name that differs between processors with different instructions."""
    described = platform.processor()
    with contextlib.suppress(OSError):  # another system than Linux
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        named = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        described = "\n".join(sorted(set(named)))
    digest = hashlib.sha256(described.encode()).hexdigest()[:12]
    return f"{platform.machine() or 'any'}-{digest}"


def start_jax() -> None:
    """Join the other processes and open the compilation cache, as the flags say.

    Where processes join, what follows runs in a child process (`supervision`).
    """
    values = flags.FLAGS
    if cache := values.compilation_cache:
        if is_remote(cache) and not cache.startswith(("gs://", "s3://")):
            fail(BAD_INPUT, f"--compilation_cache={cache}: expected a folder, gs:// or s3://")
        with bad_input_ends():
            check_store("compilation_cache", cache)  # JAX reaches stores by epath
        jax.config.update("jax_compilation_cache_dir", cache)
    if values.coordinator:
        if values.num_processes is None or values.process_id is None:
            fail(
                BAD_INPUT,
                "--coordinator: expected --num_processes and --process_id with it",
            )
        if values.process_id >= values.num_processes:
            fail(
                BAD_INPUT,
                f"--process_id={values.process_id}: expected 0 to {values.num_processes - 1} "
                f"(--num_processes={values.num_processes})",
            )
        host, _, port = values.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            fail(BAD_INPUT, f"--coordinator={values.coordinator}: expected HOST:PORT")
        # JAX would listen on all addresses, also for processes of one machine.
        bind = values.coordinator if host in _LOOPBACK else None
        # With cluster detection, JAX under Slurm would use a single device of each machine.
        _join(
            f"--coordinator={values.coordinator}",
            coordinator_address=values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
            coordinator_bind_address=bind,
            cluster_detection_method="deactivate",
        )
    elif values.distributed == "auto":
        if "SLURM_JOB_ID" in os.environ and (
            missing := [name for name in _SLURM_VARIABLES if name not in os.environ]
        ):
            fail(
                BAD_INPUT,
                f"--distributed=auto: {missing[0]} is not set in this Slurm job, expected a "
                "process that srun has started",
            )
        _join("--distributed=auto")


def _join(flag: str, **arguments: Any) -> None:
    """Join the other processes; `flag` says how, for errors."""
    seconds = supervision.START_SECONDS
    supervision.work_in_a_child(
        f"{flag}: the processes have not joined within {seconds} s, expected all to be started in "
        "that time and the first one to be reachable from the others"
    )
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=supervision.HEARTBEAT_SECONDS,
        )
    except (ValueError, KeyError) as error:
        # Of JAX's detection: no cluster, or variables of one that can't be read.
        fail(
            BAD_INPUT,
            f"{flag}: no complete cluster found ({error}), expected a TPU pod, Slurm, "
            "Kubernetes or MPI; elsewhere join by --coordinator, --num_processes and --process_id",
        )
    supervision.joined()


def parse_flags(argv: list[str]) -> list[str]:
    """Parse all flags (for `absl.app.run`); errors end the process with a line for each."""
    if any(argument in ("--help", "-h", "-help", "-?") for argument in argv[1:]):
        print(_help(argv[0]))
        sys.exit(0)
    has_config = "config" in flags.FLAGS and "--helpfull" not in argv
    try:
        if has_config:
            # Heavy, and needed by commands with a configuration only.
            from launch import overrides

            argv = overrides.normalised(argv)
            # absl doesn't know --config.FIELD: these are read by `overrides`.
            own = [x for x in argv if x not in overrides.overrides_in(argv)]
            rest = flags.FLAGS(own)
            workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else ""
            _, errors = overrides.read_valid(argv, workdir or None)
            if errors:
                fail(BAD_INPUT, *errors)
        else:
            rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        fail(BAD_INPUT, error)
    # `launch.train` finds its overrides here, in the normalised form.
    sys.argv[:] = argv
    if rest[1:]:
        fail(
            BAD_INPUT,
            f"{rest[1]}: unexpected argument, expected flags only (--NAME=VALUE)",
        )
    return rest


def _help(program: str) -> str:
    """Return the command's docstring and its own flags, --config and --workdir first."""
    own = flags.FLAGS.get_key_flags_for_module(program)
    own.sort(key=lambda flag: ({"config": 0, "workdir": 1}.get(flag.name, 2), flag.name))
    lines = [str(sys.modules["__main__"].__doc__ or "").strip(), "", "flags:"]
    for flag in own:
        default = f" (default: {flag.default_as_str})" if flag.default not in (None, "") else ""
        lines.append(f"  --{flag.name}: {' '.join(flag.help.split())}{default}")
    if any(flag.name == "config" for flag in own):
        lines.append("  --config.FIELD=VALUE: another value for a field of the configuration")
    lines.append("\n--helpfull also lists the flags of libraries.")
    return "\n".join(lines)


def name_steps() -> None:
    """Log which step of a checkpoint a command reads: a run's folder stands for its last one."""
    logging.basicConfig(format="%(message)s")  # no-op below absl's `app.run`, which has a handler
    logging.getLogger("groupvit_jax.runs.checkpoints").setLevel(logging.INFO)


def fail(code: int, *errors: Exception | str) -> NoReturn:
    """End the process with a line on stderr for each error."""
    for error in errors:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    supervision.end(code)


def use_huge_pages() -> None:
    """Start the process anew with glibc told to use huge pages, where JAX_PLATFORMS=cpu.

    XLA allocates its temporaries anew each step, gigabytes that the kernel maps and zeroes page by
    page: 70,000 page faults a step of configs/scenes.py, 3,500 with pages of 2 MiB. glibc reads
    this variable only as a process starts, hence the new one: same id, same arguments. Call it
    before JAX is used. A GLIBC_TUNABLES of the user's is left as it is.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" or "GLIBC_TUNABLES" in os.environ:
        return
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # of Linux
    if setting.exists() and "[madvise]" in setting.read_text():  # else all have them, or none
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_all_cores() -> None:
    """Make every core of a CPU a device of its own, for work that divides among devices.

    Windows on devices of one core each take about half the time of windows that all cores share.
    Call it before JAX is used. A number of devices in XLA_FLAGS takes precedence.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def is_user_error(error: Exception) -> bool:
    """Return whether this project raised the error, so that its message is meant for users."""
    # The innermost frame is the one that raised.
    module = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1].f_globals
    spec = module.get("__spec__")  # has the name of a command that runs as __main__
    name = spec.name if spec else module.get("__name__", "")
    return name.split(".")[0] in ("groupvit_jax", "launch")


@contextlib.contextmanager
def bad_input_ends(*more: type[Exception]) -> Iterator[None]:
    """End the process with one line and exit code 2 where the input is wrong.

    Args:
      more: kinds of errors that mean so besides wrong values and files.
    """
    kinds: tuple[type[Exception], ...] = (ValueError, FileNotFoundError, FileExistsError, *more)
    try:
        yield
    except kinds as error:
        if not is_user_error(error):
            raise
        fail(BAD_INPUT, error)


@contextlib.contextmanager
def progress_display() -> Iterator[Callable[[int, int, str], None]]:
    """Show progress as a bar below the log on a terminal, as lines of the log elsewhere."""
    log = logging.getLogger("groupvit_jax")
    log.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    if not flags.FLAGS["verbosity"].present:
        absl.logging.set_verbosity(absl.logging.WARNING)  # libraries tell much, with --verbosity=0
    console = Console(stderr=True)
    if not console.is_terminal:
        # Imported here: commands that train nothing start a second sooner without the loop.
        from groupvit_jax.train.loop import log_progress

        yield log_progress
        return
    log.addHandler(RichHandler(console=console, show_path=False))
    log.propagate = False
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("starting", total=None)

        def show(step: int, num_steps: int, text: str) -> None:
            progress.update(task, completed=step, total=num_steps, description=text)

        yield show
