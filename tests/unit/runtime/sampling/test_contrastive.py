"""Contrastive search finds what its definition finds, a row a candidate over a paged KV cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM

import opt_trt
from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.stopping import StopWords
from opt_trt.step import StepInputs, StepOutputs
from opt_trt.text.tokenizer import load_tokenizer
from tests.unit._contrastive import assert_same_or_tie, contrastive_search, forward
from tests.unit._decoders import SPEC, SumDecoder, expected_output, spec
from tests.unit._llms import sums
from tests.unit._reference_decoder import KINDS, VOCAB_SIZE, ReferenceDecoder, random_model

Model = tuple[OPTForCausalLM, ReferenceDecoder]
OTHERS = (Sampling(), Sampling(num_beams=3), Sampling(top_k=0, top_p=0.9))
MIXED = [(0.6, 4), (0.4, 2), (0.8, 8), (1.0, 3)]  # alpha, k


def contrastive(alpha: float = 0.6, k: int = 4, **more: object) -> Sampling:
    return Sampling(penalty_alpha=alpha, top_k=k, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A kind of model, in transformers and as a decoder."""
    made: dict[str, Model] = {}

    def make(kind: str) -> Model:
        if kind not in made:
            directory = random_model(kind, tmp_path_factory.mktemp("model"))
            oracle = OPTForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
            made[kind] = oracle, ReferenceDecoder(directory, tmp_path_factory.mktemp("work") / "checkpoint")
        return made[kind]

    return make


def random_prompts(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist()) for n in lengths]


def session(
    decoder: SumDecoder | ReferenceDecoder, max_tokens: int | None = None, scheduling: Scheduling | None = None
) -> DecoderSession:
    return DecoderSession(decoder, KvCacheLimit(max_tokens), scheduling)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_ragged_batch_equal_the_definition_among_other_requests(models, kind) -> None:
    oracle, decoder = models(kind)
    varied = {"no_repeat_ngram_size": 2}  # the post-norm models repeat themselves
    requests = [
        Request(prompt, 12, sampling=contrastive(alpha, k, **varied))
        for (alpha, k), prompt in zip(MIXED, random_prompts((1, 20, 7, 33)), strict=True)
    ]
    others = [Request(prompt, 15, sampling=s) for s, prompt in zip(OTHERS, random_prompts((9, 30, 2)), strict=True)]
    of = session(decoder, scheduling=Scheduling("max_utilization", context_chunk_size=5))
    results = generate(of, [*others, *requests])
    for request, result in zip(requests, results[len(others) :], strict=True):
        assert_same_or_tie(result.output_ids, contrastive_search(oracle, request))
    assert [r.output_ids for r in results[: len(others)]] == [
        generate(session(decoder), [r])[0].output_ids for r in others
    ]
    greedy = generate(of, [replace(request, sampling=Sampling(**varied)) for request in requests])
    assert any(a.output_ids != b.output_ids for a, b in zip(results[len(others) :], greedy, strict=True))
    assert of._pool.num_free == of._pool.num_blocks


def test_ids_of_the_demo_model_equal_the_definition(tmp_path) -> None:
    directory = Path(__file__).parents[4] / "examples/demo/model"
    oracle = OPTForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    of = session(ReferenceDecoder(directory, tmp_path / "checkpoint"))
    tokenizer = load_tokenizer(directory)
    requests = [
        Request(tokenizer.encode(text, 30), 16, tokenizer.eos_id, sampling=contrastive(alpha, k))
        for text, (alpha, k) in zip(("The mayor opened a bridge", "A storm", "The team"), MIXED, strict=False)
    ]
    for request, result in zip(requests, generate(of, requests), strict=True):
        assert_same_or_tie(result.output_ids, contrastive_search(oracle, request))


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"min_length": 6}, {"bad_words": ((21,), (55, 6))}],
    ids=lambda o: next(iter(o)),
)
def test_penalties_and_bans_act_on_the_candidates(models, options) -> None:
    oracle, decoder = models("pre-norm")
    [prompt] = random_prompts((6,))
    plain = generate(session(decoder), [Request(prompt, 10, sampling=contrastive())])[0].output_ids
    request = Request(prompt, 10, plain[3] if "min_length" in options else None, sampling=contrastive(**options))
    [result] = generate(session(decoder), [request])
    assert_same_or_tie(result.output_ids, contrastive_search(oracle, request))
    assert result.output_ids != plain


def test_the_end_id_is_the_last_new_token(models) -> None:
    _, decoder = models("pre-norm")
    whole = generate(session(decoder), [Request((5, 6), 9, sampling=contrastive())])[0].output_ids
    [result] = generate(session(decoder), [Request((5, 6), 9, whole[4], sampling=contrastive())])
    assert (result.output_ids, result.finish_reason) == (whole[: whole.index(whole[4]) + 1], "end_id")


