r"""A small model for a few thousand pairs of your own on a laptop.

python -m launch.prepare --input=captions.csv --images=photos --output=shards
python -m launch.train --config=configs/small_pairs.py --workdir=runs/pairs \
        --config.data.sources.pairs.pattern='shards/*.tar'
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the published method at a size that learns 1,000 photos in minutes on 2 cores."""
    config = base.get_config()
    config.model.image.update(
        image_size=64,
        patch_size=8,
        width=96,
        num_heads=3,
        depths=(2, 1, 1),
        num_group_tokens=(16, 4, 0),
        num_output_groups=(16, 4),
        drop_path_rate=0.0,
    )
    config.model.text.update(context_length=24, width=96, num_layers=2, num_heads=3)
    config.model.projector.update(hidden_dim=512, output_dim=128)
    config.model.dtype = "float32"
    config.data.sources.pairs = dict(kind="webdataset", pattern="shards/*.tar")
    config.data.update(noun_kind="words", packed_length=56)
    config.data.augment.update(min_area=0.5, num_ops=0, random_erasing=0.0)
    config.data.num_workers = 0
    config.train.update(batch_size=128, num_epochs=60.0)
    config.optimizer.update(
        reference_batch_size=128, learning_rate=1e-3, final_learning_rate=1e-5, warmup_epochs=5.0
    )
    config.checkpoint.every_steps = 200
    config.log_every_steps = 20
    # Retrieval among the training pairs, to see at a glance that they are being learnt.
    config.evaluators.retrieval = dict(kind="retrieval", source=config.data.sources.pairs)
    return config
