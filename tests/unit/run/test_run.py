"""run.py prints and writes what TensorRT-LLM's does, over any session."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opt_trt.cli import parse
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.run import output_files
from opt_trt.run.profiling import time_generations
from opt_trt.run.requests import make_requests
from opt_trt.run.run import run
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession, Session
from opt_trt.step import StepInputs, StepOutputs
from tests._commands import run_command
from tests.unit._decoders import SumDecoder, expected_output, spec
from tests.unit._sessions import AnsweringSession
from tests.unit._tokenizers import VOCAB_SIZE, ids_of, write_tokenizer

SPEC = spec(vocab_size=VOCAB_SIZE)


@dataclass
class NextLetter(SumDecoder):
    """After `a` comes `b`, after `b` comes `c`, …"""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        following = (inputs.input_ids[inputs.last_token_ids] + 1) % self.spec.vocab_size
        return replace(outputs, logits=torch.nn.functional.one_hot(following, self.spec.vocab_size).float())


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def start(*flags: object, decoder: SumDecoder | None = None) -> None:
    """What the script does with flags, over an alphabet instead of an engine."""

    def open_session(engine_dir: Path, limit: KvCacheLimit, scheduling: Scheduling, options: RuntimeOptions) -> Session:
        return DecoderSession(decoder or NextLetter(SPEC), limit, scheduling)

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


def test_the_tokenizer_kept_with_the_engine_is_the_last_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--max_output_len", 1, "--engine_dir", tmp_path, "--input_text", "ab")
    write_tokenizer(tmp_path / "tokenizer")
    start(*words)
    assert '"c"\n' in capsys.readouterr().out
    (tmp_path / "tokenizer" / "vocab.json").write_text("damaged")
    start(*words, "--tokenizer_dir", write_tokenizer(tmp_path / "given"))
    assert '"c"\n' in capsys.readouterr().out


def test_ids_are_printed_as_ids_though_a_tokenizer_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    prompts = write_csv(tmp_path / "p.csv", (5, 6))
    start("--max_output_len", 1, "--engine_dir", tmp_path, "--input_file", prompts)
    assert 'Output [Text 0 Beam 0]: " 7"' in capsys.readouterr().out


def test_the_default_prompt_is_upstreams(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 1, "--tokenizer_dir", letters, "--max_input_length", 16)
    assert capsys.readouterr().out.startswith('Input [Text 0]: "oyer trained as a"\n')


def test_a_prompt_that_is_cut_is_named(letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start("--max_output_len", 1, "--tokenizer_dir", letters, "--input_text", "ab" * 1000, "a")
    assert capsys.readouterr().err == "prompt 0: 2,001 tokens, the last 16 are used (--max_input_length)\n"
    prompts = write_csv(tmp_path / "p.csv", *[(2, 5, 6)] * 12)
    start("--max_output_len", 1, "--input_file", prompts, "--output_csv", tmp_path / "o.csv", "--max_input_length", 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[9:] == [
        "prompt 9: 3 tokens, the last 2 are used (--max_input_length)", "2 more prompts are cut to 2 tokens",
        f"wrote {tmp_path / 'o.csv'}",
    ]  # fmt: skip
    assert (tmp_path / "o.csv").read_text().startswith("5,6,7\n")


def test_the_default_leaves_room_for_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_csv(tmp_path / "p.csv", (5,) * 40)
    room = SPEC.max_seq_len - 20
    assert room < SPEC.max_input_len
    start("--max_output_len", 20, "--input_file", prompts, "--output_csv", tmp_path / "o.csv")
    assert capsys.readouterr().err.startswith(f"prompt 0: 40 tokens, the last {room} are used")


def test_any_of_several_end_ids_ends_a_text(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--max_output_len", 9, "--tokenizer_dir", letters, "--end_id", 2, *ids_of("dz"))
    for stream in ((), ("--streaming", "--streaming_interval", 1)):
        start(*shared, "--input_text", "ab", "x", *stream)
        assert [line.split('"')[1] for line in capsys.readouterr().out.splitlines()[1::2]] == ["c", "y"]


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

    def open_session(engine_dir: Path, limit: KvCacheLimit, scheduling: Scheduling, options: RuntimeOptions) -> Session:
        asked.extend([engine_dir, limit, scheduling])
        return DecoderSession(NextLetter(SPEC), limit, scheduling)

    prompts = str(write_csv(tmp_path / "p.csv", (3,)))
    flags = ["--engine_dir", "here", "--max_output_len", "1", "--input_file", prompts]
    cache = ["--max_tokens_in_paged_kv_cache", "64", "--kv_cache_free_gpu_memory_fraction", "0.5"]
    rules = ["--scheduler_policy", "max_utilization", "--context_chunk_size", "9", "--kv_cache_enable_block_reuse"]
    run(parse(RunConfig, flags + cache + rules), open_session)
    assert asked == [Path("here"), KvCacheLimit(64, 0.5), Scheduling("max_utilization", 9, enable_block_reuse=True)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "text prompts need a tokenizer, and engine_outputs keeps none: give --tokenizer_dir"),
        (("--input_text", "a", "--input_file", "p.csv"), "--input_text and --input_file both"),
        (("--input_file", "p.csv", "--stop_words", "a", "--bad_words", "b"), "--stop_words and --bad_words need a tok"),
        (("--tokenizer_dir", "tokenizer", "--stop_words", ""), "an empty stop word would end every output"),
        (("--tokenizer_dir", "tokenizer", "--bad_words", ""), "a word without tokens"),
        (("--tokenizer_dir", "tokenizer", "--stop_words", "a", "--stop_words", "b"), "2 times for 1 prompts; give it"),
        (("--tokenizer_dir", "tokenizer", "--input_text", "a", "--min_length", 2), "at least 2 and at most 1 new"),
        (("--top_p", 0.9), "--top_p 0.9 has no effect with --top_k 1"),
        (("--num_return_sequences", 0), "--num_return_sequences must be at least 1"),
        (("--num_return_sequences", 2), "--num_return_sequences 2 would give one greedy output as many times"),
        (
            ("--penalty_alpha", 0.6, "--top_k", 4, "--num_return_sequences", 2),
            "--num_return_sequences 2 would give one contrastive output as many times; drop it or --penalty_alpha",
        ),
        (("--num_beams", 2, "--num_return_sequences", 3), "3 is more than the outputs of --num_beams 2"),
        (("--num_beams", 2, "--streaming"), "--streaming follows one output .* --num_beams 2 chooses at the end"),
        (("--num_beams", 2, "--interactive"), "--interactive follows one output"),
        (("--num_beams", 2, "--stop_words", "a"), "--stop_words follows one output"),
        (
            ("--num_beams", 2, "--output_logits_npy", "l", "--output_generation_logits"),
            "--output_generation_logits follows one output",
        ),
        (("--num_beams", 2, "--top_k", 9), "--num_beams 2 searches .*, --top_k 9 draws them by chance"),
        (("--num_beams", 0), "--num_beams must be at least 1"),
        (("--early_stopping", 3, "--num_beams", 2), "--early_stopping must be from 0 to 2"),
        (("--length_penalty", 2), "--length_penalty 2.0 has no effect with one beam"),
        (("--beam_search_diversity_rate", 0.5), "--beam_search_diversity_rate 0.5 has no effect with one beam"),
        (("--input_file", "p.csv", "--num_beams", 5), "prompt 0 asks for 5 beams.*--max_batch_size"),
        (("--input_file", "p.csv", "--penalty_alpha", 0.6, "--top_k", 5), "asks for 5 candidates.*lower --top_k"),
        (("--output_log_probs_npy", "."), "is a directory"),
        (("--output_generation_logits",), "says what to write, not where: give --output_logits_npy"),
        (("--output_logits_npy", "l.npy", "--streaming"), "--output_logits_npy writes whole outputs"),
        (("--output_logits_npy", "no/such/l.npy"), "no/such is not a directory"),
        (("--tokenizer_dir", "tokenizer", "--output_logits_npy", "l"), "build it with --gather_context_logits"),
        (
            (
                "--tokenizer_dir",
                "tokenizer",
                "--input_text",
                "a",
                "--output_logits_npy",
                "l",
                "--output_generation_logits",
            ),
            "build the engine with --gather_generation_logits",
        ),
        (("--input_file", "missing.csv"), "expected a prompt file at missing.csv"),
        (("--output_csv", "no/such/out.csv"), "no/such is not a directory"),
        (("--output_npy", "."), "is a directory"),
        (("--tokenizer_dir", "nowhere"), "expected a tokenizer in nowhere"),
        (("--tokenizer_dir", "tokenizer", "--end_id", "9999"), "--end_id 9999 is outside the vocabulary"),
        (
            ("--tokenizer_dir", "tokenizer", "--max_input_length", 44),
            "prompt 0 has 44 tokens, the engine takes 16; lower --max_input_length",
        ),
        (("--tokenizer_dir", "tokenizer", "--end_id", 2, -1), "--end_id -1 stands for no token at all; give it alone"),
        (
            ("--tokenizer_dir", "tokenizer", "--input_text", "caf\udce9"),
            r"expected text, found '.udce9' at character 3",
        ),
        (("--tokenizer_dir", "tokenizer", "--stop_words", "\udce9"), r"expected text, found '.udce9' at character 0"),
        (("--tokenizer_dir", "tokenizer", "--bad_words", "a\ud800"), r"expected text, found '.ud800' at character 1"),
        (("--tokenizer_dir", "tokenizer", "--input_text", "", "--no_add_special_tokens"), "prompt 0 is empty"),
    ],
)
@pytest.mark.usefixtures("letters")
def test_what_cannot_be_done_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Sequence[object], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "p.csv", (3,))
    with pytest.raises(UserError, match=says):
        start("--max_output_len", 1, *flags)


def test_an_older_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "o.csv"
    target.write_text("old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        output_files.write_csv(target, np.ones((2, 2), dtype=np.int32))
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


@dataclass
class Alphabet(SumDecoder):
    """Always the same logits: `a` has 5, `b` 4.5, `c` 4, and so on."""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        [a] = ids_of("a")
        row = 5 - 0.5 * (torch.arange(self.spec.vocab_size) - a).remainder(self.spec.vocab_size)
        return replace(outputs, logits=row.expand(inputs.last_token_ids.shape[0], -1))


DRAWN = ("--top_k", 0, "--top_p", 1.0)


@pytest.fixture
def output(letters: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is printed as the one output of the prompt `x`, over the alphabet."""

    def generate(*flags: object) -> str:
        start(
            "--tokenizer_dir", letters, "--input_text", "x", "--max_output_len", 5, "--end_id", -1, *flags,
            decoder=Alphabet(SPEC),
        )  # fmt: skip
        return capsys.readouterr().out.split('Beam 0]: "', 1)[1].removesuffix('"\n')

    return generate


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "aaaaa"),
        (("--repetition_penalty", 2.0), "abcde"),
        (("--presence_penalty", 0.7), "abaaa"),
        (("--frequency_penalty", 0.7), "abacb"),
        (("--no_repeat_ngram_size", 2), "aabac"),
        (("--bad_words", "a"), "bbbbb"),
        (("--bad_words", "aa", "c", "--repetition_penalty", 1.3), "abada"),
    ],
)
def test_penalties_and_bans_change_what_is_most_likely(
    output: Callable[..., str], flags: tuple[object, ...], expected: str
) -> None:
    assert output(*flags) == expected


