"""Learning rate and batch size; the rate grows with the batch (`optimizer.reference_batch_size`).

python -m launch.sweep --sweep=configs/sweeps/learning_rate.py --output=sweeps/learning_rate
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/groupvit_gcc_yfcc_30e.py"


def get_sweep() -> list[Overrides]:
    """Return 9 trials around the published rate and batch."""
    return product(
        [
            sweep("optimizer.learning_rate", [8e-4, 1.6e-3, 3.2e-3]),
            sweep("train.batch_size", [1024, 4096, 16384]),
        ]
    )
