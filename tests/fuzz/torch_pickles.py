"""PyTorch's zip files written by hand, opcode by opcode."""

import io
import zipfile

_STORAGE = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE + b"I0\n(I2\nI3\nt(I3\nI1\nttR"
STATE = b"(dVa\n" + TENSOR + b"s."  # {"a": a tensor of shape [2, 3]}

PICKLES = [
    STATE,
    STATE.replace(b"I2\n", b"L" + b"9" * 4000 + b"L\n"),
    b"(d" + b"(" * 999 + b".",
    b"(dVa\n" + TENSOR + b"p0\ns" + b"".join(b"V%d\ng0\ns" % i for i in range(3000)) + b".",
    b"ccollections\nOrderedDict\n(" * 50 + b".",
    b"cos\nsystem\n(Vtrue\ntR.",
]


def torch_file(content: bytes, storage: bytes) -> bytes:
    """A file with a pickle and the memory of storage 0."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", storage)
    return file.getvalue()
