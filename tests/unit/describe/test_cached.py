"""The cache can be listed, measured and cleared."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from opt_trt.cli import parse
from opt_trt.config.cache_flags import CacheConfig
from opt_trt.describe.cached import cache
from opt_trt.errors import UserError
from tests.unit._engines import write_engine_config


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an engine of 2000 bytes and more, a plugin library of 1000, and a file of somebody else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "opt_trt"
    (root / "engines" / "abc").mkdir(parents=True)
    write_engine_config(root / "engines" / "abc")
    (root / "engines" / "abc.lock").touch()
    (root / "engines" / "abc" / "rank0.weights.safetensors").write_bytes(bytes(2000))
    (root / "plugins").mkdir()
    (root / "plugins" / "lib.so").write_bytes(bytes(1000))
    (root / "mine.txt").write_text("mine")
    return root


def run(*words: str) -> None:
    cache(parse(CacheConfig, words))


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_every_entry_is_listed_with_its_size(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    head, _, _, _, engine, plugin = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{kept}: ") and head.endswith(" (XDG_CACHE_HOME names another place)")
    assert engine.startswith("engines/abc") and " layers of " in engine
    assert plugin.startswith("plugins/lib.so") and plugin.endswith("  1.0 KB")


def test_the_size_is_one_line(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("size", "--only", "plugins")
    assert capsys.readouterr().out == f"1.0 KB in {kept}\n"


def test_clearing_frees_what_was_asked_for(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("clear", "--only", "plugins", "timing.cache")
    assert capsys.readouterr().out == f"freed 1.0 KB in {kept}\n"
    assert "engines/abc/config.json" in names(kept)
    run("clear")
    assert names(kept) == {"engines/abc.lock", "mine.txt"}


def test_an_engine_that_is_being_made_stays(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (kept / "engines" / "abc.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run("clear", "--log_level", "warning")
    assert capsys.readouterr().out == f"{kept}/engines/abc is in use and stays; clear it when that process has ended\n"
    assert "engines/abc/config.json" in names(kept) and "plugins/lib.so" not in names(kept)


def test_no_cache_is_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for action in ("list", "size", "clear"):
        run(action)
    assert capsys.readouterr().out.count("0 bytes") == 3


@pytest.mark.parametrize("words", [["lst"], ["list", "clear"]])
def test_an_unknown_action_is_named(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"expected one of list, size, clear, found {' '.join(words)}"):
        run(*words)
