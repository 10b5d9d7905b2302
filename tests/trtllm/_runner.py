"""TensorRT-LLM's two runners of a release, made of its facts: signatures, refusals, and outputs of their real shapes.

The next token is the sum of all tokens of the sequence and the number of the output, modulo the vocabulary. Logits are
one-hot. Bad words are skipped; stop words, the end id and the length end an output.
"""

from __future__ import annotations

import atexit
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.trtllm._facts import Facts

ERRORS = {"AssertionError": AssertionError, "RuntimeError": RuntimeError, "ValueError": ValueError}
BATCH_PER_YIELD = 2  # rows that one part of a stream covers if it does not cover all
CPP, PY = "cpp", "py"
CLASSES = {CPP: "ModelRunnerCpp", PY: "ModelRunner"}


@dataclass
class RecordedCalls:
    """The calls that the double got: class and keywords of `from_dir`, and the keywords of every `generate`."""

    opened: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    num_shut_down: int = 0


def noted(directory: str | None, rank: int) -> RecordedCalls:
    """Return a record of calls that is written to the rank's file when the process ends."""
    seen = RecordedCalls()
    if directory is not None:
        atexit.register(_note, seen, Path(directory) / f"rank{rank}.json")
    return seen


def _note(seen: RecordedCalls, path: Path) -> None:
    if seen.opened:  # another module of the package has no calls
        told = {"class": seen.opened[0][0], "rank": seen.opened[0][1]["rank"], "calls": len(seen.calls)}
        path.write_text(json.dumps(told | {"shut_down": seen.num_shut_down}))


def modules(facts: Facts, seen: RecordedCalls, rank: int = 0) -> dict[str, ModuleType]:
    """Return the modules that a session imports, by name, for `sys.modules`; `rank` is that of the process."""
    made: dict[str, ModuleType] = {"tensorrt_llm": ModuleType("tensorrt_llm")}
    made["tensorrt_llm"].__version__ = str(facts["version"])  # type: ignore[attr-defined]
    for name, fact in facts["runtime_names"].items():
        module = made.setdefault(fact["module"], ModuleType(fact["module"]))
        kind = {known: kind for kind, known in CLASSES.items()}.get(name)
        setattr(module, name, True if kind is None else _runner_class(kind, facts, seen, rank))
    config = facts["inflight_config"]
    reader = {name: fact for name, fact in config.items() if "module" in fact}
    for name, fact in reader.items():
        module = made.setdefault(fact["module"], ModuleType(fact["module"]))
        setattr(module, name, type(name, (), {fact["read_by"]: staticmethod(lambda path: _parsed(facts, path))}))
    return made


def _parsed(facts: Facts, path: Path | str) -> Any:
    """Do what `GptJsonConfig.parse_file` does; return an object with the attributes that the facts name."""
    build = json.loads(Path(path).read_text())["build_config"]
    values = build | (build.get("plugin_config") or {})
    answer: Any = all(_holds(rule, values.get(name)) for name, rule in facts["inflight_needs"].items())
    for name, fact in reversed(facts["inflight_config"].items()):
        if "of" in fact:
            answer = type("Attribute", (), {name: answer})
    return answer


def _holds(rule: Mapping[str, Any], value: Any) -> bool:
    return value != rule["is_not"] if "is_not" in rule else value == rule["is"]


def _runner_class(kind: str, facts: Facts, seen: RecordedCalls, rank: int) -> type:
    """Return a class with `from_dir` and `generate`, which have the signatures of the release."""

    def from_dir(cls: type, **given: Any) -> Runner:
        seen.opened.append((CLASSES[kind], given))
        return cls(kind, facts, seen, given, rank)

    def generate(self: Runner, batch_input_ids: Any, **given: Any) -> Any:
        return self.run(batch_input_ids, given)

    accepts_more = [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    checked_from_dir = _checked(from_dir, _signature(facts[f"{kind}_from_dir"], "cls", []))
    checked_generate = _checked(generate, _signature(facts[f"{kind}_generate"], "self", accepts_more))
    return type(CLASSES[kind], (Runner,), {"from_dir": classmethod(checked_from_dir), "generate": checked_generate})


def _signature(names: dict[str, Any], first: str, more: list[inspect.Parameter]) -> inspect.Signature:
    own = inspect.Parameter(first, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [inspect.Parameter(n, own.kind) for n, fact in names.items() if fact.get("required")]
    others = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=fact["default"])
        for n, fact in names.items()
        if not fact.get("required")
    ]
    return inspect.Signature([own, *required, *others, *more])


