"""The same run from several seeds: how much of a difference is chance.

python -m groupvit_jax.scenes.dataset data
python -m launch.sweep --sweep=configs/sweeps/seeds.py --output=sweeps/seeds
"""

from groupvit_jax.sweep import Overrides, sweep

BASE = "configs/scenes.py"
METRIC = "validation/miou"


def get_sweep() -> list[Overrides]:
    """Return 5 trials."""
    return sweep("seed", range(5))
