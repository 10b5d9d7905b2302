"""What was kept is used again only if it is whole, and if nobody else may have written it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opt_trt.errors import UserError
from opt_trt.host import kept
from opt_trt.host.kept import CHECKSUMS, keep, trusted


class Maker:
    """A function that fills a directory, and counts its calls."""

    calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        (directory / "a.so").write_bytes(b"code" * 1000)
        (directory / "b.json").write_text("{}")


def test_it_is_made_once(tmp_path: Path) -> None:
    maker = Maker()
    files = keep(tmp_path / "cache", "programs/layer", maker)
    assert [file.name for file in files] == ["a.so", "b.json"]
    assert keep(tmp_path / "cache", "programs/layer", maker) == files and maker.calls == 1


DAMAGES = {
    "emptied": lambda directory: (directory / "a.so").write_bytes(b""),
    "cut": lambda directory: os.truncate(directory / "a.so", 17),
    "zeroed": lambda directory: (directory / "a.so").write_bytes(bytes(4000)),
    "one bit": lambda directory: (directory / "a.so").write_bytes(b"cofe" + b"code" * 999),
    "missing": lambda directory: (directory / "b.json").unlink(),
    "added": lambda directory: (directory / "c.so").touch(),
    "no checksums": lambda directory: (directory / CHECKSUMS).unlink(),
    "no text": lambda directory: (directory / CHECKSUMS).write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    maker = Maker()
    files = keep(tmp_path / "cache", "layer", maker)
    DAMAGES[damage](tmp_path / "cache" / "layer")
    assert keep(tmp_path / "cache", "layer", maker) == files and maker.calls == 2
    assert files[0].read_bytes() == b"code" * 1000
    assert keep(tmp_path / "cache", "layer", maker) == files and maker.calls == 2


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    keep(tmp_path / "cache", "layer", Maker())
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tmp_path / "cache" / "layer", check=True)


def test_a_failure_keeps_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "a.so").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "cache", "layer", fail)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [".layer.lock"]


def test_others_wait_until_it_is_made(tmp_path: Path) -> None:
    maker, begun = Maker(), threading.Event()

    def slow(directory: Path) -> None:
        begun.set()
        time.sleep(0.2)
        maker(directory)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(keep, tmp_path / "cache", "layer", slow)
        begun.wait(60)
        assert keep(tmp_path / "cache", "layer", maker) == first.result(60)
    assert maker.calls == 1


def test_a_new_cache_is_the_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep(tmp_path / "cache", "layer", Maker())
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_cache_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, "layer", Maker())
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match=f"{tmp_path} holds compiled code, and every user may write there; delete it"):
        keep(tmp_path, "layer", Maker())


def test_a_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (owner := tmp_path.stat().st_uid) == 0:
        owner = 12345
        os.chown(tmp_path, owner, -1)
    monkeypatch.setattr(kept.os, "geteuid", lambda: owner + 1)
    with pytest.raises(UserError, match=f"belongs to user {owner}, this is user {owner + 1}; set XDG_CACHE_HOME"):
        trusted(tmp_path)
