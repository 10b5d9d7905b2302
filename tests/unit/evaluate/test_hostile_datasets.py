"""A data set takes bounded memory, and only its text columns are read, whatever else its files say."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opt_trt.errors import UserError
from opt_trt.evaluate import rows
from opt_trt.evaluate.dataset import DatasetSource, load_articles

ROWS = [{"article": f"article {n} é", "highlights": f"highlight {n}"} for n in range(30)]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(load_articles(DatasetSource(path)))
    return str(caught.value)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LIMIT", 1 << 20)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_bomb_is_refused_before_its_texts_are_made(
    tmp_path: Path, dictionary: bool, small_limit: None
) -> None:
    """One text of 400 kB that three rows share takes 400 kB in the file's own count of uncompressed bytes."""
    table = pa.table({"article": ["x" * 400_000] * 3, "highlights": ["b"] * 3})
    pq.write_table(table, tmp_path / "test-0.parquet", compression="zstd", use_dictionary=dictionary)
    assert (tmp_path / "test-0.parquet").stat().st_size < 10_000
    assert "holds more than 1 MiB or" in refusal(tmp_path)


def test_a_compressed_arrow_stream_is_refused(tmp_path: Path) -> None:
    table = pa.table({"article": ["x" * 500_000] * 100, "highlights": ["b"] * 100})
    for compression in ("lz4", "zstd"):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(str(tmp_path / "test.arrow"), table.schema, options=options) as stream:
            stream.write_table(table)
        assert "test.arrow is not a readable arrow file (compressed buffers" in refusal(tmp_path / "test.arrow")


def test_an_arrow_file_of_a_cache_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("*.arrow")
    assert len(list(load_articles(DatasetSource(path)))) == 30


def test_flipped_bytes_of_a_saved_dataset_are_named_or_harmless(tmp_path: Path) -> None:
    """Offsets within the texts are flipped most often; unchecked, they end the process by a signal."""
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    (path,) = tmp_path.glob("*.arrow")
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            list(load_articles(DatasetSource(tmp_path)))
        except UserError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "values",
    [
        {"_data_files": []}, {"_data_files": "x"}, {"_data_files": [{"filename": "../x.arrow"}]}, {"_data_files": [5]},
        {"_data_files": [{"filename": "x"}]}, {"_data_files": [{"filename": ""}]},
        {"_data_files": [{"filename": "missing.arrow"}]}, {"_data_files": [{"filename": 5}]}, {},
    ],
)  # fmt: skip
def test_a_state_of_other_types_is_named(tmp_path: Path, values: Any) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    (tmp_path / "state.json").write_text(json.dumps(values))
    assert "is not a whole saved dataset" in refusal(tmp_path) or "has no rows" in refusal(tmp_path)


def test_what_datasets_says_beside_the_texts_is_not_believed(tmp_path: Path) -> None:
    """A column of images would be opened from whatever path or address its rows name."""
    table = pa.table({name: [row[name] for row in ROWS] for name in rows.COLUMNS} | {"image": [b"x"] * 30})
    features = {"info": {"features": {"article": {"_type": "Image"}, "image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "test.parquet")
    assert len(list(load_articles(DatasetSource(tmp_path)))) == 30
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_info.json").write_text('{"features": "x", "splits": 5}')
    assert len(list(load_articles(DatasetSource(tmp_path / "saved")))) == 30


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"article": "a \\ud800", "highlights": "b"}\n', "half a surrogate pair"),
        ("[" * 100_000, "brackets within brackets"),
        ('{"article": "a", "highlights": ' + "[" * 100_000, "brackets within brackets"),
        ('[{"article": "a", "highlights": "b"}, 5]', "row 2 must be a JSON object"),
    ],
)
def test_json_that_cannot_be_text_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "test.jsonl").write_text(text)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_sparse_files_and_pipes_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"test{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert path.name in refusal(path)
    path.unlink()
    os.mkfifo(path)
    assert "is a FIFO, expected a regular file" in refusal(path)


def test_a_parquet_column_of_numbers_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"article": [1], "highlights": ["b"]}), tmp_path / "test.parquet")
    assert "article must be text, found int64" in refusal(tmp_path)


