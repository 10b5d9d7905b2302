"""The TensorRT library that is installed: NVIDIA's `tensorrt_rtx`, or `tensorrt`. It is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from opt_trt.errors import UserError

Library = Any  # the imported module; NVIDIA publishes no types
MODULES = ("tensorrt_rtx", "tensorrt")  # in the order in which they are tried; the first builds without a GPU
INSTALL = "pip install tensorrt-rtx==1.7.1.116"
OLDEST = "tensorrt 10.15"  # the first release with all of `NEEDED`
NEEDED = {
    "INetworkDefinition": ("add_kv_cache_update", "add_normalization_v2", "add_dequantize"),
    "ITensor": ("set_dimension_name",),
    "Builder": ("build_serialized_network_to_stream",),
    "DataType": ("BF16", "INT4"),
}


def load_library(first: str | None = None) -> Library:
    """Import a library that can build our networks: the module `first` if that can, else the first one of `MODULES`.

    `UserError` if there is none, see `missing`.
    """
    library, problem = _find(sorted(MODULES, key=lambda module: module != first))
    if problem is not None:
        raise UserError(f"backend tensorrt: {problem}")
    return library


def missing() -> str | None:
    """Return what must be installed before engines can be built or run, or None."""
    return _find()[1]


def version(library: Library) -> str:
    """Return a library's name and release, such as `tensorrt_rtx 1.7.1.116`."""
    return f"{library.__name__} {library.__version__}"


def chooses_gpus(library: Library) -> bool:
    """Return whether an engine can be built for other GPUs than that of this machine, or without one."""
    return hasattr(library, "ComputeCapability") and hasattr(library.IBuilderConfig, "num_compute_capabilities")


def create_network(library: Library, builder: Any) -> Any:
    """Return an empty network whose tensors have exactly the types that layers give them."""
    strong = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later releases have no other kind
    return builder.create_network(0 if strong is None else 1 << int(strong))


def set_precision(library: Library, config: Any) -> None:
    """Let fp32 products keep all bits of their factors: the library allows TF32 unless told otherwise."""
    if hasattr(library.BuilderFlag, "TF32"):
        config.clear_flag(library.BuilderFlag.TF32)


def lacking(library: Library) -> list[str]:
    """List the functions and types that our networks need and a library does not have."""
    return [
        f"{owner}.{name}"
        for owner, names in NEEDED.items()
        for name in names
        if not hasattr(getattr(library, owner, None), name)
    ]


def _find(modules: Sequence[str] = MODULES) -> tuple[Library, str | None]:
    """Return the library, or why there is none."""
    problems = []
    for module in modules:
        try:
            library = import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                problems.append(f"{module} cannot be imported ({error})")
            continue
        except (ImportError, OSError, RuntimeError) as error:  # a shared library that is not there, or does not fit
            problems.append(f"{module} cannot be imported ({error})")
            continue
        if not (absent := lacking(library)):
            return library, None
        problems.append(f"{version(library)} is too old: it lacks {', '.join(absent)} (expected {OLDEST} or newer)")
    return None, f"{'; '.join(problems) or 'no TensorRT library is installed'}; {INSTALL}"
