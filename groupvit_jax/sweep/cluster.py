"""Sweeps on clusters: as a Slurm job array or as an indexed Kubernetes Job."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.runs.sweep_files import Sweep, read_record
from groupvit_jax.sweep.folder import now

SUBMISSIONS_FILE = "slurm.jsonl"
MANIFEST_FILE = "job.yaml"
# A pod's name has at most 63 characters, and Kubernetes appends the index and a random suffix.
_KUBERNETES_NAME = 50


def unfinished(sweep: Sweep, root: Path, retry: int) -> list[int]:
    """Return the numbers of the trials that a new start has to run.

    Args:
      sweep: the sweep.
      root: its folder.
      retry: how often a failed trial is tried again.
    """
    records = [read_record(root / trial.folder) for trial in sweep.trials]
    return [
        record.id
        for record in records
        if record.state != "finished"
        if record.state != "failed" or record.failures <= retry
    ]


def sbatch_command(
    sweep: Sweep,
    root: Path | str,
    trials: Sequence[int],
    *,
    script: Path,
    jobs: int | None = None,
    options: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> list[str]:
    """Return the command that submits trials as a job array.

    Args:
      sweep: the sweep.
      root: its folder, on a file system that all nodes share, or a URL.
      trials: numbers of the trials.
      script: launch/slurm.sbatch.
      jobs: trials at a time; None leaves it to Slurm.
      options: options of sbatch, such as --gpus-per-node=8.
      arguments: flags of launch.sweep besides --output.
    """
    at_once = f"%{jobs}" if jobs else ""
    log = f"{sweep.name}-%A-%a.log" if is_remote(str(root)) else f"{root}/slurm-%a.log"
    return [
        "sbatch",
        "--parsable",
        f"--array={','.join(map(str, trials))}{at_once}",
        f"--job-name={sweep.name}",
        f"--output={log}",
        # slurm.sbatch runs launch.train unless this says otherwise.
        "--export=ALL,PROGRAM=launch.sweep",
        *options,
        str(script),
        f"--output={root}",
        *arguments,
    ]


def submit(command: Sequence[str], root: Path, trials: Sequence[int]) -> str:
    """Submit a job array, record it in the sweep's folder and return the job's number.

    Raises:
      ValueError: sbatch is not installed or refuses the job.
    """
    # On a cluster with a name, --parsable prints "JOB;CLUSTER".
    job = _output(command).partition(";")[0]
    with (root / SUBMISSIONS_FILE).open("a") as file:
        file.write(json.dumps({"job": job, "trials": list(trials), "submitted": now()}) + "\n")
    return job


def queued(root: Path) -> dict[int, str]:
    """Return the jobs of earlier submissions that are still in the queue, by trial.

    A second submission leaves these trials out: two jobs of one trial would only wait for its lock.

    Raises:
      ValueError: squeue is not installed or fails.
    """
    path = root / SUBMISSIONS_FILE
    if not path.exists():
        return {}
    # The queue also holds other jobs of this user.
    jobs = {json.loads(line)["job"] for line in path.read_text().splitlines()}
    # %F is the array's job, %K the task's index, here the trial.
    tasks = _output(["squeue", "--array", "--noheader", "--format=%F %K"]).splitlines()
    pairs = [task.split() for task in tasks if len(task.split()) == 2]
    return {int(trial): job for job, trial in pairs if job in jobs and trial.isdigit()}


def _output(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]}: not found, expected Slurm's commands") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{command[0]}: {' '.join(error.stderr.split())}") from error
    return result.stdout.strip()


def job_manifest(
    template: Mapping[str, Any], sweep: Sweep, *, jobs: int, arguments: Sequence[str], url: str = ""
) -> dict[str, Any]:
    """Return a Kubernetes Job with one index a trial.

    An index whose trial is finished ends at once, so the same manifest resumes a sweep.

    Args:
      template: the content of launch/gke_sweep.yaml.
      sweep: the sweep.
      jobs: trials at a time.
      arguments: flags of launch.sweep in a pod, without --output and --trial.
      url: of the sweep's folder, if it isn't on the template's volume.
    """
    manifest = json.loads(json.dumps(template))  # a deep copy
    name = re.sub(r"[^a-z0-9]+", "-", f"{manifest['metadata']['name']}-{sweep.name}".lower())
    manifest["metadata"]["name"] = name[:_KUBERNETES_NAME].strip("-")
    manifest["spec"].update(completions=len(sweep.trials), parallelism=jobs)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    folder = url or PurePosixPath(container["volumeMounts"][0]["mountPath"]) / sweep.name
    # Kubernetes puts the pod's index in place of $(JOB_COMPLETION_INDEX).
    container["args"] = [*arguments, f"--output={folder}", "--trial=$(JOB_COMPLETION_INDEX)"]
    return manifest


def read_template(path: Path, needs_volume: bool = True) -> dict[str, Any]:
    """Return the content of a manifest.

    Raises:
      ValueError: there is no such file, or it holds no Job with a container and, if it needs one, a
        volume.
    """
    try:
        content = yaml.safe_load(path.read_text())
        container = content["spec"]["template"]["spec"]["containers"][0]
        has_volume = not needs_volume or container["volumeMounts"][0]["mountPath"]
        if content["kind"] != "Job" or not has_volume:
            raise ValueError(f"{content['kind']} found")
        content["metadata"]["name"]
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as error:
        found = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise ValueError(
            f"--manifest={path}: {found}, expected a Job like launch/gke_sweep.yaml"
        ) from error
    return content


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest for kubectl."""
    path.write_text(yaml.safe_dump(dict(manifest), sort_keys=False))
