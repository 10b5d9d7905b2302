"""The output of a conversion: a directory that appears only when it is complete, and a progress bar over its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opt_trt.checkpoint.tokenizer_files import KEPT
from opt_trt.host.atomic import atomic_directory
from opt_trt.host.disk import check_space, explain_full_disk
from opt_trt.host.progress import byte_bar
from opt_trt.host.workers import one_thread

RANK_FILES = ("rank*.safetensors", *KEPT)


@contextmanager
def open_output(
    path: Path, verb: str, nbytes: int, talks: bool, marker: str = "config.json", owned: Sequence[str] = RANK_FILES
) -> Iterator[tuple[Path, Callable[[int], object]]]:
    """Yield a temporary directory, which becomes `path` when the block ends, and a function that counts written bytes.

    `UserError` if the disk has no `nbytes` free, or if it fills up. See `atomic_directory` for `marker` and `owned`.
    """
    check_space(path, nbytes)
    with (
        one_thread(),
        atomic_directory(path, marker, owned) as directory,
        explain_full_disk(directory, nbytes),
        byte_bar(verb, nbytes, talks) as bar,
    ):
        yield directory, bar.update
