r"""The published model of CC3M, CC12M and YFCC14M with the multi-label loss (52.3 mIoU on VOC).

python -m launch.train --config=configs/groupvit_gcc_yfcc_30e.py --workdir=runs/gcc_yfcc \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/{00000..00436}.tar' ...
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe of 30 epochs at batch 4096; set the patterns to your shards."""
    config = base.get_config()
    for name in ("gcc3m", "gcc12m", "yfcc14m"):
        config.data.sources[name] = dict(kind="webdataset", pattern=f"data/{name}/*.tar")
    return config
