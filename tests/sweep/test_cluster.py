import dataclasses
import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from groupvit_jax.runs.sweep_files import read_record, write_record
from groupvit_jax.sweep import cluster
from tests.launch.test_gke_jobset import SCHEMA, strict
from tests.sweep import fake

SCRIPT = Path("launch/slurm.sbatch")
TEMPLATE = Path("launch/gke_sweep.yaml")


@pytest.fixture
def sweep(tmp_path):
    return fake.make_sweep(tmp_path, [(1, 0)] * 4)


def mark(sweep, root, number, **changes):
    workdir = root / sweep.trials[number].folder
    record = read_record(workdir)
    write_record(workdir, dataclasses.replace(record, **changes))


def test_only_what_is_unfinished_is_run(sweep, tmp_path):
    mark(sweep, tmp_path, 0, state="finished")
    mark(sweep, tmp_path, 1, state="failed", failures=1)
    mark(sweep, tmp_path, 2, state="running")
    assert cluster.unfinished(sweep, tmp_path, retry=0) == [2, 3]
    assert cluster.unfinished(sweep, tmp_path, retry=1) == [1, 2, 3]


def test_a_job_array_has_a_task_for_each_trial(sweep, tmp_path):
    command = cluster.sbatch_command(
        sweep, tmp_path, [1, 3], script=SCRIPT, jobs=2, options=["--gpus-per-node=8"]
    )
    assert command[0] == "sbatch"
    assert "--array=1,3%2" in command
    assert "--export=ALL,PROGRAM=launch.sweep" in command
    split = command.index(str(SCRIPT))
    assert "--gpus-per-node=8" in command[:split]
    assert command[split + 1 :] == [f"--output={tmp_path}"]


def test_what_slurm_still_has_is_known_by_its_submission(sweep, tmp_path, monkeypatch):
    assert cluster.queued(tmp_path) == {}
    printed = iter(["77;cluster", "77 1\n77 [2-3]\n78 0\n77 N/A\n"])
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, next(printed), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert cluster.submit(["sbatch"], tmp_path, [1, 2]) == "77"
    assert cluster.queued(tmp_path) == {1: "77"}
    assert commands[1][:2] == ["squeue", "--array"]


def test_what_slurm_refuses_is_one_line(sweep, tmp_path):
    with pytest.raises(ValueError, match="no-such-sbatch: not found, expected Slurm's commands"):
        cluster.submit(["no-such-sbatch"], tmp_path, [0])
    with pytest.raises(ValueError, match="bash: no such partition"):
        cluster.submit(["bash", "-c", "echo 'no such\npartition' >&2; exit 1"], tmp_path, [0])


@pytest.fixture
def manifest(sweep, tmp_path):
    arguments = ["--sweep=configs/sweeps/seeds.py", "--config.seed=1"]
    template = cluster.read_template(TEMPLATE)
    made = cluster.job_manifest(template, sweep, jobs=2, arguments=arguments)
    cluster.write_manifest(tmp_path / "job.yaml", made)
    return yaml.safe_load((tmp_path / "job.yaml").read_text())


def test_the_job_fits_the_schema(manifest):
    schema = strict(json.loads(SCHEMA.read_text()))
    jobs = schema["properties"]["spec"]["properties"]["replicatedJobs"]["items"]
    job = jobs["properties"]["template"]["properties"]["spec"]
    validator = jsonschema.Draft202012Validator(job)
    assert [error.message for error in validator.iter_errors(manifest["spec"])] == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    manifest["spec"]["completion"] = 3
    assert any("completion" in error.message for error in validator.iter_errors(manifest["spec"]))


def test_the_job_has_an_index_for_each_trial(manifest):
    spec = manifest["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 2)
    assert manifest["metadata"]["name"] == "groupvit-sweep-fake"
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "launch.sweep"]
    assert container["args"] == [
        "--sweep=configs/sweeps/seeds.py",
        "--config.seed=1",
        "--output=/runs/fake",
        "--trial=$(JOB_COMPLETION_INDEX)",
    ]


def test_a_sweep_on_a_bucket_needs_no_volume(sweep, tmp_path):
    content = yaml.safe_load(TEMPLATE.read_text())
    spec = content["spec"]["template"]["spec"]
    del spec["volumes"], spec["containers"][0]["volumeMounts"]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="expected a Job like"):
        cluster.read_template(tmp_path / "m.yaml")
    template = cluster.read_template(tmp_path / "m.yaml", needs_volume=False)
    made = cluster.job_manifest(template, sweep, jobs=1, arguments=[], url="gs://b/fake")
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "--output=gs://b/fake"
    command = cluster.sbatch_command(sweep, "gs://b/fake", [0], script=SCRIPT)
    assert "--output=fake-%A-%a.log" in command[: command.index(str(SCRIPT))]
    assert command[-1] == "--output=gs://b/fake"


def test_a_trial_that_fails_leaves_the_others(manifest):
    spec = manifest["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("content", ["kind: JobSet", "a: [", "kind: Job\nspec: {}", "[]"])
def test_another_manifest_is_refused(tmp_path, content):
    path = tmp_path / "m.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"--manifest=.*m\.yaml: .*expected a Job like"):
        cluster.read_template(path)
    with pytest.raises(ValueError, match="expected a Job like"):
        cluster.read_template(tmp_path / "none.yaml")
