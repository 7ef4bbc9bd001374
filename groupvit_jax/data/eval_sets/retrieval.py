"""Image-text retrieval sets: COCO, Flickr30k and Flickr8k.

    coco/
      dataset_coco.json                      Karpathy and Li's test split: 5,000 images
      val2014/COCO_val2014_000000391895.jpg
      annotations/captions_val2017.json      or, without that JSON, the 5,000 images of val2017
      val2017/000000179765.jpg
    flickr30k/
      dataset_flickr30k.json                 the test split: 1,000 images
      flickr30k-images/1007129816.jpg        (or flickr30k_images, Images, images)
    flickr8k/
      dataset_flickr8k.json                  the test split: 1,000 images
      captions.txt                           or all images of a CSV of image and caption
      Flicker8k_Dataset/1056338697_4f7d7ce270.jpg    (or Images, images)

Karpathy and Li's dataset_*.json are on https://cs.stanford.edu/people/karpathy/deepimagesent/. The
TFDS set of COCO's test split is coco_captions.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from groupvit_jax.data.eval_sets.captioned_files import read_karpathy, read_table
from groupvit_jax.data.eval_sets.mask_files import Layout, find
from groupvit_jax.data.eval_sets.registry import RetrievalSet, register
from groupvit_jax.data.sources.pairs import TfdsSource

_COCO_URL = "https://cocodataset.org/#download"
_COCO_TFDS = Layout("coco_retrieval", ("coco_captions/2014/*",), ("features.json",), _COCO_URL)


@register("coco_retrieval")
def open_coco(data_dir: Path) -> RetrievalSet:
    """Open COCO's test split, or val2017."""
    needs = [("dataset_coco.json", "val2014"), ("annotations/captions_val2017.json", "val2017")]
    layouts = [Layout("coco_retrieval", ("coco",), pair, _COCO_URL) for pair in needs]
    layout, root = find(data_dir, *layouts, _COCO_TFDS)
    if layout is _COCO_TFDS:
        return RetrievalSet(TfdsSource("coco_captions", "test", str(root), "coco_retrieval"))
    return _read(layout, root)


@register("flickr30k_retrieval")
def open_flickr30k(data_dir: Path) -> RetrievalSet:
    """Open the test split."""
    url = "https://shannon.cs.illinois.edu/DenotationGraph/"
    photos = ("flickr30k[-_]images", "[Ii]mages")
    return _open_flickr(data_dir, "flickr30k", ("dataset_flickr30k.json",), photos, url)


@register("flickr8k_retrieval")
def open_flickr8k(data_dir: Path) -> RetrievalSet:
    """Open the test split, or all images of captions.txt."""
    url = "https://forms.illinois.edu/sec/1713398"
    tables, photos = ("dataset_flickr8k.json", "captions.txt"), ("Flick*8k_Dataset", "[Ii]mages")
    return _open_flickr(data_dir, "flickr8k", tables, photos, url)


def _open_flickr(
    data_dir: Path, name: str, tables: Sequence[str], photos: Sequence[str], url: str
) -> RetrievalSet:
    """Open the first caption file and the first photo folder that exist."""
    pairs, folders = itertools.product(tables, photos), (name, name.capitalize())
    return _read(*find(data_dir, *(Layout(f"{name}_retrieval", folders, p, url) for p in pairs)))


def _read(layout: Layout, root: Path) -> RetrievalSet:
    table, photos = (next(root.glob(need)) for need in layout.needs)
    read = read_karpathy if table.name.startswith("dataset_") else read_table
    return RetrievalSet(read(table, photos))