@pytest.mark.parametrize("streaming", [(), ("--streaming", "--streaming_interval", 1)], ids=["whole", "streaming"])
@pytest.mark.parametrize(("alpha", "k", "expected"), [(0.6, 4, "daaaa"), (1.0, 4, "daddc"), (0.1, 2, "aaaaa")])
def test_contrastive_search_leaves_what_is_most_likely(
    output: Callable[..., str], alpha: float, k: int, expected: str, streaming: tuple[object, ...]
) -> None:
    assert output("--penalty_alpha", alpha, "--top_k", k, *streaming) == expected


def test_min_length_keeps_the_end_away(output: Callable[..., str]) -> None:
    [a] = ids_of("a")
    assert (output("--end_id", a), output("--end_id", a, "--min_length", 3)) == ("", "bbb")


@pytest.mark.parametrize(
    "narrow",
    [("--temperature", 0.01), ("--temperature", 0), ("--top_k", 1), ("--top_p", 0.05), ("--min_p", 0.95)],
    ids=lambda flags: f"{flags[0]} {flags[1]}",
)
def test_a_narrow_choice_leaves_nothing_to_chance(output: Callable[..., str], narrow: tuple[object, ...]) -> None:
    assert output(*DRAWN) != "aaaaa"
    assert output(*DRAWN, *narrow) == "aaaaa"


