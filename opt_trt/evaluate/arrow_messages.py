"""Refuse arrow streams with compressed bodies: `datasets` writes none, and a few kilobytes could become gigabytes."""

from __future__ import annotations

import struct

import pyarrow as pa

HEADER, COMPRESSION = 2, 3  # fields: of a message, its header; of a record batch's header, how its body is compressed


def refuse_compressed(source: pa.NativeFile) -> None:
    """Read through the messages of a stream; `ValueError` if one has a compressed body."""
    reader = pa.ipc.MessageReader.open_stream(source)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("compressed buffers, which datasets does not write")


def _is_compressed(flat: bytes) -> bool:
    """Return whether a message says so; it is a flatbuffer, whose tables begin with the distance to their fields."""
    place = _field(flat, _number("<I", flat, 0), HEADER)
    batch = place + _number("<I", flat, place)
    return _field(flat, batch, COMPRESSION) != batch


def _field(flat: bytes, table: int, number: int) -> int:
    """Return where a field of a table begins, or where the table begins if it lacks the field."""
    fields, slot = table - _number("<i", flat, table), 4 + 2 * number
    return table + (_number("<H", flat, fields + slot) if slot < _number("<H", flat, fields) else 0)


def _number(kind: str, flat: bytes, place: int) -> int:
    value: int = struct.unpack_from(kind, flat, place)[0]
    return value
