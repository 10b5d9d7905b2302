"""A pickle takes bounded memory and time, whatever it says: an archive of torch and its older form alike."""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import safe_pickle
from opt_trt.sources.torch_bin import list_torch_bin
from opt_trt.sources.unpickle import unpickle

MEGABYTE = 1 << 20
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", bytes(64))
    return path


def legacy(path: Path, pickled: bytes) -> Path:
    start = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, SYSTEM))
    path.write_bytes(start + pickled + pickle.dumps([], 2))
    return path


def doubled(levels: int, use: bytes) -> bytes:
    """Write a pickle of a tuple that holds a tuple twice, and so on: 2 ** levels paths lead into it."""
    pairs = b"".join(b"(h%ch%ctq%c" % (level, level, level + 1) for level in range(levels))
    return b"\x80\x02)q\0" + pairs + b"}" + use


HOSTILE = {
    "deep tuple as a key": b"\x80\x02}()" + b"\x85" * 400_000 + b"K\x01u.",
    "doubled tuple as a key": doubled(40, b"h(K\x01s."),
    "doubled tuple in a set": doubled(40, b"\x8f(h(\x90."),
    "doubled tuple in a frozen set as a key": doubled(40, b"((h(\x91K\x01u."),
    "gigabytes of zeros": b"\x80\x05\x96" + struct.pack("<Q", 6 << 30) + b".",
    "gigabytes of zeros by name": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 6 << 30) + b"\x85R.",
    "copies of a long list": b"\x80\x02cenum\nE\nq\0(" + b"N" * 500_000 + b"tq\x01" + b"h\0h\x01R0" * 999 + b".",
    "copies by torch.Size": b"\x80\x02ctorch\nSize\nq\0](" + b"N" * 500_000 + b"e\x85q\x01" + b"h\0h\x01R" * 999 + b".",
    "copies of a dictionary": b"\x80\x02ccollections\nOrderedDict\nq\0}\x85q\x01h\0h\x01R.",
    "too many classes": b"\x80\x02" + b"".join(b"cenum\nE%d\n" % number for number in range(100_000)) + b".",
    "a state for a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x07sb.",
    "a long number as a key": b"\x80\x02}\x8b" + struct.pack("<i", MEGABYTE) + b"\x7f" * MEGABYTE
    + b"q\0N" + b"h\0Ns" * 300_000 + b".",
    "a long number of digits": b"\x80\x02}I0x" + b"f" * MEGABYTE + b"\nNs.",
    "a long name": b"\x80\x04X" + struct.pack("<I", MEGABYTE) + b"a" * MEGABYTE
    + b"q\0h\0h\0" + b"\x93h\0h\0" * 300_000 + b".",
    "one class many times": b"\x80\x02" + b"cenum\nE\n" * 100_000 + b"\x85.",
    "arguments of arguments": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\0(" + b"N" * 1_000_000
    + b"tq\x01cenum\nE\nq\x02" + b"h\0h\x02Nh\x01\x87R" * 50_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("write", [archive, legacy])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_line_and_soon(tmp_path: Path, write: Any, what: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        list_torch_bin(write(tmp_path / "x.bin", HOSTILE[what]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2200
    assert time.process_time() - started < 10
    assert not hasattr(safe_pickle._rebuild_tensor, "a")


def test_a_pickle_larger_than_any_table_of_tensors_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"N" * (5 << 20))
    with pytest.raises(UserError, match=r"data\.pkl has 5242880 bytes, torch\.save writes up to 4194304"):
        unpickle(path)


@pytest.mark.parametrize(
    ("shape", "stride", "says"),
    [
        ((10**9, 16), (0, 1), "repeats the 16 elements that are stored"),
        ((16.0,), (1,), "no view of a storage"), ((16,), (1.0,), "no view of a storage"),
        ((True,), (1,), "no view of a storage"), ((0, 10**500), (1, 1), "no view of a storage"),
        ((1,) * 65, (1,) * 65, "up to 64 sizes"), ({16: 1}, (1,), "a shape that is no list"),
    ],
)  # fmt: skip
def test_a_tensor_has_the_elements_that_its_storage_has(tmp_path: Path, shape: Any, stride: Any, says: str) -> None:
    class Storage:
        pid = ("storage", torch.FloatStorage, "0", "cpu", 16)

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, shape, stride, False, None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"x": Tensor()})
    with pytest.raises(UserError, match=says):
        list_torch_bin(archive(tmp_path / "x.bin", buffer.getvalue()))


def test_the_older_form_is_read_in_place(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4).half(), "c": torch.arange(6.0).view(2, 3).T}
    tensors["d"] = tensors["a"][1]  # shares its storage
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    found = list_torch_bin(tmp_path / "x.bin")
    assert [entry.key for entry in found] == ["a", "b", "c", "d"]
    for entry in found:
        assert torch.equal(torch.cat(list(entry.blocks())), tensors[entry.key])


@pytest.mark.parametrize("keep", [300, -1, -40])
def test_a_cut_file_of_the_older_form_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.bin is damaged or was not written by torch\.save"):
        unpickle(path)


def test_a_directory_without_end_is_not_read(tmp_path: Path) -> None:
    """The end of the archive says that a directory of 3 GiB stands before it."""
    path = tmp_path / "x.bin"
    size = 3 << 30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(size + 4)
        file.seek(0, os.SEEK_END)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 4, 0))
    with pytest.raises(UserError, match=f"truncated or damaged .a directory of {size} bytes"):
        unpickle(path)


def test_a_signal_is_answered_while_a_pickle_is_read(tmp_path: Path) -> None:
    """SIGTERM becomes an exception between two instructions; within one in C it would wait for the end."""

    class Arrived(BaseException):
        pass

    def arrive(number: int, frame: object) -> None:
        raise Arrived

    path = archive(tmp_path / "x.bin", b"\x80\x02" + b"N0" * 1_500_000 + b"N.")
    before = signal.signal(signal.SIGALRM, arrive)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Arrived):
            unpickle(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
