r"""The published recipe from a DINO ViT-S/16, whose blocks train at a tenth of the rate.

python -m launch.train --config=configs/groupvit_dino_vits16.py --workdir=runs/dino \
        --config.image_init_from=dino_deitsmall16_pretrain.pth \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/*.tar' ...

docs/pretrained.md says which files can be read and which start suits how many pairs.
"""

from ml_collections import ConfigDict

from configs import groupvit_gcc_yfcc_30e


def get_config() -> ConfigDict:
    """Return the published recipe with the options of a plain ViT; its 12 blocks fill 3 stages."""
    config = groupvit_gcc_yfcc_30e.get_config()
    config.image_init_from = "dino_deitsmall16_pretrain.pth"
    config.model.image.update(patch_norm=False, norm_eps=1e-6)
    # What is new (group tokens, grouping blocks, projectors) trains at the full rate.
    config.optimizer.groups = (
        (r"image_encoder/(patch_embed|position_embedding|stages_\d+/blocks_|norm/)", 0.1),
    )
    return config
