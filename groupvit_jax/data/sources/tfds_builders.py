"""Opens prepared TFDS sets."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def open_builder(name: str, data_dir: str) -> "tfds.core.DatasetBuilder":
    """Open a prepared set of TensorFlow Datasets.

    Args:
      name: the set's name, e.g. "coco_captions"; not used if `data_dir` is a set's own folder.
      data_dir: the folder that holds TFDS sets, or the folder of one set's version; empty for
        TFDS's default.

    Raises:
      OSError, ValueError, AssertionError, ImportError: TFDS's errors for a set that it can't open.
    """
    import tensorflow_datasets as tfds  # half a second, which most commands need not wait

    if os.path.exists(os.path.join(data_dir, "features.json")):
        return tfds.builder_from_directory(data_dir)
    return tfds.builder(name, data_dir=data_dir or None)


def skip_decoding() -> "tfds.decode.SkipDecoding":
    """Return the decoder of a feature whose encoded bytes are wanted as they are stored."""
    from tensorflow_datasets import decode

    return decode.SkipDecoding()
