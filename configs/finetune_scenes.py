r"""A segment head on the drawn scenes, from masks: the upper bound of what captions alone reach.

python -m launch.train --config=configs/scenes.py --workdir=runs/scenes
python -m launch.train --config=configs/finetune_scenes.py --workdir=runs/finetune_scenes \
        --config.init_from=runs/scenes
"""

from ml_collections import ConfigDict

from configs import scenes
from groupvit_jax.scenes.drawing import CLASS_NAMES


def get_config() -> ConfigDict:
    """Return the model of the scenes with a head, the whole tower trained."""
    config = scenes.get_config()
    config.task = "segmentation"
    config.init_from = "runs/scenes"
    # Groups that captions have made are almost one-hot; soft ones can still be moved.
    config.model.image.assignment = "soft"
    config.segmentation.update(
        class_names=CLASS_NAMES, min_scale=1.0, max_scale=1.3, flip=0.0, jitter=0.0
    )
    config.train.num_steps = 1000
    config.optimizer.update(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=50)
    del config.data.sources.scenes.exchange_captions  # of which none is read
    for evaluator in config.evaluators.values():
        del evaluator.classes  # the head's
    return config
