"""The configuration of a recorded run.

python -m launch.train --config=RUN/config.json --workdir=ANOTHER_FOLDER

which is short for --config=configs/from_json.py:RUN/config.json.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from groupvit_jax.runs.configuration import config_from_json


def get_config(path: str) -> ConfigDict:
    """Returns the recorded values; fields added since the run have their defaults.

    Args:
      path: a run's `config.json`.
    """
    config = base.get_config()
    config.update(config_from_json(Path(path)))
    return config
