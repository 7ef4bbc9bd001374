"""launch/tpu_vm.sh against a stand-in for gcloud, and the shell scripts against shellcheck."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import overrides
from tests.waiting import PATIENCE, wait_until

ARGUMENTS = ["--config=configs/scenes.py", "--workdir=/mnt/a folder/run"]
SCRIPTS = [
    "launch/tpu_vm.sh",
    "launch/slurm.sbatch",
    "tests/install_programs.sh",
    "tests/smoke.sh",
    ".ci/run",
]


class Cloud:
    """The stand-in's folder, and the script that meets it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -S '
            f'"{Path(__file__).parent}/standin_gcloud.py" "$@"\n'
        )
        gcloud.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "STANDIN_GCLOUD": str(folder),
            "ZONE": "us-west4-a",
            "TYPE": "v5litepod-16",
            "RUNTIME": "v2-alpha-tpuv5-lite",
            "POLL_SECONDS": "0",
        }

    def __call__(self, *arguments, code=0, **environment):
        result = subprocess.run(
            ["launch/tpu_vm.sh", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    def calls(self, command=""):
        """The recorded calls [command, arguments, flags] of a kind, which are then forgotten."""
        path = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("")
        return [call for call in found if call[0].startswith(command)]

    def set(self, name, value):
        (self.folder / name).write_text(value)


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    result = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_create_waits_until_the_tpu_is_there(cloud):
    output = cloud("create", "pod", SPOT="1", PROJECT="mine")
    assert "the TPU is WAITING_FOR_RESOURCES" in output
    (created, *polled) = cloud.calls()
    assert created == [
        "queued-resources create",
        ["pod"],
        {
            "--zone": "us-west4-a",
            "--project": "mine",
            "--node-id": "pod",
            "--accelerator-type": "v5litepod-16",
            "--runtime-version": "v2-alpha-tpuv5-lite",
            "--spot": "",
        },
    ]
    assert [call[0] for call in polled] == ["queued-resources list"] * 3


def test_run_copies_installs_and_starts_on_all_workers(cloud):
    cloud("create", "pod")
    cloud.calls()
    cloud("run", "pod", *ARGUMENTS, SETUP="sudo mount /mnt")
    copied, installed, started = cloud.calls("tpu-vm")
    assert copied[0] == "tpu-vm scp"
    assert copied[1][1] == "pod:groupvit.tar.gz"
    assert "--spot" not in copied[2]
    assert {call[2]["--worker"] for call in (copied, installed, started)} == {"all"}
    assert "requirements.txt -e '.[tpu,gcs]'" in installed[2]["--command"]
    assert started[2]["--command"].startswith("set -e\nsudo mount /mnt\n")
    assert "running" in cloud("status", "pod")


def test_every_slice_is_reached(cloud):
    cloud("create", "pods", SLICES="2")
    assert cloud.calls("queued-resources create")[0][2]["--node-prefix"] == "pods"
    cloud("run", "pods", *ARGUMENTS, SLICES="2")
    reached = [call[1][-1].partition(":")[0] for call in cloud.calls("tpu-vm")]
    assert sorted(reached) == ["pods-0"] * 3 + ["pods-1"] * 3


@pytest.mark.parametrize("state", ["SUSPENDING", "SUSPENDED", "FAILED"])
def test_resume_replaces_a_preempted_tpu_and_starts_again(cloud, state):
    cloud("create", "pod", SPOT="1")
    cloud("run", "pod", *ARGUMENTS)
    cloud.set("pod.state", state)
    cloud.calls()
    assert f"the TPU is {state}; asking for another" in cloud("resume", "pod", *ARGUMENTS, SPOT="1")
    kinds = [call[0] for call in cloud.calls() if "list" not in call[0]]
    assert kinds == [
        "queued-resources delete",
        "queued-resources create",
        *["tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"],
    ]
    assert (cloud.folder / "pod.run").read_text() == "running"


@pytest.mark.parametrize("ended", ["143", "75", "137"])
def test_resume_starts_a_run_that_was_stopped(cloud, ended):
    cloud("create", "pod")
    cloud.set("pod.run", ended)
    cloud.calls()
    cloud("resume", "pod", *ARGUMENTS)
    assert [c[0] for c in cloud.calls("tpu-vm")].count("tpu-vm scp") == 1
    assert (cloud.folder / "pod.run").read_text() == "running"


@pytest.mark.parametrize(("ended", "code"), [("running", 0), ("0", 0), ("1", 1), ("2", 2)])
def test_resume_leaves_alone_what_needs_nothing_or_cannot_be_mended(cloud, ended, code):
    cloud("create", "pod")
    cloud.set("pod.run", ended)
    cloud.calls()
    cloud("resume", "pod", *ARGUMENTS, code=code)
    assert not any("--config" in call[2].get("--command", "") for call in cloud.calls())


def test_watching_ends_when_the_run_does(cloud):
    process = subprocess.Popen(
        ["launch/tpu_vm.sh", "resume", "pod", *ARGUMENTS],
        env={**cloud.environment, "WATCH": "0.2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    run = cloud.folder / "pod.run"

    def check():
        assert process.poll() is None

    wait_until(run.exists, check)
    time.sleep(0.5)
    assert process.poll() is None
    run.write_text("0")
    assert "all steps are done" in process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0


def test_the_documented_commands_lead_from_nothing_to_a_resumed_run(cloud):
    page = Path("docs/launch_tpu.md").read_text()
    block = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1]
    variables, *commands = re.split(r"\n(?! )", block.strip())
    assert 1 + len(commands) == 6
    environment = {
        k: v for k, v in cloud.environment.items() if k not in ("ZONE", "TYPE", "RUNTIME")
    }

    def start(*lines):
        return subprocess.Popen(
            ["bash", "-euc", "\n".join([variables.replace("BUCKET", "b"), *lines])],
            env=environment,
        )

    bucket, create, run, status, resume = (line.replace("BUCKET", "b") for line in commands)
    assert start(bucket, create, run, status).wait(PATIENCE) == 0
    assert (cloud.folder / "b").is_dir()
    first = cloud.calls("tpu-vm ssh")[1][2]["--command"]
    cloud.set("pod.state", "SUSPENDED")
    run_state = cloud.folder / "pod.run"
    run_state.unlink()
    resuming = start(resume.replace("WATCH=300", "WATCH=0.1"))
    wait_until(lambda: run_state.exists() or resuming.poll() is not None)
    run_state.write_text("0")
    assert resuming.wait(PATIENCE) == 0
    started = [c[2]["--command"] for c in cloud.calls("tpu-vm ssh") if c[2]["--worker"] == "all"]
    assert started[-1] == first, "the same command on the new machines"
    command = re.search(r"' train (.*) </dev/null", first)[1]
    arguments = shlex.split(command)
    assert "--workdir=gs://b/runs/first" in arguments
    _, errors = overrides.read_valid(["launch.train", *arguments])
    assert list(errors) == []


def test_delete(cloud):
    cloud("create", "pod")
    cloud("delete", "pod")
    assert not (cloud.folder / "pod.state").exists()
    assert "TPU: ABSENT" in cloud("status", "pod")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "expected create, run, status, resume or delete"),
        (["delete", "Pod"], {}, "NAME: 'Pod' found"),
        (["run", "pod"], {}, "run: no arguments found"),
        (["create", "pod"], {"TYPE": ""}, "TYPE: not set"),
        (["status", "pod"], {"ZONE": ""}, "ZONE: not set"),
    ],
)
def test_wrong_use_is_one_line(cloud, arguments, environment, message):
    output = cloud(*arguments, code=64, **environment)
    assert message in output
    assert output.count("\n") == 1


