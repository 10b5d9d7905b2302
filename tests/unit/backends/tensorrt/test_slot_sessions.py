"""A session over an engine's network says what transformers says: the whole way but for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
from transformers import OPTForCausalLM

from opt_trt.backends.tensorrt.slot_decoder import SlotDecoder
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._beams import assert_equal, transformers_beams
from tests.unit._contrastive import assert_same_or_tie, contrastive_search
from tests.unit._reference_decoder import ReferenceDecoder
from tests.unit.backends.tensorrt._networks import (
    make_checkpoint,
    needs_library,
    reference_logits,
    reference_model,
    save_model,
)
from tests.unit.backends.tensorrt._slot_sessions import (
    NORMS,
    TOLERANCE,
    WHOLE,
    assert_close,
    interpreted_decoder,
    prompts,
    slot_session,
)

pytestmark = needs_library

WEIGHTS = (None, "int8", "int4")
SAMPLED = {
    ("pre-norm", "float32", None), ("projected", "float16", None), ("post-norm", "bfloat16", "int8"),
    ("pre-norm", "float16", "int4"), ("projected", "float32", "int8"),
}  # fmt: skip
GRID = [
    pytest.param(*case, marks=() if case in SAMPLED else pytest.mark.slow)
    for case in product(NORMS, TOLERANCE, WEIGHTS)
]
NEW_TOKENS = 12


@dataclass(frozen=True)
class Model:
    """A model in transformers, and as an engine's network."""

    oracle: OPTForCausalLM
    decoder: SlotDecoder
    directory: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Models by norm, type and weights, made once."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def make(norm: str, dtype: str = "float32", weights: str | None = None) -> Model:
        if (norm, dtype, weights) not in made:
            directory = root / norm
            if not directory.exists():
                save_model(directory, **NORMS[norm])
            checkpoint = make_checkpoint(directory, root / f"{norm}-{dtype}-{weights}", dtype, weights)
            oracle = reference_model(directory, dtype, weights)
            made[norm, dtype, weights] = Model(oracle, interpreted_decoder(checkpoint), directory)
        return made[norm, dtype, weights]

    return make


@pytest.mark.parametrize(("norm", "dtype", "weights"), GRID)
def test_ids_and_logits_equal_those_of_transformers(models, norm, dtype, weights) -> None:
    """Seven ragged prompts on five slots: some wait, slots are reused, chunks of 7 run beside generation."""
    model = models(norm, dtype, weights)
    of = slot_session(model.decoder, scheduling=Scheduling(context_chunk_size=7))
    results = generate(of, [Request(prompt, NEW_TOKENS, **WHOLE) for prompt in prompts()])
    for result in results:
        assert_close(result, model.oracle, TOLERANCE[dtype])
    greedy = generate(of, [Request(prompt, NEW_TOKENS) for prompt in prompts()])  # tokens chosen where logits lie
    assert [result.output_ids for result in greedy] == [result.output_ids for result in results]


@pytest.mark.parametrize("norm", NORMS)
def test_all_beams_equal_those_of_transformers(models, norm) -> None:
    model = models(norm)
    requests = [
        Request(prompt, 10, end_id=7, sampling=Sampling(num_beams=width, length_penalty=penalty))
        for prompt, width, penalty in zip(prompts((9, 30, 2)), (2, 5, 3), (1.0, 0.5, 2.0), strict=True)
    ]
    among = [Request(prompt, 12) for prompt in prompts((4, 21))]
    results = generate(slot_session(model.decoder, scheduling=Scheduling(context_chunk_size=5)), [*requests, *among])
    for request, result in zip(requests, results, strict=False):
        assert_equal(result, transformers_beams(model.oracle, request))
    alone = generate(slot_session(model.decoder), among)
    assert [r.output_ids for r in results[len(requests) :]] == [r.output_ids for r in alone]


@pytest.mark.parametrize("norm", NORMS)
def test_contrastive_search_equals_its_definition(models, norm) -> None:
    model = models(norm)
    requests = [
        Request(prompt, 10, sampling=Sampling(penalty_alpha=alpha, top_k=k, no_repeat_ngram_size=2))
        for prompt, alpha, k in zip(prompts((1, 20, 33)), (0.6, 0.4, 0.8), (4, 2, 5), strict=True)
    ]
    others = [Request(prompt, 15) for prompt in prompts((9, 2))]
    of = slot_session(model.decoder, scheduling=Scheduling("max_utilization", context_chunk_size=5))
    for request, result in zip(requests, generate(of, [*requests, *others]), strict=False):
        assert_same_or_tie(result.output_ids, contrastive_search(model.oracle, request))


@pytest.mark.parametrize("draws", [True, False])
def test_a_seed_gives_the_tokens_of_an_embedded_engine(models, draws, tmp_path) -> None:
    """Tokens are drawn where logits lie, or by the session from whole logits; the embedded engine is the reference."""
    model = models("pre-norm")
    decoder = SlotDecoder(replace(model.decoder.spec, draws=draws), model.decoder._run)
    rules = ({"top_k": 0, "top_p": 1.0}, {"top_k": 9, "temperature": 0.7}, {"top_k": 0, "top_p": 0.8, "min_p": 0.02})
    changed = {"repetition_penalty": 1.3, "top_k": 5, "temperature": 1.5}
    requests = [
        Request(prompt, 9, sampling=replace(GREEDY, random_seed=seed, **rule))
        for seed, (prompt, rule) in enumerate(zip(prompts(), [*rules, *rules, changed], strict=True))
    ]
    embedded = DecoderSession(ReferenceDecoder(model.directory, tmp_path / "work"), KvCacheLimit())
    expected = [result.output_ids for result in generate(embedded, requests)]
    for group in (requests, requests[:6]):  # without the penalty, all tokens of a step may be drawn by the decoder
        found = [result.output_ids for result in generate(slot_session(decoder), group)]
        assert found == expected[: len(found)]
    assert len({ids for ids in expected}) == len(requests)


def test_streams_come_and_go_while_others_run(models) -> None:
    model = models("projected")
    of = slot_session(model.decoder, max_tokens=120)  # two slots
    alone = [generate(of, [Request(prompt, 10)])[0].output_ids for prompt in prompts()]
    first = stream(of, [Request(prompt, 10) for prompt in prompts()[:3]])
    events = [next(first) for _ in range(7)]
    first.cancel(0)
    second = stream(of, [Request(prompt, 10) for prompt in prompts()[3:]])
    events += list(first)
    for number, expected in enumerate(alone[:3]):
        ids = [event.token_id for event in events if event.index == number]
        assert ids == list(expected)[: len(ids)] and (number == 0 or len(ids) == 10)
    later = list(second)
    for number, expected in enumerate(alone[3:]):
        assert [event.token_id for event in later if event.index == number] == list(expected)


def test_log_probabilities_come_from_whole_logits(models) -> None:
    model = models("post-norm")
    [result] = generate(
        slot_session(model.decoder), [Request(*prompts((6,)), 5, sampling=replace(GREEDY, log_probs=3))]
    )
    expected = reference_logits(model.oracle, result.prompt_ids + result.output_ids).log_softmax(-1)
    for step, found in enumerate(result.log_probs):
        row = expected[len(result.prompt_ids) - 1 + step]
        assert found.log_prob == pytest.approx(row[result.output_ids[step]].item(), abs=1e-4)
