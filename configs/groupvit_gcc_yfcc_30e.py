"""The published model of CC3M, CC12M and YFCC14M with the multi-label loss (52.3 mIoU on VOC).

python -m launch.train --config=configs/groupvit_gcc_yfcc_30e.py --workdir=runs/gcc_yfcc \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/{00000..00331}.tar' ...

To train without one of the evaluation sets: --config.evaluators.imagenet.kind=off
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Return the recipe of 30 epochs at batch 4096; the model is base.py's."""
    config = base.get_config()
    # Captioned images, in the tar shards of img2dataset or launch.prepare (docs/prepare.md).
    config.data.sources.gcc3m = dict(kind="webdataset", pattern="data/gcc3m/*.tar")
    config.data.sources.gcc12m = dict(kind="webdataset", pattern="data/gcc12m/*.tar")
    config.data.sources.yfcc14m = dict(kind="webdataset", pattern="data/yfcc14m/*.tar")
    # Prompts an image, for the multi-label loss, of any words that are tagged as nouns or verbs.
    config.data.update(num_nouns=3, noun_kind="tagged_words")
    # YFCC's descriptions are long: at 80 one of 77 tokens leaves its prompts no room. These rows
    # lose none and make the step 5 % longer (docs/text.md).
    config.data.packed_length = 112
    config.loss.update(global_weight=1.0, multi_label_weight=1.0)
    config.train.update(batch_size=4096, num_epochs=30.0)
    config.optimizer.update(
        # Cosine, after 2 epochs of linear warm-up; all three rates are those of batch 4096.
        learning_rate=1.6e-3,
        warmup_learning_rate=4e-6,
        final_learning_rate=4e-5,
        warmup_epochs=2.0,
        update_lag=1,
        weight_decay=0.05,
        clip_norm=5.0,
    )
    # Zero-shot mIoU and ImageNet's top-1 accuracy, every 10,000 of about 210,000 steps. A data_dir
    # is the set's own folder, or one that holds all sets (docs/benchmarks.md).
    often = dict(kind="benchmark", every_steps=10_000)
    config.evaluators.voc = dict(often, data_dir="data")
    config.evaluators.context = dict(often, data_dir="data")
    config.evaluators.coco_object = dict(often, data_dir="data")
    config.evaluators.imagenet = dict(often, data_dir="data")
    return config
