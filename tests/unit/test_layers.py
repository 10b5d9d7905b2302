"""The design's layers, read off the imports: nothing imports upward, third-party names stay where they belong."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
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
    ("graph", "plugins.cpu", "plugins.cuda", "plugins.tactic"),
    ("plugins.gemm", "plugins.attention", "plugins.rows", "plugins.collectives"),
    ("plugins.native", "plugins.ops"),
    ("plugins.tune",),
    ("runtime.world", "runtime.text_search"),
    ("runtime.stopping",),
    ("runtime.request",),
    ("runtime.sequence",),
    ("runtime.admission", "runtime.sampling", "runtime.scheduling"),
    ("runtime",),
    ("backends.checksums",),
    ("backends.engine",),
    ("backends.identity",),
    ("backends.inductor.compiler",),
    ("backends.inductor.decoder",),
    ("backends.inductor.profiler",),
    ("backends.inductor.builder",),
    ("backends.inductor", "backends.tensorrt", "backends.trtllm"),
    ("backends",),
    ("text",),
    ("convert", "run", "evaluate", "describe"),
    ("api", "cli"),
    ("commands",),
    ("__main__", "export_hf", "repack"),
)  # fmt: skip
LAYER = {room: number for number, row in enumerate(LAYERS) for room in row}

# The imports that break the rule, each with its reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}

THIRD_PARTY = {
    "safetensors": ("sources/", "checkpoint/"),
    "transformers": ("text/tokenizer.py", "evaluate/hf_reference.py"),
    "datasets": ("evaluate/dataset.py",),
    "rouge_score": ("evaluate/rouge.py",),
    "numpy": ("run/", "evaluate/rouge.py"),
    "mpi4py": ("runtime/world/", "plugins/collectives/"),
    "torch.distributed": ("plugins/collectives/",),
    "torch._inductor": ("backends/inductor/",),
    "tensorrt_llm": ("backends/trtllm/",),
    "tensorrt_rtx": ("backends/tensorrt/library.py",),
    "tensorrt": ("backends/tensorrt/library.py",),
    "triton": ("plugins/",),
}


INSTANT = (
    "__init__", "__main__", "version", "errors", "host.atomic", "host.cache", "host.disk", "host.json_file",
    "host.program", "host.extras", "model.config", "model.mapping", "config", "cli", "commands",
)  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name):
    """Return the room of a module, both without the package's name."""
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


def imported_modules(path, known):
    """Yield the package's modules that a file imports, as keys of `known`; `from room import module` is the module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("opt_trt"):
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in whole if {name, node.module} & known.keys())


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward_and_rooms_of_one_row_never_meet(path):
    here = room_of(name_of(path))
    for name in imports(path):
        if not name.startswith("opt_trt.") or name_of(path) == "__init__":
            continue
        assert here is not None, f"{name_of(path)} has no place in the table"
        there = room_of(name.removeprefix("opt_trt."))
        assert there is not None, f"{here} imports {name}, which has no place in the table"
        if there != here:
            assert LAYER[there] < LAYER[here] or (here, there) in EXCEPTIONS, f"{here} imports {there}"


def test_no_modules_import_one_another_in_a_circle_not_even_for_types():
    known = {f"opt_trt.{name_of(path)}": path for path in modules()}
    order = TopologicalSorter({m: {n for n in imported_modules(known[m], known) if n != m} for m in known})
    order.prepare()  # raises CycleError, which names the modules


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


SAME_NAME = {"__init__", "__main__", "problem", "cpu", "cuda", "library"}  # a file for each of several rooms
UNIT = Path(__file__).parent
BESIDE_THE_PACKAGE = {Path("benchmarks"), Path("examples")}
ROOT_FILES = {"__init__", "__main__", "version", "commands", "errors", "step", "ops"}


def test_a_file_is_known_by_its_name():
    counted = Counter(path.stem for path in modules())
    assert {name for name, times in counted.items() if times > 1} <= SAME_NAME


def test_unit_tests_mirror_the_package():
    folders = {path.parent.relative_to(UNIT) for path in UNIT.rglob("test_*.py")} - {Path(), *BESIDE_THE_PACKAGE}
    assert all((ROOT / folder).is_dir() for folder in folders), folders


def test_no_module_lies_loose_at_the_root():
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES


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
    assert sum(n for n, _ in functions) / len(functions) <= 9
    assert sum(files) / len(files) <= 100
