"""launch/gke_jobset.yaml and its Dockerfile, as far as they can be checked without a cluster."""

import json
import math
import re
import shutil
import site
import subprocess
import tomllib
import venv
from pathlib import Path

import jsonschema
import pytest
import yaml

from groupvit_jax.runs import exit_codes
from launch import overrides

SCHEMA = Path(__file__).parent / "jobset_schema.json"


def strict(schema):
    """The schema with unknown fields as errors, which Kubernetes would silently drop."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture
def manifest():
    return yaml.safe_load(Path("launch/gke_jobset.yaml").read_text())


@pytest.fixture(scope="module")
def validator():
    schema = strict(json.loads(SCHEMA.read_text()))
    schema["properties"]["metadata"].pop("additionalProperties", None)  # Kubernetes' own schema
    return jsonschema.Draft202012Validator(schema)


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def test_the_manifest_fits_the_schema(manifest, validator):
    assert [error.message for error in validator.iter_errors(manifest)] == []


def test_the_schema_finds_wrong_fields(manifest, validator):
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    job_of(manifest)["parallelism"] = "four"
    pod_of(manifest)["containers"][0].pop("name")
    messages = " ".join(error.message for error in validator.iter_errors(manifest))
    assert "'maxRestart' was unexpected" in messages
    assert "'four' is not of type 'integer'" in messages
    assert "'name' is a required property" in messages


def test_as_many_pods_as_the_topology_has_hosts(manifest):
    job, pod = job_of(manifest), pod_of(manifest)
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert (
        job["parallelism"] == job["completions"] == chips // resources["limits"]["google.com/tpu"]
    )


def test_restarts_follow_the_exit_codes_of_the_command(manifest):
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "operator": "In",
        "values": [exit_codes.FAILED, exit_codes.BAD_INPUT],
    }
    assert {exit_codes.STOPPED, exit_codes.LOST}.isdisjoint(rule["onExitCodes"]["values"])
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 0
    assert pod_of(manifest)["restartPolicy"] == "Never"  # what a podFailurePolicy asks for
    assert job["backoffLimit"] == 0


def test_the_arguments_are_those_of_the_command(manifest):
    (container,) = pod_of(manifest)["containers"]
    config, errors = overrides.read_valid(["launch.train", *container["args"]])
    assert list(errors) == []
    assert all(source.pattern.startswith("gs://") for source in config.data.sources.values())
    # Pods share no disk.
    assert "--workdir=gs://BUCKET/runs/first" in container["args"]
    sets = [each for each in config.evaluators.values() if each.kind != "off"]
    assert all(each.data_dir.startswith("gs://") for each in sets)
    assert "volumes" not in pod_of(manifest)
    assert "--distributed=auto" in container["args"]
    assert "command" not in container  # the image's entry point is launch.train


def test_the_image_copies_what_is_there_and_installs_known_extras():
    dockerfile = Path("launch/Dockerfile").read_text()
    ignored = Path("launch/Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert Path(source).exists()
            assert f"!{source}" in ignored
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"^ARG EXTRAS=(.*)$", dockerfile, re.MULTILINE)[1].split(",")) <= set(
        extras
    )
    assert 'ENTRYPOINT ["python", "-m", "launch.train"]' in dockerfile


@pytest.mark.slow
def test_what_the_image_copies_is_enough_for_the_command(tmp_path):
    """Its steps in a new environment, to which this one lends the libraries it would download."""
    place = tmp_path / "groupvit"
    for line in re.findall(r"^COPY (.*)$", Path("launch/Dockerfile").read_text(), re.MULTILINE):
        *sources, target = line.split()
        for source in map(Path, sources):
            if source.is_dir():
                shutil.copytree(source, place / target, ignore=shutil.ignore_patterns("__pyc*"))
            else:
                (place / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place / target)
    venv.create(tmp_path / "venv")  # its pip and setuptools are the tests' as well
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    where = "import groupvit_jax; print(groupvit_jax.__file__)"
    said = ""
    for arguments in (install, ["-c", where], ["-m", "launch.train", "--help"]):
        command = [tmp_path / "venv" / "bin" / "python", *arguments]
        result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        said += result.stdout
    assert str(place / "groupvit_jax") in said
    assert "--workdir: Folder of the run" in said
