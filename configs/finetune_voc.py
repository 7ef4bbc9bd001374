r"""The published model with a segment head, fine-tuned on Pascal VOC 2012.

python -m launch.train --config=configs/finetune_voc.py --workdir=runs/finetune_voc \
        --config.init_from=runs/first --config.data.sources.voc.data_dir=data \
        --config.evaluators.voc.data_dir=data
"""

from ml_collections import ConfigDict

from configs import base
from groupvit_jax.data.eval_sets import class_names
from groupvit_jax.optim import layer_decay_groups


def get_config() -> ConfigDict:
    """Return the whole tower trained on crops of 448 pixels, its lower layers slower."""
    config = base.get_config()
    config.task = "segmentation"
    config.init_from = "gcc_yfcc.pth"  # any checkpoint
    config.model.image.image_size = 448  # positions are resized from the checkpoint's 224
    config.segmentation.class_names = ("background", *class_names("voc"))
    config.data.sources.voc = dict(kind="benchmark", split="train", data_dir="data")
    config.train.update(batch_size=16, num_steps=4000)
    image = config.model.image
    config.optimizer.update(
        learning_rate=1e-4,
        reference_batch_size=16,
        warmup_learning_rate=1e-6,
        final_learning_rate=1e-6,
        warmup_steps=200,
        groups=layer_decay_groups(image.depths, image.num_group_tokens, decay=0.75),
        # To train the head alone: groups=(("^image_encoder/", 0.0),)
    )
    config.checkpoint.best_metric = "voc/miou"
    config.evaluators.voc = dict(kind="benchmark", data_dir="data", every_steps=1000)
    return config
