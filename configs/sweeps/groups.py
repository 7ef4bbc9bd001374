"""Numbers of groups, in two grouping stages and in one (the ablations of arXiv 2202.11094).

python -m launch.sweep --sweep=configs/sweeps/groups.py --output=sweeps/groups
"""

from groupvit_jax.sweep import Overrides, chain, product, sweep, zip_

BASE = "configs/groupvit_gcc_yfcc_30e.py"


def get_sweep() -> list[Overrides]:
    """Return 9 trials: six of two stages, the published 64 and 8 among them, and three of one."""
    two_stages = [
        _groups((first, second, 0), (first, second)) for first in (16, 32, 64) for second in (4, 8)
    ]
    one_stage = product(
        [
            sweep("model.image.depths", [(6, 6)]),
            zip_(
                [
                    sweep("model.image.num_group_tokens", [(8, 0), (16, 0), (32, 0)]),
                    sweep("model.image.num_output_groups", [(8,), (16,), (32,)]),
                ]
            ),
        ]
    )
    return chain([two_stages, one_stage])


def _groups(tokens: tuple[int, ...], outputs: tuple[int, ...]) -> Overrides:
    return {"model.image.num_group_tokens": tokens, "model.image.num_output_groups": outputs}
