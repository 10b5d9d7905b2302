"""run.py prints and writes what TensorRT-LLM's does, over any session."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _decoders import SumDecoder, expected_output, spec
from _tokenizers import VOCAB_SIZE, ids_of, write_tokenizer

from opt_trt.cli import parse
from opt_trt.config.run import RunConfig
from opt_trt.errors import UserError
from opt_trt.run import id_files
from opt_trt.run.profiling import time_generations
from opt_trt.run.run import run
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.session import DecoderSession, Session
from opt_trt.step import StepInputs

SPEC = spec(vocab_size=VOCAB_SIZE)


@dataclass
class NextLetter(SumDecoder):
    """After `a` comes `b`, after `b` comes `c`, …"""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> torch.Tensor:
        super().step(inputs, kv_cache)
        following = (inputs.input_ids[inputs.last_token_ids] + 1) % self.spec.vocab_size
        return torch.nn.functional.one_hot(following, self.spec.vocab_size).float()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def start(*flags: object, decoder: SumDecoder | None = None) -> None:
    """What the script does with flags, over an alphabet instead of an engine."""

    def open_session(engine_dir: Path, limit: KvCacheLimit) -> Session:
        return DecoderSession(decoder or NextLetter(SPEC), limit)

    run(parse(RunConfig, [str(flag) for flag in flags]), open_session)


def write_csv(path: Path, *rows: Sequence[int]) -> Path:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def test_text_is_printed_as_upstream_prints_it(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 3, "--tokenizer_dir", letters, "--input_text", "ab", "x")
    assert capsys.readouterr().out == (
        'Input [Text 0]: "ab"\nOutput [Text 0 Beam 0]: "cde"\nInput [Text 1]: "x"\nOutput [Text 1 Beam 0]: "yz{"\n'
    )


def test_the_hugging_face_directory_has_the_tokenizer_too(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 1, "--hf_model_dir", letters, "--input_text", "ab")
    assert '"c"\n' in capsys.readouterr().out


def test_the_default_prompt_is_upstreams(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 1, "--tokenizer_dir", letters, "--max_input_length", 16)
    assert capsys.readouterr().out.startswith('Input [Text 0]: "oyer trained as a"\n')


def test_prompts_are_cut_from_the_left(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 1, "--tokenizer_dir", letters, "--input_text", "abcdef", "--max_input_length", 3)
    assert capsys.readouterr().out.startswith('Input [Text 0]: "ef"\n')


def test_no_special_tokens_means_no_prefix(letters: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    shared = ("--max_output_len", 1, "--tokenizer_dir", letters, "--input_text", "a", "--output_csv", target)
    start(*shared)
    assert target.read_text().startswith("2,")
    start(*shared, "--no_add_special_tokens")
    assert target.read_text() == ",".join(map(str, ids_of("ab"))) + "\n"


def test_a_text_file_is_a_prompt_per_line(letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a\nf\n")
    start("--max_output_len", 2, "--tokenizer_dir", letters, "--input_file", tmp_path / "p.txt")
    assert [line for line in capsys.readouterr().out.splitlines() if "Output" in line] == [
        'Output [Text 0 Beam 0]: "bc"',
        'Output [Text 1 Beam 0]: "gh"',
    ]


def test_ids_in_and_ids_out_need_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_csv(tmp_path / "p.csv", (2, 5, 6), (7,))
    start("--max_output_len", 2, "--input_file", prompts, "--output_csv", tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == "2,5,6,7,8\n7,8,9,2,2\n"  # filled with the end id
    assert capsys.readouterr().out == ""


def test_npy_in_loses_its_padding_and_npy_out_is_a_rectangle_of_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[1, 1, 9], [4, 5, 6]]))
    start("--max_output_len", 2, "--input_file", tmp_path / "p.npy", "--output_npy", tmp_path / "o.npy", "--end_id", 10)
    out = np.load(tmp_path / "o.npy")
    assert (out.dtype, out.tolist()) == (np.dtype("int32"), [[9, 10, 10, 10, 10], [4, 5, 6, 7, 8]])


def test_pad_id_says_what_is_padding(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[9, 1]]))
    start(
        "--max_output_len", 1, "--input_file", tmp_path / "p.npy", "--output_csv", tmp_path / "o.csv", "--pad_id", 9
    )  # fmt: skip
    assert (tmp_path / "o.csv").read_text() == "1,2\n"


def test_both_files_may_be_asked_for(tmp_path: Path) -> None:
    prompts = write_csv(tmp_path / "p.csv", (7,))
    start(
        "--max_output_len", 1, "--input_file", prompts,
        "--output_csv", tmp_path / "o.csv", "--output_npy", tmp_path / "ids",
    )  # fmt: skip
    assert (tmp_path / "o.csv").read_text() == "7,8\n"
    assert np.load(tmp_path / "ids").tolist() == [[7, 8]]


def test_ids_without_tokenizer_or_file_are_printed_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("--max_output_len", 2, "--input_file", write_csv(tmp_path / "p.csv", (5, 6)))
    assert capsys.readouterr().out == 'Input [Text 0]: " 5 6"\nOutput [Text 0 Beam 0]: " 7 8"\n'


def test_ids_with_a_tokenizer_are_printed_as_text(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_csv(tmp_path / "p.csv", (2, *ids_of("a")))
    start("--max_output_len", 2, "--input_file", prompts, "--tokenizer_dir", letters)
    assert capsys.readouterr().out == 'Input [Text 0]: "a"\nOutput [Text 0 Beam 0]: "bc"\n'


def test_the_end_id_ends_a_text_and_is_not_printed(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [end_id] = ids_of("d")
    start("--max_output_len", 9, "--tokenizer_dir", letters, "--input_text", "ab", "--end_id", end_id)
    assert capsys.readouterr().out.endswith('Output [Text 0 Beam 0]: "c"\n')


def test_minus_one_switches_the_end_id_off(tmp_path: Path) -> None:
    shared = ("--max_output_len", 3, "--input_file", write_csv(tmp_path / "p.csv", (1,)), "--output_csv")
    start(*shared, tmp_path / "ends.csv")
    start(*shared, tmp_path / "goes_on.csv", "--end_id", -1)
    assert [(tmp_path / name).read_text() for name in ("ends.csv", "goes_on.csv")] == ["1,2\n", "1,2,3,4\n"]


@pytest.mark.parametrize("interval", [1, 2, 5, 100])
def test_a_stream_ends_as_the_same_text(letters: Path, capsys: pytest.CaptureFixture[str], interval: int) -> None:
    shared = ("--max_output_len", 8, "--tokenizer_dir", letters, "--input_text", *"abmnxy", "--end_id", *ids_of("g"))
    start(*shared)
    whole = capsys.readouterr().out
    start(*shared, "--streaming", "--streaming_interval", interval)
    assert capsys.readouterr().out == whole


def test_a_stream_is_printed_every_interval(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    decoder = NextLetter(SPEC, before_step=lambda inputs: seen.append(capsys.readouterr().out))
    start(
        "--max_output_len", 5, "--tokenizer_dir", letters, "--input_text", "a", "--streaming",
        "--streaming_interval", 2, decoder=decoder,
    )  # fmt: skip
    assert seen == ['Input [Text 0]: "a"\nOutput [Text 0 Beam 0]: "', "", "bc", "", "de"]
    assert capsys.readouterr().out == 'f"\n'


def test_a_stream_can_go_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_csv(tmp_path / "p.csv", *[(i,) for i in range(3, 12)])
    start("--max_output_len", 2, "--input_file", prompts, "--output_csv", tmp_path / "o.csv", "--streaming")
    with (tmp_path / "o.csv").open() as file:
        assert [[int(i) for i in row] for row in csv.reader(file)] == [[i, i + 1, i + 2] for i in range(3, 12)]
    assert capsys.readouterr().out == ""


def test_more_prompts_than_the_batch_are_all_answered(tmp_path: Path) -> None:
    rows = [(i % 7 + 3, i % 5) for i in range(50)]
    decoder = SumDecoder(SPEC)
    start(
        "--max_output_len", 4, "--input_file", write_csv(tmp_path / "p.csv", *rows), "--output_csv", tmp_path / "o.csv",
        "--end_id", -1, decoder=decoder,
    )  # fmt: skip
    with (tmp_path / "o.csv").open() as file:
        got = [tuple(int(i) for i in row) for row in csv.reader(file)]
    assert got == [(*row, *expected_output(row, 4, vocab_size=VOCAB_SIZE)) for row in rows]
    assert max(inputs.kv_lens.shape[0] for inputs in decoder.steps) == SPEC.max_batch_size


def test_the_kv_cache_flags_reach_the_engine(tmp_path: Path) -> None:
    asked: list[object] = []

    def open_session(engine_dir: Path, limit: KvCacheLimit) -> Session:
        asked.extend([engine_dir, limit])
        return DecoderSession(NextLetter(SPEC), limit)

    prompts = str(write_csv(tmp_path / "p.csv", (3,)))
    flags = ["--engine_dir", "here", "--max_output_len", "1", "--input_file", prompts]
    cache = ["--max_tokens_in_paged_kv_cache", "64", "--kv_cache_free_gpu_memory_fraction", "0.5"]
    run(parse(RunConfig, flags + cache), open_session)
    assert asked == [Path("here"), KvCacheLimit(64, 0.5)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "text prompts need a tokenizer: give --tokenizer_dir"),
        (("--input_text", "a", "--input_file", "p.csv"), "--input_text and --input_file both"),
        (("--input_file", "missing.csv"), "expected a prompt file at missing.csv"),
        (("--output_csv", "no/such/out.csv"), "no/such is not a directory"),
        (("--output_npy", "."), "is a directory"),
        (("--tokenizer_dir", "nowhere"), "expected a tokenizer in nowhere"),
        (("--tokenizer_dir", "tokenizer", "--end_id", "9999"), "--end_id 9999 is outside the vocabulary"),
        (("--tokenizer_dir", "tokenizer"), "prompt 0 has .* tokens, the engine takes 16; lower --max_input_length"),
        (("--tokenizer_dir", "tokenizer", "--input_text", "", "--no_add_special_tokens"), "prompt 0 is empty"),
    ],
)
@pytest.mark.usefixtures("letters")
def test_what_cannot_be_done_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Sequence[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        start("--max_output_len", 1, *flags)


def test_an_older_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "o.csv"
    target.write_text("old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        id_files.write_csv(target, np.ones((2, 2), dtype=np.int32))
    assert [p.name for p in tmp_path.iterdir()] == ["o.csv"] and target.read_text() == "old"


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    def interrupt(inputs: StepInputs) -> None:
        raise KeyboardInterrupt

    prompts = write_csv(tmp_path / "p.csv", (3,))
    with pytest.raises(KeyboardInterrupt):
        start(
            "--max_output_len", 1, "--input_file", prompts, "--output_csv", tmp_path / "o.csv",
            decoder=NextLetter(SPEC, before_step=interrupt),
        )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def test_profiling_prints_latency_spread_and_rate(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 2, "--tokenizer_dir", letters, "--input_text", "a", "b", "--run_profiling")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("batch_size: 2, avg latency of 10 iterations: ") and line.endswith(" new tokens/s")


class FakeSession:
    """Every generation makes three tokens and takes as long as the clock says."""

    spec = SPEC
    runs = 0

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        self.runs += 1
        return [Result(r.prompt_ids, (3, 4, 5), "length") for r in requests]

    def stream(self, requests: Sequence[Request]) -> Any:
        raise NotImplementedError


def test_profiling_warms_up_ten_times_and_times_ten() -> None:
    session = FakeSession()
    ticks = iter([time for run in range(10) for time in (100.0 * run, 100.0 * run + (1.0 if run % 2 else 3.0))])
    timing = time_generations(session, [Request((2,), 3)] * 4, lambda: next(ticks))
    assert session.runs == 20
    assert str(timing) == (
        "batch_size: 4, avg latency of 10 iterations: 2.000000 sec "
        "(min 1.000000, max 3.000000, std 1.000000), 6.0 new tokens/s"
    )


def test_the_script_names_what_is_missing_in_one_line(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "run.py"
    done = subprocess.run(
        [sys.executable, script, "--max_output_len", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: text prompts need a tokenizer") and done.stderr.count("\n") == 1
