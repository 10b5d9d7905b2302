"""An engine is opened only with the files that it was built with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt_trt.backends.engine import check_rank, rank_metadata, read_engine_config
from opt_trt.errors import UserError
from tests.unit._whole_engine import write_engine


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def swap(path: Path) -> None:
    tensors = load_file(path)
    save_file({"first": tensors["second"], "second": tensors["first"]}, path, metadata(path.parent))


def retype(path: Path) -> None:
    save_file({name: t.to(torch.float16) for name, t in load_file(path).items()}, path, metadata(path.parent))


def metadata(engine: Path) -> dict[str, str]:
    return rank_metadata(read_engine_config(engine), 0)


def test_an_engine_as_it_was_built_is_opened(tmp_path: Path) -> None:
    write_engine(tmp_path)
    check_rank(tmp_path, read_engine_config(tmp_path), 0)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rank0.engine", flip),
        ("rank0.engine", cut),
        ("opt_trt_0.so", flip),
        ("opt_trt_0.so", cut),
        ("rank0.weights.safetensors", swap),
        ("rank0.weights.safetensors", retype),
    ],
)
def test_a_changed_file_is_named(tmp_path: Path, name: str, damage: object) -> None:
    write_engine(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not as it was built; copy it again, or build it again here"):
        check_rank(tmp_path, read_engine_config(tmp_path), 0)


@pytest.mark.parametrize("name", ["rank0.engine", "opt_trt_0.so", "rank0.weights.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_engine(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        UserError, match=f"expected {tmp_path / name}, found (no such file|nothing there); build it again here"
    ):
        check_rank(tmp_path, read_engine_config(tmp_path), 0)


def test_an_engine_of_a_version_without_checksums_is_opened(tmp_path: Path) -> None:
    write_engine(tmp_path, files={}, samples={})
    check_rank(tmp_path, read_engine_config(tmp_path), 0)
