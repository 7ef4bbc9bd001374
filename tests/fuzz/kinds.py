"""The files that others write, each kind with its damaged forms and with what reads it."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from hypothesis import strategies as st
from safetensors.numpy import save

from groupvit_jax.data.eval_sets.coco_instances import InstanceMasks
from groupvit_jax.data.images import transforms
from groupvit_jax.data.images.decode import BrokenImageError, decode
from groupvit_jax.data.sources import counts, tar_scan
from groupvit_jax.data.sources.captions_table import read_captions
from groupvit_jax.data.sources.masks import read_mask
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.data.sources.samples import BrokenSampleError
from groupvit_jax.foreign import naming
from groupvit_jax.interop.huggingface_config import to_model_config
from groupvit_jax.interop.tensor_file import read_safetensors, read_sharded_safetensors
from groupvit_jax.interop.torch_file import read_torch_file
from groupvit_jax.models import build_model
from groupvit_jax.prepare.images import ImageLimits, encode_image
from groupvit_jax.runs.files import read_json
from groupvit_jax.runs.layout import METRICS_FILE
from groupvit_jax.runs.metrics_file import read_metrics, repair
from tests.data.image_files import encode, photo
from tests.fuzz import strategies
from tests.fuzz.torch_pickles import PICKLES, torch_file

PHOTO = PIL.Image.fromarray(photo(24, 32))
EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6


@dataclasses.dataclass(frozen=True)
class Kind:
    """How to draw a file, and what uses it: returns the outcome or raises a ValueError."""

    ending: str
    content: st.SearchStrategy[bytes]
    use: Callable[[Path], str]


@functools.cache
def _images() -> list[bytes]:
    kinds = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP")
    files = [encode(PHOTO, kind, **({"exif": EXIF} if kind != "BMP" else {})) for kind in kinds]
    files += [encode(PHOTO, "JPEG", progressive=True), encode(PHOTO.quantize(16), "PNG")]
    npy = io.BytesIO()
    np.save(npy, np.asarray(PHOTO))
    return [*files, encode(PHOTO.convert("CMYK"), "JPEG"), npy.getvalue()]


def _use_image(path: Path) -> str:
    data = path.read_bytes()
    outcomes = set()
    uses: list[Callable[[], Any]] = [
        lambda: decode(data),
        lambda: encode_image(data, ImageLimits(max_side=16)),
        lambda: transforms.train_transform(
            data, 16, transforms.Augmentation(), np.random.default_rng(0)
        ),
    ]
    for use in uses:
        try:
            use()
            outcomes.add("image")
        except BrokenImageError:
            outcomes.add("broken image")
    return " or ".join(sorted(outcomes))


FIELDS = {
    "caption": "a dog",
    "captions": ["a dog"],
    "nouns": {"words": [["dog"]]},
    "tokens": {"tokenizer": "x", "ids": [[1, 2]]},
}


def _use_tar(path: Path) -> str:
    counts.add_up([tar_scan.scan(str(path)).counts])
    source = WebDatasetSource([str(path)], str(path.parent))
    broken = 0
    for i in range(len(source)):
        source.locate(i)
        try:
            assert source[i]["captions"]
        except BrokenSampleError:
            broken += 1
    return "samples, some broken" if broken else "samples"


def _use_mask(path: Path) -> str:
    try:
        mask = read_mask(path.read_bytes(), (24, 32))
    except ValueError as error:  # the caller names the file
        raise ValueError(f"{path}: {error}") from error
    assert sorted(mask.shape) == [24, 32]
    return "mask"


COCO = {
    "images": [{"id": 1, "file_name": "photo.png"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"image_id": 1, "category_id": 2, "iscrowd": 1}
        | {"segmentation": {"size": [24, 32], "counts": [100, 200, 468]}},
        {"image_id": 1, "category_id": 2, "iscrowd": 0}
        | {"segmentation": {"size": [24, 32], "counts": "d0h1"}},
    ],
}


def _use_coco(path: Path) -> str:
    (path.parent / "photo.png").write_bytes(_images()[1])
    source = InstanceMasks(path, path.parent, {0: 0, 1: 1, 2: 2})
    for i in range(len(source)):
        try:
            source[i]
        except ValueError as error:  # names the photo, or the annotations and the image
            raise ValueError(f"{path}: {error}") from error
    return "masks" if len(source) else "no image"


@st.composite
def _torch_files(draw: st.DrawFn) -> bytes:
    file = torch_file(draw(strategies.mutated(PICKLES)), bytes(24))
    return draw(strategies.mutated([file])) if draw(st.integers(0, 3)) == 0 else file


def _use_torch(path: Path) -> str:
    read_torch_file(path)
    return "tensors"


def _safetensors() -> bytes:
    return save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, {"format": "pt"})


@st.composite
def _safetensors_files(draw: st.DrawFn) -> bytes:
    data = _safetensors()
    if draw(st.booleans()):
        return draw(strategies.mutated([data]))
    length = int.from_bytes(data[:8], "little")
    header = draw(strategies.json_texts(json.loads(data[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _use_safetensors(path: Path) -> str:
    read_safetensors(path)
    return "tensors"


INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}


def _use_index(path: Path) -> str:
    (path.parent / "x.safetensors").write_bytes(_safetensors())
    try:
        with naming(path):
            read_sharded_safetensors(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    return "tensors"


HUGGINGFACE = {
    "model_type": "groupvit",
    "projection_dim": 8,
    "projection_intermediate_dim": 8,
    "vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 12, "depths": [1, 1]}
    | {"num_attention_heads": 2, "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
    | {"intermediate_size": 48, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
    "text_config": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    | {"vocab_size": 64, "max_position_embeddings": 8, "intermediate_size": 32},
}


def _use_configuration(path: Path) -> str:
    with naming(path):
        build_model(to_model_config(read_json(path), path))
    return "model"


ROWS = [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "caption": ["a", "b"]}]
CAPTIONS = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a dog"}],
}


METRICS = {"step": 3, "loss": 0.5, "recall/r1": None}


def _use_table(path: Path) -> str:
    return "rows" if read_captions(str(path)) else "no row"


def _use_metrics(path: Path) -> str:
    file = path.with_name(METRICS_FILE)
    file.write_bytes(path.read_bytes())
    try:
        read_metrics(path.parent)
        outcome = "records"
    except ValueError as error:
        if str(file) not in str(error):
            raise
        outcome = "error that names the line"
    # A run that resumes repairs whatever is there, and then reads it.
    repair(path.parent, last_step=5)
    steps = [record["step"] for record in read_metrics(path.parent)]
    assert len(steps) == len(set(steps))
    assert all(step <= 5 for step in steps)
    return outcome


def _lines(texts: list[bytes]) -> bytes:
    return b"\n".join(texts)


KINDS: dict[str, Kind] = {
    "image": Kind(".jpg", strategies.mutated(_images()), _use_image),
    "tar": Kind(".tar", strategies.tars(_images(), FIELDS), _use_tar),
    "mask": Kind(
        ".png",
        strategies.pngs([encode(PHOTO.convert("L"), "PNG"), encode(PHOTO.quantize(9), "PNG")]),
        _use_mask,
    ),
    "pth": Kind(".pth", _torch_files(), _use_torch),
    "safetensors": Kind(".safetensors", _safetensors_files(), _use_safetensors),
    "index": Kind(".json", strategies.json_texts(INDEX), _use_index),
    "configuration": Kind(".json", strategies.json_texts(HUGGINGFACE), _use_configuration),
    "coco": Kind(".json", strategies.json_texts(COCO), _use_coco),
    "captions": Kind(".json", strategies.json_texts(CAPTIONS), _use_table),
    "table": Kind(".csv", strategies.tables(), _use_table),
    "metrics": Kind(
        ".jsonl",
        st.lists(strategies.json_texts(METRICS), max_size=4).map(
            lambda texts: b"".join(text + b"\n" for text in texts)
        )
        | strategies.mutated(
            [b"".join(json.dumps(METRICS | {"step": i}).encode() + b"\n" for i in (1, 2, 9))]
        ),
        _use_metrics,
    ),
    "json lines": Kind(
        ".jsonl", st.lists(strategies.json_texts(ROWS[0]), max_size=3).map(_lines), _use_table
    ),
}
