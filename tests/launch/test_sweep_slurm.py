"""A sweep as a job array under a real Slurm of two nodes on this machine."""

from groupvit_jax.sweep import cluster as job_arrays
from tests.launch.test_slurm import (  # noqa: F401  A fixture, and marks for this file.
    pytestmark,
    slurm,
)
from tests.launch.test_sweep import (  # noqa: F401  A fixture.
    NUM_STEPS,
    base,
    finished,
    lines,
    records,
    saved,
    write,
)
from tests.launch.test_sweep import launch as launch_here
from tests.slurm import cluster
from tests.waiting import PATIENCE


def test_a_sweep_is_a_job_array_that_goes_on(slurm, base, tmp_path, monkeypatch):  # noqa: F811
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "out"
    trials = [{"seed": 0}, {"seed": 1, "train.num_steps": 60}, {"train.num_steps": 4}]
    file = write(tmp_path, base, trials)

    def submit():
        process = launch_here(file, root, "--backend=slurm")
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        return said

    said = submit()
    assert "submitted 3 trials as job array" in said
    job = next(iter(set(job_arrays.queued(root).values())))
    assert job_arrays.queued(root).keys() <= {0, 1, 2}
    long = root / "001-seed=1-num_steps=60"
    cluster.wait_for(lambda: saved(long), tmp_path)
    # Requeued first: it has to start again, so it can't be over before `submit` looks at the queue.
    cluster.run(slurm, "scontrol", "requeue", f"{job}_1")
    assert f"trial 1: still in the queue, as job {job}_1" in submit()
    cluster.wait_for(lambda: not job_arrays.queued(root), tmp_path)
    assert len(finished(root)) == 3
    attempts = [record.attempts for record in records(root).values()]
    assert attempts == [1, 2, 1]
    assert "resuming after step" in (long / "log.txt").read_text()
    assert [line["step"] for line in lines(long)] == list(range(1, 61))
    assert "nothing to submit" in submit()
    assert "slurm.sbatch: all steps are done" in (root / "slurm-1.log").read_text()
    assert lines(root / "000-seed=0")[-1]["step"] == NUM_STEPS


def test_a_trial_may_take_several_nodes(slurm, base, tmp_path, monkeypatch):  # noqa: F811
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "out"
    arguments = "--backend=slurm", "--sbatch=--nodes=2", "--devices=2"
    process = launch_here(write(tmp_path, base, [{"seed": 0}]), root, *arguments)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    cluster.wait_for(lambda: not job_arrays.queued(root), tmp_path)
    ((workdir, record),) = records(root).items()
    assert (record.state, record.attempts) == ("finished", 1), (root / "slurm-0.log").read_text()
    assert "2 x cpu on mesh" in (workdir / "log.txt").read_text()
    assert [line["step"] for line in lines(workdir)] == list(range(1, NUM_STEPS + 1))
