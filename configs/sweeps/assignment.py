"""How patches are assigned to groups, and how many prompts of nouns an image has.

python -m launch.sweep --sweep=configs/sweeps/assignment.py --output=sweeps/assignment
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/groupvit_gcc_yfcc_30e.py"


def get_sweep() -> list[Overrides]:
    """Return 12 trials; without nouns there is no multi-label loss."""
    return product(
        [
            sweep("model.image.assignment", ["hard", "gumbel", "soft"]),
            sweep("data.num_nouns", [0, 1, 3, 5]),
        ]
    )
