"""Which backend `auto` takes, and what is said where TensorRT's library is missing."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from opt_trt.backends import build as builder
from opt_trt.backends import choose_backend, load_backend
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.plugins.cuda.gpu import Gpu
from tests.unit._models import Model

RTX_4090, H200 = Gpu("NVIDIA GeForce RTX 4090", "8.9"), Gpu("NVIDIA H200", "9.0")
INSTALL = "pip install tensorrt-rtx==1.7.1.116"


def stand_in(**parts: object) -> ModuleType:
    """Return a module that looks like a release of the library."""
    module = ModuleType("tensorrt_rtx")
    module.__version__ = "1.7"
    for name, part in parts.items():
        setattr(module, name, part)
    return module


WHOLE = {
    "INetworkDefinition": SimpleNamespace(add_kv_cache_update=0, add_normalization_v2=0, add_dequantize=0),
    "ITensor": SimpleNamespace(set_dimension_name=0),
    "Builder": SimpleNamespace(build_serialized_network_to_stream=0),
    "DataType": SimpleNamespace(BF16=0, INT4=0),
    "ComputeCapability": SimpleNamespace(SM89=0),
    "IBuilderConfig": SimpleNamespace(num_compute_capabilities=0),
}


@pytest.fixture
def of_machine(monkeypatch):
    """Say which GPU torch sees and which library is installed; nothing is compiled, so any torch will do."""
    monkeypatch.setattr("opt_trt.backends.inductor.OLDEST_TORCH", "2")

    def say(gpu: Gpu | None, library: ModuleType | None) -> None:
        monkeypatch.setattr(load_backend("tensorrt"), "visible_gpu", lambda: gpu)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
        monkeypatch.setitem(sys.modules, "tensorrt", None)

    return say


@pytest.mark.parametrize(
    ("gpu", "installed", "device", "chosen"),
    [
        (None, True, None, "inductor"),
        (None, True, "cuda", "inductor"),
        (RTX_4090, True, None, "inductor"),
        (RTX_4090, True, "cpu", "inductor"),
        (RTX_4090, True, "cuda", "tensorrt"),
        (RTX_4090, False, "cuda", "inductor"),
        (H200, True, "cuda", "inductor"),
    ],
)
def test_auto_takes_tensorrt_for_a_gpu_that_the_library_targets_and_names_it_nowhere_else(
    of_machine, gpu, installed, device, chosen
):
    of_machine(gpu, stand_in(**WHOLE) if installed else None)
    choice = choose_backend("auto", device)
    assert choice.name == chosen
    assert "tensorrt:" not in choice.passed_over and choice.passed_over.startswith("tensorrt_llm: not installed")


def test_a_missing_library_is_named_with_the_command_that_installs_it(of_machine):
    of_machine(None, None)
    with pytest.raises(UserError, match=f"^backend tensorrt: .*{INSTALL}"):
        choose_backend("tensorrt")
    assert load_backend("tensorrt").machine() == ()


def test_a_library_that_is_too_old_is_named_with_what_it_lacks(of_machine):
    of_machine(None, stand_in(**WHOLE | {"INetworkDefinition": SimpleNamespace(add_dequantize=0)}))
    with pytest.raises(UserError, match=r"tensorrt_rtx 1\.7 is too old: it lacks .*add_kv_cache_update.*; pip install"):
        choose_backend("tensorrt")


@pytest.mark.parametrize("installed", [False, True])
def test_a_dry_run_needs_no_library(of_machine, tmp_path, capsys, installed):
    of_machine(None, stand_in(**WHOLE) if installed else None)
    model = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error"))
    argv = ["--checkpoint_dir", str(tmp_path / "c"), "--backend", "tensorrt", "--dry_run", "--max_batch_size", "3"]
    builder.build(parse(BuildConfig, argv))
    said = capsys.readouterr().out
    assert f"tensorrt with tensorrt_rtx {'1.7' if installed else '(not installed)'}, for SM 80 86 89 120 121; " in said
    assert "\nlimits            3 sequences, " in said and "\nGPU memory        by sequences: 1: " in said
    assert "\ncaches " in said and "\nactivations " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "model"]


def test_tensorrt_proper_is_asked_for_its_own_gpu_alone(of_machine, tmp_path, capsys):
    of_machine(None, stand_in(**WHOLE | {"IBuilderConfig": SimpleNamespace()}))
    model = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "c"), log_level="error"))
    argv = ["--checkpoint_dir", str(tmp_path / "c"), "--backend", "tensorrt", "--dry_run"]
    builder.build(parse(BuildConfig, [*argv, "--fast_build"]))
    assert "for the GPU of this machine" in capsys.readouterr().out
    with pytest.raises(UserError, match="--target_sm 89 is not supported: TensorRT builds for the GPU of this machine"):
        builder.build(parse(BuildConfig, [*argv, "--target_sm", "89"]))
