"""Sum up what the pages of a parquet file say of their sizes, before pyarrow allocates it.

Tables of sizes stand in the footer, too, but nothing holds a hostile footer to the truth, and pyarrow ends the process
if it is asked for those of a damaged column. Footer and page headers are structures of Thrift's compact protocol.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC, TAIL_BYTES = b"PAR1", 8  # a file ends with the length of its footer, 4 bytes, and the magic word
MOST_PAGES = 100_000
FOOTER_LIMIT = 4 << 20  # bytes; that of the test split has 4 KB
DELTA_BYTE_ARRAY = 7  # the encoding in which a text repeats the beginning of the text before it
GROUPS, COLUMNS, METADATA = 4, 1, 3  # fields: of the footer, of a row group, of a column
NAMES, LENGTH, DATA, DICTIONARY = 3, 7, 9, 11  # fields of a column's metadata
UNCOMPRESSED, COMPRESSED = 2, 3  # fields of a page
ENCODINGS = {5: 2, 7: 2, 8: 4}  # by the field of a page's inner header: its field that names the encoding
DICTIONARY_PAGE = 7  # the inner header of a page of texts that rows share
NUM_VALUES = 1  # field of an inner header
ENDED, TRUE, FALSE, BYTE, DOUBLE, TEXT, LIST, SET, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
INTEGERS = (4, 5, 6)
DOUBLE_BYTES = 8
Struct = dict[int, Any]


@dataclass
class Extent:
    """The size of some columns' pages once they are decompressed, in bytes, and their number of values."""

    size: int = 0
    values: int = 0
    has_dictionary: bool = False  # rows may share texts


def extent(path: Path, columns: Collection[str]) -> Extent:
    """Return the extent of some columns of a file; an exception of any type if the file is damaged."""
    found = Extent()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, page in enumerate(_pages(data, columns)):
            if number >= MOST_PAGES:
                raise ValueError(f"more than {MOST_PAGES} pages")
            found.size += _count(page, UNCOMPRESSED)
            found.values += _num_values(page)
            found.has_dictionary |= DICTIONARY_PAGE in page
    return found


def _pages(data: mmap.mmap, columns: Collection[str]) -> Iterator[Struct]:
    """Yield the header of each page of some columns."""
    length = int.from_bytes(data[-TAIL_BYTES : -len(MAGIC)], "little")
    if data[-len(MAGIC) :] != MAGIC or not 0 < length <= min(FOOTER_LIMIT, len(data) - TAIL_BYTES):
        raise ValueError("no footer at its end")
    start = len(data) - TAIL_BYTES - length
    footer: Struct = _Reader(data[start : start + length]).value(STRUCT)
    for group in footer.get(GROUPS, ()):
        for column in group[COLUMNS]:
            if column[METADATA][NAMES][0].decode() in columns:
                yield from _pages_of(data, column[METADATA])


def _pages_of(data: mmap.mmap, column: Struct) -> Iterator[Struct]:
    place = min(column[DATA], column.get(DICTIONARY) or column[DATA])
    end = place + _count(column, LENGTH)
    if not 0 < place <= end <= len(data):
        raise ValueError("pages outside of the file")
    while place < end:
        reader = _Reader(data, place)
        page: Struct = reader.value(STRUCT)
        yield page
        place = reader.place + _count(page, COMPRESSED)


def _num_values(page: Struct) -> int:
    """Return how many values a page says it has."""
    for field, encoding in ENCODINGS.items():
        if field in page:
            if page[field].get(encoding) == DELTA_BYTE_ARRAY:
                raise ValueError("the encoding DELTA_BYTE_ARRAY, of which few bytes can become gigabytes")
            return _count(page[field], NUM_VALUES)
    return 0


def _count(values: Struct, field: int) -> int:
    value: int = values[field]
    if value < 0:
        raise ValueError(f"a negative size, {value}")
    return value


class _Reader:
    """Values of Thrift's compact protocol, read one after another from `place` on."""

    def __init__(self, data: bytes | mmap.mmap, place: int = 0) -> None:
        self._data, self.place = data, place

    def value(self, kind: int) -> Any:
        """Return the next value; `ValueError` if there is no such kind, `IndexError` if the data ends."""
        if kind in INTEGERS:
            number = self.varint()
            return number >> 1 ^ -(number & 1)
        if kind not in KINDS:
            raise ValueError(f"a damaged structure, of kind {kind}")
        return KINDS[kind](self)

    def varint(self) -> int:
        """Return a number of seven bits a byte, the lowest first."""
        number = shift = 0
        while (byte := self.byte()) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a damaged structure, a number of more than 64 bits")
        return number | byte << shift

    def byte(self) -> int:
        """Return the next byte; `IndexError` if there is none."""
        self.place += 1
        return self._data[self.place - 1]

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self.place += count
        return self._data[self.place - count : self.place]

    def items(self) -> list[Any]:
        """Return a list or a set."""
        head = self.byte()
        count = self.varint() if head >> 4 == 15 else head >> 4
        return [self.value(BYTE if head & 15 in (TRUE, FALSE) else head & 15) for _ in range(count)]

    def struct(self) -> Struct:
        """Return values by the numbers of their fields."""
        found, field = Struct(), 0
        while (head := self.byte()) != ENDED:
            field = field + (head >> 4) if head >> 4 else self.value(INTEGERS[0])
            found[field] = head & 15 == TRUE if head & 15 in (TRUE, FALSE) else self.value(head & 15)
        return found


KINDS: dict[int, Callable[[_Reader], Any]] = {
    BYTE: _Reader.byte,
    DOUBLE: lambda reader: reader.take(DOUBLE_BYTES),
    TEXT: lambda reader: reader.take(reader.varint()),
    LIST: _Reader.items,
    SET: _Reader.items,
    STRUCT: _Reader.struct,
}
