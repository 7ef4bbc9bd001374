"""Files of PyTorch's zip format: what is read, what is refused, and that nothing in them runs."""

import collections
import contextlib
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from groupvit_jax.interop import inert_pickle
from groupvit_jax.interop.torch_file import read_torch_file
from groupvit_jax.interop.torch_writer import write_torch_file

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scale": np.array(2.5, np.float32),
    "count": np.array([7], np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file(path, TENSORS, {"note": "text"})
    return path


def rewrite(path, change, compressed=()):
    """Writes the members of a file again, some of them with another content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | change
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            kind = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)


def write_pickle(path, content):
    rewrite(path, {"archive/data.pkl": content})


def test_what_is_written_is_read(path):
    tensors, content = read_torch_file(path)
    assert content["note"] == "text"
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)
        assert tensors[name].shape == expected.shape


def test_pytorch_reads_what_is_written(path):
    torch = pytest.importorskip("torch")
    content = torch.load(path, weights_only=True)
    assert content["note"] == "text"
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(content["model"][name].numpy(), expected)


def test_what_pytorch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    state = collections.OrderedDict(
        transposed=base.t(),
        part=base[1:3, ::2],
        parameter=torch.nn.Parameter(base[0].clone()),
        half=base.half(),
        bfloat16=base.bfloat16(),
        double=base.double(),
        scalar=torch.tensor(3),
        flags=torch.tensor([True, False]),
    )
    torch.save({"model": state, "optimizer": {"state": {0: base}}}, tmp_path / "new.pth")
    tensors, _ = read_torch_file(tmp_path / "new.pth")
    for name, expected in state.items():
        assert str(tensors[name].dtype) == str(expected.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(
            tensors[name].astype(np.float32), expected.detach().float().numpy()
        )


def test_a_bare_state_dict_of_a_module_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "state.bin")
    tensors, _ = read_torch_file(tmp_path / "state.bin")
    assert tensors.keys() == module.state_dict().keys()


def test_big_endian_memory_is_swapped(path):
    memory = {f"archive/data/{i}": a.byteswap().tobytes() for i, a in enumerate(TENSORS.values())}
    rewrite(path, {"archive/byteorder": b"big", **memory})
    tensors, _ = read_torch_file(path)
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], expected)


class Omega:
    """Like a pickled configuration object: a class with state, and attacks inside of it."""

    def __init__(self, content):
        self.content = content


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker):
    command = f"touch {marker}"
    yield "os.system", Attack(os.system, command)
    yield "eval", Attack(eval, f"open({str(marker)!r}, 'w')")
    yield "exec", Attack(exec, f"open({str(marker)!r}, 'w')")
    yield "open", Attack(open, str(marker), "w")
    yield "nested", Omega({"deep": [Omega(Attack(os.system, command))]})
    yield "dict subclass", collections.defaultdict(Attack, {"a": Attack(os.system, command)})


NAMES = [name for name, _ in attacks("")]


def with_tensors(path, planted):
    """The file's pickle with one more entry in front of its tensors."""
    with zipfile.ZipFile(path) as archive:
        original = archive.read("archive/data.pkl")
    entry = pickle.dumps("config", 2)[2:-1] + pickle.dumps(planted, 2)[2:-1]
    return original.replace(b"}(", b"}(" + entry, 1)


class PlainUnpickler(pickle.Unpickler):
    """Python's own reader, of files that keep their tensors elsewhere."""

    def persistent_load(self, pid):
        return None


@pytest.mark.parametrize("name", NAMES)
def test_code_in_a_pickle_does_not_run_and_tensors_are_read(path, tmp_path, name):
    marker = tmp_path / "ran"
    content = with_tensors(path, dict(attacks(marker))[name])
    write_pickle(path, content)
    tensors, _ = read_torch_file(path)
    assert tensors.keys() == TENSORS.keys()
    assert not marker.exists()
    # The attack is real: Python's own reader runs it.
    with contextlib.suppress(TypeError, AttributeError, ModuleNotFoundError):
        PlainUnpickler(io.BytesIO(content)).load()
    assert marker.exists()


def test_objects_of_the_file_are_inert(path):
    write_pickle(path, with_tensors(path, Omega({"a": 1})))
    _, content = read_torch_file(path)
    assert type(content["config"]) is inert_pickle.Inert
    assert not vars(content["config"])


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


@pytest.mark.parametrize(
    "content",
    [
        opcodes(b"cos\nsystem\nX\x02\x00\x00\x00lsQ"),  # a persistent id that is text
        opcodes(b"(X\x06\x00\x00\x00modulecos\nsystem\nK\x01K\x01K\x01tQ"),
        opcodes(STORAGE, b"J\xff\xff\xff\xfftQ"),  # a negative size
        opcodes(b"Pos.system\n"),
        opcodes(b"}(K\x01u"),  # a key without value
        opcodes(b"R"),
        opcodes(b"h\x05"),
        opcodes(b"\x82\x01"),  # the extension registry
        opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR"),
        b"\x80\x02}",
        b"",
        b"\xff\xff",
    ],
)
def test_a_malformed_pickle_is_one_error(path, content):
    write_pickle(path, content)
    with pytest.raises(ValueError, match=r"model\.pth: archive/data\.pkl: ") as error:
        read_torch_file(path)
    assert "\n" not in str(error.value)


def test_states_and_items_of_classes_change_nothing(path):
    # BUILD, SETITEM and APPEND on a class would change it for the whole process.
    planted = b"X\x01\x00\x00\x00xccollections\nOrderedDict\n}(X\x05\x00\x00\x00fieldK\x01ub"
    planted += b"X\x01\x00\x00\x00ycbuiltins\ndict\nX\x01\x00\x00\x00aK\x01s"
    with zipfile.ZipFile(path) as archive:
        original = archive.read("archive/data.pkl")
    write_pickle(path, original.replace(b"}(", b"}(" + planted, 1))
    tensors, content = read_torch_file(path)
    assert tensors.keys() == TENSORS.keys()
    assert content["x"] == inert_pickle.Global("collections", "OrderedDict")
    assert not hasattr(collections.OrderedDict, "field")
    assert not hasattr(inert_pickle.Global, "field")


def change_storage(path, change):
    with zipfile.ZipFile(path) as archive:
        content = archive.read("archive/data.pkl")
    assert change[0] in content
    write_pickle(path, content.replace(*change, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # shape (3, 4) -> (3, 200)
        ((b"K\x03K\x04\x86", b"K\x03K\xc8\x86"), r"tensor 'a\.weight' has shape \(3, 200\)"),
        # a stride of 0 repeats one row beyond the storage
        (
            (b"K\x03K\x04\x86q\x00K\x04", b"K\xffK\x04\x86q\x00K\x00"),
            r"tensor 'a\.weight' has shape",
        ),
        # storage of 12 elements -> 200
        ((b"K\x0ctQ", b"K\xc8tQ"), r"tensor 'a\.weight': member 'archive/data/0' holds 48 bytes"),
        # a storage outside of its folder
        (
            (b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x00../data.pkl"),
            r"'archive/data/\.\./data\.pkl'",
        ),
        ((b"FloatStorage", b"QInt8Storage"), r"tensor 'a\.weight' is of the unknown QInt8Storage"),
    ],
)
def test_a_tensor_that_contradicts_its_storage_is_named(path, change, message):
    change_storage(path, change)
    with pytest.raises(ValueError, match=message) as error:
        read_torch_file(path)
    assert str(path) in str(error.value)


def test_a_compressed_member_is_refused_before_it_is_unpacked(path):
    rewrite(path, {"archive/data/0": bytes(1 << 24)}, compressed=["archive/data/0"])
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match=r"tensor 'a\.weight': .* is compressed or encrypted"):
        read_torch_file(path)


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.5])
def test_a_truncated_file_is_recognised(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"model\.pth: truncated, .*incomplete"):
        read_torch_file(path)


