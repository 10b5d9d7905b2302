"""A directory appears only when it is complete."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from opt_trt.errors import UserError
from opt_trt.host.atomic import atomic_directory, replace_file
from tests._processes import run_python, start_python

WRITER = """
import sys, time
from opt_trt.host.atomic import atomic_directory
with atomic_directory(sys.argv[1]) as tmp:
    (tmp / "config.json").write_text("{}")
    print("writing", flush=True)
    time.sleep(60)
"""


def write(path: Path, text: str = "{}") -> None:
    with atomic_directory(path) as tmp:
        (tmp / "config.json").write_text(text)
        (tmp / "rank0.safetensors").write_text(text)


def start_writer(path: Path) -> subprocess.Popen[str]:
    writer = start_python("-c", WRITER, path, stderr=None)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    return writer


def kill(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_directory_appears_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["config.json", "rank0.safetensors"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_target_is_absent_while_the_block_runs(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as tmp:
        assert not (tmp_path / "out").exists()
        assert tmp.parent == tmp_path


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_leaves_nothing_and_keeps_the_old(tmp_path: Path, stop: type[BaseException]) -> None:
    write(tmp_path / "old", "old")
    for name in ("old", "new/deep"):
        with pytest.raises(stop), atomic_directory(tmp_path / name) as tmp:
            (tmp / "config.json").write_text("half")
            raise stop
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "config.json").read_text() == "old"


@pytest.mark.parametrize("swap_in_one_step", [True, False])
def test_an_earlier_result_is_replaced_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap_in_one_step: bool
) -> None:
    if not swap_in_one_step:
        monkeypatch.setattr("opt_trt.host.atomic.ctypes.CDLL", lambda *_, **__: object())
    write(tmp_path / "out", "1")
    write(tmp_path / "out", "2")
    assert (tmp_path / "out" / "config.json").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failed_swap_puts_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "1")
    monkeypatch.setattr("opt_trt.host.atomic.ctypes.CDLL", lambda *_, **__: object())
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if source.name.endswith(".partial") and target.name == "out":
            raise OSError(39 if any(target.iterdir() if target.exists() else ()) else 5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("opt_trt.host.atomic.os.rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "out", "2")
    assert (tmp_path / "out" / "config.json").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "names", [("notes.txt",), ("config.json", "model.safetensors"), ("rank0.safetensors",), ("config.json",)]
)
def test_a_foreign_directory_is_refused_by_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is not an earlier output.*{names[-1]}"):
        write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_what_turned_foreign_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"notes\.txt"), atomic_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is a file"):
        write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_current_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current directory"):
        write(Path("."))


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    kill(start_writer(tmp_path / "out"))
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    write(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_target_that_a_living_process_writes_is_refused_and_its_work_left_alone(tmp_path: Path) -> None:
    writer = start_writer(tmp_path / "out")
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path / 'out'} is being written by another process, in \.out\."):
            write(tmp_path / "out")
        assert [p.name for p in tmp_path.glob(".out.*.partial/*")] == ["config.json"]
        write(tmp_path / "out2")
    finally:
        kill(writer)


def test_writers_that_start_together_never_mix(tmp_path: Path) -> None:
    """Each process writes its own number into every file, twenty times; the other attempts are refused."""
    code = """
import sys, time
from pathlib import Path
from opt_trt.host.atomic import atomic_directory
from opt_trt.errors import UserError
from tests._processes import run_python, start_python
path, number = Path(sys.argv[1]), sys.argv[2]
written = 0
while written < 20:
    try:
        with atomic_directory(path) as tmp:
            for name in ("config.json", "rank0.safetensors", "rank1.safetensors"):
                (tmp / name).write_text(number)
        written += 1
    except UserError as error:
        assert "is being written by another process" in str(error), error
        time.sleep(0.001)
"""
    writers = [start_python("-c", code, tmp_path / "out", n, stdout=None, stderr=None) for n in range(4)]
    while any(writer.poll() is None for writer in writers):
        if not (tmp_path / "out").exists():
            continue
        directory = os.open(tmp_path / "out", os.O_RDONLY)  # stays complete, even after it has been replaced
        try:
            assert len({path.read_text() for path in Path(f"/proc/self/fd/{directory}").iterdir()}) <= 1
        except FileNotFoundError:  # replaced and being removed
            pass
        finally:
            os.close(directory)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len({p.read_text() for p in (tmp_path / "out").iterdir()}) == 1


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_a_signal_right_after_the_directory_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(directory: Path) -> int:
        assert directory.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr("opt_trt.host.atomic.try_lock", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out"):
        pytest.fail("never entered")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_replaced_while_it_is_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, files = tmp_path / "out", ("config.json", "rank0.engine")
    for name in ("out", "newer"):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    iterdir = Path.iterdir

    def emptied(directory: Path) -> Iterator[Path]:  # by a writer that has just put another directory in its place
        monkeypatch.undo()
        target.rename(tmp_path / "old")
        (tmp_path / "newer").rename(target)
        return iter([entry for entry in iterdir(tmp_path / "old") if entry.name != "config.json"])

    monkeypatch.setattr(Path, "iterdir", emptied)
    with atomic_directory(target) as temporary:
        (temporary / "config.json").write_text("newest")
    assert (target / "config.json").read_text() == "newest"


def test_a_fifo_is_written_into_and_stays(tmp_path: Path) -> None:
    """A device would, too: a regular file in the place of /dev/null harms every program of the machine."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(path, lambda file: np.save(file, np.arange(3)))
    assert path.is_fifo() and os.listdir(tmp_path) == ["pipe"]
    assert np.load(io.BytesIO(os.read(reader, 1000))).tolist() == [0, 1, 2]
    os.close(reader)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_the_shells_output_is_written_into_and_not_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    code = "import sys; from opt_trt.host.atomic import replace_text as r; print(1, flush=True); r(sys.argv[1], '2\\n')"
    with out.open("a") as file:
        assert run_python("-c", f"{code}; print(3)", name, stdout=file).returncode == 0
    assert out.read_text() == "1\n2\n3\n"