def test_the_seed_decides_what_is_drawn(output: Callable[..., str]) -> None:
    first, again, other = (output(*DRAWN, "--random_seed", seed) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("streaming", [(), ("--streaming", "--streaming_interval", 2)])
def test_a_prompt_may_have_several_outputs(
    letters: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, streaming: tuple[object, ...]
) -> None:
    shared = ("--tokenizer_dir", letters, "--input_text", "x", "y", "--max_output_len", 8, *DRAWN, "--end_id", -1)
    start(*shared, "--num_return_sequences", 3, *streaming, decoder=Alphabet(SPEC))
    lines = capsys.readouterr().out.splitlines()
    labels = [f"Output [Text {i} Seq {j} Beam 0]" for i in (0, 1) for j in (0, 1, 2)]
    assert [line.split(":")[0] for line in lines] == ["Input [Text 0]", *labels[:3], "Input [Text 1]", *labels[3:]]
    texts = [line.split(": ", 1)[1] for line in lines if line.startswith("Output")]
    assert len(set(texts[:3])) == 3 and texts[:3] == texts[3:]  # the seed is each prompt's own
    start(*shared, "--num_return_sequences", 3, "--output_csv", tmp_path / "o.csv", *streaming, decoder=Alphabet(SPEC))
    assert (tmp_path / "o.csv").read_text().count("\n") == 6
    start(*shared, *streaming, decoder=Alphabet(SPEC))
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()[1::2]] == texts[::3]


