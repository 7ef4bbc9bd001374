"""The configuration of a recorded run.

python -m launch.train --config=RUN/config.json --workdir=ANOTHER_FOLDER

which is short for --config=configs/from_json.py:RUN/config.json.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from groupvit_jax.runs.configuration import config_from_json
from groupvit_jax.runs.fields import MOVED


def get_config(path: str) -> ConfigDict:
    """Return the recorded values; fields added since the run describe it as it was.

    Args:
      path: a run's `config.json`.
    """
    config = base.get_config()
    recorded = config_from_json(Path(path))
    for name, section in config.items():
        if isinstance(section, ConfigDict) and not isinstance(
            recorded.get(name, section), ConfigDict
        ):
            raise ValueError(f"{path}: {name} is {recorded[name]!r:.40}, expected an object")
    for old, new in MOVED.items():
        (old_section, old_name), (new_section, new_name) = old.split("."), new.split(".")
        if old_name in recorded.get(old_section, ()):
            recorded[new_section][new_name] = recorded[old_section][old_name]
            del recorded[old_section][old_name]
    config.update(recorded)
    return config
