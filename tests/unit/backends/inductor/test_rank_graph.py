"""Decoders cut for tensor- and pipeline-parallel ranks compute what the whole one computes, uncompiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from transformers import OPTForCausalLM

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.sampling import Sampling
from opt_trt.convert.convert import convert
from opt_trt.model.placement import is_linear, placements
from opt_trt.quant import MODES
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._rank_cases import GRID, PRECISIONS, SHARDINGS, TOLERANCE, Case, convert_case, write_model
from tests.unit._rank_decoder import RankDecoder

PROMPTS = ((5, 6, 7), (9,), tuple(range(20, 57)))
NEW_TOKENS = 5
# Every pair of values of two axes is in one of these.
PAIRWISE = [
    Case("pre-norm", "float32", 2, 1, "0"), Case("pre-norm", "float16", 4, 2, "1"), Case("pre-norm", "int8", 2, 2, "0"),
    Case("pre-norm", "int4", 4, 1, "off"), Case("post-norm", "float32", 4, 2, "off"),
    Case("post-norm", "float16", 2, 1, "off"), Case("post-norm", "int8", 4, 1, "1"),
    Case("post-norm", "int4", 2, 2, "1"), Case("post-norm", "float32", 1, 2, "1"), Case("pre-norm", "int4", 4, 2, "0"),
    Case("post-norm", "float16", 4, 1, "0"), Case("pre-norm", "int8", 1, 2, "off"),
    Case("pre-norm", "bfloat16", 2, 1, "1"), Case("post-norm", "bfloat16", 4, 2, "0"),
    Case("post-norm", "bfloat16", 2, 2, "off"), Case("projections", "float32", 2, 2, "off"),
    Case("projections", "int8", 4, 1, "off"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model by kind."""
    return functools.cache(lambda kind: write_model(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def decoder_of(
    model_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RankDecoder]:
    """Convert a case and open all its ranks."""
    return lambda case: RankDecoder(
        convert_case(case, model_dir(case.kind), tmp_path_factory.mktemp("checkpoint") / "c")
    )


@pytest.fixture(scope="module")
def single_rank(decoder_of: Callable[..., RankDecoder]) -> Callable[[Case], list[Result]]:
    """What one rank answers to the prompts, by kind and precision."""
    answers: dict[Case, list[Result]] = {}

    def answer(case: Case) -> list[Result]:
        alone = Case(case.kind, case.precision, 1, 1, "off")
        if alone not in answers:
            answers[alone] = generate_with(decoder_of(alone))
        return answers[alone]

    return answer


def generate_with(decoder: RankDecoder) -> list[Result]:
    session = DecoderSession(decoder, KvCacheLimit(max_tokens=512))
    return generate(session, [Request(p, NEW_TOKENS, return_generation_logits=True) for p in PROMPTS])


def with_dequantized_shards(model: OPTForCausalLM, decoder: RankDecoder, precision: str) -> OPTForCausalLM:
    """The model with each linear replaced by what the integers of its shards stand for; q, k and v are cut alone."""
    config, mode = decoder.config, MODES[precision]
    tp_size = config.mapping.tp_size
    splits = {name: place.split.dim for name, place in placements(config).items() if is_linear(name)}
    sites = {"self_attn.q_proj": "attention.qkv", "self_attn.k_proj": "attention.qkv", "self_attn.v_proj":
             "attention.qkv", "self_attn.out_proj": "attention.dense", "fc1": "mlp.fc", "fc2": "mlp.proj"}  # fmt: skip
    for index, layer in enumerate(model.model.decoder.layers):
        for name, site in sites.items():
            weight, dim = layer.get_submodule(name).weight, splits[f"transformer.layers.{index}.{site}.weight"]
            shards = [mode.dequantize(*mode.quantize(shard.contiguous())) for shard in weight.chunk(tp_size, dim)]
            weight.data.copy_(torch.cat(shards, dim))
    return model


def check(case: Case, decoder: RankDecoder, expected: Iterator[tuple[list[int], torch.Tensor]]) -> None:
    for result, (ids, logits) in zip(generate_with(decoder), expected, strict=True):
        assert list(result.output_ids) == ids
        assert (result.generation_logits - logits).abs().max() < TOLERANCE[case.precision]


def run_case(
    case: Case, decoder: RankDecoder, single: Callable[[Case], list[Result]], model_dir: Callable[[str], Path]
) -> None:
    """Plain weights against the single rank, quantized ones, whose scales are per shard, against transformers."""
    if case.precision not in MODES:
        check(case, decoder, ((list(r.output_ids), r.generation_logits) for r in single(case)))
        return
    model = OPTForCausalLM.from_pretrained(model_dir(case.kind), dtype=torch.float32).requires_grad_(False)
    model = with_dequantized_shards(model, decoder, case.precision)
    check(case, decoder, (greedy(model, prompt) for prompt in PROMPTS))


def greedy(model: OPTForCausalLM, prompt: tuple[int, ...]) -> tuple[list[int], torch.Tensor]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 :]
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :], logits


