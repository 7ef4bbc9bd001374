"""launch/gpu_xla_flags.txt: a flag that XLA doesn't know ends the process before it trains."""

import os
import subprocess
import sys
from pathlib import Path

FLAGS = Path("launch/gpu_xla_flags.txt")
USE_XLA = "import jax; print(jax.devices()[0].platform)"


def read_flags():
    return [line for line in FLAGS.read_text().splitlines() if line and not line.startswith("#")]


def use_xla(flags):
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", USE_XLA]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_xla_knows_every_flag():
    assert len(read_flags()) >= 3
    assert use_xla(read_flags()).stdout.strip() == "cpu"
    assert "Unknown flag" in use_xla([*read_flags(), "--xla_gpu_misspelt=true"]).stderr


def test_slurm_jobs_get_them_before_the_users_own():
    script = Path("launch/slurm.sbatch").read_text().splitlines()
    (line,) = [line for line in script if line.startswith("XLA_FLAGS=")]
    command = ["bash", "-c", f'{line}\necho "$XLA_FLAGS"']
    environment = os.environ | {"XLA_FLAGS": "--xla_mine=1"}
    flags = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert flags.stdout.split() == [*read_flags(), "--xla_mine=1"]