class NextLetters(NextLetter):
    """After `a` comes most likely `b`, less likely `c`, even less likely `d`."""

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        outputs = super().step(inputs, kv_cache)
        one = outputs.logits
        return replace(outputs, logits=5 * one + 4 * one.roll(1, -1) + 2 * one.roll(2, -1))


def test_all_beams_are_printed_best_first(letters: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ("--tokenizer_dir", letters, "--input_text", "a", "x", "--max_output_len", 1, "--num_beams", 3)
    start(*flags, decoder=NextLetters(SPEC))
    labels = [f"Output [Text 0 Beam {beam}]" for beam in range(3)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ['Input [Text 0]: "a"', *(f'{a}: "{b}"' for a, b in zip(labels, "bcd", strict=True))]
    assert lines[4:] == [line.replace("Text 0", "Text 1") for line in _shifted(lines[:4])]
    start(*flags, "--num_return_sequences", 2, decoder=NextLetters(SPEC))
    assert capsys.readouterr().out.splitlines() == [*lines[:3], *lines[4:7]]


def _shifted(lines: Sequence[str]) -> list[str]:
    return [f'{line.split(": ")[0]}: "{chr(ord(line[-2]) + ord("x") - ord("a"))}"' for line in lines]


def test_beams_are_rows_of_files(tmp_path: Path) -> None:
    prompts = write_csv(tmp_path / "p.csv", (5, 6), (7,))
    files = [tmp_path / name for name in ("ids.csv", "log_probs.npy", "cum.npy")]
    start(
        "--input_file", prompts, "--max_output_len", 2, "--num_beams", 4, "--num_return_sequences", 3, "--output_csv",
        files[0], "--output_log_probs_npy", files[1], "--output_cum_log_probs_npy", files[2],
        decoder=NextLetters(SPEC),
    )  # fmt: skip
    rows = files[0].read_text().splitlines()
    assert len(rows) == 6 and rows[0] == "5,6,7,8" and rows[3].startswith("7,8,9")
    log_probs, sums = np.load(files[1]), np.load(files[2])
    assert (log_probs.shape, sums.shape) == ((2, 3, 2), (2, 3))
    np.testing.assert_allclose(log_probs.sum(-1), sums, rtol=1e-6)
    assert (np.diff(sums) <= 0).all()


def test_beam_flags_reach_the_search(tmp_path: Path) -> None:
    options = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": 2, "beam_search_diversity_rate": 0.25}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    prompts = ["--input_file", str(write_csv(tmp_path / "p.csv", (5, 6))), "--max_output_len", "1"]
    [request] = make_requests(parse(RunConfig, flags + prompts), SPEC, None)
    assert request.sampling == Sampling(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--stop_words", "e"), ["cd", "yz{|}~", "d"]),
        (("--stop_words", "ef", "z{"), ["cd", "y", "d"]),
        (("--stop_words", "d", "--stop_words", "}~", "--stop_words", "f"), ["c", "yz{|", "de"]),
        (("--stop_words", "nothing"), ["cdefgh", "yz{|}~", "defghi"]),
    ],
)
@pytest.mark.parametrize("interval", [None, 1, 2, 5])
def test_stop_words_end_outputs_and_are_not_shown(
    letters: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], expected: list[str], interval: int | None
) -> None:
    streaming = () if interval is None else ("--streaming", "--streaming_interval", interval)
    start("--tokenizer_dir", letters, "--input_text", "ab", "x", "c", "--max_output_len", 6, *words, *streaming)
    assert [line.split('"')[1] for line in capsys.readouterr().out.splitlines()[1::2]] == expected


