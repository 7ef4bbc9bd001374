r"""A model of a few thousand parameters for tests and dry runs on a CPU.

python -m launch.train --config=configs/tiny.py --workdir=runs/tiny \
        --config.data.sources.pairs.pattern='shards/*.tar'
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the published recipe on a tiny model in float32."""
    config = base.get_config()
    config.model.image.update(
        image_size=32,
        patch_size=8,
        width=32,
        num_heads=2,
        depths=(1, 1, 1),
        num_group_tokens=(8, 4, 0),
        num_output_groups=(8, 4),
    )
    config.model.text.update(context_length=32, width=32, num_layers=2, num_heads=2)
    config.model.projector.update(hidden_dim=64, output_dim=32)
    config.model.dtype = "float32"
    config.data.sources.pairs = dict(kind="webdataset", pattern="")
    config.data.packed_length = 64
    config.data.num_workers = 0
    config.train.batch_size = 16
    config.train.num_steps = 20
    config.optimizer.warmup_steps = 2
    config.optimizer.reference_batch_size = 16
    config.checkpoint.every_steps = 10
    config.log_every_steps = 5
    return config