def test_the_cases_hold_every_pair_of_values() -> None:
    plain = [case for case in PAIRWISE if case.kind != "projections"]
    values = (("pre-norm", "post-norm"), PRECISIONS, (2, 4), (1, 2), SHARDINGS)
    for a, b in combinations(range(len(values)), 2):
        missing = set(product(values[a], values[b])) - {(case[a], case[b]) for case in plain}
        assert not missing, (a, b, missing)


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_ranks_together_answer_as_one(case, decoder_of, single_rank, model_dir):
    run_case(case, decoder_of(case), single_rank, model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in GRID if case not in PAIRWISE], ids=str)
def test_ranks_of_the_whole_grid_answer_as_one(case, decoder_of, single_rank, model_dir):
    run_case(case, decoder_of(case), single_rank, model_dir)


def test_stages_of_any_length_answer_as_one(model_dir, single_rank, tmp_path):
    flags = {"dtype": "float32", "pp_size": 2, "pp_layers": (1, 2), "log_level": "warning"}
    convert(ConvertConfig(model_dir=str(model_dir("pre-norm")), output_dir=str(tmp_path / "c"), **flags))
    case, decoder = Case("pre-norm", "float32", 1, 2, "off"), RankDecoder(tmp_path / "c")
    assert [len(rank.layers) for rank in decoder.ranks] == [1, 2]
    run_case(case, decoder, single_rank, model_dir)


@pytest.mark.parametrize(("sharding", "at_the_tables"), [("off", 0), ("0", 1), ("1", 1)])
def test_a_step_takes_two_collectives_a_layer_and_one_at_the_head(sharding, at_the_tables, decoder_of):
    decoder = decoder_of(Case("pre-norm", "float32", 2, 1, sharding))
    generate(DecoderSession(decoder, KvCacheLimit(max_tokens=64)), [Request((5, 6, 7), 1)])
    assert decoder.groups[0].exchanged == [2 * 3 + at_the_tables + 1] * 2


@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize(("tp_size", "sharding"), [(1, "off"), (2, "0"), (4, "off")])
def test_a_quantized_head_is_the_same_on_any_number_of_ranks(precision, tp_size, sharding, model_dir, tmp_path):
    """A scale belongs to a token, so cutting by tokens changes nothing; 131 tokens leave padded rows."""
    case = Case("pre-norm", "float32", tp_size, 1, sharding)
    decoder = RankDecoder(convert_case(case, model_dir(case.kind), tmp_path / "c"), precision)
    model = OPTForCausalLM.from_pretrained(model_dir(case.kind), dtype=torch.float32).requires_grad_(False)
    head = MODES[precision].dequantize(*MODES[precision].quantize(model.lm_head.weight))
    model.lm_head.weight = torch.nn.Parameter(head, False)  # the embedding keeps its own
    check(case, decoder, (greedy(model, prompt) for prompt in PROMPTS))


def test_one_rank_exchanges_nothing(decoder_of):
    decoder = decoder_of(Case("pre-norm", "float32", 1, 2, "off"))
    generate(DecoderSession(decoder, KvCacheLimit(max_tokens=64)), [Request((5, 6, 7), 1)])
    assert [group.exchanged for group in decoder.groups] == [[0], [0]]


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_a_rank_holds_its_part_of_the_bytes(precision, decoder_of):
    def linear_bytes(tp_size):
        rank = decoder_of(Case("pre-norm", precision, tp_size, 1, "off")).ranks[0]
        return sum(tensor.nbytes for name, tensor in rank.weights.items() if is_linear(name))

    whole = linear_bytes(1)
    assert [whole // linear_bytes(tp_size) for tp_size in (2, 4)] == [2, 4]


SAMPLING = {  # what a request asks for beside its next token, or of it
    "greedy": {},
    "drawn": {"sampling": Sampling(top_k=5)},
    "log-probs": {"sampling": Sampling(log_probs=1)},
    "penalized": {"sampling": Sampling(repetition_penalty=1.5)},
    "beams": {"sampling": Sampling(num_beams=2)},
    "logits": {"return_generation_logits": True},
}


@pytest.mark.parametrize("asked", SAMPLING)
@pytest.mark.parametrize(("tp_size", "part"), [(2, 66), (4, 33)])
def test_ranks_exchange_eight_bytes_a_row_where_only_the_largest_logit_matters(asked, tp_size, part, decoder_of):
    decoder = decoder_of(Case("pre-norm", "float32", tp_size, 1, "off"))
    requests = [Request((5, 6, 7), 1), Request((9,), 1, **SAMPLING[asked])]
    generate(DecoderSession(decoder, KvCacheLimit(max_tokens=512)), requests)
    newest = decoder.groups[0].newest
    assert (newest.nbytes, list(newest.shape)) == ((16, [2, 2]) if asked == "greedy" else (8 * part, [2, part]))


@pytest.mark.parametrize(
    "case", [Case("pre-norm", "float32", 4, 1, "off"), Case("post-norm", "int8", 2, 2, "0")], ids=str
)
def test_ids_of_the_largest_logits_are_those_of_all_logits(case, decoder_of):
    session = DecoderSession(decoder_of(case), KvCacheLimit(max_tokens=512))
    whole = generate(session, [Request(p, NEW_TOKENS, return_generation_logits=True) for p in PROMPTS])
    few = generate(session, [Request(p, NEW_TOKENS) for p in PROMPTS])
    assert [result.output_ids for result in few] == [result.output_ids for result in whole]
