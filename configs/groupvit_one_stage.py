r"""One grouping block instead of two (section 4.3 of the paper): 8 groups after 6 of 12 blocks.

python -m launch.train --config=configs/groupvit_one_stage.py --workdir=runs/one_stage \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/*.tar' ...
"""

from ml_collections import ConfigDict

from configs import groupvit_gcc_yfcc_30e


def get_config() -> ConfigDict:
    """Return the published recipe on the one-stage model."""
    config = groupvit_gcc_yfcc_30e.get_config()
    config.model.image.update(depths=(6, 6), num_group_tokens=(8, 0), num_output_groups=(8,))
    return config
