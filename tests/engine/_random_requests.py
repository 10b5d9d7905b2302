"""Random requests of every kind that arrive at and leave one session, and the answer to each of them alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request, Result
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from opt_trt.runtime.stopping import StopWords

TIE = 1e-4  # fp32 sums in another order differ by 1e-5 in logits, scores and probabilities of these models
SMALL_CACHE = KvCacheLimit(max_tokens=18 * 32)  # blocks of 32, of which the largest request takes 11
Options = dict[str, Any]
SEARCHES: tuple[Options, ...] = (
    {"num_beams": 2}, {"num_beams": 4, "length_penalty": 0.5, "early_stopping": 0},
    {"num_beams": 3, "early_stopping": 2}, {"num_beams": 2, "beam_search_diversity_rate": 0.5},
)  # fmt: skip
CHANCE: Options = {"top_k": 0, "top_p": 1.0}
# With these options a token differs only if two logits, scores or numbers are close; a cut by probability hides it.
TRACEABLE: tuple[Options, ...] = ({}, CHANCE, CHANCE | {"temperature": 0.7}, *SEARCHES)
WAYS: tuple[Options, ...] = (
    *TRACEABLE, {"top_k": 5}, {"top_k": 0, "top_p": 0.8, "temperature": 1.3}, {"top_k": 0, "min_p": 0.05},
    {"top_k": 40, "top_p": 0.9, "temperature": 0.9},
)  # fmt: skip
PENALTIES: tuple[Options, ...] = (
    {}, {"repetition_penalty": 1.4}, {"presence_penalty": 0.6, "frequency_penalty": 0.3}, {"no_repeat_ngram_size": 2},
    {"bad_words": ((7,), (8, 9)), "logit_bias": ((11, 2.0), (12, -math.inf))},
)  # fmt: skip


@dataclass(frozen=True)
class ArrivingRequest:
    """A request, the step before which it is submitted and, perhaps, the one before which it is cancelled."""

    request: Request
    arrival: int
    departure: int | None = None


@dataclass
class SharedRun:
    """The sequences of a session, and whether the KV cache ever had too little room for them."""

    sequences: list[TokenSequence]
    most_at_once: int = 0
    waited: bool = False
    started_over: bool = False

    def observe(self, in_flight: Sequence[TokenSequence], running: int) -> None:
        """Record a step."""
        self.most_at_once = max(self.most_at_once, running)
        self.waited |= any(not s.blocks and s.search is None and not s.output_ids for s in in_flight)
        self.started_over |= any(not s.blocks and s.output_ids for s in in_flight)


class Letters:
    """`TextPieces` in which each id is a letter."""

    pending = ""

    def push(self, ids: Sequence[int]) -> str:
        """See `TextPieces.push`."""
        return "".join(chr(ord("a") + i % 26) for i in ids)


def random_requests(
    seed: int, number: int = 64, ways: Sequence[Options] = WAYS, vocab: int = 131
) -> list[ArrivingRequest]:
    """Return random requests. Some begin alike, so that prefixes can be reused; a fifth are cancelled."""
    chance = random.Random(seed)
    beginning = chance.choices(range(3, vocab), k=64)
    made = []
    for _ in range(number):
        arrival = chance.randrange(number)
        departure = arrival + chance.randrange(1, 40) if chance.random() < 0.2 else None
        made.append(ArrivingRequest(_request(chance, beginning, ways, vocab), arrival, departure))
    return made


def _request(chance: random.Random, beginning: list[int], ways: Sequence[Options], vocab: int) -> Request:
    known = chance.choice((0, 0, 32, 50, 64))
    prompt = beginning[:known] + chance.choices(range(3, vocab), k=chance.randint(not known, 64 - known))
    new_tokens = chance.randint(1, 30)
    words = StopWords(((5, 6), (chance.randrange(3, vocab),)), ("ab", "q"), Letters)
    sampling = Sampling(
        random_seed=chance.randrange(2**32), log_probs=chance.choice((None, None, 2)),
        min_length=chance.choice((0, 0, new_tokens // 2)), **chance.choice(ways), **chance.choice(PENALTIES),
    )  # fmt: skip
    return Request(
        tuple(prompt), new_tokens, end_id=chance.choice((None, 2, chance.randrange(3, vocab))), sampling=sampling,
        stop_words=words if sampling.num_beams == 1 and chance.random() < 0.3 else None,
    )  # fmt: skip


def run_together(of: DecoderSession, arrivals: Sequence[ArrivingRequest]) -> SharedRun:
    """Submit and cancel requests before their steps, and run until all are finished."""
    run = SharedRun([TokenSequence(index, arriving.request) for index, arriving in enumerate(arrivals)])
    for step in count():
        for sequence, arriving in zip(run.sequences, arrivals, strict=True):
            if arriving.arrival == step:
                of.in_flight.submit(sequence)
            if arriving.departure == step:
                of.in_flight.cancel(sequence)
        arrived = [s for s, arriving in zip(run.sequences, arrivals, strict=True) if arriving.arrival <= step]
        in_flight = [s for s in arrived if s.finish_reason is None]
        if in_flight:
            running = len(of.in_flight.step())
            run.observe([s for s in in_flight if s.finish_reason is None], running)
        elif len(arrived) == len(arrivals):
            return run


def run_alone(of: DecoderSession, arrivals: Sequence[ArrivingRequest], logits: bool = False) -> list[Result]:
    """Return the answer to each request alone; `logits` asks for those of new tokens, except of a beam search."""
    requests = [arriving.request for arriving in arrivals]
    if logits:
        requests = [replace(r, return_generation_logits=r.sampling.num_beams == 1) for r in requests]
    return [generate(of, [request])[0] for request in requests]


def assert_explained(found: Sequence[int], alone: Result, request: Request) -> None:
    """Check that ids are equal, or differ first at a token that was nearly a tie."""
    first = next((i for i, (a, b) in enumerate(zip(found, alone.output_ids, strict=False)) if a != b), None)
    if first is None:
        assert len(found) == len(alone.output_ids)
        return
    assert alone.generation_logits is not None
    sequence = TokenSequence(0, request, output_ids=list(alone.output_ids[:first]))
    logits = process(alone.generation_logits[first : first + 1].clone(), [sequence])[0]
    if request.sampling.draws:
        number = [sequence.random.random() for _ in range(first + 1)][-1]
        ends = logits.softmax(-1).cumsum(-1, dtype=torch.float64).tolist()
        below, above = ends[found[first]] - logits.softmax(-1)[found[first]].item(), ends[found[first]]
        assert below - TIE < number < above + TIE, (first, number, below, above)
    else:
        assert logits.max() - logits[found[first]] < TIE, (first, found[first])


def assert_same_beams(found: Result, alone: Result) -> None:
    """Check that scores are equal, and ids too unless two scores are a tie."""
    scores = [beam.score for beam in alone.beams]
    assert all(abs(a.score - b) < TIE for a, b in zip(found.beams, scores, strict=True)), scores
    tied = any(a - b < TIE for a, b in pairwise(scores))
    assert tied or [beam.output_ids for beam in found.beams] == [beam.output_ids for beam in alone.beams]
