"""Writes shards: WebDataset tars, or ArrayRecord files of a TFDS set.

Equal samples give equal bytes on any machine with the same library versions.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

__all__ = ["FORMATS", "PreparedSample", "shard_name", "write_shard", "write_tfds_metadata"]

FORMATS = ("webdataset", "tfds")
_EXTENSIONS = {"jpeg": "jpg", "pixels": "rgb.npy"}
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class PreparedSample(NamedTuple):
    """One image as stored in a shard; `metadata` is JSON and includes the captions.

    `lost_prompts` (see `packed_rows.lost_prompts`) and `nouns`, which `metadata` has too, are only
    counted.
    """

    key: str
    image: bytes
    captions: list[str]
    metadata: bytes
    lost_prompts: Sequence[int] = ()
    nouns: Mapping[str, Sequence[Sequence[str]]] = MappingProxyType({})


def shard_name(kind: str, number: int, count: int) -> str:
    """Return the file name of shard `number` of `count`."""
    if kind == "webdataset":
        return f"{number:05d}.tar"
    return f"pairs-train.array_record-{number:05d}-of-{count:05d}"


def write_shard(kind: str, path: str, samples: Iterable[PreparedSample], encoding: str) -> None:
    """Write one shard of images in an encoding of `prepare.images` to a local path."""
    {"webdataset": _write_tar, "tfds": _write_array_record}[kind](path, samples, encoding)


def _write_tar(path: str, samples: Iterable[PreparedSample], encoding: str) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            text = sample.captions[0].encode()
            image = {_EXTENSIONS[encoding]: sample.image}
            contents = image | {"txt": text, "json": sample.metadata}
            for extension, content in contents.items():
                member = tarfile.TarInfo(
                    f"{sample.key}.{extension}"
                )  # modification time 0 and owner 0, for reproducible bytes
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _features(encoding: str) -> tfds.features.FeaturesDict:
    jpeg = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    # None of TFDS's encodings of pixels allows slicing in place.
    npy = tfds.features.Scalar(np.object_, doc="a .npy file, uint8 [height, width, 3]")
    return tfds.features.FeaturesDict(
        {
            "image": jpeg if encoding == "jpeg" else npy,
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "key": tfds.features.Text(),
            "metadata": tfds.features.Text(),
        }
    )


def _write_array_record(path: str, samples: Iterable[PreparedSample], encoding: str) -> None:
    # Imported here because wheels exist only for Linux and macOS.
    from array_record.python import array_record_module

    features = _features(encoding)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")  # for random access
    for sample in samples:
        example: dict[str, Any] = {
            # The encoded file is stored unchanged.
            "image": io.BytesIO(sample.image) if encoding == "jpeg" else sample.image,
            "captions": sample.captions,
            "key": sample.key,
            "metadata": sample.metadata,
        }
        encoded = serializer.get_tf_example(features.encode_example(example))
        # Otherwise the order of protobuf's map would vary between processes.
        writer.write(encoded.SerializeToString(deterministic=True))
    writer.close()


def write_tfds_metadata(
    folder: os.PathLike | str,
    lengths: Sequence[int],
    num_bytes: int,
    description: str,
    encoding: str,
) -> None:
    """Write the metadata that turn shards into the TFDS set "pairs" with the split "train".

    Args:
      folder: folder of the shards.
      lengths: number of samples in each shard.
      num_bytes: size of all shards.
      description: description of the set.
      encoding: encoding of the images.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=_TEMPLATE,
        dataset_name="pairs",
        split="train",
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo("train", list(lengths), num_bytes, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(encoding),
        split_infos=[split],
        filename_template=template,
        version="1.0.0",
        check_data=False,
        description=description,
    )