def test_flipped_bits_of_a_parquet_footer_are_named_or_harmless(tmp_path: Path) -> None:
    """One in the sizes of a column's levels makes pyarrow end the process if it is asked for that column."""
    path = tmp_path / "test.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    whole, refused = path.read_bytes(), 0
    length = int.from_bytes(whole[-8:-4], "little")
    for at in range(len(whole) - 8 - length, len(whole) - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        try:
            rows.read_table([path])
        except UserError:
            refused += 1
    assert refused > 50


def varint(number: int, width: int = 1) -> bytes:
    """Return a number as Thrift writes it, with at least `width` bytes."""
    number, out = number << 1, b""
    while number >= 0x80 or len(out) < width - 1:
        number, out = number >> 7, out + bytes([number & 0x7F | 0x80])
    return out + bytes([number])


def lie(path: Path, truth: int, told: int) -> None:
    """Say a number wherever a file says another one."""
    said = varint(truth)
    content = path.read_bytes()
    assert said in content
    path.write_bytes(content.replace(said, varint(told, len(said))))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_footer_that_lies_about_the_size_of_pages_is_not_believed(
    tmp_path: Path, version: str, small_limit: None
) -> None:
    path = tmp_path / "test-0.parquet"
    table = pa.table({"article": ["x" * 1_500_000], "highlights": ["b"]})
    pq.write_table(table, path, compression="zstd", data_page_version=version, use_dictionary=False)
    column = pq.read_metadata(path).row_group(0).column(0)
    lie(path, column.total_uncompressed_size, 10)
    assert path.stat().st_size < 2000 and pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 10
    assert "holds more than 1 MiB or" in refusal(path)


def test_a_page_that_says_it_becomes_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow allocates what the header says before it unpacks the page."""
    monkeypatch.setattr(rows, "LIMIT", 2 << 20)
    path, size = tmp_path / "test-0.parquet", 1_100_000
    table = pa.table({"article": ["x" * size], "highlights": ["b"]})
    pq.write_table(table, path, use_dictionary=False, compression="zstd")
    content = path.read_bytes()
    page = next(told for told in range(size, size + 100) if varint(told) in content[:100])
    path.write_bytes(content[:100].replace(varint(page), varint(100_000_000)) + content[100:])
    assert path.stat().st_size == len(content) and "holds more than 2 MiB or" in refusal(path)


def test_rows_without_end_of_one_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_ROWS", 100_000)
    table = pa.table({name: pa.DictionaryArray.from_arrays([0] * 200_000, [""]) for name in rows.COLUMNS})
    pq.write_table(table, tmp_path / "test-0.parquet")
    assert (tmp_path / "test-0.parquet").stat().st_size < 2000
    assert "or 100000 rows" in refusal(tmp_path)


def test_an_encoding_whose_texts_repeat_each_other_is_refused(tmp_path: Path) -> None:
    table = pa.table({"article": ["x" * 100_000] * 30, "highlights": ["b"] * 30})
    encoding = dict.fromkeys(rows.COLUMNS, "DELTA_BYTE_ARRAY")
    pq.write_table(table, tmp_path / "test.parquet", use_dictionary=False, column_encoding=encoding)
    assert "the encoding DELTA_BYTE_ARRAY, of which few bytes can become gigabytes" in refusal(tmp_path)


def test_parquet_of_other_settings_is_read(tmp_path: Path) -> None:
    settings: tuple[dict[str, Any], ...] = (
        {"compression": "gzip", "row_group_size": 7, "data_page_size": 50, "write_page_index": True},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY", "data_page_version": "2.0"},
        {"write_statistics": False, "store_schema": False, "write_page_checksum": True, "compression": "brotli"},
    )
    for number, setting in enumerate(settings):
        path = tmp_path / f"test-{number}.parquet"
        table = pa.table({name: [row[name] for row in ROWS] for name in rows.COLUMNS} | {"id": list(range(30))})
        if "column_encoding" in setting:
            table = table.drop_columns("id")
        pq.write_table(table, path, **setting)
        assert len(list(load_articles(DatasetSource(path)))) == 30
