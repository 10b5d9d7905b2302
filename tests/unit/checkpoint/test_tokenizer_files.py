"""The tokenizer of a model travels with its checkpoint and its engine, so that no command needs --tokenizer_dir."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opt_trt.api.llm import _tokenizer
from opt_trt.backends import build as builder
from opt_trt.checkpoint import tokenizer_files
from opt_trt.checkpoint.tokenizer_files import kept_tokenizer
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.llm_options import LlmOptions
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.convert.convert import convert
from opt_trt.convert.export_hf import export_hf
from opt_trt.convert.repack import repack
from opt_trt.errors import UserError
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._models import Model
from tests.unit._tokenizers import write_tokenizer

NAMES = ["merges.txt", "tokenizer_config.json", "vocab.json"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tokenizer(Model(hidden=64, width=64, ffn=64, vocab=64).write(tmp_path / "model"))


def converted(model: Path, out: Path, **flags: Any) -> Path:
    convert(ConvertConfig(model_dir=str(model), output_dir=str(out), log_level="error", **flags))
    return out


def kept(directory: Path) -> list[str]:
    folder = kept_tokenizer(directory)
    assert folder is not None
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_keeps_it_in_a_folder_and_is_replaced_with_it(model: Path, tmp_path: Path) -> None:
    for flags in ({}, {"tp_size": 2}):
        assert kept(converted(model, tmp_path / "c", **flags)) == NAMES
    assert load_tokenizer(tmp_path / "c" / "tokenizer").encode("a", 9) == load_tokenizer(model).encode("a", 9)


def test_a_model_without_one_has_no_folder(tmp_path: Path) -> None:
    out = converted(Model().write(tmp_path / "model"), tmp_path / "c")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "rank0.safetensors"]


@pytest.mark.parametrize("name", ["notes.txt", "old/vocab.json"])
def test_files_that_are_not_of_a_tokenizer_are_never_replaced(model: Path, tmp_path: Path, name: str) -> None:
    mine = converted(model, tmp_path / "c") / "tokenizer" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"not an earlier output of this command .found tokenizer/(notes.txt|old)"):
        converted(model, tmp_path / "c")
    assert mine.read_text() == "mine"


def test_repacking_keeps_it(model: Path, tmp_path: Path) -> None:
    packed = converted(model, tmp_path / "c", use_weight_only=True, target_sm=80)
    for out in (None, str(tmp_path / "other")):
        repack(RepackConfig(checkpoint_dir=str(packed), target_sm=90, output_dir=out, log_level="error"))
        assert kept(Path(out or packed)) == NAMES


def test_an_export_is_a_model_with_its_tokenizer(model: Path, tmp_path: Path) -> None:
    checkpoint = converted(model, tmp_path / "c")
    export_hf(ExportConfig(checkpoint_dir=str(checkpoint), output_dir=str(tmp_path / "hf"), log_level="error"))
    for name in NAMES:
        assert (tmp_path / "hf" / name).read_bytes() == (model / name).read_bytes()


def test_an_engine_keeps_it_and_the_next_command_needs_no_flag_for_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(checkpoint: object, config: object, out: Path) -> None:
        (out / "config.json").write_text("{}")
        (out / "rank0.engine").write_text("")

    monkeypatch.setattr(builder, "load_backend", lambda name: SimpleNamespace(build=write))
    checkpoint, engine = converted(model, tmp_path / "c"), tmp_path / "e"
    for _ in range(2):
        builder.build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(engine), backend="inductor"))
        assert kept(engine) == NAMES
    assert f"next: python -m opt_trt run --engine_dir {engine} --max_output_len 50 " in capsys.readouterr().out
    loaded = _tokenizer(engine, LlmOptions())
    assert loaded is not None and loaded.bos_id == 2


def test_what_is_too_large_for_a_tokenizer_is_left_behind(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_files, "LARGEST", 1000)
    (model / "added_tokens.json").write_text(" " * 1001)
    assert "added_tokens.json" not in [path.name for path in tokenizer_files.tokenizer_files(model)]
