r"""The published recipe with bert-base-uncased as the text tower, its lower half frozen.

python -m launch.train --config=configs/bert_base.py --workdir=runs/bert \
        --config.text_init_from=DIR --config.data.tokenizer.path=DIR/vocab.txt \
        --config.data.sources.gcc3m.pattern='/data/gcc3m/*.tar' ...

DIR is a Hugging Face directory with config.json, model.safetensors and vocab.txt; docs/text.md has
the sizes of smaller BERTs.
"""

from ml_collections import ConfigDict

from configs import groupvit_gcc_yfcc_30e


def get_config() -> ConfigDict:
    """Return the published recipe; the upper half of the tower trains at a tenth of the rate."""
    config = groupvit_gcc_yfcc_30e.get_config()
    config.text_init_from = "bert-base-uncased"
    config.data.tokenizer.update(name="wordpiece", path="bert-base-uncased/vocab.txt")
    config.model.text.update(
        kind="bert",
        vocab_size=30522,
        width=768,
        num_layers=12,
        num_heads=12,
        end_of_text_id=102,
    )
    config.optimizer.groups = (
        (r"text_encoder/(token_|position_|embedding_norm|blocks_[0-5]/)", 0.0),
        (r"text_encoder/", 0.1),
    )
    # Its 30,522 rows are odd after one halving: every device has a copy.
    config.parallel.rules = ((r"token_embedding/embedding$", ()), *config.parallel.rules)
    return config
