"""Beam search finds what transformers' finds, over a paged KV cache whose blocks beams share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM

from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.sampling.beam import BeamSearch
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.stopping import StopWords
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._beams import EARLY_STOPPING, Ids, assert_equal, transformers_beams
from tests.unit._decoders import SPEC, SumDecoder, expected_output, spec
from tests.unit._reference_decoder import VOCAB_SIZE, ReferenceDecoder, random_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[OPTForCausalLM, ReferenceDecoder]]:
    """A kind of model, in transformers and as a decoder."""
    made: dict[str, tuple[OPTForCausalLM, ReferenceDecoder]] = {}

    def make(kind: str) -> tuple[OPTForCausalLM, ReferenceDecoder]:
        if kind not in made:
            directory = random_model(kind, tmp_path_factory.mktemp(kind))
            oracle = OPTForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
            made[kind] = oracle, ReferenceDecoder(directory, tmp_path_factory.mktemp("work") / "checkpoint")
        return made[kind]

    return make


def random_prompts(lengths: Sequence[int], seed: int) -> list[Ids]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist()) for n in lengths]


@pytest.mark.parametrize(("kind", "widths"), [("pre-norm", (2, 4, 6, 8)), ("post-norm", (3, 5, 7))])
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [-0.5, 1.0, 2.0])
def test_all_beams_of_a_ragged_batch_equal_transformers(models, kind, widths, early_stopping, length_penalty) -> None:
    oracle, decoder = models(kind)
    requests = []
    prompts = random_prompts((1, 30, 9, 4)[: len(widths)], seed=early_stopping)
    for width, prompt in zip(widths, prompts, strict=True):
        greedy = generate(DecoderSession(decoder, KvCacheLimit()), [Request(prompt, 3)])[0]
        sampling = Sampling(num_beams=width, length_penalty=length_penalty, early_stopping=early_stopping)
        requests.append(Request(prompt, 9, greedy.output_ids[-1], sampling=sampling))
    of = DecoderSession(decoder, KvCacheLimit())
    for request, result in zip(requests, generate(of, requests), strict=True):
        assert_equal(result, transformers_beams(oracle, request))
        assert result.output_ids == result.beams[0].output_ids
    assert of._pool.num_free == of._pool.num_blocks


def test_beams_of_the_demo_model_equal_transformers(tmp_path) -> None:
    directory = Path(__file__).parents[4] / "examples/demo/model"
    oracle = OPTForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    of = DecoderSession(ReferenceDecoder(directory, tmp_path / "checkpoint"), KvCacheLimit())
    tokenizer = load_tokenizer(directory)
    texts = ("The mayor opened a bridge", "A storm", "The team that won the cup last year")
    requests = [
        Request(tokenizer.encode(text, 30), 24, tokenizer.eos_id, sampling=Sampling(num_beams=width))
        for text, width in zip(texts, (2, 4, 8), strict=True)
    ]
    for request, result in zip(requests, generate(of, requests), strict=True):
        assert_equal(result, transformers_beams(oracle, request))


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"min_length": 6}],
    ids=lambda o: next(iter(o)),
)
def test_penalties_act_on_every_beam_as_transformers_do(models, options) -> None:
    oracle, decoder = models("pre-norm")
    [prompt] = random_prompts((6,), seed=1)
    end_id = generate(DecoderSession(decoder, KvCacheLimit()), [Request(prompt, 2)])[0].output_ids[-1]
    request = Request(prompt, 10, end_id, sampling=Sampling(num_beams=4, **options))
    [result] = generate(DecoderSession(decoder, KvCacheLimit()), [request])
    assert_equal(result, transformers_beams(oracle, request))


def test_log_probabilities_of_a_beam_sum_up_to_its_score(models) -> None:
    _, decoder = models("pre-norm")
    sampling = Sampling(num_beams=3, length_penalty=0.0, log_probs=2)
    [result] = generate(DecoderSession(decoder, KvCacheLimit()), [Request((5, 6), 7, sampling=sampling)])
    for beam in result.beams:
        assert beam.cum_log_prob == pytest.approx(beam.score, abs=1e-5)  # the same numbers, added up in fp32
        assert all(len(token.top) == 2 for token in beam.log_probs)


def diverse_oracle(steps: list[torch.Tensor], width: int, rate: float) -> list[tuple[Ids, float]]:
    """Beams by the definition in `BeamSearch`, for log-probabilities that depend on the place in the output only."""
    beams: list[tuple[Ids, float]] = [((), 0.0)]
    for log_probs in steps:
        candidates = [
            (score + log_probs[token].item() + rate * place, (*ids, token), score + log_probs[token].item())
            for place, (ids, score) in enumerate(beams)
            for token in range(len(log_probs))
        ]
        best = sorted(candidates, key=lambda c: -c[0])[: 2 * width]
        beams = [(ids, score) for _, ids, score in best[:width]]
    return sorted(beams, key=lambda b: -b[1])


@pytest.mark.parametrize("rate", [-0.7, 0.0, 0.4, 3.0])
def test_diversity_ranks_candidates_by_the_place_of_the_beam_they_extend(rate: float) -> None:
    torch.manual_seed(4)
    steps = [torch.randn(11).log_softmax(-1) for _ in range(5)]
    sampling = Sampling(num_beams=3, length_penalty=0.0, beam_search_diversity_rate=rate)
    leader = TokenSequence(0, Request((5,), 5, sampling=sampling))
    search, beams = BeamSearch(leader), [leader]
    for log_probs in steps:
        beams = search.advance(log_probs.expand(len(beams), -1), beams)
    found = [(h.sequence.output_ids, h.score) for h in search.finished]
    expected = diverse_oracle(steps, 3, rate)
    assert [tuple(ids) for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_beams_share_what_the_prompt_fills_and_copy_only_the_last_block() -> None:
    of = DecoderSession(SumDecoder(spec(max_batch_size=3)), KvCacheLimit())
    generate(of, [Request((1, 2, 3, 4, 5, 6), 5, sampling=Sampling(num_beams=3))])
    steps = of.executor.decoder.steps  # type: ignore[attr-defined]
    assert [inputs.kv_lens.tolist() for inputs in steps] == [[6], [7] * 3, [8] * 3, [9] * 3, [10] * 3]
    assert all(inputs.block_tables[:, 0].tolist() == [0] * 3 for inputs in steps[1:])
    assert all(len(set(inputs.block_tables[:, 1].tolist())) == 3 for inputs in steps[1:3])  # being written to
    assert max(inputs.block_tables.max().item() for inputs in steps) < Request((1,) * 6, 5).max_blocks(4) * 3 - 2


SEARCHES = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 15), min_size=1, max_size=16).map(tuple),
        st.integers(1, 8),
        st.sampled_from([None, 0, 2]),
        sampling=st.sampled_from([Sampling()] + [Sampling(num_beams=n) for n in (2, 3, 4)]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=40)  # the machine may be busy
@given(SEARCHES, st.integers(72, 96), st.integers(4, 32), st.sampled_from(POLICIES), st.booleans())
def test_beams_do_not_depend_on_what_runs_beside(
    requests: list[Request], max_tokens: int, max_num_tokens: int, policy: str, reuse: bool
) -> None:
    """A beam's keys are read back from the cache: a block wrongly shared or not copied gives wrong sums."""
    alone = [generate(DecoderSession(SumDecoder(SPEC), KvCacheLimit()), [r])[0] for r in requests]
    decoder = SumDecoder(replace(SPEC, max_num_tokens=max_num_tokens))
    of = DecoderSession(decoder, KvCacheLimit(max_tokens), Scheduling(policy, 5, reuse))
    for _ in range(1 + reuse):
        results = generate(of, requests)
        assert [beams_of(r) for r in results] == [beams_of(r) for r in alone]
        assert of._pool.num_free == of._pool.num_blocks
    for request, result in zip(requests, results, strict=True):
        if request.sampling.num_beams == 1:
            assert result.output_ids == expected_output(request.prompt_ids, request.max_new_tokens, request.end_id)


