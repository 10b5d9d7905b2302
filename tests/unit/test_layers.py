"""The design's layers, read off the imports: nothing imports upward, third-party names stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "opt_trt"

# Layer by first part of the module path under opt_trt; a module may import its own layer's package and those below.
LAYER = {
    "errors": 0, "mapping": 0, "config": 0, "atomic": 0, "cache": 0, "disk": 0, "waiting": 0,
    "interrupts": 0,
    "sources": 1, "shard": 1, "quant": 1, "packing": 1, "checkpoint": 1, "quantized": 1, "workers": 1,
    "distribute": 1, "convert": 1, "gather": 1, "export_hf": 1, "repack": 1, "progress": 1, "threads": 1,
    "step": 2, "ops": 2,
    "graph": 3, "plugins": 3,
    "runtime": 4,
    "backends": 5,
    "text": 6, "run": 6, "evaluate": 6,
    "build": 7, "describe": 7, "api": 7, "cli": 7, "commands": 7,
    "__main__": 8,
}  # fmt: skip

# Siblings that may know each other, beside the rule that a module may import what is below it.
SIBLINGS = {
    ("atomic", "errors"), ("disk", "errors"), ("config", "errors"), ("config", "mapping"), ("mapping", "errors"),
    ("checkpoint", "shard"), ("checkpoint", "quant"), ("checkpoint", "packing"),
    ("distribute", "checkpoint"), ("distribute", "shard"), ("distribute", "quant"), ("distribute", "packing"),
    ("convert", "checkpoint"), ("convert", "shard"), ("convert", "sources"), ("convert", "distribute"),
    ("convert", "quant"), ("convert", "packing"), ("convert", "progress"), ("convert", "threads"),
    ("convert", "workers"), ("distribute", "quantized"),
    ("quantized", "checkpoint"), ("quantized", "quant"), ("quantized", "packing"),
    ("gather", "checkpoint"), ("gather", "shard"), ("gather", "quantized"), ("gather", "quant"),
    ("export_hf", "gather"), ("export_hf", "checkpoint"), ("export_hf", "sources"), ("export_hf", "progress"),
    ("export_hf", "threads"),
    ("repack", "checkpoint"), ("repack", "shard"), ("repack", "quantized"), ("repack", "quant"),
    ("repack", "packing"), ("repack", "progress"), ("repack", "threads"),
    ("run", "text"), ("evaluate", "text"),
    ("commands", "cli"), ("api", "build"), ("api", "cli"),
}  # fmt: skip

THIRD_PARTY = {
    "safetensors": ("sources/", "checkpoint/", "backends/engine.py"),
    "transformers": ("text.py", "evaluate/hf_reference.py"),
    "datasets": ("evaluate/dataset.py",),
    "rouge_score": ("evaluate/rouge.py",),
    "numpy": ("run/", "evaluate/rouge.py"),
    "mpi4py": ("runtime/world/", "plugins/collectives/"),
    "torch.distributed": ("plugins/collectives/",),
    "torch._inductor": ("backends/inductor/",),
    "tensorrt_llm": ("backends/trtllm/",),
    "triton": ("plugins/",),
}


INSTANT = ("__init__", "errors", "mapping", "config", "atomic", "cache", "disk", "cli", "commands")


def layer_of(path):
    return path.stem if path.name == "__main__.py" else path.relative_to(ROOT).with_suffix("").parts[0]


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


def part_of(name):
    return name.split(".")[1] if "." in name else None


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward_and_siblings_do_not_know_each_other(path):
    here = layer_of(path)
    for name in imports(path):
        there = part_of(name) if name.startswith("opt_trt.") else None
        if there in (None, here, "__version__") or here == "__init__":
            continue
        assert LAYER[there] < LAYER[here] or (here, there) in SIBLINGS, f"{here} imports {there}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_third_party_name_appears_in_one_place(path):
    relative = str(path.relative_to(ROOT))
    for name in imports(path):
        for package, allowed in THIRD_PARTY.items():
            if name == package or name.startswith(package + "."):
                assert relative.startswith(allowed), f"{relative} imports {name}"


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) in INSTANT], ids=lambda p: p.name)
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
