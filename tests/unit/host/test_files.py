"""Only regular files are opened, and only as much of a text as fits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from opt_trt.errors import UserError
from opt_trt.host.files import check_regular, open_regular, read_text
from opt_trt.host.json_file import MOST_VALUES, parse_json, read_json


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a socket"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path, kind: str, linked: bool) -> None:
    path = tmp_path / "x"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    for read in (read_json, check_regular, open_regular, read_text):
        with pytest.raises(UserError, match=rf"{path} is {kind}, expected a regular file"):
            read(path)


def test_a_sparse_text_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"x\.json has more than 64 MiB"):
        read_json(tmp_path / "x.json")


def test_a_pipe_of_the_shell_is_read() -> None:
    code = "from pathlib import Path; from opt_trt.host.files import read_text; print(read_text(Path('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input="a prompt", capture_output=True, text=True, check=True)
    assert done.stdout == "a prompt\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "brackets within brackets"),
        ("[" + "[]," * MOST_VALUES, "values, more than"),
        ("[1", "delimiter"),
    ],
)
def test_json_of_too_many_values_is_no_value(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
