"""Read the articles and reference summaries of CNN/DailyMail, from the hub or from local files.

Tokens are made elsewhere: see `prompts`. Files are read as data only; dataset scripts are never run.
"""

from __future__ import annotations

import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from opt_trt.errors import UserError, reason
from opt_trt.host.extras import missing_extra
from opt_trt.host.progress import quiet_unless_terminal

try:
    import datasets
    import pyarrow as pa

    from opt_trt.evaluate.rows import COLUMNS, READERS, check_columns, read_saved, read_table, saved_splits
except ModuleNotFoundError as error:
    raise missing_extra(error, "eval") from error

HUB_NAME, HUB_CONFIG, SPLIT = "abisee/cnn_dailymail", "3.0.0", "test"
OLDER_NAMES = ("ccdv/cnn_dailymail", "cnn_dailymail")
# Directories below --dataset_dir in which upstream looks for the dataset, and --dataset_dir itself.
MIRRORS = (HUB_NAME, *OLDER_NAMES, "")
OF_SPLIT = re.compile(rf"(^|[-_]){SPLIT}([-_.]|$)")  # in the name of a file
SUBFOLDERS = ("3.0.0", "3.0.0/test", "", "data", "test")  # layouts of a cloned hub repository and its exports
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
LOCAL_COPY = "give a local copy with --dataset_dir (parquet, json lines, .arrow files or a saved dataset)"
PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Article:
    """One row: its place in the shuffled order, the text to summarize and the summary a person wrote."""

    index: int
    text: str
    highlights: str


@dataclass(frozen=True)
class DatasetSource:
    """The place that rows come from, and the seed of their order: a file, a directory, or (`path` None) the hub."""

    path: Path | None
    cache_dir: Path | None = None
    seed: int = 0


def load_articles(source: DatasetSource) -> Iterator[Article]:
    """Yield every row, in the order to which `datasets` shuffles them by the seed.

    Raise `UserError` for what cannot be read.
    """
    with quiet_unless_terminal(
        lambda: not datasets.are_progress_bars_disabled(), datasets.disable_progress_bars, datasets.enable_progress_bars
    ):
        rows = _from_hub(source.cache_dir) if source.path is None else _loaded(_from_path(source.path))
    where = source.path or HUB_NAME
    if not rows.num_rows:
        raise UserError(f"{where} has no rows; fetch or write it again")
    check_columns(where, rows.column_names)
    # In memory: an indices file would otherwise be written into the directory the user gave.
    shuffled = rows.select_columns(list(COLUMNS)).shuffle(seed=source.seed, keep_in_memory=True)
    for index, row in enumerate(shuffled):
        for name in COLUMNS:
            if not isinstance(row[name], str):
                raise UserError(f"{where}: {name} must be text, found {row[name]!r} in shuffled row {index}")
        yield Article(index, row["article"], row["highlights"])


def _loaded(table: pa.Table) -> datasets.Dataset:
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _from_path(path: Path) -> pa.Table:
    if not path.exists():
        raise UserError(f"expected a dataset at {path}, found nothing there; check --dataset_dir")
    if not path.is_dir():
        return _from_files([path])
    for folder in (path / mirror / sub for mirror in MIRRORS for sub in SUBFOLDERS):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _from_saved(folder)
        files = _data_files(folder)
        if files:
            return _from_files(files)
    if files := _newest(path.rglob(f"*cnn_dailymail-{SPLIT}*.arrow")):  # the cache of an earlier run
        return _from_files(files)
    raise UserError(
        f"expected parquet files, json lines, .arrow files or a saved dataset in {path}, found none; "
        "check --dataset_dir"
    )


def _data_files(folder: Path) -> list[Path]:
    """Return the files of the test split, or all files if none is called test; parquet is preferred."""
    for suffix in READERS:
        files = sorted(f for f in folder.glob(f"*{suffix}") if f.is_file() and f.name not in METADATA)
        if files:
            return [f for f in files if OF_SPLIT.search(f.name)] or files
    return []


def _from_files(files: list[Path]) -> pa.Table:
    if files[0].suffix not in READERS:
        raise UserError(f"{files[0]} is neither {', '.join(READERS)}; {LOCAL_COPY}")
    return read_table(files)


def _from_saved(folder: Path) -> pa.Table:
    """Load a directory that `save_to_disk` wrote: its test split, or the only split it has."""
    if not (folder / "dataset_dict.json").exists():
        return read_saved(folder)
    splits = saved_splits(folder)
    if SPLIT not in splits and len(splits) != 1:
        raise UserError(f"{folder} has no split {SPLIT} (found {', '.join(splits) or 'none'}); {LOCAL_COPY}")
    return read_saved(folder / (SPLIT if SPLIT in splits else splits[0]))


def _from_hub(cache: Path | None) -> datasets.Dataset:
    if datasets.config.HF_HUB_OFFLINE or not _reachable(datasets.config.HF_ENDPOINT):
        return _loaded(_from_hub_cache(cache or Path(datasets.config.HF_DATASETS_CACHE)))
    try:
        where = None if cache is None else str(cache)
        return datasets.load_dataset(HUB_NAME, HUB_CONFIG, split=SPLIT, cache_dir=where)
    except Exception as error:  # the client raises types of three libraries here, each about the network or the hub
        raise UserError(f"{HUB_NAME} could not be fetched from the hub ({reason(error)}); {LOCAL_COPY}") from error


def _reachable(endpoint: str) -> bool:
    """Return whether the hub answers a short request.

    The hub's own client retries for 23 s without a network, and for 80 s behind a firewall.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError as error:
        # The hub's client has certificates of its own: it may accept what failed here.
        return isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True


def _from_hub_cache(cache: Path) -> pa.Table:
    """Load what an earlier run fetched: `abisee___cnn_dailymail/3.0.0/<version>/<hash>/cnn_dailymail-test*.arrow`.

    The dataset had other names before; one that was fetched under such a name is taken, and named.
    """
    for name in (HUB_NAME, *OLDER_NAMES):
        folder, stem = name.replace("/", "___"), name.split("/")[-1]
        if files := _newest(cache.expanduser().glob(f"{folder}/{HUB_CONFIG}/*/*/{stem}-{SPLIT}*.arrow")):
            if name != HUB_NAME:
                print(f"{HUB_NAME} is taken from {files[0].parent}, where it has an older name", file=sys.stderr)
            return read_table(files)
    raise UserError(
        f"{HUB_NAME} (before: {', '.join(OLDER_NAMES)}) is not in {cache} and the hub cannot be reached from here; "
        f"{LOCAL_COPY}"
    )


def _newest(files: Iterable[Path]) -> list[Path]:
    """Return the files that lie in one directory, the newest, in the order of their names."""
    found = list(files)
    newest = max((f.parent for f in found), key=lambda folder: folder.stat().st_mtime, default=None)
    return sorted(f for f in found if f.parent == newest)
