"""Settings that let segments emerge on the drawn scenes, three seeds each (docs/emergence.md).

python -m groupvit_jax.scenes.dataset data
python -m launch.sweep --sweep=configs/sweeps/emergence.py --output=sweeps/emergence
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/scenes_published.py"
METRIC = "validation/miou"


def get_sweep() -> list[Overrides]:
    """Return 18 trials of 400 steps: each setting with the seeds 0, 1 and 2."""
    settings: list[Overrides] = [
        {"model.image.assignment": "hard"},  # no noise
        {"model.image.assignment": "soft"},
        {"loss.identical_texts": "negatives"},
        {"model.image.init_std": 0.02},
        {"model.image.num_group_tokens": (24, 8), "model.image.num_output_groups": (24, 8)},
        {"data.sources.scenes.exchange_captions": True},  # the control
    ]
    return product([sweep("train.num_steps", [400]), settings, sweep("seed", range(3))])