def _checked(function: Any, signature: inspect.Signature) -> Any:
    """Put a function behind a signature; arguments that do not fit raise a TypeError, as in Python."""

    def call(*args: Any, **kwargs: Any) -> Any:
        first, *others = signature.bind(*args, **kwargs).arguments.items()
        given = dict(others)
        return function(first[1], **given.pop("kwargs", {}), **given)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


class Executor:
    """The executor of the C++ runner."""

    def __init__(self, seen: RecordedCalls) -> None:
        self._seen = seen

    def shutdown(self) -> None:
        self._seen.num_shut_down += 1


class Runner:
    """A runner of either kind; `kind` says which facts hold for it."""

    def __init__(self, kind: str, facts: Facts, seen: RecordedCalls, opened: dict[str, Any], rank: int) -> None:
        self.kind, self.facts, self.seen, self.rank, self.opened = kind, facts, seen, rank, opened
        config = json.loads((Path(opened["engine_dir"]) / facts["files"]["config"]["name"]).read_text())
        self.limits, self.vocab_size = config["build_config"], config["pretrained_config"]["vocab_size"]
        self.vocab_padded = self.vocab_size + -self.vocab_size % 8
        if kind == CPP:
            self.executor = Executor(seen)
            self._require(opened.get("rank", 0) == rank, "rank")

    def run(self, batch: list[torch.Tensor], given: dict[str, Any]) -> Any:
        self.seen.calls.append({"batch_input_ids": batch} | given)
        if self.kind == CPP and self.rank > 0:
            return self.facts["cpp_behaviour"]["followers_get"]["value"]
        sampling = self._sampling(given)
        call = Call(self, [row.tolist() for row in batch], given, sampling)
        self._check(call)
        parts = call.parts() if given.get("streaming") else call.whole()
        return parts if given.get("streaming") else next(parts)

    def _sampling(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return options of sampling: fields of SamplingConfig, or the C++ runner's keywords under its own names."""
        if self.kind == CPP:
            accepted = self.facts["cpp_sampling"]
            return {accepted[name]["sent_as"]: value for name, value in given.items() if name in accepted}
        fields = {n: fact.get("default") for n, fact in self.facts["py_sampling"].items()}
        return fields | {name: value for name, value in given.items() if name in fields}

    def _check(self, call: Call) -> None:
        longest = max(map(len, call.prompts))
        self._require(len(call.prompts) <= self.limits["max_batch_size"], "max_batch_size")
        self._require(longest <= self.limits["max_input_len"], "max_input_len")
        self._require(longest + call.max_new_tokens <= self.limits["max_seq_len"], "max_seq_len")
        self._require(call.num_beams <= self.limits["max_beam_width"], "max_beam_width")
        if self.kind == PY:
            self._require(call.given.get("num_return_sequences") is None, "num_return_sequences")

    def _require(self, holds: bool, what: str) -> None:
        refusal = self.facts[f"{self.kind}_refusals"][what]
        if not holds:
            raise ERRORS[refusal["error"]](refusal["text"])


class Call:
    """One call of `generate`."""

    def __init__(self, runner: Runner, prompts: list[list[int]], given: dict[str, Any], sampling: dict[str, Any]):
        self.runner, self.prompts, self.given, self.facts = runner, prompts, given, runner.facts
        config = "py_sampling" if runner.kind == PY else "cpp_generate"
        self.max_new_tokens = given.get("max_new_tokens", self.facts[config]["max_new_tokens"]["default"])
        self.num_beams = sampling.get("num_beams", sampling.get("beam_width", 1)) or 1
        self.num_sequences = sampling.get("num_return_sequences") or self.num_beams
        self.min_tokens = sampling.get("min_tokens", sampling.get("min_length")) or 0
        self.outputs = [[self._generate(row, n) for n in range(self.num_sequences)] for row in range(len(prompts))]

    def _generate(self, row: int, number: int) -> list[int]:
        """Return the new tokens; the end id is among them only if the facts say so."""
        ids, new = self.prompts[row], list[int]()
        stops, bad = ((self.given.get(f"{what}_words_list") or {}) for what in ("stop", "bad"))
        while len(new) < self.max_new_tokens:
            token = (sum(ids) + sum(new) + number) % self.runner.vocab_size
            while bad and [token] in bad[row]:
                token = (token + 1) % self.runner.vocab_size
            if token == self.given["end_id"] and len(new) >= self.min_tokens:
                return [*new, token] if self.facts["runner_lengths"]["end_id_counts"]["value"] else new
            new.append(token)
            if stops and any(new[-len(word) :] == word for word in stops[row]):
                return new
        return new

    def whole(self) -> Iterator[Any]:
        yield self._dictionary([[len(new) for new in row] for row in self.outputs])

    def parts(self) -> Iterator[Any]:
        """Yield outputs that grow token by token; a part covers all rows, or some of them."""
        some = self.facts[f"{self.runner.kind}_behaviour"]["stream_covers"]["value"] == "some rows"
        done = [[0] * self.num_sequences for _ in self.outputs]
        for step in count():
            for i, row in enumerate(self.outputs):
                if not some or i % BATCH_PER_YIELD == step % BATCH_PER_YIELD:
                    done[i] = [min(n + 1, len(new)) for n, new in zip(done[i], row, strict=True)]
            yield self._dictionary(done)
            if done == [[len(new) for new in row] for row in self.outputs]:
                return

    def _dictionary(self, lengths: list[list[int]]) -> Any:
        """Return the requested outputs, with the padding, axes and types that the facts name."""
        known = self.facts[f"{self.runner.kind}_outputs"]
        made = {}
        for key, fact in known.items():
            asked = [self.given.get(fact[by]) for by in ("asked_by",) if by in fact]
            asked += [self.runner.limits.get(fact[by]) for by in ("built_with",) if by in fact]
            if any(asked) or not asked:
                made[key] = self._tensor(key, fact, lengths)
        return made if self.given.get("return_dict") else made["output_ids"]

    def _tensor(self, key: str, fact: dict[str, Any], lengths: list[list[int]]) -> Any:
        dtype = getattr(torch, fact["dtype"])
        if fact["axes"][0] == "list":
            return [self._tensor_of(key, fact, lengths, row).to(dtype) for row in range(len(self.prompts))]
        rows = [self._tensor_of(key, fact, lengths, row) for row in range(len(self.prompts))]
        return torch.stack(rows).to(dtype).view([self._size(axis, lengths) for axis in fact["axes"]])

    def _size(self, axis: str, lengths: list[list[int]]) -> int:
        return {
            "rows": len(self.prompts), "sequences": self.num_sequences, "vocab_padded": self.runner.vocab_padded,
            "max_seq_len": self.runner.limits["max_seq_len"], "new_tokens": max(1, *map(max, lengths), 1),
        }[axis]  # fmt: skip

    def _tensor_of(self, key: str, fact: dict[str, Any], lengths: list[list[int]], row: int) -> torch.Tensor:
        """Return the part of an output that belongs to one row."""
        prompt, ns = self.prompts[row], lengths[row]
        news = [new[:n] for new, n in zip(self.outputs[row], ns, strict=True)]
        width = self._size("new_tokens", lengths)
        match key:
            case "output_ids":
                fill = self.given[fact["fill"]]
                front = prompt if fact["prompt"] else []
                size = self._size("max_seq_len", lengths)
                return torch.tensor([[*front, *new, *[fill] * (size - len(front) - len(new))] for new in news])
            case "sequence_lengths":
                return torch.tensor([n + len(prompt) * fact["prompt"] for n in ns])
            case "context_logits":
                following = [sum(prompt[: i + 1]) % self.runner.vocab_size for i in range(len(prompt))]
                return torch.nn.functional.one_hot(torch.tensor(following), self.runner.vocab_padded)
            case "generation_logits":
                ids = torch.tensor([[*new, *[0] * (width - len(new))] for new in news])
                return torch.nn.functional.one_hot(ids, self.runner.vocab_padded)
            case "log_probs":
                return torch.tensor([[-0.5 * (i < n) for i in range(width)] for n in ns])
            case "cum_log_probs":
                ended = [n < self.max_new_tokens for n in ns]
                last = 0.25 * self.facts["runner_lengths"]["end_id_has_cum_log_prob"]["value"]
                kept = bool(self.given.get(fact["zero_without"]))
                return torch.tensor([(-0.5 * n - last * end) * kept for n, end in zip(ns, ended, strict=True)])
        raise AssertionError(key)
