"""Which losses let segments emerge on the drawn scenes, each from three seeds (docs/emergence.md).

python -m groupvit_jax.scenes.dataset data
python -m launch.sweep --sweep=configs/sweeps/losses.py --output=sweeps/losses
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/scenes_published.py"
METRIC = "validation/miou"
# Of a softmax loss, none of the terms would start where it can learn (arXiv 2303.15343).
_SIGMOID = {
    "loss.kind": "sigmoid",
    "model.initial_logit_bias": -10.0,
    "model.initial_temperature": 0.1,
}


def get_sweep() -> list[Overrides]:
    """Return 12 trials of 400 steps: each loss with the seeds 0, 1 and 2."""
    losses: list[Overrides] = [
        {"loss.multi_label_weight": 0.0, "loss.local_weight": 0.0},  # global only
        {"loss.local_weight": 0.0},  # and multi-label
        {},  # and local
        _SIGMOID,  # all three, global and multi-label as sigmoids
    ]
    return product([sweep("train.num_steps", [400]), losses, sweep("seed", range(3))])
