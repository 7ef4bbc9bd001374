"""A script as people write them: no functions, no `if __name__ == "__main__":`."""

import os
import subprocess
import sys

import pytest

from tests.data.shard_files import write_pairs
from tests.devices import xla_flags
from tests.waiting import PATIENCE

SCRIPT = """
import glob
import sys
import numpy as np
from configs import tiny
from groupvit_jax import Segmenter
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.train.loop import train

print("started", flush=True)
shards, workdir = sys.argv[1:]
config = tiny.get_config()
config.data.sources.pairs.pattern = shards
config.data.num_workers = 1
config.data.index_dir = workdir + "/index"
config.model.image.update(depths=(1, 1), num_group_tokens=(4, 0), num_output_groups=(4,))
config.model.text.num_layers = 1
config.train.num_steps = config.checkpoint.every_steps = 3
source = WebDatasetSource(sorted(glob.glob(shards)), index_dir=config.data.index_dir)
assert len(source) == 40
assert train(config, workdir).complete
image = np.zeros((40, 60, 3), np.uint8)
print(Segmenter.from_pretrained(workdir)(image, ["dog", "cat"]).mask.shape)
"""


@pytest.mark.slow
def test_data_training_and_segmentation_need_no_guard(tmp_path):
    for shard in range(8):  # as many as are worth processes of their own
        write_pairs(tmp_path / f"{shard}.tar", range(5 * shard, 5 * shard + 5))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    more = {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1)}
    result = subprocess.run(
        [sys.executable, script, str(tmp_path / "*.tar"), str(tmp_path / "run")],
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["started", "(40, 60)"]
