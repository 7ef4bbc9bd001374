r"""What the successors' methods add on the drawn scenes, each from three seeds (docs/emergence.md).

python -m groupvit_jax.scenes.dataset data
python -m launch.train --config=configs/scenes.py --workdir=runs/scenes
python -m launch.prepare --input=tfds:data/scenes/small/2.0.0/train --output=data/prepared \
    --format=tfds --encoding=pixels --superpixels --noun_bank=100 --noun_bank_tower=runs/scenes
python -m launch.sweep --sweep=configs/sweeps/methods.py --output=sweeps/methods --jobs=2 \
    --config.evaluators.test.pamr_iterations=10 --config.evaluators.shifted.pamr_iterations=10
python -m launch.compare sweeps/methods --metric=shifted/miou --output=comparison
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/scenes_published.py"
METRIC = "test/miou"
_AVERAGE: Overrides = {"optimizer.ema_decay": 0.99}
_ONE_WAY: Overrides = {"loss.local_seekers": "words"}
_MIXED: Overrides = {"loss.mixed_weight": 1.0}
_POOLED: Overrides = {"loss.pooled_weight": 1.0}
_COLOURS: Overrides = {"data.augment.hue": 0.067, "data.augment.grayscale": 0.15}
_DISTILLED: Overrides = {**_AVERAGE, "loss.distill_weight": 0.5}
_TOGETHER: Overrides = {**_AVERAGE, **_ONE_WAY, **_MIXED}
# The same scenes, with superpixels.
_PREPARED: Overrides = {
    "data.sources.scenes.name": "",
    "data.sources.scenes.data_dir": "data/prepared",
}
_SUPERPIXELS: Overrides = {**_PREPARED, "loss.superpixel_weight": 1.0}
# Embeddings of the nouns by the text tower of an earlier run of configs/scenes.py.
_NOUN_BANK: Overrides = {
    "data.noun_bank": "data/prepared/noun_bank.npz",
    "loss.noun_bank_weight": 1.0,
}


def get_sweep() -> list[Overrides]:
    """Return 33 trials of the scenes' 800 steps: all settings with seed 0, then with 1 and 2."""
    settings: list[Overrides] = [
        {},
        _AVERAGE,
        _ONE_WAY,
        _MIXED,
        _POOLED,
        _COLOURS,
        _DISTILLED,
        _SUPERPIXELS,
        _NOUN_BANK,
        _TOGETHER,
        # The control: captions of other scenes.
        {**_TOGETHER, "data.sources.scenes.exchange_captions": True},
    ]
    return product([sweep("seed", range(3)), settings])
