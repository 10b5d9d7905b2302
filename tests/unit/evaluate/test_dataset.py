"""The dataset: what is found where, in which order, and what is refused."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import datasets
import pytest

from opt_trt.errors import UserError
from opt_trt.evaluate import dataset
from opt_trt.evaluate.dataset import Article, DatasetSource, load_articles

ROWS = [{"article": f"article {n}", "highlights": f"highlight {n}", "id": str(n)} for n in range(6)]


def texts(path: Path, seed: int = 0) -> list[str]:
    return [a.text for a in load_articles(DatasetSource(path, seed=seed))]


def write_lines(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_rows_come_in_the_order_the_library_shuffles_them_to(tmp_path: Path) -> None:
    expected = [row["article"] for row in datasets.Dataset.from_list(ROWS).shuffle(seed=3)]
    assert texts(write_lines(tmp_path / "rows.jsonl"), seed=3) == expected


def test_default_order_is_fixed(tmp_path: Path) -> None:
    first = next(load_articles(DatasetSource(write_lines(tmp_path / "rows.jsonl"))))
    assert first == Article(0, "article 3", "highlight 3")  # default_rng(0).permutation(6) is 3 2 5 4 0 1


def test_a_json_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    assert sorted(texts(tmp_path / "rows.json")) == [f"article {n}" for n in range(6)]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines" / "test.jsonl")
    write_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "splits"))
    orders = [texts(tmp_path / name) for name in ("lines", "parquet", "saved", "splits")]
    assert orders == [orders[0]] * 4


@pytest.mark.parametrize("folder", ["abisee/cnn_dailymail/3.0.0", "ccdv/cnn_dailymail", "3.0.0", "data", "."])
def test_layouts_of_a_downloaded_repository_are_found(tmp_path: Path, folder: str) -> None:
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet")
    assert len(texts(tmp_path)) == 6


def test_shards_of_the_split_are_joined_and_other_splits_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "test-0.jsonl", ROWS[:2])
    write_lines(tmp_path / "test-1.jsonl", ROWS[2:3])
    write_lines(tmp_path / "train.jsonl", ROWS[3:])
    assert sorted(texts(tmp_path)) == ["article 0", "article 1", "article 2"]


def test_saved_splits_without_test_are_listed(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"no split test \(found train, validation\)"):
        texts(tmp_path / "saved")


def test_reading_writes_nothing_into_the_users_directory(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    before = sorted(p.name for p in (tmp_path / "saved").iterdir())
    texts(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == before


def test_cache_dir_is_where_parquet_is_unpacked(tmp_path: Path) -> None:
    source = DatasetSource(write_parquet(tmp_path / "test.parquet"), cache_dir=tmp_path / "mine")
    assert len(list(load_articles(source))) == 6
    assert list((tmp_path / "mine").rglob("*.arrow"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"article": "a", "summary": "s"}])
    with pytest.raises(UserError, match=r"rows\.jsonl lacks column highlights"):
        texts(tmp_path / "rows.jsonl")


def test_a_row_without_highlights_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [ROWS[0], {"article": "alone"}])
    with pytest.raises(UserError, match="highlights must be text, found None"):
        texts(tmp_path / "rows.jsonl")


def test_a_broken_line_is_placed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"article": "a", "highlights": "h"}\n{"article": "b", "hi')
    with pytest.raises(UserError, match=r"rows\.jsonl is not readable as json lines"):
        texts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("line", "message"), [("[1]\n", "row 1 must be a JSON object"), ('{"article": 5}\n', "not in row 1")]
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        texts(tmp_path / "rows.jsonl")


def test_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        texts(tmp_path / "rows.jsonl")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "test.parquet")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"test\.parquet is not a readable parquet file"):
        texts(path)


def test_a_damaged_saved_dataset_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="not a whole saved dataset"):
        texts(tmp_path / "saved")


@pytest.mark.parametrize(("name", "message"), [("absent", "nothing there"), ("empty", "found none"), ("a.csv", "nei")])
def test_what_is_no_dataset_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("article,highlights\n")
    with pytest.raises(UserError, match=message):
        texts(tmp_path / name)


def test_without_a_network_the_local_route_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens on the discard port
    began = time.monotonic()
    with pytest.raises(UserError, match=r"hub cannot be reached from here; .*--dataset_dir"):
        next(load_articles(DatasetSource(None)))
    assert time.monotonic() - began < 5


def test_a_silent_network_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PROBE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="hub cannot be reached"):
            next(load_articles(DatasetSource(None)))


def test_offline_mode_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dataset, "_reachable", lambda endpoint: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match="--dataset_dir"):
        next(load_articles(DatasetSource(None)))


def test_what_an_earlier_run_fetched_serves_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fetched" / "abisee___cnn_dailymail" / "3.0.0" / "0.0.0" / "abc123"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    folder.mkdir(parents=True)
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(folder / "cnn_dailymail-test.arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert len(list(load_articles(DatasetSource(None, cache_dir=tmp_path / "fetched")))) == 6


def test_the_hub_is_asked_for_the_test_split_of_3_0_0(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load_dataset(*args: str, **kwargs: str | None) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(dataset, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(load_articles(DatasetSource(None, cache_dir=Path("/cache"))))) == 6
    assert asked == [(("abisee/cnn_dailymail", "3.0.0"), {"split": "test", "cache_dir": "/cache"})]


@pytest.mark.parametrize("folder", ["cnn_dailymail", "ccdv___cnn_dailymail"])
def test_what_was_fetched_under_an_older_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    place = tmp_path / "cache" / folder / "3.0.0" / "3.0.0" / "abc"
    write_arrow(place)
    assert sorted(a.text for a in load_articles(DatasetSource(None))) == [row["article"] for row in ROWS]
    assert capsys.readouterr().err.endswith(f"abisee/cnn_dailymail is taken from {place}, where it has an older name\n")
    for given in (place, place / "cnn_dailymail-test.arrow", tmp_path / "cache", tmp_path / "cache" / folder):
        assert len(texts(given)) == 6


def test_a_damaged_arrow_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cnn_dailymail-test.arrow").write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"cnn_dailymail-test\.arrow is not a readable arrow file"):
        texts(tmp_path)


def test_half_a_surrogate_pair_is_placed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [ROWS[0], {"article": "a \udce9 b", "highlights": "c"}])
    with pytest.raises(
        UserError, match=r"d\.jsonl: row 2 has half a surrogate pair, which is no text, in 'a .udce9 b'"
    ):
        texts(path)


def write_arrow(folder: Path) -> None:
    """Write what `load_dataset` keeps: the rows of two splits, and a description."""
    for split, rows in (("test", ROWS), ("train", ROWS[:1])):
        saved = folder / split
        datasets.Dataset.from_list(rows).save_to_disk(str(saved))
        next(saved.glob("*.arrow")).rename(folder / f"cnn_dailymail-{split}.arrow")
        for left in (*saved.iterdir(), saved):
            left.rmdir() if left.is_dir() else left.unlink()
    (folder / "dataset_info.json").write_text("{}")
