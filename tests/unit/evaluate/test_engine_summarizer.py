"""The engine's side: what is asked of a session, and which engines are refused before the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.evaluate.engine_summarizer import EngineSummarizer
from opt_trt.evaluate.perplexity import mean_nll
from opt_trt.evaluate.summarizer import Demand
from opt_trt.runtime.request import Request, Result
from opt_trt.step import DecoderSpec
from tests.unit._sessions import AnsweringSession

SPEC = DecoderSpec(
    num_layers=1, num_heads=1, head_size=8, vocab_size=6, kv_dtype=torch.float32, tokens_per_block=8, max_batch_size=2,
    max_input_len=8, max_seq_len=12, max_num_tokens=64, gather_context_logits=True, gather_generation_logits=True,
    end_id=2, pad_id=1,
)  # fmt: skip
TABLE = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))  # logits after each token: a bigram model
PROMPT, OUTPUT = (2, 3, 4, 5), (0, 3, 5)


class BigramSession(AnsweringSession):
    """Logits depend on the last token alone, so that every text can be scored by looking it up."""

    def __init__(self, spec: DecoderSpec = SPEC) -> None:
        super().__init__(spec, self._answer)

    def _answer(self, request: Request) -> Result:
        output: list[int] = []
        last = request.prompt_ids[-1]
        rows = []
        while len(output) < request.max_new_tokens and (not output or output[-1] != request.end_id):
            rows.append(TABLE[last])
            last = int(TABLE[last].argmax())
            output.append(last)
        context = TABLE[list(request.prompt_ids)] if request.return_context_logits else None
        generation = torch.stack(rows) if request.return_generation_logits else None
        return Result(request.prompt_ids, tuple(output), "length", context, generation)


def demand(longest_prompt: int = 4, output_len: int = 3, perplexity: bool = False, largest_id: int = 5) -> Demand:
    return Demand(longest_prompt, largest_id, output_len, perplexity)


def test_a_batch_is_submitted_together() -> None:
    session = BigramSession()
    outputs = EngineSummarizer(session, 3, end_ids=()).generate([PROMPT, (2, 5)])
    assert session.in_flight.steps == [[Request(PROMPT, 3), Request((2, 5), 3)]]
    assert [len(o) for o in outputs] == [3, 3]


def test_text_is_scored_as_one_prompt() -> None:
    session = BigramSession()
    nll = EngineSummarizer(session, 3, end_ids=()).mean_nll(PROMPT, OUTPUT)
    assert session.in_flight.steps == [[Request(PROMPT + OUTPUT, 1, return_context_logits=True)]]
    assert nll == pytest.approx(mean_nll(TABLE[[2, 3, 4, 5, 0, 3]], (3, 4, 5, 0, 3, 5)))


def test_text_too_long_for_a_prompt_is_scored_while_generated() -> None:
    session = BigramSession()
    summarizer = EngineSummarizer(session, 3, end_ids=())
    prompt = (2, 3, 4, 5, 0, 1, 3)  # 7 + 3 tokens, prompts have at most 8
    (output,) = summarizer.generate([prompt])
    whole = prompt + output
    assert summarizer.mean_nll(prompt, output) == pytest.approx(mean_nll(TABLE[list(whole[:-1])], whole[1:]))
    assert session.in_flight.steps[-1][0].return_generation_logits


def test_a_prompt_of_one_token_can_be_scored_while_generated() -> None:
    session = BigramSession(replace(SPEC, max_input_len=3))
    summarizer = EngineSummarizer(session, 3, end_ids=())
    (output,) = summarizer.generate([(2,)])
    whole = (2, *output)
    assert summarizer.mean_nll((2,), output) == pytest.approx(mean_nll(TABLE[list(whole[:-1])], whole[1:]))


def test_what_fits_passes() -> None:
    EngineSummarizer(BigramSession(), 3, 2).check(demand(longest_prompt=8, output_len=4, perplexity=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (demand(longest_prompt=9), "prompts of max_input_len=8 tokens, the longest has 9; give --max_input_length 8"),
        (demand(longest_prompt=8, output_len=5), "max_seq_len=12 tokens a sequence, prompt plus output take 13"),
        (demand(largest_id=6), "has 6 tokens but the prompts use id 6"),
    ],
)
def test_what_the_engine_was_not_built_for_is_refused(asked: Demand, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineSummarizer(BigramSession(), 3, 2).check(asked)


def test_perplexity_needs_context_logits() -> None:
    session = BigramSession(replace(SPEC, gather_context_logits=False))
    with pytest.raises(UserError, match="--eval_ppl needs an engine built with --gather_context_logits"):
        EngineSummarizer(session, 3, 2).check(demand(perplexity=True))


def test_texts_too_long_to_be_scored_are_refused_before_the_run() -> None:
    session = BigramSession(replace(SPEC, gather_generation_logits=False))
    summarizer = EngineSummarizer(session, 3, 2)
    summarizer.check(demand(longest_prompt=5, output_len=3, perplexity=True))
    with pytest.raises(UserError, match=r"--max_input_len 9 --max_seq_len 10 or with --gather_generation_logits"):
        summarizer.check(demand(longest_prompt=6, output_len=3, perplexity=True))
