import io
import subprocess
import sys
import textwrap
import time
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import simplejpeg

from groupvit_jax.data.images.decode import (
    Box,
    BrokenImageError,
    decode,
    decode_box,
    orient,
    read_header,
)
from tests.data.image_files import declare_size, encode, photo, pil_rgb, solid_grey_jpeg

PHOTO = photo()
PIL_PHOTO = PIL.Image.fromarray(PHOTO)
OTHER = PIL.Image.fromarray(255 - PHOTO)


def _exif(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def _ycck() -> bytes:
    cmyk = np.array(PIL_PHOTO.convert("CMYK"))
    return simplejpeg.encode_jpeg(cmyk, colorspace="CMYK", quality=95)


FILES = {
    "jpeg": encode(PHOTO, "JPEG"),
    "jpeg without chroma subsampling": encode(PHOTO, "JPEG", subsampling=0),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "jpeg with restart markers": encode(PHOTO, "JPEG", restart_marker_rows=1),
    "grey jpeg": encode(PIL_PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encode(PIL_PHOTO.convert("CMYK"), "JPEG"),
    "ycck jpeg": _ycck(),
    "png": encode(PHOTO, "PNG"),
    "palette png": encode(PIL_PHOTO.quantize(32), "PNG"),
    "1-bit png": encode(PIL_PHOTO.convert("1"), "PNG"),
    "grey png": encode(PIL_PHOTO.convert("L"), "PNG"),
    "grey png with opaque alpha": encode(PIL_PHOTO.convert("LA"), "PNG"),
    "png with opaque alpha": encode(PIL_PHOTO.convert("RGBA"), "PNG"),
    "webp": encode(PHOTO, "WEBP"),
    "lossless webp": encode(PHOTO, "WEBP", lossless=True),
    "extended webp": encode(PHOTO, "WEBP", exif=_exif(1)),
    "gif": encode(PHOTO, "GIF"),
    "bmp": encode(PHOTO, "BMP"),
    "palette bmp": encode(PIL_PHOTO.quantize(32), "BMP"),
    "tiff": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "avif": encode(PHOTO, "AVIF"),
    "animated gif": encode(PHOTO, "GIF", save_all=True, append_images=[OTHER] * 2),
    "animated webp": encode(PHOTO, "WEBP", save_all=True, append_images=[OTHER], lossless=True),
    "animated png": encode(PHOTO, "PNG", save_all=True, append_images=[OTHER]),
}


@pytest.mark.parametrize("name", FILES)
def test_decodes_every_kind_as_pil(name):
    image = decode(FILES[name])
    assert image.shape == PHOTO.shape
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), pil_rgb(FILES[name]), atol=1)
    header = read_header(FILES[name])
    assert (header.height, header.width) == PHOTO.shape[:2]


@pytest.mark.parametrize("grey", [False, True])
def test_16_bit_png_keeps_the_high_byte(grey):
    pixels = PHOTO[..., :1] if grey else PHOTO
    _, file = cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(decode(file.tobytes()), np.broadcast_to(pixels, PHOTO.shape))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(kind):
    alpha = np.zeros((16, 16, 1), np.uint8)
    alpha[:, 8:] = 255
    alpha[0] = 128
    black = np.concatenate([np.zeros((16, 16, 3), np.uint8), alpha], axis=-1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = decode(encode(black, kind, **options))
    assert (image[1:, :8] == 255).all()
    assert (image[1:, 8:] == 0).all()
    assert (image[0] == 127).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(PHOTO, kind, exif=_exif(orientation), **options)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(upright))
    header = read_header(data)
    assert header.orientation == (1 if kind == "TIFF" else orientation)
    turned = orient(pil_rgb(data), header.orientation)
    np.testing.assert_array_equal(turned, np.asarray(upright))


def test_scans_of_a_progressive_jpeg_are_limited():
    """A megabyte of scans of nothing over 50 megapixels would take minutes."""
    data = declare_size(encode(PHOTO, "JPEG", progressive=True), 6000, 8000)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BrokenImageError, match="scans of 6000x8000 pixels"):
        read_header(data[:-2] + scan * 20 + data[-2:])


