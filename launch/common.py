"""What the commands share: configuration flags, errors of one line, logging, processes."""

import contextlib
import ctypes
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import configs
from configs import base
from groupvit_jax.runs import config_check
from groupvit_jax.runs.exit_codes import BAD_INPUT
from launch import supervision

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

# Flags defined by the functions below belong to the command that calls them, for its --help.
flags.disclaim_key_flags()

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=\[]+)")
_JSON_CONFIG = re.compile(r"(--?config=)([^:]+\.json)$")


def define_config_flag() -> flags.FlagHolder[ConfigDict]:
    """Defines `--config`, with an override `--config.FIELD=VALUE` for every field."""
    return config_flags.DEFINE_config_file(
        "config", help_string="A file with get_config(), or the config.json of a recorded run."
    )


def define_workdir_flag() -> flags.FlagHolder[str]:
    """Defines `--workdir`."""
    if "workdir" in flags.FLAGS:  # by another command in this process
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["workdir"])
    return flags.DEFINE_string(
        "workdir", "", "Folder of the run: checkpoints, metrics, configuration; created if missing."
    )


def define_process_flags() -> None:
    """Defines how this process finds the others, and where compiled programs are kept."""
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
        "compilation_cache", "", "Folder that keeps compiled programs for later starts."
    )


def start_jax() -> None:
    """Joins the other processes and opens the compilation cache, as the flags say.

    Where processes join, what follows runs in a child process (`supervision`).
    """
    values = flags.FLAGS
    if values.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", values.compilation_cache)
    if values.coordinator:
        if values.num_processes is None or values.process_id is None:
            fail(
                BAD_INPUT,
                "--coordinator: expected --num_processes and --process_id with it",
            )
        # Else JAX would look for a cluster, and under Slurm take one device of each machine only.
        _join(
            coordinator_address=values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
            cluster_detection_method="deactivate",
        )
    elif values.distributed == "auto":
        _join()


def _join(**arguments: Any) -> None:
    supervision.work_in_a_child()
    timeout = supervision.HEARTBEAT_SECONDS
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=timeout)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses all flags (for `absl.app.run`); wrong ones end the process with one line."""
    sys.argv[:] = argv = _normalised(argv)
    if any(argument in ("--help", "-h", "-help", "-?") for argument in argv[1:]):
        print(_help(argv[0]))
        sys.exit(0)
    try:
        if "config" in flags.FLAGS and "--helpfull" not in argv:
            parse_config(argv)
        rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        fail(BAD_INPUT, error)
    if rest[1:]:
        fail(
            BAD_INPUT,
            f"{rest[1]}: unexpected argument, expected flags only (--NAME=VALUE)",
        )
    return rest


def _help(program: str) -> str:
    """Returns the command's docstring and its own flags, --config and --workdir first."""
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


def parse_config(argv: Sequence[str]) -> ConfigDict:
    """Returns the configuration that a command line describes; its other flags are ignored.

    Args:
      argv: the command line, the program's name first.

    Raises:
      ValueError, absl.flags.Error, OSError: no or an unreadable `--config`, an override of a field
        that doesn't exist or with a value of another type.
    """
    argv = _normalised(argv)
    paths = [argument for argument in argv if re.match("--?config=.", argument)]
    if not paths:
        raise ValueError("--config: missing, expected --config=FILE")
    file = paths[-1].partition("=")[2].partition(":")[0]
    if not Path(file).is_file():
        raise ValueError(f"--config={file}: no such file")
    known = config_check.flatten(_parse([argv[0], paths[-1]]), free=())
    unknown = [
        config_check.unknown_field(field, known)
        for field in (match[1] for match in map(_OVERRIDE.match, argv) if match)
        if field not in known and not any(name.startswith(f"{field}.") for name in known)
        if field not in config_check.FREE_FIELDS
    ]
    if unknown:
        raise ValueError("; ".join(f"--{error}" for error in unknown))
    config = _parse(argv)
    if errors := config_check.find_errors(config, base.get_config()):
        raise ValueError("; ".join(errors))
    return config


def _parse(argv: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    values.set_gnu_getopt(True)
    values(list(argv), known_only=True)
    config = holder.value
    config.lock()  # a file that could not be read raises OSError here
    return config


def _normalised(argv: Sequence[str]) -> list[str]:
    """Makes --config FILE one argument, and a recorded config.json a configuration file."""
    text = "\0".join(argv)
    text = re.sub(r"(?<=\0)(--?config)\0(?!-)", r"\1=", text)
    reader = Path(configs.__path__[0]) / "from_json.py"
    return [_JSON_CONFIG.sub(rf"\1{reader}:\2", argument) for argument in text.split("\0")]


def fail(code: int, error: Exception | str) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    supervision.end(code)


def keep_freed_memory() -> None:
    """Keeps memory with the process once allocated, where JAX_PLATFORMS=cpu and glibc is used.

    XLA allocates its temporaries anew each step, gigabytes that glibc otherwise maps, has zeroed
    page by page and unmaps again: 280,000 page faults a step of groupvit-small at batch 8, none
    with this. To be called before JAX is used: its threads keep the arenas they begin with.
    """
    if not sys.platform.startswith("linux") or os.environ.get("JAX_PLATFORMS") != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has none of this
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_ARENA_MAX, 1)  # the arenas of threads map whatever is large
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def use_all_cores() -> None:
    """Makes every core of a CPU a device of its own, for work that divides among devices.

    Windows on devices of one core each take about half the time of windows that all cores share.
    To be called before JAX is used; a number of devices that XLA_FLAGS sets stays.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def is_user_error(error: Exception) -> bool:
    """Returns whether this project raised the error: its message then says all there is to say."""
    module = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1].f_globals
    spec = module.get("__spec__")  # has the name of a command that runs as __main__
    name = spec.name if spec else module.get("__name__", "")
    return name.split(".")[0] in ("groupvit_jax", "launch")


@contextlib.contextmanager
def progress_display() -> Iterator[Callable[[int, int, str], None]]:
    """Shows progress as a bar below the log on a terminal, as lines of the log elsewhere."""
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