def test_stop_words_end_the_output(models) -> None:
    _, decoder = models("pre-norm")
    request = Request((5, 6), 9, sampling=contrastive())
    whole = generate(session(decoder), [request])[0].output_ids
    [result] = generate(session(decoder), [replace(request, stop_words=StopWords(ids=(whole[1:3],)))])
    assert (result.output_ids, result.finish_reason) == (whole[:3], "stop_words")
    assert result.stop is not None and result.stop.word == whole[1:3]


def test_logits_and_log_probabilities_are_those_each_token_was_chosen_by(models) -> None:
    oracle, decoder = models("pre-norm")
    decoder.spec = replace(decoder.spec, gather_context_logits=True, gather_generation_logits=True)
    request = Request((5, 6, 7), 8, sampling=contrastive(log_probs=2))
    [result] = generate(session(decoder), [replace(request, return_context_logits=True, return_generation_logits=True)])
    logits = forward(oracle, [[*request.prompt_ids, *result.output_ids]])[0][0]
    assert torch.allclose(torch.cat((result.context_logits, result.generation_logits[1:])), logits[:-1], atol=1e-4)
    expected = logits[2:-1].log_softmax(-1)[range(8), result.output_ids]  # fp32 sums in another order, as above
    assert [token.log_prob for token in result.log_probs] == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(len(token.top) == 2 for token in result.log_probs)


class Reusing(SumDecoder):
    """Hidden states are valid until the next step."""

    hidden: torch.Tensor | None = None

    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        if self.hidden is not None:
            self.hidden.fill_(torch.nan)
        outputs = super().step(inputs, kv_cache)
        self.hidden = outputs.hidden
        return outputs


def test_a_prompt_may_come_in_chunks() -> None:
    request = Request(tuple(range(1, 15)), 6, sampling=contrastive())
    [whole] = generate(session(SumDecoder()), [request])
    for size in (4, 5, 7):
        [result] = generate(session(Reusing(spec(max_num_tokens=size))), [request])
        assert result.output_ids == whole.output_ids


def test_candidates_share_all_blocks_but_the_last() -> None:
    decoder = SumDecoder(spec(max_batch_size=3))
    generate(session(decoder), [Request((1, 2, 3, 4, 5, 6), 4, sampling=contrastive(k=3))])
    assert [inputs.kv_lens.tolist() for inputs in decoder.steps] == [[6], [7] * 3, [8] * 3, [9] * 3, [10] * 3]
    assert [inputs.hidden_token_ids.tolist() for inputs in decoder.steps] == [[*range(6)]] + [[0, 1, 2]] * 4
    for inputs in decoder.steps[1:]:
        *shared, last = inputs.block_tables.T.tolist()
        assert all(len(set(column)) == 1 for column in shared) and len(set(last)) == 3


def test_the_blocks_it_may_need_are_enough_and_no_more() -> None:
    request = Request((1, 2, 3, 4, 5, 6), 7, sampling=contrastive(k=3))  # 13 tokens: 3 full blocks and one each
    assert request.max_blocks(SPEC.tokens_per_block) == 3 + 3
    [result] = generate(session(SumDecoder(), max_tokens=6 * 4), [request])
    assert len(result.output_ids) == 7
    with pytest.raises(UserError, match="= 13 of 3 candidates, the whole KV cache holds 20"):
        generate(session(SumDecoder(), max_tokens=5 * 4), [request])


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_given_the_blocks_a_search_will_ask_for(policy: str) -> None:
    search, other = Request((1,) * 4, 8, sampling=contrastive(k=2)), Request((1,) * 8, 12)
    assert [request.max_blocks(SPEC.tokens_per_block) for request in (search, other)] == [4, 5]
    decoder = SumDecoder()
    results = generate(session(decoder, max_tokens=8 * 4, scheduling=Scheduling(policy)), [search, other])
    alone = [generate(session(SumDecoder()), [request])[0] for request in (search, other)]
    assert [result.output_ids for result in results] == [result.output_ids for result in alone]
    together = [inputs for inputs in decoder.steps if inputs.kv_lens.shape[0] > 2]
    assert bool(together) == (policy == "max_utilization")  # the other one would have to wait for its blocks


SEARCHES = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 15), min_size=1, max_size=16).map(tuple),
        st.integers(1, 8),
        st.sampled_from([None, 0, 2]),
        sampling=st.sampled_from([contrastive(0.5, 2), contrastive(0.9, 3), contrastive(1.0, 4), *OTHERS]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=40)  # the machine may be busy
@given(SEARCHES, st.integers(48, 96), st.integers(4, 32), st.sampled_from(POLICIES), st.booleans())
def test_tokens_do_not_depend_on_what_runs_beside(
    requests: list[Request], max_tokens: int, max_num_tokens: int, policy: str, reuse: bool
) -> None:
    """A candidate's hidden state is read back from the cache: a block wrongly shared or not copied changes it."""
    alone = [output(generate(session(SumDecoder()), [r])[0]) for r in requests]
    of = session(Reusing(spec(max_num_tokens=max_num_tokens)), max_tokens, Scheduling(policy, 5, reuse))
    for _ in range(1 + reuse):
        assert [output(result) for result in generate(of, requests)] == alone
        assert of._pool.num_free == of._pool.num_blocks


