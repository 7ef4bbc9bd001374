"""launch/slurm.sbatch under a real Slurm of two nodes on this machine."""

import re
import sys
from pathlib import Path

import pytest

from groupvit_jax.interop.load import load_pretrained
from tests.devices import xla_flags
from tests.launch.test_train import lines, small_config, write
from tests.slurm import cluster

SCRIPT = Path("launch/slurm.sbatch").resolve()
missing = cluster.missing_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing), reason=f"Slurm is not tested: {', '.join(missing)} not installed"
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The commands' environment, as that of someone who submits from the repository's root."""
    with cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        flags = xla_flags(2)
        yield {**environment, "XLA_FLAGS": flags, "PYTHON": sys.executable}


def test_a_requeued_job_goes_on_where_it_stopped(slurm, shards, tmp_path):
    config = small_config(shards)
    config.train.num_steps = 40
    config.checkpoint.every_steps = 4
    workdir, log = tmp_path / "run", tmp_path / "log"
    arguments = write(config, tmp_path / "c.json"), f"--workdir={workdir}"
    submit = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", str(SCRIPT), *arguments]
    job = cluster.run(slurm, *submit)

    def said(text):
        return log.exists() and re.search(text, log.read_text()) is not None

    def state():
        fields = cluster.run(slurm, "scontrol", "show", "job", "--oneliner", job)
        return re.search(r"JobState=(\S+)", fields)[1]

    cluster.wait_for((workdir / "checkpoints" / "4").exists, tmp_path)
    cluster.run(slurm, "scontrol", "requeue", job)
    cluster.wait_for(lambda: said("stop requested: ending after step"), tmp_path)
    cluster.wait_for(lambda: said("resuming after step"), tmp_path)
    cluster.wait_for(lambda: state() == "COMPLETED", tmp_path)
    assert said("slurm.sbatch: all steps are done")
    fields = cluster.run(slurm, "scontrol", "show", "job", "--oneliner", job)
    # A loaded machine may lose a process's heartbeat, after which the script restarts the job.
    lost = log.read_text().count("slurm.sbatch: a process was lost")
    assert re.search(r"Restarts=(\d+)", fields)[1] == str(1 + lost)
    assert "2 x" not in log.read_text()
    assert said("4 x cpu on mesh")
    assert [line["step"] for line in lines(workdir)] == list(range(1, 41))
    assert load_pretrained(workdir).model_config.to_dict() == config.model.to_dict()


def test_an_error_that_a_restart_does_not_mend_ends_the_job(slurm, shards, tmp_path):
    log = tmp_path / "log"
    submit = ["sbatch", "--wait", "--parsable", "--nodes=2", f"--output={log}", str(SCRIPT)]
    with pytest.raises(cluster.subprocess.CalledProcessError):
        cluster.run(slurm, *submit, "--config=configs/none.py", f"--workdir={tmp_path}/run")
    assert "error: --config=configs/none.py: no such file" in log.read_text()
    assert "launch.train ended with 2, which a restart doesn't mend" in log.read_text()
