"""The whole command: exit codes, table, files, and what both sides are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from opt_trt.cli import run_main
from opt_trt.config.sampling import Sampling
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.evaluate import hf_reference
from opt_trt.evaluate import summarize as command
from opt_trt.runtime.request import Request, Result
from opt_trt.step import DecoderSpec
from tests.unit._sessions import AnsweringSession

SPEC = DecoderSpec(
    num_layers=1, num_heads=1, head_size=8, vocab_size=131, kv_dtype=torch.float32, tokens_per_block=8,
    max_batch_size=8, max_input_len=64, max_seq_len=96, max_num_tokens=512, gather_context_logits=True,
    gather_generation_logits=False, end_id=2, pad_id=1,
)  # fmt: skip
ROWS = [{"article": f"the tale of number {n}", "highlights": f"tale {n} told"} for n in range(5)]


class LetterTokenizer:
    """A token per ASCII character after three special ones; `</s>` in front."""

    bos_id, eos_id, pad_id = 2, 2, 1

    def encode(self, text: str, max_length: int) -> tuple[int, ...]:
        return (2, *[3 + ord(c) for c in text][-max_length + 1 :])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i - 3) for i in ids if i > 2)


class FakeSession(AnsweringSession):
    """Answers every prompt about number n with `text`, `{n}` filled in; `logit` is every logit it returns."""

    def __init__(self, text: str = "tale {n} told", spec: DecoderSpec = SPEC, logit: float = 0.0) -> None:
        super().__init__(spec, self._answer)
        self.text, self.logit = text, logit

    def _answer(self, request: Request) -> Result:
        number = LetterTokenizer().decode(request.prompt_ids).split(" TL;DR:")[0][-1]
        output = [3 + ord(c) for c in self.text.format(n=number)] + [2]
        context = None
        if request.return_context_logits:
            context = torch.full((len(request.prompt_ids), self.spec.vocab_size), self.logit)
        return Result(request.prompt_ids, tuple(output[: request.max_new_tokens]), "end_id", context)


class ModelSession(FakeSession):
    """Runs the Hugging Face model itself, one request after another."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__()
        self._model = OPTForCausalLM.from_pretrained(model_dir)

    def _answer(self, request: Request) -> Result:
        ids = list(request.prompt_ids)
        with torch.inference_mode():
            for _ in range(request.max_new_tokens):
                logits = self._model(torch.tensor([ids])).logits[0]
                ids.append(int(logits[-1].argmax()))
                if ids[-1] == request.end_id:
                    break
            context = logits[: len(request.prompt_ids)] if request.return_context_logits else None
        return Result(request.prompt_ids, tuple(ids[len(request.prompt_ids) :]), "length", context)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=131, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=96, init_std=0.4,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("model")
    OPTForCausalLM(config).save_pretrained(directory)
    return directory


@dataclass
class Run:
    """A command line over the five rows, and what became of it."""

    directory: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *flags: str, session: FakeSession | None = None) -> int:
        data = self.directory / "test.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        self.monkeypatch.setattr(command, "load_tokenizer", lambda path, add_special_tokens: LetterTokenizer())
        self.monkeypatch.setattr(command, "open_engine", lambda path, *how: session or FakeSession())
        common = ["--tokenizer_dir", "tokenizer", "--dataset_dir", str(data), "--output_len", "20"]
        with pytest.raises(SystemExit) as stop:
            run_main(command.summarize, SummarizeConfig, [*common, *flags])
        self.out, self.err = self.capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, capsys, monkeypatch)


def test_a_good_engine_passes_with_exit_0(run: Run) -> None:
    assert run("--test_trt_llm", "--check_accuracy") == 0
    assert "ROUGE-1" in run.out and "100.00" in run.out and run.err == ""


def test_a_bad_engine_fails_with_exit_1_after_its_table_and_files(run: Run) -> None:
    flags = ("--test_trt_llm", "--check_accuracy", "--output_dir", str(run.directory / "out"))
    assert run(*flags, session=FakeSession("nonsense")) == 1
    assert run.err == "error: engine: ROUGE-1 0.0000 is not above --tensorrt_llm_rouge1_threshold 15\n"
    assert "ROUGE-1" in run.out
    assert sorted(p.name for p in (run.directory / "out").iterdir()) == ["summary.json", "trtllm.out"]


