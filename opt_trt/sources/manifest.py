"""Compare the files of a model of any format with a published list of md5 sums."""

from __future__ import annotations

import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from opt_trt.errors import UserError, one_line, reason, spelled
from opt_trt.host.files import read_text

COLUMNS = ["shard", "md5sum"]  # the header of metaseq's lists; other lists have the form of md5sum's output
LINE = re.compile(r"\\?([0-9a-fA-F]{32}) [ *](.+)")
SUM = re.compile(r"[0-9a-fA-F]{32}")
CHUNK = 1 << 22  # bytes


def check_md5(directory: Path, manifest: Path, quiet: bool) -> str:
    """Hash every file that the list names in `directory`; return one line with the result.

    `UserError` for a missing file and for a different sum. If the list gives one sum to several files, it is itself
    wrong there, so a difference is only a warning. A progress bar counts bytes unless `quiet` or not on a terminal.
    """
    sums = read_manifest(manifest)
    missing = [name for name in sums if not (directory / name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{manifest} lists {missing[0]}{more}, which is not in {directory}; fetch it, or give this model's own list"
        )
    with _bar(directory, sums, quiet) as bar:
        found = {name: _md5(directory / name, bar) for name in sums}
    wrong = [name for name in sums if found[name] != sums[name]]
    counts = Counter(sums.values())
    texts = {name: f"{directory / name} has md5 {found[name]}, {manifest} says {sums[name]}" for name in wrong}
    if damaged := [name for name in wrong if counts[sums[name]] == 1]:
        more = f" (and {len(damaged) - 1} more files differ)" if len(damaged) > 1 else ""
        raise UserError(f"{texts[damaged[0]]}{more}: it is damaged or of another release; fetch it again")
    for name in wrong:
        print(
            f"WARNING: {one_line(texts[name])}, and gives several files this sum: the list is wrong, the file was not "
            "checked",
            file=sys.stderr,
        )
    return f"md5 sums of {len(sums) - len(wrong)} files match {manifest}"


def _bar(directory: Path, names: Iterable[str], quiet: bool) -> tqdm:
    size = sum((directory / name).stat().st_size for name in names)
    return tqdm(total=size, desc="md5", unit="B", unit_scale=True, disable=quiet or None, leave=False)


def read_manifest(path: Path) -> dict[str, str]:
    """Read sums by file name, from a csv file with the header `shard,md5sum` or from the output of md5sum."""
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        option = spelled("md5_manifest")
        raise UserError(f"{option} {path} cannot be read ({reason(error)}); give a list of md5 sums") from error
    if rows and [cell.strip() for cell in rows[0]] == COLUMNS:
        pairs = [(row[0].strip(), row[1].strip()) if len(row) == len(COLUMNS) else ("", "") for row in rows[1:]]
    else:
        matches = [LINE.fullmatch(line) for line in lines]
        pairs = [(match[2], match[1]) if match else ("", "") for match in matches]
    bad = next((index for index, (name, total) in enumerate(pairs) if not name or not SUM.fullmatch(total)), None)
    if not pairs or bad is not None:
        where = f"entry {bad + 1} is neither" if bad is not None else "it holds none"
        raise UserError(
            f"{path} must hold lines of md5sum or csv with the header shard,md5sum, but {where}; correct it"
        )
    sums: dict[str, str] = {}
    for listed, total in pairs:
        name = Path(listed.strip()).name
        if sums.setdefault(name, total.lower()) != total.lower():
            raise UserError(f"{path} gives {name} two sums, {sums[name]} and {total}; correct it")
    return sums


def _md5(path: Path, bar: tqdm) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
