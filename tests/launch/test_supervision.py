import os
import socket
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from groupvit_jax.runs import exit_codes
from launch import common
from tests.waiting import PATIENCE

# Each case is a process of its own that works in a child, as a command with several processes does.
ENDS = """
import os, signal, sys, time
from launch import supervision

def case(name):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        supervision.work_in_a_child()
        os.write(write, str(os.getpid()).encode())
        supervision._LINGER_SECONDS = 1
        if name == "raise":
            raise ValueError("a reason")
        if name == "said":  # and then ended by the end of another process
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            signal.signal(signal.SIGALRM, lambda *_: os.abort())
            supervision.end(2)
        if name == "wait":
            signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
            os.write(write, b".")
            time.sleep(3600)  # longer than the test waits
        signal.raise_signal(signal.Signals[name]) if name.startswith("SIG") else os._exit(int(name))
    os.close(write)
    worker = os.read(read, 20)
    if name == "wait":
        worker += b"" if worker.endswith(b".") else os.read(read, 1)
        os.kill(pid, signal.SIGTERM)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

for name in ("0", "2", "143", "raise", "said", "wait", "SIGABRT", "SIGKILL", "SIGTERM"):
    case(name)

read, write = os.pipe()
pid = os.fork()
if pid == 0:
    supervision.work_in_a_child()
    os.write(write, b".")
    time.sleep(3600)  # longer than the test waits
os.close(write)
os.read(read, 1)
os.kill(pid, signal.SIGKILL)
print("orphan", os.read(read, 1) == b"", flush=True)  # the pipe ends with the last that holds it
"""


def test_a_process_ends_as_its_child_and_says_what_a_signal_means():
    process = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert process.returncode == 0, process.stderr
    found = dict(line.split() for line in process.stdout.splitlines())
    lost = str(exit_codes.LOST)
    assert found == {
        **{"0": "0", "2": "2", "143": "143", "raise": "1", "said": "2", "wait": "143"},
        **{"SIGABRT": lost, "SIGKILL": lost, "SIGTERM": "143", "orphan": "True"},
    }
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith("error: ended by SIGABRT (another process of this run has died)")
    assert errors[1].startswith("error: ended by SIGKILL")
    assert all("start the same command again on all hosts" in error for error in errors)
    assert "ValueError: a reason" in process.stderr


def test_a_coordinator_alone_is_one_line(capsys):
    common.define_process_flags()
    flags.FLAGS(["command"])
    with flagsaver.flagsaver(coordinator="localhost:1"), pytest.raises(SystemExit) as end:
        common.start_jax()
    assert end.value.code == exit_codes.BAD_INPUT
    assert capsys.readouterr().err.startswith("error: --coordinator: expected --num_processes")


START = """
import sys
from absl import flags
from launch import common, supervision
supervision.START_SECONDS = 3
supervision._LINGER_SECONDS = 0.1
common.define_process_flags()
flags.FLAGS(sys.argv)
common.start_jax()
"""


# Addresses in hexadecimal are the first column after the number, states the third (0A: listening).
LISTENING = (
    START
    + """
from pathlib import Path
port = f":{int(sys.argv[1].rpartition(':')[2]):04X}"
files = [Path(f"/proc/self/net/{kind}") for kind in ("tcp", "tcp6")]
rows = [row.split() for file in files for row in file.read_text().splitlines()[1:]]
print(*{row[1] for row in rows if row[1].endswith(port) and row[3] == "0A"}, file=sys.stderr)
"""
)


def start(*arguments, script=START, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return result.returncode, result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            {},
            "error: --process_id=2: expected 0 to 1 (--num_processes=2)",
        ),
        (
            ["--coordinator=localhost", "--num_processes=2", "--process_id=1"],
            {},
            "error: --coordinator=localhost: expected HOST:PORT",
        ),
        (
            ["--distributed=auto"],
            {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2"},
            "error: --distributed=auto: SLURM_PROCID is not set in this Slurm job",
        ),
    ],
)
def test_a_start_that_cannot_join_names_the_flag_or_variable(arguments, environment, message):
    code, line = start(*arguments, **environment)
    assert code == exit_codes.BAD_INPUT
    assert line.startswith(message)


@pytest.mark.slow
def test_a_start_outside_a_cluster_says_so():
    code, line = start("--distributed=auto")
    assert code == exit_codes.BAD_INPUT
    assert line.startswith("error: --distributed=auto: no complete cluster found")


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_one_sentence_within_the_stated_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        flag = f"--coordinator=127.0.0.1:{silent.getsockname()[1]}"
        code, line = start(flag, "--num_processes=2", "--process_id=1")
    assert code == exit_codes.LOST
    assert line.startswith(f"error: {flag}: the processes have not joined within 3 s")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_coordinator_on_the_loopback_listens_there_alone():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = f"--coordinator=127.0.0.1:{port}", "--num_processes=1", "--process_id=0"
    code, line = start(*arguments, script=LISTENING)
    assert code == 0
    loopback = {f"0100007F:{port:04X}", f"{'0' * 16}FFFF00000100007F:{port:04X}"}
    assert line.split()
    assert set(line.split()) <= loopback, line
