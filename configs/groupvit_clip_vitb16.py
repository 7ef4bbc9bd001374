r"""The published recipe from both towers of a CLIP ViT-B/16, which train at a tenth of the rate.

python -m launch.train --config=configs/groupvit_clip_vitb16.py --workdir=runs/clip \
        --config.image_init_from=DIR --config.text_init_from=DIR \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/*.tar' ...

DIR is transformers' directory of the CLIP with config.json and model.safetensors.
"""

from ml_collections import ConfigDict

from configs import groupvit_gcc_yfcc_30e


def get_config() -> ConfigDict:
    """Return the published recipe with the sizes and options of CLIP ViT-B/16."""
    config = groupvit_gcc_yfcc_30e.get_config()
    config.image_init_from = config.text_init_from = "clip-vit-base-patch16"
    config.model.image.update(
        width=768,
        num_heads=12,
        patch_norm=False,
        pre_norm=True,
        activation="quick_gelu",
    )
    config.model.text.update(width=512, num_heads=8)
    # What is new (group tokens, grouping blocks, projectors) trains at the full rate.
    config.optimizer.groups = (
        (r"image_encoder/(patch_embed|position_embedding|pre_norm|stages_\d+/blocks_|norm/)", 0.1),
        (r"text_encoder/", 0.1),
    )
    return config
