"""A sampling option is one row, and what cannot follow from a row is written in few files."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import opt_trt
from opt_trt.api.sampling_params import SamplingParams
from opt_trt.api.tensors import TensorOptions
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.sampling import FILTERS, OPTIONS, Sampling
from opt_trt.config.sampling_options import CommonOptions, SamplingOptions, TokenOptions
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.step import LARGEST

ROOT = Path(opt_trt.__file__).parent


def files_that_mention(option: str) -> set[str]:
    word = re.compile(rf"\b{option}\b")
    return {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if word.search(path.read_text())}


def test_a_filter_is_written_in_four_files() -> None:
    assert files_that_mention("min_p") == {
        "config/sampling_options.py",  # the row
        "runtime/sampling/filters.py",  # what it does to whole rows, and to the largest logits alone
        "runtime/sampling/on_device.py",  # what it does on a GPU
        "backends/trtllm/keywords.py",  # the keyword of TensorRT-LLM's runners
    }


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_a_penalty_is_written_in_three_files(penalty: str) -> None:
    assert files_that_mention(penalty) == {
        "config/sampling_options.py", "runtime/sampling/processors.py", "backends/trtllm/keywords.py"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("interface", "rows"),
    [(TensorOptions, CommonOptions), (SamplingParams, TokenOptions), (Sampling, SamplingOptions)],
)
def test_an_interface_has_every_option_of_its_class(interface: type, rows: type) -> None:
    assert {f.name for f in fields(rows)} <= {f.name for f in fields(interface)}


@pytest.mark.parametrize("config", [RunConfig, SummarizeConfig])
def test_every_option_with_a_help_text_is_a_flag_with_its_default(config: type) -> None:
    flags = {f.name: f.default for f in fields(config) if "flag" in f.metadata}
    expected = {f.name: f.default for f in fields(SamplingOptions)}
    assert expected.items() <= flags.items()


def test_a_default_changes_nothing_or_is_greedy() -> None:
    idle = {name for name, row in OPTIONS.items() if getattr(Sampling, name) not in row.neutral}
    assert idle == {"top_k"}


def test_a_step_has_a_column_for_every_filter_and_two_numbers() -> None:
    assert Sampling(temperature=0.7, top_k=0, top_p=0.0, min_p=0.1).filters == (0.7, 0, 1.0, 0.1)
    assert (len(LARGEST), LARGEST) == (len(FILTERS) + 2, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0))
