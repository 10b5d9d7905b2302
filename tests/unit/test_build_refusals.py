"""Checkpoints that can be converted and not be built are named by the builder, before it compiles anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opt_trt import build as builder
from opt_trt.config.build import BuildConfig
from opt_trt.config.convert import ConvertConfig
from opt_trt.convert import convert
from opt_trt.errors import UserError
from tests.unit._models import Model


def test_an_activation_that_engines_do_not_compute_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(config={"activation_function": "gelu"}).write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error"))
    monkeypatch.setattr(builder, "choose_backend", lambda name: "inductor")
    monkeypatch.setattr(builder, "load_backend", lambda name: None)  # a build would fail on it
    with pytest.raises(UserError, match=r"has hidden_act 'gelu', and engines compute relu only; build .*trtllm-build"):
        builder.build(BuildConfig(checkpoint_dir=str(tmp_path / "c"), output_dir=str(tmp_path / "e")))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tp_size": 2}, r"has 2 ranks \(tp_size 2, pp_size 1\).*convert with --tp_size 1 --pp_size 1"),
        ({"tp_size": 2, "pp_size": 2}, r"has 4 ranks \(tp_size 2, pp_size 2\)"),
    ],
)
def test_a_checkpoint_that_cannot_be_built_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], says: str
) -> None:
    model = Model(hidden=64, width=64, ffn=128).write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error", **flags))
    monkeypatch.setattr(builder, "choose_backend", lambda name: "inductor")
    monkeypatch.setattr(builder, "load_backend", lambda name: None)  # a build would fail on it
    with pytest.raises(UserError, match=says) as caught:
        builder.build(BuildConfig(checkpoint_dir=str(tmp_path / "c"), output_dir=str(tmp_path / "e")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()
