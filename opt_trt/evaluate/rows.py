"""Read the text columns of a dataset's files, within bounds: parquet, arrow, json lines and saved datasets.

Only the wanted columns are read, as plain text, whatever else the files or their metadata hold. A few kilobytes of
parquet can stand for gigabytes of text, so sizes are compared with `LIMIT` before texts are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opt_trt.errors import UserError, reason
from opt_trt.evaluate.arrow_messages import refuse_compressed
from opt_trt.evaluate.parquet_pages import extent
from opt_trt.host.files import TEXT_LIMIT, check_regular, open_regular, read_text
from opt_trt.host.json_file import parse_json, read_json

COLUMNS = ("article", "highlights")
LIMIT = 256 << 20  # bytes of text of all rows; the test split of CNN/DailyMail has 50 MB
MOST_ROWS = 10_000_000
BATCH_ROWS = 256
LINE_LIMIT = 16 << 20  # bytes of one row of json lines
TEXTS = (pa.string(), pa.large_string())
HALF_PAIR = re.compile("[\\ud800-\\udfff]")
ADVICE = "fetch or write it again"


def read_table(files: Sequence[Path], suffix: str | None = None) -> pa.Table:
    """Return the wanted columns of files of one kind, one below the other; `UserError` if they cannot be read.

    The kind is that of the first file's suffix, unless another `suffix` is given.
    """
    read, kind = READERS[suffix or files[0].suffix]
    try:
        table = pa.concat_tables([read(file) for file in files], promote_options="default")
        table.validate(full=True)
        return table
    except UserError:
        raise
    except Exception as error:  # a damaged file can make pyarrow and json fail in any way
        raise UserError(f"{files[0]} is not {kind} ({reason(error)}); {ADVICE}") from error


def check_columns(where: Path | str, found: Iterable[str]) -> None:
    """Refuse rows without the wanted columns; the error names those that were found."""
    found = list(found)
    if missing := [name for name in COLUMNS if name not in found]:
        raise UserError(
            f"{where} lacks column {' and '.join(missing)} (found {', '.join(found) or 'none'}); "
            "rows need article and highlights"
        )


def read_saved(folder: Path) -> pa.Table:
    """Return the wanted columns of a directory that `save_to_disk` wrote; `UserError` if it is not whole."""
    state = read_json(folder / "state.json")
    files = [file.get("filename") if isinstance(file, dict) else None for file in _list(state, "_data_files", folder)]
    names = [name for name in files if _is_name(name)]
    if state.get("_indices_data_files") or len(names) < len(files):
        raise UserError(f"{folder} is not a whole saved dataset (state.json names no files beside it); save it again")
    if not names:
        return _no_rows()
    try:
        return read_table([folder / name for name in names], ".arrow")
    except (UserError, OSError) as error:
        raise UserError(f"{folder} is not a whole saved dataset ({reason(error)}); save it again") from error


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits in a `DatasetDict` that `save_to_disk` wrote."""
    splits = _list(read_json(folder / "dataset_dict.json"), "splits", folder)
    if not all(map(_is_name, splits)):
        raise UserError(f"{folder} is not a whole saved dataset (dataset_dict.json names no splits); save it again")
    return splits


def _is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is the name of a file in the same directory."""
    return isinstance(value, str) and value != "" and Path(value).name == value


def _list(values: dict[str, Any], key: str, folder: Path) -> list[Any]:
    found = values.get(key)
    if not isinstance(found, list):
        raise UserError(f"{folder} is not a whole saved dataset ({key} is no list); save it again")
    return found


def _parquet(path: Path) -> pa.Table:
    check_regular(path)
    pages = extent(path, COLUMNS)
    shared = list(COLUMNS) if pages.has_dictionary else []  # one copy of a text that many rows share
    with pq.ParquetFile(path, read_dictionary=shared) as file:
        check_columns(path, file.schema_arrow.names)
        _check_size(path, pages.size, max(file.metadata.num_rows, pages.values // len(COLUMNS)))
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=COLUMNS, use_threads=False)
        return _joined(path, batches)


def _joined(path: Path, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return the batches as a table of plain texts; refuse them as soon as they are too large."""
    made, size, rows = [], 0, 0
    for batch in batches:
        columns = [_texts(path, name, batch.column(name)) for name in COLUMNS]
        size, rows = size + sum(map(_text_bytes, columns)), rows + batch.num_rows
        _check_size(path, size, rows)
        made.append(pa.table([_plain(column) for column in columns], COLUMNS))
    return pa.concat_tables(made) if made else _no_rows()


def _no_rows() -> pa.Table:
    return pa.table({name: pa.array([], pa.large_string()) for name in COLUMNS})


def _texts(path: Path, name: str, column: pa.Array) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind not in (*TEXTS, pa.null()):
        raise UserError(f"{path}: {name} must be text, found {kind}; rows need article and highlights")
    column.validate(full=True)
    return column


def _text_bytes(column: pa.Array) -> int:
    if pa.types.is_null(column.type):
        return 0
    if not pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(pa.large_string())


def _check_size(path: Path, size: int, rows: int = 0) -> None:
    if size > LIMIT or rows > MOST_ROWS:
        raise UserError(f"{path} holds more than {LIMIT >> 20} MiB or {MOST_ROWS} rows; give the test split alone")


def _arrow(path: Path) -> pa.Table:
    check_regular(path)
    _check_size(path, path.stat().st_size)
    with pa.memory_map(str(path)) as source:
        refuse_compressed(source)
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            check_columns(path, stream.schema.names)
            wanted = [stream.schema.names.index(name) for name in COLUMNS]
        source.seek(0)
        with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(included_fields=wanted)) as stream:
            return _joined(path, stream)


def _json(path: Path) -> pa.Table:
    rows: dict[str, list[str | None]] = {name: [] for name in COLUMNS}
    size, seen = 0, set[str]()
    for number, row in enumerate(_json_rows(path), 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} must be a JSON object, found {type(row).__name__}")
        for name in COLUMNS:
            text = row.get(name)
            if name in row and not isinstance(text, str):
                raise UserError(f"{path}: article and highlights must be text, they are not in row {number}")
            if text and HALF_PAIR.search(text):
                raise UserError(f"{path}: row {number} has half a surrogate pair, which is no text, in {text[:40]!r}")
            size += len((text or "").encode())
            rows[name].append(text)
        seen |= row.keys() & set(COLUMNS)
        _check_size(path, size, number)
    if rows[COLUMNS[0]]:
        check_columns(path, seen)
    return pa.table({name: pa.array(rows[name], pa.large_string()) for name in COLUMNS})


def _json_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a file that has a JSON object on each line, or one JSON list of objects."""
    with open_regular(path) as file:
        start = file.read(LINE_LIMIT).lstrip()[:1]
        if start != b"[":
            file.seek(0)
            yield from _json_lines(file)
            return
    yield from parse_json(read_text(path, limit=TEXT_LIMIT))


def _json_lines(file: BinaryIO) -> Iterator[Any]:
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise ValueError(f"a line of more than {LINE_LIMIT >> 20} MiB")
        if line.strip():
            yield parse_json(line.decode("utf-8"))


READERS: dict[str, tuple[Callable[[Path], pa.Table], str]] = {  # by the suffix of a file
    ".parquet": (_parquet, "a readable parquet file"),
    ".jsonl": (_json, "readable as json lines"),
    ".json": (_json, "readable as json lines"),
    ".arrow": (_arrow, "a readable arrow file"),
}
