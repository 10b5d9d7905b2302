"""Print the contents of a directory: its header, then every tensor with its extremes, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.describe.compare import compare
from opt_trt.describe.directories import list_directory
from opt_trt.describe.listing import Group
from opt_trt.describe.measurement import MeasuredTensor, measure_tensor
from opt_trt.describe.render import render_json, render_text
from opt_trt.errors import CheckFailed
from opt_trt.host.progress import byte_bar
from opt_trt.host.workers import one_thread


def describe(config: DescribeConfig) -> None:
    """Print the directory of `config`, or compare its two directories.

    `CheckFailed` if these differ, or if files of an engine are not as they were built.
    """
    directories = [Path(directory) for directory in config.directories]
    with one_thread():
        if config.compare:
            compare(directories[0], directories[1], config)
        else:
            _describe(directories[0], config)


def _describe(directory: Path, config: DescribeConfig) -> None:
    listing = list_directory(directory, config.rank, config.packed_sm)
    with byte_bar("describe", listing.nbytes, config.talks) as bar:
        measured = [_measure(group, config.sha256, bar.update) for group in listing.groups]
    if config.json:
        print(json.dumps(render_json(directory, listing, measured), indent=2, allow_nan=False))
    else:
        print("\n".join(render_text(directory, listing, measured, config.every_layer)))
    if listing.damaged:
        raise CheckFailed(f"{directory}: not as built: {', '.join(listing.damaged)}; copy it again, or build it again")


def _measure(group: Group, hashed: bool, advance: Callable[[int], object]) -> list[MeasuredTensor]:
    measured = []
    for entry in group.entries:
        measured.append(measure_tensor(entry, hashed))
        advance(entry.nbytes)
    return measured