@pytest.mark.parametrize("writer", ["ours", "pytorch"])
def test_a_truncated_file_names_the_first_incomplete_tensor(path, writer):
    if writer == "pytorch":
        torch = pytest.importorskip("torch")
        state = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
        torch.save({"model": state}, path)
    content = path.read_bytes()
    # Only the first half of a.weight's memory is left.
    path.write_bytes(content[: content.index(TENSORS["a.weight"].tobytes()) + 24])
    with pytest.raises(ValueError, match=r"truncated, tensor 'a\.weight' is incomplete"):
        read_torch_file(path)


def test_damaged_memory_names_the_tensor(path):
    content = path.read_bytes()
    memory = TENSORS["a.weight"].tobytes()
    path.write_bytes(content.replace(memory, memory[::-1]))
    with pytest.raises(ValueError, match=r"tensor 'a\.weight' is damaged: .*CRC"):
        read_torch_file(path)


def test_a_legacy_file_is_refused_with_the_way_out(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth: PyTorch's legacy format.*torch\.save\("):
        read_torch_file(path)


def test_a_tar_of_the_oldest_format_is_legacy_too(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(bytes(257) + b"ustar\x0000" + bytes(512))
    with pytest.raises(ValueError, match="legacy format"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"", b"text", struct.pack("<Q", 5)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pth: not a file of PyTorch's zip format"):
        read_torch_file(path)


def test_a_zip_without_tensors_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("something", b"")
    with pytest.raises(ValueError, match=r"0 members named data\.pkl"):
        read_torch_file(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_torch_file(tmp_path / "none.pth")