def test_a_bad_engine_without_the_gate_is_reported_with_exit_0(run: Run) -> None:
    assert run("--test_trt_llm", session=FakeSession("nonsense")) == 0


def test_a_gate_without_rows_is_exit_2(run: Run) -> None:
    assert run("--test_trt_llm", "--check_accuracy", "--min_input_length", "500") == 2
    assert "nothing to summarize" in run.err


def test_a_gate_on_nan_is_exit_2(run: Run) -> None:
    flags = ("--test_trt_llm", "--check_accuracy", "--eval_ppl")
    assert run(*flags, session=FakeSession(logit=float("nan"))) == 2
    assert "the gate scored nothing: perplexity of engine is not a number" in run.err


def test_perplexity_gates_when_asked(run: Run) -> None:
    # All logits equal: the perplexity is the size of the vocabulary, 131.
    flags = ("--test_trt_llm", "--check_accuracy", "--eval_ppl", "--tensorrt_llm_ppl_threshold")
    assert run(*flags, "132") == 0
    assert run(*flags, "130") == 1
    assert "perplexity 131.000" in run.err


def test_perplexity_needs_an_engine_that_returns_logits(run: Run) -> None:
    session = FakeSession(spec=replace(SPEC, gather_context_logits=False))
    assert run("--test_trt_llm", "--eval_ppl", session=session) == 2
    assert "--gather_context_logits" in run.err


def test_a_prompt_the_engine_cannot_take_is_exit_2(run: Run) -> None:
    assert run("--test_trt_llm", session=FakeSession(spec=replace(SPEC, max_input_len=20))) == 2
    assert "give --max_input_length 20" in run.err


def test_without_a_tokenizer_the_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_main(command.summarize, SummarizeConfig, ["--test_trt_llm"])
    assert stop.value.code == 2 and "give --tokenizer_dir" in capsys.readouterr().err


def test_all_rows_of_all_batches_are_written_in_order(run: Run) -> None:
    flags = ("--test_trt_llm", "--batch_size", "2", "--engine_dir", "my_engine")
    assert run(*flags, "--output_dir", str(run.directory / "out")) == 0
    lines = (run.directory / "out" / "trtllm.out").read_text().splitlines()
    # numpy's default_rng(0).permutation(5) is 2 4 3 0 1
    assert lines == [
        "Engine path: my_engine", "Tokenizer path: tokenizer",
        *(f"[{row}] [Beam 0] tale {n} told" for row, n in enumerate((2, 4, 3, 0, 1))),
    ]  # fmt: skip


def test_max_ite_counts_batches(run: Run) -> None:
    assert run("--test_trt_llm", "--batch_size", "2", "--max_ite", "2") == 0
    assert "4 articles" in run.out


def test_random_seed_decides_what_is_summarized(run: Run) -> None:
    shown = []
    for seed in "01":
        assert run("--test_trt_llm", "--max_ite", "1", "--random_seed", seed) == 0
        shown.append(run.out.split("Reference:")[1].splitlines()[0])
    assert shown[0] != shown[1]


SAMPLING = {
    "temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": 0.5,
    "frequency_penalty": 0.25, "no_repeat_ngram_size": 3, "min_length": 4, "random_seed": 9,
}  # fmt: skip
BEAMS = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": 2, "beam_search_diversity_rate": 0.25}
CONTRASTIVE = {"penalty_alpha": 0.6, "top_k": 4}
UNKNOWN_TO_TRANSFORMERS = ("presence_penalty", "frequency_penalty", "beam_search_diversity_rate", "penalty_alpha")
NEEDS = {"beam_search_diversity_rate": ("--num_beams", "2"), "penalty_alpha": ("--top_k", "4")}


