"""The published method at the size of the drawn scenes, which `configs/scenes.py` builds on.

python -m groupvit_jax.scenes.dataset data
python -m launch.train --config=configs/scenes_published.py --workdir=runs/scenes_published
"""

from ml_collections import ConfigDict

from configs import base
from groupvit_jax.scenes.drawing import CLASS_NAMES


def get_config() -> ConfigDict:
    """Return the published method and recipe at the size of the drawn scenes."""
    config = base.get_config()
    config.model.image.update(
        image_size=64,
        patch_size=8,
        width=64,
        num_heads=4,
        depths=(1, 1),
        num_group_tokens=(24, 0),
        num_output_groups=(24,),
        drop_path_rate=0.0,
        temperature=0.5,
        init_std=0.125,
    )
    config.model.text.update(context_length=32, width=64, num_layers=1, num_heads=4)
    config.model.projector.update(hidden_dim=256, output_dim=128)
    config.model.dtype = "float32"
    config.data.sources.scenes = dict(
        kind="tfds", name="scenes/small", split="train", data_dir="data", exchange_captions=False
    )
    config.loss.update(local_weight=1.0, local_words="prompts", identical_texts="positives")
    config.data.update(num_nouns=3, noun_kind="words")
    config.data.packed_length = 64
    config.data.augment.update(min_area=0.8, flip=0.0, num_ops=0, random_erasing=0.0)
    config.data.num_workers = 0
    config.train.update(batch_size=64, num_steps=800)
    config.optimizer.update(
        reference_batch_size=64,
        learning_rate=2e-3,
        final_learning_rate=1e-4,
        warmup_steps=100,
    )
    config.checkpoint.update(every_steps=500, keep_last=1)
    common = dict(
        kind="segmentation", classes=CLASS_NAMES, resize=(), window=64, stride=64,
        windows_at_once=64, pamr_iterations=0,
    )  # fmt: skip
    source = dict(name="scenes/small", data_dir="data")
    config.evaluators = dict(
        validation=dict(common, every_steps=200, source=dict(source, split="validation")),
        test=dict(common, source=dict(source, split="test")),
        shifted=dict(common, source=dict(source, split="shifted")),
    )
    return config