def beams_of(result: Result) -> list[tuple[Ids, float | None]]:
    return [(beam.output_ids, beam.score) for beam in result.beams or (result,)]


BEAMS = Sampling(num_beams=3)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request((1,), 1, sampling=Sampling(num_beams=5)), "5 beams.*the engine takes 4;.*--max_batch_size"),
        (Request((1,) * 3, 9, sampling=BEAMS), "= 12 of 3 beams, the whole KV cache holds 32"),
        (Request((1,), 1, return_generation_logits=True, sampling=BEAMS), "beams and for generation logits"),
        (Request((1,), 1, sampling=BEAMS, stop_words=StopWords(ids=((3,),))), "beams and for stop words"),
    ],
)
def test_a_search_that_does_not_fit_is_named(request_: Request, says: str) -> None:
    of = DecoderSession(SumDecoder(spec(gather_generation_logits=True)), KvCacheLimit(max_tokens=32))
    with pytest.raises(UserError, match=says):
        generate(of, [request_])


def test_beams_are_not_streamed() -> None:
    with pytest.raises(UserError, match="beams change until the last token"):
        stream(DecoderSession(SumDecoder(), KvCacheLimit()), [Request((1,), 1, sampling=BEAMS)])


def test_a_search_in_which_every_token_is_banned_is_named() -> None:
    banned = Sampling(num_beams=2, bad_words=tuple((i,) for i in range(16)))
    with pytest.raises(UserError, match="prompt 0 has no token left to choose after 0 new ones; relax bad_words"):
        generate(DecoderSession(SumDecoder(), KvCacheLimit()), [Request((1,), 1, sampling=banned)])


