"""`docs/api.md`: the names of `opt_trt`, with their signatures, docstrings and fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import opt_trt
from docs.generate.comments import field_comments
from docs.generate.markdown import COLUMNS, block, code, paragraph, prose, table
from opt_trt.api.tensors import TensorOptions
from opt_trt.config.session_flags import SessionConfig

EXAMPLE = """
from opt_trt import LLM, SamplingParams

with LLM("examples/demo/model", dtype="float16") as llm:
    params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20, seed=7)
    for answer in llm.generate(["The mayor", "A new bridge"], params):
        print(answer.prompt, answer.outputs[0].text)
"""
ASYNC_EXAMPLE = """
import asyncio

from opt_trt import LLM, SamplingParams


async def main() -> None:
    with LLM("examples/demo/model", dtype="float16") as llm:
        async for answer in llm.generate_async("The mayor", SamplingParams(temperature=0, max_tokens=20)):
            print(answer.outputs[0].text_diff, end="", flush=True)


asyncio.run(main())
"""
INTRODUCTION = """
The names are those that users of vLLM and of TensorRT-LLM's `LLM` know. Engines are made on first use and kept in
`~/.cache/opt_trt/engines`. Any number of threads and tasks may use one `LLM` at once.
"""
OPTIONS = {"generate_ids": TensorOptions}  # the class that `**options` of a method stand for
RENAMED = {"min_new_tokens": "min_length"}  # fields whose flag, which explains them, has another name
STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
ORDER = (
    "LLM", "LlmOptions", "SamplingParams", "RequestOutput", "CompletionOutput", "Logprob", "RequestMetrics",
    "PendingOutput", "UserError",
)  # fmt: skip


def api_page() -> str:
    """Return the whole page."""
    assert {*ORDER, "__version__"} == {*opt_trt.__all__}, (
        "a public name is missing from docs/generate/api_page.py:ORDER"
    )
    return "\n".join((
        "# Python API\n",
        "<!-- Written by `make docs` from the docstrings of opt_trt: do not edit. -->\n",
        paragraph(INTRODUCTION), block(EXAMPLE, "python"),
        paragraph("`generate_async` streams:"), block(ASYNC_EXAMPLE, "python"),
        paragraph("Names: " + ", ".join(f"[`{name}`](#{name.lower()})" for name in ORDER) + "."),
        *(_section(name, getattr(opt_trt, name)) for name in ORDER),
    ))  # fmt: skip


def _section(name: str, described: type) -> str:
    title, explained = f"## {name}\n", _docstring(described)
    if described is opt_trt.LLM:
        signature = _signature(name, vars(described)["__init__"])
        parts = (title, signature, *explained, *_properties(described), *_methods(name, described))
    elif described is opt_trt.PendingOutput:
        parts = (title, *explained, *_properties(described), *_methods(name, described))
    elif is_dataclass(described):
        parts = (title, *explained, field_table(described), *_properties(described))
    else:
        parts = (title, *explained)
    return "\n".join(parts)


def _options(method: str) -> list[str]:
    return [paragraph("Options:"), field_table(OPTIONS[method])] if method in OPTIONS else []


def field_table(described: Any) -> str:
    """Return the fields of a dataclass: name, type, default and meaning."""
    comments = field_comments(described)
    rows = [(code(f.name), code(_type(f)), _default(f.default), prose(comments.get(f.name) or _help(f)))
            for f in fields(described)]  # fmt: skip
    head = ("field", "type", "default", "meaning")
    has_defaults = any(row[2] for row in rows)
    return table(head, rows) if has_defaults else table(head[:2] + head[3:], [row[:2] + row[3:] for row in rows])


def _type(field: Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))


def _help(field: Field[Any]) -> str:
    """Return the help of the flag of the same name and type, for a field without a comment."""
    name = RENAMED.get(field.name, field.name)
    flags = (f for f in fields(SessionConfig) if f.name == name and _type(f) == _type(field))
    return next((f.metadata["flag"].help for f in flags), "")


def _default(value: object) -> str:
    return "" if value is MISSING else code(repr(value))


def _methods(name: str, described: type) -> Iterator[str]:
    for method_name, method in vars(described).items():
        if method_name.startswith("_") or not callable(getattr(described, method_name)):
            continue
        plain = inspect.unwrap(getattr(method, "__func__", method))
        yield f"### {name}.{method_name}\n"
        yield _signature(method_name, plain)
        yield from _docstring(plain)
        yield from _options(method_name)


def _properties(described: type) -> Iterator[str]:
    """Yield the properties of an output class; those of classes that users fill in are for internal use."""
    for name, value in vars(described).items():
        if isinstance(value, property) and described in (opt_trt.RequestOutput, opt_trt.LLM, opt_trt.PendingOutput):
            yield paragraph(f"{code('.' + name)} (property): {inspect.getdoc(value)}")


def _docstring(described: Any) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", inspect.getdoc(described) or ""):
        yield paragraph(prose(part))


def _signature(name: str, function: Callable[..., object]) -> str:
    """Return the signature, on a line of its own for each parameter if it is too long for one."""
    signature = inspect.signature(function)
    taken = [_parameter(p) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    start = f"{'async ' * inspect.isasyncgenfunction(function)}{name}"
    end = f" -> {signature.return_annotation}" if function.__name__ != "__init__" else ""
    line = f"{start}({', '.join(taken)}){end}"
    if len(line) > COLUMNS:
        line = f"{start}(\n" + "".join(f"    {parameter},\n" for parameter in taken) + f"){end}"
    return block(line, "python")


def _parameter(parameter: inspect.Parameter) -> str:
    stars = STARS.get(parameter.kind, "")
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"
