"""Segmentation from captions alone, on the embedded data set: minutes on 2 CPU cores.

python -m groupvit_jax.scenes.dataset data
python -m launch.train --config=configs/scenes.py --workdir=runs/scenes
"""

from ml_collections import ConfigDict

from configs import scenes_published


def get_config() -> ConfigDict:
    """Return the published method with what helps on the scenes (docs/emergence.md)."""
    config = scenes_published.get_config()
    config.loss.mixed_weight = 1.0
    config.train.num_steps = 1100
    for evaluator in config.evaluators.values():
        evaluator.pamr_iterations = 10
    return config
