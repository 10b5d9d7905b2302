"""The library is found by what it can do; what is missing or too old is named with the remedy."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from opt_trt.backends.tensorrt import library
from opt_trt.errors import UserError
from tests.unit.backends.tensorrt._networks import needs_library


def stand_in(name: str, release: str, without: str = "") -> ModuleType:
    """Return a module with everything that is needed, but one name."""
    module: Any = ModuleType(name)
    module.__version__ = release
    for owner, names in library.NEEDED.items():
        setattr(module, owner, SimpleNamespace(**{n: None for n in names if n != without}))
    return module


@pytest.fixture
def installed(monkeypatch):
    """Return a function that makes exactly these modules importable: None is one that is not installed."""

    def install(**modules: ModuleType | None) -> None:
        for name in library.MODULES:
            monkeypatch.setitem(sys.modules, name, modules.get(name))

    return install


def test_without_a_library_the_one_command_is_named(installed):
    installed()
    assert library.missing() == f"no TensorRT library is installed; {library.INSTALL}"
    with pytest.raises(UserError, match=r"backend tensorrt: .*pip install tensorrt-rtx==1\.7\.1\.116"):
        library.load_library()


def test_the_rtx_library_is_taken_before_the_other(installed):
    rtx, other = stand_in("tensorrt_rtx", "1.7"), stand_in("tensorrt", "10.16")
    installed(tensorrt_rtx=rtx, tensorrt=other)
    assert library.load_library() is rtx
    installed(tensorrt=other)
    assert library.load_library() is other
    assert library.version(other) == "tensorrt 10.16"


def test_an_engine_gets_the_library_that_built_it_if_both_are_installed(installed):
    rtx, other = stand_in("tensorrt_rtx", "1.7"), stand_in("tensorrt", "10.16")
    installed(tensorrt_rtx=rtx, tensorrt=other)
    assert library.load_library("tensorrt") is other and library.load_library("tensorrt_rtx") is rtx
    installed(tensorrt_rtx=rtx)
    assert library.load_library("tensorrt") is rtx  # whose name the session then compares


def test_a_library_that_is_too_old_is_named_with_what_it_lacks(installed):
    installed(tensorrt=stand_in("tensorrt", "10.14.1", without="add_kv_cache_update"))
    assert library.missing() == (
        "tensorrt 10.14.1 is too old: it lacks INetworkDefinition.add_kv_cache_update "
        f"(expected tensorrt 10.15 or newer); {library.INSTALL}"
    )


def test_a_library_that_is_too_old_does_not_hide_another_one(installed):
    new = stand_in("tensorrt", "10.15")
    installed(tensorrt_rtx=stand_in("tensorrt_rtx", "1.0", without="INT4"), tensorrt=new)
    assert library.missing() is None and library.load_library() is new


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_library_that_cannot_be_loaded_is_named_with_the_reason(monkeypatch, error):
    def import_module(name: str) -> ModuleType:
        if name == "tensorrt":
            raise error("libnvinfer.so.10: cannot open shared object file")
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(library, "import_module", import_module)
    reason = str(library.missing())
    assert reason.startswith("tensorrt cannot be imported (libnvinfer.so.10: cannot open shared object file); pip")


def test_a_library_whose_own_dependency_is_absent_is_not_called_absent(monkeypatch):
    def import_module(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs")

    monkeypatch.setattr(library, "import_module", import_module)
    assert "tensorrt cannot be imported (No module named 'tensorrt_libs')" in str(library.missing())


@needs_library
def test_a_network_is_strongly_typed_and_fp32_products_keep_all_bits():
    trt = library.load_library()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network, config = library.create_network(trt, builder), builder.create_builder_config()
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert config.get_flag(trt.BuilderFlag.TF32)
    library.set_precision(trt, config)
    assert not config.get_flag(trt.BuilderFlag.TF32)
