"""What the successors' methods add on the drawn scenes, each from three seeds (docs/emergence.md).

python -m groupvit_jax.scenes.dataset data
python -m launch.sweep --sweep=configs/sweeps/methods.py --output=sweeps/methods
python -m launch.compare sweeps/methods --metric=shifted/miou --output=comparison
"""

from groupvit_jax.sweep import Overrides, product, sweep

BASE = "configs/scenes.py"
METRIC = "test/miou"
_AVERAGE: Overrides = {"optimizer.ema_decay": 0.99}
_ONE_WAY: Overrides = {"loss.local_seekers": "words"}
_MIXED: Overrides = {"loss.mixed_weight": 1.0}
_POOLED: Overrides = {"loss.pooled_weight": 1.0}
_DISTILLED: Overrides = {**_AVERAGE, "loss.distill_weight": 0.5}


def get_sweep() -> list[Overrides]:
    """Return 24 trials of the scenes' 800 steps, each setting with the seeds 0, 1 and 2."""
    settings: list[Overrides] = [
        {},
        _AVERAGE,
        _ONE_WAY,
        _MIXED,
        _POOLED,
        _DISTILLED,
        {**_AVERAGE, **_ONE_WAY, **_MIXED},
        # The control: captions of other scenes.
        {**_AVERAGE, **_ONE_WAY, **_MIXED, "data.sources.scenes.exchange_captions": True},
    ]
    return product([settings, sweep("seed", range(3))])
