"""The drawn scenes with patience: nearly twice the steps.

python -m groupvit_jax.scenes.dataset data
python -m launch.train --config=configs/scenes_long.py --workdir=runs/scenes_long
"""

from ml_collections import ConfigDict

from configs import scenes


def get_config() -> ConfigDict:
    """Return the model of the scenes, trained for longer and on more varied crops."""
    config = scenes.get_config()
    config.data.augment.min_area = 0.6
    config.train.num_steps = 2000
    for evaluator in config.evaluators.values():
        if evaluator.get("every_steps"):
            evaluator.every_steps = 500
    return config
