"""Which losses let segments emerge on the drawn scenes, each from three seeds (docs/losses.md).

python -m groupvit_jax.data.scenes data
python -m launch.sweep --sweep=configs/sweeps/losses.py --output=sweeps/losses
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/scenes.py"
METRIC = "validation/miou"

_SIGMOID = {
    "loss.kind": "sigmoid",
    "model.initial_logit_bias": -10.0,
    "model.initial_temperature": 0.1,
}


def get_sweep() -> list[Overrides]:
    """Returns 12 trials: each loss with the seeds 0, 1 and 2."""
    losses: list[Overrides] = [
        {"data.num_nouns": 0},  # global only
        {"data.num_nouns": 1},  # and multi-label
        {"data.num_nouns": 1, "loss.local_weight": 1.0, "loss.local_words": "prompts"},
        {"data.num_nouns": 1, **_SIGMOID},
    ]
    return product([losses, sweep("seed", range(3))])
