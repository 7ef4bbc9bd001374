"""Damaged, foreign and hostile content, drawn by Hypothesis."""

import io
import json
import struct
import tarfile
import zlib
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]
ODD = [None, True, -1, 0, 1.5, 1e308, float("nan"), 2**70, "", "x", "\ud800", [], {}, [[]]]
ODD += [[0], ["a"], {"a": 1}, 10**400, -(2**63), "word " * 9999, "../../etc/passwd"]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes changed, inserted, deleted, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["set", "number", "insert", "delete", "repeat", "cut"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                order = draw(st.sampled_from("<>"))
                data[at : at + 4] = struct.pack(f"{order}I", draw(st.sampled_from(NUMBERS)))
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "repeat":
                piece = bytes(data[at : at + draw(st.integers(1, 200))])
                data[at:at] = piece * draw(st.sampled_from([1, 2, 100]))
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which one to three places hold something else."""
    for _ in range(draw(st.integers(1, 3))):
        value = _alter(draw, value)
    return value


def _alter(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict | list) and value and draw(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if draw(st.integers(0, 9)):
            copy[key] = _alter(draw, copy[key])
        else:
            del copy[key]
        return copy
    return draw(st.sampled_from(ODD))


@st.composite
def json_texts(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text that is altered, damaged or nested deeply."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from([b"[", b'{"a":', b"[{}"])) * draw(st.sampled_from([9, 99_999]))
    text = json.dumps(draw(altered(value))).encode()
    return draw(mutated([text])) if kind == 1 else text


NAMES = ["0.jpg", "0.txt", "0.json", "a/0.jpg", "b/0.txt", "0.input.jpg", "0.cls", ".jpg", "README"]
NAMES += ["1.PNG", "1.TXT", "../x.jpg", "/etc/passwd", "é" * 70 + ".jpg", "k" * 3000 + ".jpg"]
TYPES = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
TYPES += [tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE]
SIZES = ["-1", "0", "1e9", "9" * 20, "9" * 5000, "", "x"]


@st.composite
def tars(draw: st.DrawFn, images: list[bytes], fields: Any) -> bytes:
    """A tar of members as people and attackers have them; its checksums are right."""
    file = io.BytesIO()
    form = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    names = draw(st.lists(st.sampled_from(NAMES), max_size=8))
    for name in [*draw(st.sampled_from([[], NAMES[:2]])), *names]:
        kinds = {"jpg": st.sampled_from(images), "json": json_texts(fields)}
        content = draw(kinds.get(name.rpartition(".")[2], st.binary(max_size=30)))
        member = tarfile.TarInfo(name)
        member.size = len(content)
        if draw(st.integers(0, 4)) == 0:
            member.type, member.linkname = draw(st.sampled_from(TYPES)), "0.jpg"
        if form == tarfile.PAX_FORMAT and draw(st.integers(0, 4)) == 0:
            member.pax_headers = {"size": draw(st.sampled_from(SIZES))}
        header = member.tobuf(form, errors="surrogateescape")
        repeats = draw(st.sampled_from([1, 1, 1, 1, 700]))
        file.write(header * repeats + content + bytes(-len(content) % 512))
    data = file.getvalue() + bytes(1024)
    return draw(mutated([data])) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def pngs(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A PNG with other chunks, whose checksums are right."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        kinds = [b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"pHYs", b"iCCP", b"tEXt", b"zTXt", b"IDAT"]
        kind = draw(st.sampled_from([*kinds, b"eXIf", b"acTL", b"fcTL", b"sRGB", b"cHRM"]))
        content = draw(st.binary(max_size=30))
        chunk = struct.pack(">I", len(content)) + kind + content
        chunk += struct.pack(">I", zlib.crc32(kind + content))
        at = draw(st.sampled_from([33, len(data) - 12]))
        data = data[:at] + chunk + data[at:]
    return draw(mutated([data])) if draw(st.integers(0, 3)) == 0 else data


CELLS = ["0.jpg", "a dog", '"', '"a', 'a"b', '"a\nb"', "", " ", "a,b", "\0", "\ufeff", "\r"]
CELLS += ["x" * 9999, "é"]
HEADERS = ["image,caption", "filepath\ttitle", "id|image|text", "url,caption", ""]
HEADERS += ['"image","caption"']


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A CSV, TSV or something like it."""
    header = draw(st.sampled_from(HEADERS))
    delimiter = max(",\t|", key=header.count)
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=4), max_size=8))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = end.join([header, *(delimiter.join(row) for row in rows)])
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    encoded = text.encode(encoding, "replace")
    return draw(mutated([encoded])) if draw(st.integers(0, 2)) == 0 else encoded
