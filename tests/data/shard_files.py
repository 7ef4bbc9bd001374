"""Small tar shards for tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np


def encode(extension: str = ".jpg", *, value: int = 128, height: int = 8, width: int = 12) -> bytes:
    """An image file of one colour."""
    image = np.full((height, width, 3), value, np.uint8)
    return cv2.imencode(extension, image)[1].tobytes()


def pair(number: int) -> dict[str, bytes]:
    """A sample as img2dataset writes it; its number is in the caption and the grey value."""
    return {"jpg": encode(value=number % 256), "txt": b"caption %d" % number}


def write_tar(
    path: Path,
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    *,
    format: int = tarfile.PAX_FORMAT,
) -> str:
    """Writes samples as (key, extension -> content) and returns the path."""
    with tarfile.open(path, "w", format=format) as archive:
        for key, contents in samples:
            for extension, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_pairs(path: Path, numbers: Iterable[int]) -> str:
    """Writes `pair`s under keys of their numbers."""
    return write_tar(path, [(f"{number:05d}", pair(number)) for number in numbers])


def write_broken(path) -> str:
    """Ten pairs, of which 3 to 6 can't be used."""
    samples = [(str(i), pair(i)) for i in range(10)]
    samples[3][1]["jpg"] = samples[3][1]["jpg"][:150]
    samples[4][1]["txt"] = b" "
    del samples[5][1]["txt"]
    samples[6][1]["jpg"] = b"<html>404</html>"
    return write_tar(path, samples)
