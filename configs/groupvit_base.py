r"""Twice the width of the published model in both towers, as ViT-B and CLIP's text tower have it.

python -m launch.train --config=configs/groupvit_base.py --workdir=runs/base \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/*.tar' ...
"""

from ml_collections import ConfigDict

from configs import groupvit_gcc_yfcc_30e


def get_config() -> ConfigDict:
    """Return the published recipe on the base model, its parameters split over 4 devices."""
    config = groupvit_gcc_yfcc_30e.get_config()
    config.model.image.update(width=768, num_heads=12, drop_path_rate=0.2)
    config.model.text.update(width=512, num_heads=8)
    config.parallel.mesh.fsdp = 4
    return config
