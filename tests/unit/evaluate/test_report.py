"""The report: table, JSON and summary files, to the letter."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from opt_trt.evaluate.measure import ModelRun
from opt_trt.evaluate.report import ROWS, Report, write_json, write_summaries
from opt_trt.evaluate.scores import Scores, score


def two_models() -> Report:
    hf = Scores(
        "Hugging Face", ("a", "b"), {"rouge1": 48.5, "latency_s": 10.0, "output_tokens": 200, "tokens_per_s": 20.0}
    )
    engine = Scores(
        "engine", ("a", "c"), {"rouge1": 48.25, "latency_s": 4.0, "output_tokens": 200, "tokens_per_s": 50.0}
    )
    return Report({"hf": hf, "engine": engine}, (0, 1), {"batch_size": 1, "max_rouge1_drop": math.nan})


def test_models_stand_side_by_side() -> None:
    assert two_models().table().splitlines() == [
        "               Hugging Face  engine  engine vs HF",
        "-------------------------------------------------",
        "ROUGE-1               48.50   48.25         -0.25",
        "latency, s           10.000   4.000         0.40x",
        "output tokens           200     200         1.00x",
        "tokens/s              20.00   50.00         2.50x",
        "2 articles; ROUGE as TensorRT-LLM's metric (bootstrap median), in percent",
        "2 summaries, identical with Hugging Face's: 1 (engine)",
    ]


def test_several_engines_are_each_compared_with_the_first_model() -> None:
    hf, engine = two_models().scores.values()
    int8 = Scores("int8", ("a", "b"), engine.values | {"tokens_per_s": 80.0})
    table = Report({"hf": hf, "fp16": replace(engine, title="fp16"), "int8": int8}, (0, 1), {}).table().splitlines()
    assert table[0] == "               Hugging Face   fp16   int8  fp16 vs HF  int8 vs HF"
    assert table[5] == "tokens/s              20.00  50.00  80.00       2.50x       4.00x"
    assert table[-1] == "2 summaries, identical with Hugging Face's: 1 (fp16), 2 (int8)"


def test_one_model_alone_is_compared_with_nothing() -> None:
    report = Report({"engine": two_models().scores["engine"]}, (0, 1), {})
    assert "vs" not in report.table() and "identical" not in report.table()
    assert set(report.to_json()) == {"rows", "settings", "engine"}


def test_json_has_the_numbers_of_the_table() -> None:
    values = two_models().to_json()
    assert values["engine"]["rouge1"] == 48.25 and values["rows"] == 2
    assert values["engine_vs_hf"] == {
        "rouge1_difference": -0.25,
        "latency_s_ratio": 0.4,
        "output_tokens_ratio": 1.0,
        "tokens_per_s_ratio": 2.5,
        "identical_summaries": 1,
    }


def test_json_is_strict_whatever_was_measured(tmp_path: Path) -> None:
    report = Report({"engine": Scores("engine", ("a",), {"perplexity": math.inf})}, (0,), {"limit": math.nan})
    write_json(tmp_path / "summary.json", report.to_json())
    values = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert values["engine"]["perplexity"] is None and values["settings"] == {"limit": None}


def test_every_score_is_in_the_table() -> None:
    values = score("engine", ModelRun([(5, 6)], [1.0], 2.0), ["a b"], ["a b"]).values
    assert {row.key for row in ROWS} == set(values)


def test_rates_follow_from_tokens_and_time() -> None:
    values = score("engine", ModelRun([(5, 6, 7), (5,)], [], 2.0), ["a", "b"], ["a", "x"]).values
    assert (values["output_tokens"], values["tokens_per_s"], values["summaries_per_s"]) == (4, 2.0, 1.0)
    assert values["rouge1_mean"] == 50.0 and "perplexity" not in values


def test_perplexity_is_the_mean_over_texts() -> None:
    measured = ModelRun([(5,), (5,)], [math.log(2), math.log(4)], 1.0)
    assert score("engine", measured, ["a", "a"], ["a", "a"]).values["perplexity"] == pytest.approx(3.0)


def test_every_row_of_every_batch_is_written(tmp_path: Path) -> None:
    write_summaries(
        tmp_path / "trtllm.out", ("Engine path: e", "Tokenizer path: t"), (0, 1, 4), ("one", "two", "three")
    )
    assert (tmp_path / "trtllm.out").read_text() == (
        "Engine path: e\nTokenizer path: t\n[0] [Beam 0] one\n[1] [Beam 0] two\n[4] [Beam 0] three\n"
    )


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text("old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "summary.json", {"new": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"
