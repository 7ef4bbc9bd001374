r"""The published model of CC3M, CC12M and RedCaps12M, trained without the multi-label loss.

python -m launch.train --config=configs/groupvit_gcc_redcap_30e.py --workdir=runs/gcc_redcap \
        --config.data.sources.redcap12m.pattern='/data/redcap12m/*.tar' ...
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe of 30 epochs at batch 4096; set the patterns to your shards."""
    config = base.get_config()
    for name in ("gcc3m", "gcc12m", "redcap12m"):
        config.data.sources[name] = dict(kind="webdataset", pattern=f"data/{name}/*.tar")
    config.data.num_nouns = 0
    config.data.packed_length = 77  # one caption
    return config