def test_text_that_may_begin_a_stop_word_waits(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    decoder = NextLetter(SPEC, before_step=lambda inputs: seen.append(capsys.readouterr().out))
    start(
        "--max_output_len", 5, "--tokenizer_dir", letters, "--input_text", "a", "--streaming",
        "--streaming_interval", 1, "--stop_words", "cdz", decoder=decoder,
    )  # fmt: skip
    assert [text.split('Beam 0]: "')[-1] for text in seen] == ["", "b", "", "", "cde"]
    assert capsys.readouterr().out == 'f"\n'


def test_ids_of_an_output_reach_to_the_end_of_its_stop_word(letters: Path, tmp_path: Path) -> None:
    start(
        "--max_output_len", 9, "--tokenizer_dir", letters, "--input_text", "ab", "--stop_words", "de",
        "--output_csv", tmp_path / "o.csv",
    )  # fmt: skip
    assert (tmp_path / "o.csv").read_text() == ",".join(map(str, (2, *ids_of("abcde")))) + "\n"


def test_log_probabilities_are_written_beside_the_text(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "each.npy", tmp_path / "whole.npy"]
    flags = ("--output_log_probs_npy", files[0], "--output_cum_log_probs_npy", files[1], "--end_id", *ids_of("d"))
    shared = ("--tokenizer_dir", letters, "--input_text", "a", "b", "--max_output_len", 3)
    likely = 1 - np.log(np.e + VOCAB_SIZE - 1)  # one token has a logit of 1, the others 0
    for streaming in ((), ("--streaming",)):
        start(*shared, *flags, *streaming)
        assert '"bc"' in capsys.readouterr().out
        each, whole = map(np.load, files)
        assert (each.dtype, each.shape, whole.dtype, whole.shape) == (np.float32, (2, 1, 3), np.float32, (2, 1))
        np.testing.assert_allclose(each[:, 0], likely * np.array([[1, 1, 1], [1, 1, 0]]), rtol=1e-6)  # fp32 logarithms
        np.testing.assert_allclose(whole[:, 0], likely * np.array([3, 2]), rtol=1e-6)


def test_logits_are_written_as_upstream_lays_them_out(letters: Path, tmp_path: Path) -> None:
    gathers = spec(vocab_size=VOCAB_SIZE, gather_context_logits=True, gather_generation_logits=True)
    start(
        "--tokenizer_dir", letters, "--input_text", "ab", "c", "--max_output_len", 3, "--end_id", *ids_of("e"),
        "--output_logits_npy", tmp_path / "l.npy", "--output_generation_logits", decoder=NextLetter(gathers),
    )  # fmt: skip
    context, generation = (np.load(tmp_path / name) for name in ("l_context.npy", "l_generation.npy"))
    assert (context.dtype, context.shape) == (np.float32, (5, VOCAB_SIZE))
    assert context.argmax(-1).tolist() == [3, *ids_of("bc"), 3, *ids_of("d")]
    assert (generation.dtype, generation.shape) == (np.float32, (2, 1, 3, VOCAB_SIZE))
    assert generation[:, 0].argmax(-1).tolist() == [[*ids_of("cde")], [*ids_of("de"), 0]]
    assert not generation[1, 0, 2].any()


@pytest.mark.parametrize("several", [("--num_return_sequences", 2, *DRAWN), ("--num_beams", 2)])
def test_context_logits_are_those_of_a_prompt_however_many_outputs_it_has(
    several: tuple[object, ...], letters: Path, tmp_path: Path
) -> None:
    start(
        "--tokenizer_dir", letters, "--input_text", "ab", "c", "--max_output_len", 1, *several,
        "--output_logits_npy", tmp_path / "logits",
        decoder=NextLetter(spec(vocab_size=VOCAB_SIZE, gather_context_logits=True)),
    )  # fmt: skip
    assert np.load(tmp_path / "logits_context.npy").shape == (5, VOCAB_SIZE)
    assert not (tmp_path / "logits_generation.npy").exists()


def test_profiling_warms_up_ten_times_and_times_ten() -> None:
    session = AnsweringSession(SPEC, lambda request: Result(request.prompt_ids, (3, 4, 5), "length"))
    ticks = iter([time for run in range(10) for time in (100.0 * run, 100.0 * run + (1.0 if run % 2 else 3.0))])
    timing = time_generations(session, [Request((2,), 3)] * 4, lambda: next(ticks))
    assert [len(step) for step in session.in_flight.steps] == [4] * 20
    assert str(timing) == (
        "batch_size: 4, avg latency of 10 iterations: 2.000000 sec "
        "(min 1.000000, max 3.000000, std 1.000000), 6.0 new tokens/s"
    )


def test_the_command_names_what_is_missing_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run_command("run", "--max_output_len", "1")
    assert code == 2
    assert said.startswith("error: text prompts need a tokenizer") and said.count("\n") == 1
