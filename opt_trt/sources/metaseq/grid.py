"""The grid of a metaseq checkpoint's files, by the numbers of part and shard in their names."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from opt_trt.errors import UserError

NUMBERS = {"part": re.compile(r"(?:^|-)model_part-(\d+)"), "shard": re.compile(r"(?:^|-)shard(\d+)")}
LISTED = 5  # the number of missing files that an error names

Place = tuple[int, int]  # part, shard


def list_grid(directory: Path) -> list[list[Path]]:
    """Return the files as `grid[part][shard]`; `UserError` for missing and doubled files, and for two checkpoints."""
    places: dict[Place, Path] = {}
    first = ""
    for path in sorted(directory.glob("*.pt")):
        base, place = _place(path)
        if first and base != first:
            raise UserError(
                f"{directory} holds two checkpoints, {first} and {base} ({path.name}); leave one of them there"
            )
        if place in places:
            raise UserError(f"{path} and {places[place].name} are both part {place[0]}, shard {place[1]}; remove one")
        first, places[place] = base, path
    parts, shards = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    _check_complete(directory, "model_part-", {part for part, _ in places}, parts)
    for part in range(parts):
        _check_complete(directory, f"model_part-{part}-shard", {s for p, s in places if p == part}, shards)
    return [[places[part, shard] for shard in range(shards)] for part in range(parts)]


def _place(path: Path) -> tuple[str, Place]:
    found = {kind: pattern.search(path.name) for kind, pattern in NUMBERS.items()}
    base = path.name
    for pattern in NUMBERS.values():
        base = pattern.sub("", base)
    part, shard = (int(match[1]) if match else 0 for match in found.values())
    return base, (part, shard)


def _check_complete(directory: Path, kind: str, numbers: set[int], total: int) -> None:
    if len(numbers) != total:
        missing = islice((number for number in range(total) if number not in numbers), LISTED)
        raise UserError(
            f"{directory} lacks {total - len(numbers)} of {total} files named {kind}N: N = "
            f"{', '.join(map(str, missing))}{' ...' * (total - len(numbers) > LISTED)}; fetch them into it"
        )
