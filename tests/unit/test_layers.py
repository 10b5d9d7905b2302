"""The design's layers, read off the imports: nothing imports upward, third-party names stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "opt_trt"

# From the ground up. A module belongs to the longest name that it begins with. It may import its own room and rooms of
# rows above it in this table; rooms of one row never meet.
LAYERS = (
    ("errors", "version"),
    ("host",),
    ("model", "quant"),
    ("config",),
    ("checkpoint", "sources"),
    ("step", "ops"),
    ("graph", "plugins"),
    ("runtime",),
    ("backends",),
    ("text",),
    ("convert", "run", "evaluate", "describe"),
    ("api", "cli"),
    ("commands",),
    ("__main__", "export_hf", "repack"),
)  # fmt: skip
LAYER = {room: number for number, row in enumerate(LAYERS) for room in row}

# What imports against the table all the same, and why.
EXCEPTIONS = {
    ("host", "config"): "cut next",
    ("api", "cli"): "cut next",
}

THIRD_PARTY = {
    "safetensors": ("sources/", "checkpoint/", "backends/engine.py"),
    "transformers": ("text/tokenizer.py", "evaluate/hf_reference.py"),
    "datasets": ("evaluate/dataset.py",),
    "rouge_score": ("evaluate/rouge.py",),
    "numpy": ("run/", "evaluate/rouge.py"),
    "mpi4py": ("runtime/world/", "plugins/collectives/"),
    "torch.distributed": ("plugins/collectives/",),
    "torch._inductor": ("backends/inductor/",),
    "tensorrt_llm": ("backends/trtllm/",),
    "triton": ("plugins/",),
}


INSTANT = (
    "__init__", "__main__", "version", "errors", "host.atomic", "host.cache", "host.disk", "host.json_file",
    "model.config", "model.mapping", "config", "cli", "commands",
)  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name):
    """The room of a module, both without the package's name."""
    parts = name.split(".")
    if parts[-1] == "__main__":
        return "__main__"
    return next((p for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in LAYER), None)


def modules():
    return sorted(ROOT.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "opt_trt":
                yield from (f"opt_trt.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward_and_rooms_of_one_row_never_meet(path):
    here = room_of(name_of(path))
    for name in imports(path):
        if not name.startswith("opt_trt.") or here is None:
            continue
        there = room_of(name.removeprefix("opt_trt."))
        if there is None:  # the package itself
            assert name == "opt_trt.__version__", name
        elif there != here:
            assert LAYER[there] < LAYER[here] or (here, there) in EXCEPTIONS, f"{here} imports {there}"


def test_exceptions_are_few_and_needed():
    met = {
        (room_of(name_of(path)), room_of(name.removeprefix("opt_trt.")))
        for path in modules()
        for name in imports(path)
        if name.startswith("opt_trt.")
    }
    assert len(EXCEPTIONS) <= 10 and EXCEPTIONS.keys() <= met


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_third_party_name_appears_in_one_place(path):
    relative = str(path.relative_to(ROOT))
    for name in imports(path):
        for package, allowed in THIRD_PARTY.items():
            if name == package or name.startswith(package + "."):
                assert relative.startswith(allowed), f"{relative} imports {name}"


@pytest.mark.parametrize("path", [p for p in modules() if name_of(p).startswith(INSTANT)], ids=name_of)
def test_flags_and_help_need_the_standard_library_only(path):
    top = {node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)}
    names = {alias.name for n in top if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom) and n.module}
    assert not {n.split(".")[0] for n in names} & {"torch", "numpy", "transformers", "safetensors", "tqdm"}


def test_functions_fit_a_screen_and_files_answer_one_question():
    functions, files = [], []
    for path in modules():
        text = path.read_text()
        files.append(text.count("\n"))
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} does not say what it is for"
        functions += [
            (n.end_lineno - n.lineno + 1, f"{path}:{n.name}") for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
        ]
    assert max(functions)[0] <= 60, max(functions)
    assert sum(n for n, _ in functions) / len(functions) <= 14
    assert sum(files) / len(files) <= 120