@settings(deadline=None, max_examples=40)
@given(SEARCHES, st.sampled_from(POLICIES), st.data())
def test_arrivals_and_cancellations_leak_no_block_and_change_no_other_request(
    requests: list[Request], policy: str, data: st.DataObject
) -> None:
    streamed = [request for request in requests if request.sampling.num_beams == 1]
    of = session(SumDecoder(), 96, Scheduling(policy, 3))
    streams = {number: stream(of, [request]) for number, request in enumerate(streamed)}
    outputs: dict[int, list[int]] = {number: [] for number in streams}
    while streams:
        number = data.draw(st.sampled_from(sorted(streams)))
        event = None if data.draw(st.integers(0, 9)) == 9 else next(streams[number], None)
        if event is None:
            streams.pop(number).close()
        else:
            outputs[number].append(event.token_id)
    for number, request in enumerate(streamed):
        [whole] = output(generate(session(SumDecoder()), [request])[0])
        assert tuple(outputs[number]) == whole[: len(outputs[number])]
    assert of._pool.num_free == of._pool.num_blocks


def output(result: Result) -> list[tuple[int, ...]]:
    return [beam.output_ids for beam in result.beams or (result,)]


def test_a_stream_has_each_token_a_step_after_its_candidates() -> None:
    request = Request((1, 3), 5, sampling=contrastive(k=2))
    [result] = generate(session(SumDecoder()), [request])
    decoder = SumDecoder()
    came = [(event.token_id, len(decoder.steps)) for event in stream(session(decoder), [request])]
    assert came == list(zip(result.output_ids, range(2, 7), strict=True))


def test_it_goes_through_the_python_api_streamed_or_not() -> None:
    params = opt_trt.SamplingParams(penalty_alpha=0.6, top_k=3, max_tokens=5, logprobs=0)
    [expected] = generate(session(SumDecoder()), [Request((1, 3), 5, SPEC.end_id, sampling=contrastive(k=3))])

    async def stream(llm: opt_trt.LLM) -> list[list[int]]:
        return [list(one.outputs[0].token_ids_diff) async for one in llm.generate_async([1, 3], params)]

    with sums() as llm:
        [whole] = llm.generate([[1, 3]], params)
        assert tuple(whole.outputs[0].token_ids) == expected.output_ids
        assert tuple(token for part in asyncio.run(stream(llm)) for token in part) == expected.output_ids


def test_a_banned_token_never_is_the_best_candidate() -> None:
    few = contrastive(1.0, 4, bad_words=tuple((i,) for i in range(16) if i not in (3, 8)))
    [result] = generate(session(SumDecoder()), [Request((1,), 8, sampling=few)])
    assert set(result.output_ids) <= {3, 8}


def test_a_search_without_tokens_fails_alone_in_the_middle_of_its_batch() -> None:
    once = contrastive(k=2, no_repeat_ngram_size=1, bad_words=tuple((i,) for i in range(4, 16)))
    of = session(SumDecoder())
    search, other = TokenSequence(0, Request((1,), 8, sampling=once)), TokenSequence(1, Request((1, 3), 6))
    for sequence in (search, other):
        of.in_flight.submit(sequence)
    while other.finish_reason is None:
        of.in_flight.step()
    assert (search.finish_reason, other.finish_reason) == ("failed", "length")
    assert str(search.error).startswith("prompt 0 has no token left to choose after 3 new ones; relax")
    assert tuple(other.output_ids) == expected_output((1, 3), 6)
    assert of._pool.num_free == of._pool.num_blocks
    with pytest.raises(UserError, match="no token left to choose after 3 new ones"):
        list(stream(of, [search.request]))


@pytest.mark.parametrize("steps", [1, 3])
def test_cancelling_takes_all_candidates_back(steps: int) -> None:
    of = session(SumDecoder(spec(max_num_tokens=5)))
    leader = TokenSequence(0, Request((1,) * 8, 8, sampling=contrastive(k=3)))
    of.in_flight.submit(leader)
    for _ in range(steps):
        of.in_flight.step()
    of.in_flight.cancel(leader)
    assert (of._pool.num_free, of.in_flight._scheduler.running) == (of._pool.num_blocks, [])
    assert leader.finish_reason == "cancelled"


def test_more_candidates_than_the_batch_has_rows_are_named() -> None:
    with pytest.raises(UserError, match=r"asks for 5 candidates, .* the engine takes 4; lower --top_k or build"):
        generate(session(SumDecoder()), [Request((1,), 1, sampling=contrastive(k=5))])


def test_a_vocabulary_may_have_fewer_tokens_than_candidates() -> None:
    of = session(SumDecoder(spec(vocab_size=3, max_batch_size=5)))
    [result] = generate(of, [Request((1, 2), 4, sampling=contrastive(k=5))])
    assert len(result.output_ids) == 4
