"""A finished engine outlives the reader of the builder's words and a timing cache that cannot be written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from opt_trt.backends import build as builder
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.plugins.tune.timing import TimingCache
from tests.unit._models import Model
from tests.unit._whole_engine import write_engine


class Unread:
    """A stdout whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    flush = close = lambda self: None


def test_an_engine_is_in_place_before_anything_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(checkpoint: object, config: BuildConfig, out: Path) -> str:
        write_engine(out)
        return "a table of tactics\n"

    model = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error"))
    monkeypatch.setattr(builder, "load_backend", lambda name: SimpleNamespace(build=build))
    monkeypatch.setattr(builder, "_choose", lambda config: "inductor")
    monkeypatch.setattr(sys, "stdout", Unread())
    with pytest.raises(BrokenPipeError):
        builder.build(BuildConfig(checkpoint_dir=str(tmp_path / "c"), output_dir=str(tmp_path / "e")))
    assert (tmp_path / "e" / "rank0.engine").is_file()


@pytest.mark.parametrize("place", ["/proc/x.cache", "file/x.cache"])
def test_timings_that_cannot_be_kept_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    TimingCache("device", {"device | a": {"x": 1.0}}).save(Path(place))
    assert capsys.readouterr().err.startswith(f"WARNING: the timings are not kept in {place}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
