"""Rank files of an engine: written side by side, and never mixed up with those of another."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt_trt.backends.engine import EngineConfig, Limits, check_rank, rank_metadata
from opt_trt.backends.inductor.decoder.pipeline import LEAST_TOKENS, micro_batches
from opt_trt.checkpoint.fingerprint import fingerprint
from opt_trt.checkpoint.reader import Checkpoint, read_config
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.step import StepInputs
from tests.unit._models import Model


def checkpoint(tmp_path: Path, name: str = "checkpoint", model: Model | None = None, **flags: Any) -> Path:
    source = (model or Model()).write(tmp_path / f"{name} source")
    convert(ConvertConfig(model_dir=str(source), output_dir=str(tmp_path / name), log_level="warning", **flags))
    return tmp_path / name


def engine_config(directory: Path, **changes: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "pretrained_config": read_config(directory), "build_config": Limits(8, 12, 12, 64, 4, False, False),
        "backend": "inductor", "device": {}, "plugin_library": "x.so", "tactics": {},
        "checkpoint": fingerprint(directory),
    }  # fmt: skip
    return EngineConfig(**values | changes)


def test_a_fingerprint_is_the_checkpoints_wherever_it_lies(tmp_path: Path) -> None:
    first, second = (checkpoint(tmp_path, name, tp_size=2) for name in ("a", "b"))
    assert fingerprint(first) == fingerprint(second)


def test_a_fingerprint_sees_weights_and_how_they_are_cut(tmp_path: Path) -> None:
    trained = Model()
    trained.tensors["model.decoder.layers.1.fc2.weight"] += 0.01
    directories = (
        checkpoint(tmp_path, "plain"), checkpoint(tmp_path, "cut", tp_size=2),
        checkpoint(tmp_path, "trained", trained),
    )  # fmt: skip
    assert len({fingerprint(directory) for directory in directories}) == 3


def test_a_fingerprint_sees_the_last_rank(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tp_size=2)
    before = fingerprint(directory)
    tensors = load_file(directory / "rank1.safetensors")
    tensors["transformer.layers.0.mlp.fc.bias"][0] += 1
    save_file(tensors, directory / "rank1.safetensors", {"format": "pt"})
    assert fingerprint(directory) != before


@pytest.mark.parametrize(
    ("rank", "changes", "says"),
    [
        (
            1,
            {"checkpoint": "0123"},
            r"rank0\.weights.* is of checkpoint [0-9a-f]{16}, .*config\.json of checkpoint 0123",
        ),
        (1, {}, r"rank0\.weights\.safetensors is of rank 1, .*config\.json of rank 0; copy all files of one engine"),
    ],
)
def test_weights_of_another_engine_or_rank_are_refused(
    tmp_path: Path, rank: int, changes: dict[str, Any], says: str
) -> None:
    directory = checkpoint(tmp_path, tp_size=2)
    written = rank_metadata(engine_config(directory), 0 if changes else rank)
    save_file({"a": torch.ones(1)}, tmp_path / "rank0.weights.safetensors", written)
    with pytest.raises(UserError, match=says):
        check_rank(tmp_path, engine_config(directory, **changes), 0)


def test_as_many_ranks_are_written_at_a_time_as_workers_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    builder = import_module("opt_trt.backends.inductor.builder.builder")
    directory = checkpoint(tmp_path, tp_size=4)
    together, written = Barrier(2), []

    def write(path: Path, spec: object, tensors: object, metadata: dict[str, str]) -> None:
        together.wait(30)  # fails if this rank is written alone
        written.append((path.name, metadata["rank"]))

    for name, replacement in (("write_rank", write), ("engine_tensors", lambda *_: {})):
        monkeypatch.setattr(builder, name, replacement)
    monkeypatch.setattr(builder, "packed_tensors", lambda *_: iter(()))
    ranks = [Checkpoint(directory, rank) for rank in range(4)]
    builder._write_weights(ranks, None, engine_config(directory), 2, tmp_path)
    assert sorted(written) == [(f"rank{rank}.weights.safetensors", str(rank)) for rank in range(4)]


def step_of(lengths: list[int], wanted: list[int]) -> StepInputs:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.arange(int(ends[-1]))
    return StepInputs(
        input_ids=tokens, position_ids=tokens + 1, slot_mapping=tokens + 2, query_start=ends.int(),
        kv_lens=torch.tensor(lengths, dtype=torch.int32), block_tables=torch.arange(len(lengths)).int()[:, None],
        last_token_ids=torch.tensor(wanted),
    )  # fmt: skip


def test_a_step_is_cut_between_sequences_into_parts_of_as_many_tokens() -> None:
    half = LEAST_TOKENS // 2
    whole = step_of([half, half, LEAST_TOKENS], [half - 1, LEAST_TOKENS - 1, 2 * LEAST_TOKENS - 1])
    first, second = micro_batches(whole, stages=2)
    assert first.query_start.tolist() == [0, half, LEAST_TOKENS]
    assert second.query_start.tolist() == [0, LEAST_TOKENS]
    assert first.last_token_ids.tolist() == [half - 1, LEAST_TOKENS - 1]
    assert second.last_token_ids.tolist() == [LEAST_TOKENS - 1]
    assert second.block_tables.tolist() == [[2]] and second.kv_lens.tolist() == [LEAST_TOKENS]
    for name in ("input_ids", "position_ids", "slot_mapping", "kv_lens", "block_tables"):
        assert torch.equal(torch.cat([getattr(part, name) for part in (first, second)]), getattr(whole, name))


@pytest.mark.parametrize(
    ("lengths", "stages"), [([1] * 64, 2), ([4 * LEAST_TOKENS], 2), ([LEAST_TOKENS, LEAST_TOKENS], 1)]
)
def test_a_step_stays_whole_where_cutting_it_does_not_pay(lengths: list[int], stages: int) -> None:
    whole = step_of(lengths, [0])
    assert micro_batches(whole, stages) == [whole]


def test_no_more_parts_are_made_than_keep_all_stages_busy() -> None:
    assert len(micro_batches(step_of([LEAST_TOKENS] * 40, [0]), stages=2)) == 4
