"""Checkpoints that can be converted and not be built are named by the builder, before it compiles anything."""

from __future__ import annotations

from pathlib import Path

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