@pytest.mark.parametrize("options", [SAMPLING, BEAMS, CONTRASTIVE], ids=["sampling", "beams", "contrastive"])
def test_sampling_flags_reach_the_engine(run: Run, options: dict[str, Any]) -> None:
    session = FakeSession()
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert run("--test_trt_llm", *flags, session=session) == 0
    seen = [request.sampling for step in session.in_flight.steps for request in step]
    assert {replace(sampling, random_seed=options.get("random_seed", 0)) for sampling in seen} == {Sampling(**options)}


def test_articles_draw_with_random_numbers_of_their_own(run: Run) -> None:
    session = FakeSession()
    assert run("--test_trt_llm", "--top_k", "5", "--random_seed", "3", session=session) == 0
    requests = [request for step in session.in_flight.steps for request in step]
    seeds = {request.prompt_ids: request.sampling.random_seed for request in requests}
    assert len(requests) == 6 and len(set(seeds.values())) == 5  # the first article is shown before it is measured
    assert all(seeds[request.prompt_ids] == request.sampling.random_seed for request in requests)


def test_the_gate_refuses_to_judge_references_without_a_word(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"article": f"the tale of number {n}", "highlights": "Мэр открыл мост"} for n in range(5)]
    monkeypatch.setattr("tests.unit.evaluate.test_summarize.ROWS", rows)
    assert run("--test_trt_llm", "--check_accuracy") == 2
    assert "WARNING: ROUGE counts no word in 5 of 5 references (it knows a-z and 0-9)\n" in run.err
    assert "error: the gate scored nothing" in run.err
    assert run("--test_trt_llm") == 0 and "WARNING: ROUGE counts no word" in run.err


def test_articles_that_are_cut_are_counted(run: Run) -> None:
    assert run("--test_trt_llm", "--max_input_length", "27") == 0
    assert "5 of 5 articles are cut to their last 27 tokens (--max_input_length)\n" in run.err
    assert run("--test_trt_llm") == 0 and "are cut" not in run.err


def test_the_engines_further_end_ids_end_summaries_too(run: Run) -> None:
    session = FakeSession(spec=replace(SPEC, end_token_ids=(2, 103)))
    assert run("--test_trt_llm", session=session) == 0
    assert {request.end_ids for step in session.in_flight.steps for request in step} == {(2, 103)}
    assert run("--test_trt_llm", "--end_id", "7", "9", session=session) == 0
    assert session.in_flight.steps[-1][0].end_ids == (7, 9)
    assert run("--test_trt_llm", "--end_id", "-1", session=session) == 0
    assert session.in_flight.steps[-1][0].end_ids == ()


