"""A Slurm of one controller and two node daemons on this machine, for as long as a test needs it.

Everything lies in one folder, and what is started here is stopped here, by its process id. The
programs are those of Debian's packages (`tests/install_programs.sh`).
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where daemons are, also for other users
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job may start again once its credential has expired, after two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing_programs() -> list[str]:
    """Returns the programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Mapping[str, str]]:
    """Starts the cluster in `folder` and yields the environment of its commands."""
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(folder=folder, host=host, ports=_free_ports(3), user=getpass.getuser())
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    folder.chmod(0o755)  # munged wants a socket that others can reach
    environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(conf)}
    files = {name: folder / f"munge.{name.split('-')[0]}" for name in ("pid-file", "seed-file")}
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--key-file={key}", f"--log-file={folder}/munge.log"]
    munged += [f"--{name}={path}" for name, path in files.items()]
    commands = [munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "n1"]]
    commands.append(["slurmd", "-D", "-N", "n2"])
    with contextlib.ExitStack() as stack:
        for i, command in enumerate(commands):
            output = stack.enter_context((folder / f"daemon{i}.out").open("w"))
            daemon = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(_stop, daemon)
            if command is munged:
                wait_for(lambda: (folder / "munge.socket").exists(), folder)
        wait_for(lambda: _idle_nodes(environment) == 2, folder)
        yield environment
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=False)
        wait_for(lambda: not _jobs(environment), folder)


def run(environment: Mapping[str, str], *command: str) -> str:
    """Returns what a command of Slurm prints."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def wait_for(condition, folder: Path) -> None:
    """Waits until `condition()`; the daemons' logs are in `folder`."""

    def logs() -> str:
        found = sorted([*folder.glob("*.log"), *folder.glob("*.out")])
        return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in found)

    wait_until(condition, explain=logs, interval=0.2)


def _idle_nodes(environment: Mapping[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%t"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.stdout.split().count("idle")


def _jobs(environment: Mapping[str, str]) -> str:
    return run(environment, "squeue", "--noheader")


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