def test_a_search_without_tokens_fails_alone_in_the_middle_of_its_batch() -> None:
    once = Sampling(num_beams=2, no_repeat_ngram_size=1, bad_words=tuple((i,) for i in range(4, 16)))
    of = DecoderSession(SumDecoder(), KvCacheLimit())
    search, other = TokenSequence(0, Request((1,), 8, sampling=once)), TokenSequence(1, Request((1, 3), 6))
    for sequence in (search, other):
        of.in_flight.submit(sequence)
    while other.finish_reason is None:
        of.in_flight.step()
    assert (search.finish_reason, other.finish_reason) == ("failed", "length")
    assert str(search.error).startswith("prompt 0 has no token left to choose after 3 new ones; relax")
    assert tuple(other.output_ids) == expected_output((1, 3), 6)
    assert of._pool.num_free == of._pool.num_blocks


def test_the_prompts_logits_come_with_the_best_beam_alone() -> None:
    of = DecoderSession(SumDecoder(spec(gather_context_logits=True)), KvCacheLimit())
    (result,) = generate(of, [Request((1, 2), 3, return_context_logits=True, sampling=BEAMS)])
    assert [beam.context_logits is None for beam in result.beams] == [False, True, True]
    assert result.context_logits is result.beams[0].context_logits


def test_cancelling_takes_all_beams_back() -> None:
    of = DecoderSession(SumDecoder(), KvCacheLimit())
    leader = TokenSequence(0, Request((1, 2, 3), 8, sampling=BEAMS))
    of.in_flight.submit(leader)
    for _ in range(3):
        of.in_flight.step()
    of.in_flight.cancel(leader)
    assert (of._pool.num_free, of.in_flight._scheduler.running) == (of._pool.num_blocks, [])
    assert leader.finish_reason == "cancelled"


@pytest.mark.parametrize("early_stopping", [0, 1, 2])
def test_several_end_ids_end_beams_as_in_transformers(models, early_stopping: int) -> None:
    oracle, decoder = models("pre-norm")
    for width, prompt in zip((2, 3, 4), random_prompts((4, 7, 5), seed=3), strict=True):
        of = DecoderSession(decoder, KvCacheLimit())
        beams = generate(of, [Request(prompt, 5, sampling=Sampling(num_beams=width))])[0].beams
        ends = tuple(dict.fromkeys(i for beam in beams for i in beam.output_ids[2:]))
        assert len(ends) > 1
        request = Request(prompt, 9, sampling=Sampling(num_beams=width, early_stopping=early_stopping))
        request = request.ending_at(ends)
        assert_equal(generate(of, [request])[0], transformers_beams(oracle, request))