@pytest.mark.parametrize("options", [SAMPLING, BEAMS], ids=["sampling", "beams"])
def test_sampling_flags_reach_hugging_face(
    run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    known = {name: value for name, value in options.items() if name not in UNKNOWN_TO_TRANSFORMERS}
    seen: list[Sampling] = []
    init = hf_reference.HfReference.__init__

    def spy(self: hf_reference.HfReference, where: Path, dtype: str, decoding: hf_reference.Decoding) -> None:
        seen.append(decoding.sampling)
        init(self, where, dtype, decoding)

    monkeypatch.setattr(hf_reference.HfReference, "__init__", spy)
    flags = [word for name, value in known.items() for word in (f"--{name}", str(value))]
    assert run("--test_hf", "--hf_model_dir", str(model_dir), "--hf_data_type", "fp32", *flags) == 0
    assert seen == [Sampling(**known)]


@pytest.mark.parametrize("name", UNKNOWN_TO_TRANSFORMERS)
def test_a_penalty_that_transformers_lacks_is_exit_2(run: Run, model_dir: Path, name: str) -> None:
    assert run("--test_hf", "--hf_model_dir", str(model_dir), f"--{name}", "0.5", *NEEDS.get(name, ())) == 2
    assert f"--{name} is unknown to transformers" in run.err


def test_end_id_ends_a_summary(run: Run) -> None:
    out = run.directory / "out"
    assert run("--test_trt_llm", "--output_dir", str(out), "--max_ite", "1") == 0
    assert json.loads((out / "summary.json").read_text())["engine"]["output_tokens"] == 12  # "tale 2 told" and </s>


def test_one_sample_is_shown_before_the_table(run: Run) -> None:
    assert run("--test_trt_llm") == 0
    sample, table = run.out.split("ROUGE-1", 1)
    assert "Article:      the tale of number 2" in sample and "Reference:    tale 2 told" in sample
    assert "engine:       tale 2 told" in sample and "tokens/s" in table


def test_warnings_level_prints_the_table_alone(run: Run) -> None:
    assert run("--test_trt_llm", "--check_accuracy", "--log_level", "warning") == 0
    assert "Article:" not in run.out and "passed" not in run.out and "ROUGE-1" in run.out


def test_the_same_model_on_both_sides_scores_the_same(run: Run, model_dir: Path) -> None:
    out = run.directory / "out"
    flags = ("--test_hf", "--test_trt_llm", "--hf_model_dir", str(model_dir), "--data_type", "fp32", "--eval_ppl")
    gate = ("--check_accuracy", "--tensorrt_llm_rouge1_threshold", "-1", "--tensorrt_llm_ppl_threshold", "1e9")
    code = run(*flags, *gate, "--max_rouge1_drop", "0", "--batch_size", "3", "--output_dir", str(out),
               session=ModelSession(model_dir))  # fmt: skip
    assert code == 0, run.err
    values = json.loads((out / "summary.json").read_text())
    assert values["engine_vs_hf"]["identical_summaries"] == values["rows"] == 5
    assert values["engine"]["output_tokens"] == values["hf"]["output_tokens"]
    assert values["engine"]["perplexity"] == pytest.approx(values["hf"]["perplexity"], rel=1e-5)  # fp32 sums
    hf_lines = (out / "hf.out").read_text().splitlines()
    assert hf_lines[:2] == [f"Model path: {model_dir}", "Tokenizer path: tokenizer"]
    assert hf_lines[2:] == (out / "trtllm.out").read_text().splitlines()[2:]


def test_a_drop_against_hugging_face_is_exit_1(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opt_trt.evaluate.hf_reference.HfReference.generate", lambda self, prompts: [
        tuple(3 + ord(c) for c in f"tale {LetterTokenizer().decode(p)[19]} told") for p in prompts
    ])  # fmt: skip
    flags = ("--test_hf", "--test_trt_llm", "--hf_model_dir", str(model_dir), "--data_type", "fp32")
    gate = ("--check_accuracy", "--max_rouge1_drop", "2")
    assert run(*flags, *gate, session=FakeSession("tale {n}")) == 1
    # "tale n" of "tale n told": precision 1, recall 2/3, F 4/5
    assert "ROUGE-1 80.0000 is 20.0000 below Hugging Face's, more than --max_rouge1_drop 2" in run.err


def test_several_engines_get_a_column_a_file_and_a_limit_each(run: Run) -> None:
    out = run.directory / "out"
    flags = ("--test_trt_llm", "--engine_dir", "e/int8", "e/int4", "--output_dir", str(out), "--check_accuracy")
    assert run(*flags, "--tensorrt_llm_rouge1_threshold", "15", "101") == 1
    assert run.err == "error: int4: ROUGE-1 100.0000 is not above --tensorrt_llm_rouge1_threshold 101\n"
    assert {path.name for path in out.iterdir()} == {"int8.out", "int4.out", "summary.json"}
    assert (out / "int8.out").read_text().startswith("Engine path: e/int8\n")
    assert set(json.loads((out / "summary.json").read_text())) >= {"int8", "int4", "int4_vs_int8"}


def test_hugging_face_alone_needs_no_engine(run: Run, model_dir: Path) -> None:
    assert run("--test_hf", "--hf_model_dir", str(model_dir), "--data_type", "bf16", "--max_ite", "1") == 0
    assert "Hugging Face" in run.out and "vs HF" not in run.out


def test_fp16_on_this_processor_is_said_to_be_slow(run: Run, model_dir: Path) -> None:
    assert run("--test_hf", "--hf_model_dir", str(model_dir), "--max_ite", "1", "--output_len", "1") == 0
    assert "computes in fp16, as asked" in run.out
