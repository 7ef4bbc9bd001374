"""Small images and files for the tests of the image functions."""

import io

import cv2
import numpy as np
import PIL.Image


def photo(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Random detail at every scale, like a photograph's, UInt8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for octave in range(1, 9):
        noise = rng.normal(size=(2**octave, 2**octave, 3))
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / octave
    return np.clip(128 + 50 * image, 0, 255).astype(np.uint8)


def encode(image: np.ndarray | PIL.Image.Image, kind: str, **options: object) -> bytes:
    """Encodes with PIL."""
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pil_rgb(data: bytes) -> np.ndarray:
    """Decodes with PIL."""
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def declare_size(jpeg: bytes, height: int, width: int) -> bytes:
    """Changes the size in the frame header (baseline or progressive) of a JPEG."""
    frame = max(jpeg.find(b"\xff\xc0\x00"), jpeg.find(b"\xff\xc2\x00"))
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: frame + 5] + size + jpeg[frame + 9 :]


def solid_grey_jpeg(side: int) -> bytes:
    """A baseline JPEG of one grey, built without its pixels; `side` is a multiple of 16."""
    small = encode(np.full((8, 8), 128, np.uint8), "JPEG")
    scan = small.find(b"\xff\xda") + 10  # after the scan's header
    # Each block: no change of the mean, no detail; four blocks of 6 bits in 3 bytes.
    blocks = bytes.fromhex("28a28a") * (side // 8) ** 2
    header = declare_size(small[:scan], side, side)
    return header + blocks[: len(blocks) // 4] + b"\xff\xd9"