def test_segments_of_a_header_are_limited():
    start = time.monotonic()
    for data in (b"\xff\xd8" + b"\xff\x00" * 10_000_000, b"\xff\xd8" + b"\xff" * 20_000_000):
        with pytest.raises(BrokenImageError, match="segments"):
            read_header(data)
    chunks = (b"\0\0\0\0tEXt" + bytes(4)) * 200_000
    with pytest.raises(BrokenImageError, match="chunks"):
        read_header(encode(PHOTO, "PNG")[:33] + chunks)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("cut", [7, 12, 15, 19, 25, 40])
def test_damaged_exif_is_ignored(cut):
    block = _exif(6).tobytes()
    data = encode(PHOTO, "JPEG", exif=block[:cut])
    assert decode(data).shape in (PHOTO.shape, (PHOTO.shape[1], PHOTO.shape[0], 3))
    assert read_header(data).orientation == (1 if cut < 28 else 6)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files_are_broken(name, share):
    data = FILES[name]
    with pytest.raises(BrokenImageError):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<html>404</html>", "unknown image format, first bytes b'<html>404</h'"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (FILES["jpeg"][:200] + b"\xff\xd9", "truncated JPEG: no scan"),
        (FILES["jpeg"][:3000] + b"\xff\xd9", "corrupt JPEG"),
        (FILES["png"][:60] + bytes(1000) + FILES["png"][1060:], "corrupt"),
        (FILES["png"][:33] + b"\xff" + FILES["png"][34:], "corrupt PNG: a chunk ends at byte 42"),
        (declare_size(FILES["jpeg"], 120, 0), "declares 120x0"),
    ],
)
def test_broken_files_say_why(data, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode(data)


def test_noise_in_the_place_of_a_scan_is_no_crash():
    rng = np.random.default_rng(0)
    scan = FILES["jpeg"].find(b"\xff\xda") + 14
    for _ in range(50):
        noise = rng.integers(0, 256, len(FILES["jpeg"]) - scan, np.uint8).tobytes()
        with pytest.raises(BrokenImageError):
            decode(FILES["jpeg"][:scan] + noise)


def test_a_header_damaged_anywhere_is_an_image_or_broken():
    rng = np.random.default_rng(0)
    for name in FILES:
        for _ in range(50):
            data = bytearray(FILES[name])
            for position in rng.integers(0, 60, 3):
                data[position] = rng.integers(256)
            try:
                image = decode(bytes(data), max_pixels=10**6)
            except BrokenImageError:
                continue
            assert image.ndim == 3


def test_one_pixel():
    pixel = np.full((1, 1, 3), 200, np.uint8)
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        np.testing.assert_allclose(decode(encode(pixel, kind)), pixel, atol=2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_too_many_pixels_are_refused(kind):
    with pytest.raises(BrokenImageError, match=r"of 120x160 .* needs 0.0 megapixels"):
        decode(encode(PHOTO, kind), max_pixels=120 * 160 - 1)
    assert decode(encode(PHOTO, kind), max_pixels=120 * 160).shape == PHOTO.shape


def test_too_many_pixels_of_a_jpeg_are_decoded_reduced():
    image = decode(FILES["jpeg"], min_size=30, max_pixels=2000)
    assert image.shape == (30, 40, 3)
    # Progressive ones hold all coefficients at every scale.
    with pytest.raises(BrokenImageError, match="megapixels"):
        decode(FILES["progressive jpeg"], min_size=30, max_pixels=2000)


def _solid_png(side: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + name + body + checksum

    size = side.to_bytes(4, "big")
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 1)
    header = chunk(b"IHDR", size + size + b"\x01\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_100_megapixels_take_little_memory(tmp_path):
    (tmp_path / "solid.png").write_bytes(_solid_png(10_000))
    (tmp_path / "solid.jpg").write_bytes(solid_grey_jpeg(10_000 // 16 * 16))
    (tmp_path / "progressive.jpg").write_bytes(
        declare_size(FILES["progressive jpeg"], 10_000, 10_000)
    )
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from groupvit_jax.data.images.decode import BrokenImageError, decode
        def peak():  # in MB, of this process alone
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 1024
        decode(Path(sys.argv[1], "solid.jpg").read_bytes(), min_size=1000)
        before = peak()
        for name in ("solid.png", "progressive.jpg", "solid.jpg"):
            try:
                decode(Path(sys.argv[1], name).read_bytes())
                print(name, "decoded")
            except BrokenImageError as error:
                print(name, error)
        print(decode(Path(sys.argv[1], "solid.jpg").read_bytes(), min_size=1000).mean())
        print(peak() - before, before)
    """)
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert all("100.0 megapixels" in line or "99.8 megapixels" in line for line in output[:3])
    assert output[3] == "128.0"
    grown, start = map(float, output[4].split())
    assert grown < 20
    assert start < 300  # MB, with the imports


@pytest.mark.parametrize("name", ["jpeg", "jpeg without chroma subsampling", "grey jpeg"])
def test_a_box_is_exactly_that_part_of_the_whole(name):
    data = FILES[name]
    whole, header = decode(data), read_header(data)
    assert header.height_offset > 0
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = int(rng.integers(1, 121)), int(rng.integers(1, 161))
        top, left = int(rng.integers(121 - height)), int(rng.integers(161 - width))
        part = decode_box(data, header, Box(top, left, height, width))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("name", ["progressive jpeg", "jpeg with restart markers", "png", "gif"])
def test_a_box_of_the_other_kinds(name):
    data = FILES[name]
    part = decode_box(data, read_header(data), Box(10, 20, 30, 40))
    np.testing.assert_array_equal(part, decode(data)[10:40, 20:60])


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_box_of_stored_pixels_is_looked_at_in_place():
    data = _npy(PHOTO)
    header, box = read_header(data), Box(9, 20, 31, 64)
    assert (header.kind, header.height, header.width) == ("npy", *PHOTO.shape[:2])
    part = decode_box(data, header, box)
    np.testing.assert_array_equal(part, PHOTO[9:40, 20:84])
    assert np.shares_memory(part, np.frombuffer(data, np.uint8))
    whole = decode(data)
    np.testing.assert_array_equal(whole, PHOTO)
    whole[:] = 0  # a new array, as of every other kind
    np.testing.assert_array_equal(decode(data), PHOTO)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_npy(PHOTO)[:-1], "declares 120x160 pixels, but has 57727 bytes"),
        (_npy(PHOTO) + b"0", "declares 120x160 pixels"),
        (_npy(PHOTO).replace(b"(120, 160, 3), }", b"(999, 160, 3), }"), "declares 999x160"),
        (_npy(PHOTO).replace(b"(120, 160, 3), }  ", b"(99999999, 9999999, 3), }"), "npy"),
        (_npy(PHOTO).replace(b"\x01\x00v\x00", b"\x01\x00w\x00"), "declares 120x160"),
        (_npy(PHOTO.astype(np.float32)), "expected uint8"),
        (_npy(np.asfortranarray(PHOTO)), "C order"),
        (_npy(PHOTO[..., 0]), "expected uint8"),
        (_npy(PHOTO[:0]), "expected uint8"),
        (_npy(np.array([{}], object)), "expected uint8"),
        (_npy(PHOTO)[:30], "expected uint8"),
    ],
)
def test_other_arrays_than_pixels_are_broken(data, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode(data)


def test_too_many_stored_pixels_are_refused():
    with pytest.raises(BrokenImageError, match=r"120x160 .* the limit is 0\.0"):
        decode(_npy(PHOTO), max_pixels=19_199)


def test_rows_below_the_box_are_not_decoded():
    data = encode(photo(800, 160), "JPEG")
    header = read_header(data)
    cut = data[: len(data) // 2] + b"\xff\xd9"  # the lower half is missing
    top = decode_box(cut, header, Box(0, 0, 200, 160))
    np.testing.assert_array_equal(top, decode(data)[:200])
    with pytest.raises(BrokenImageError):
        decode_box(cut, header, Box(0, 0, 800, 160))


@pytest.mark.parametrize(("min_size", "reduction"), [(0, 1), (61, 1), (60, 2), (30, 4), (15, 8)])
def test_reduced_jpegs_stay_large_enough(min_size, reduction):
    image = decode(FILES["jpeg"], min_size=min_size)
    assert image.shape == (120 // reduction, 160 // reduction, 3)
    whole = decode(FILES["jpeg"])
    expected = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - expected).mean() < 5


def test_a_reduced_box_covers_the_box():
    data = encode(photo(480, 640), "JPEG")
    whole = decode(data)
    box = Box(101, 203, 241, 311)
    part = decode_box(data, read_header(data), box, min_size=60)
    assert part.shape == (61, 79, 3)  # rows 25-86 and columns 50-129 of a quarter
    expected = cv2.resize(whole, (160, 120), interpolation=cv2.INTER_AREA)[25:86, 50:129]
    assert np.abs(part.astype(int) - expected).mean() < 5
