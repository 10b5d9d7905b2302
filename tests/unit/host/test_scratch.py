"""Scratch directories have plain names and do not outlive their process for long."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from opt_trt.host import scratch
from opt_trt.host.scratch import is_plain, scratch_directory
from tests._processes import start_python

HOLDER = """
import sys, time
from pathlib import Path
from opt_trt.host.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as directory:
    print(directory, flush=True)
    time.sleep(60)
"""


def test_it_lies_where_it_is_wanted_and_goes(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as directory:
        assert directory.parent == tmp_path and list(directory.iterdir()) == []
        (directory / "file").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "a;b", "$(x)", "`x`", "a\\b", "a\nb", "é", "a&b", "~"])
def test_a_name_that_a_shell_would_read_otherwise_is_avoided(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with scratch_directory(tmp_path / name) as directory:
        assert is_plain(directory) and tmp_path not in directory.parents


def test_a_temporary_directory_with_a_space_is_avoided_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    with scratch_directory(tmp_path / "a b") as directory:
        assert is_plain(directory)


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    killed, alive = (start_python("-c", HOLDER, tmp_path) for _ in range(2))
    try:
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive))
        killed.kill()
        killed.communicate()
        assert left.is_dir()
        with scratch_directory(tmp_path):
            assert not left.exists() and used.is_dir()
    finally:
        alive.kill()
        alive.communicate()


def test_the_places_are_named_if_none_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "COMMON_PLACES", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    said = r"no space or quote in its path, found none among .*; set TMPDIR"
    with pytest.raises(scratch.UserError, match=said), scratch_directory(tmp_path / "not there"):
        pytest.fail("never entered")