def test_an_error_of_gcloud_ends_the_script(cloud):
    cloud("create", "pod")
    assert "ALREADY_EXISTS" in cloud("create", "pod", code=1)


def test_what_workers_run_works_in_a_shell(cloud, tmp_path):
    """The commands of one worker, with a Python that writes down what it is given."""
    cloud("create", "pod")
    cloud("run", "pod", *ARGUMENTS, SETUP=f"touch '{tmp_path}/set up'")
    copied, _, started = cloud.calls("tpu-vm")
    home = tmp_path / "home"
    python = home / "groupvit" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\nexit 75\n')
    python.chmod(0o755)
    subprocess.run(["bash", "-c", started[2]["--command"]], cwd=home, check=True, timeout=PATIENCE)
    exit_code = home / "groupvit" / "train.exit"
    wait_until(lambda: exit_code.exists() and exit_code.read_text())
    assert exit_code.read_text() == "75\n"
    assert (home / "groupvit" / "train.log").read_text().split("\n") == [
        *["<-m>", "<launch.train>", "<--distributed=auto>", f"<{ARGUMENTS[0]}>"],
        *[f"<{ARGUMENTS[1]}>", ""],
    ]
    assert (tmp_path / "set up").exists()
    assert not Path(copied[1][0]).exists()
