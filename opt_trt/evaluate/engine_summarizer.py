"""An engine as a `Summarizer`: it turns prompts into requests, and scores texts by their context logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opt_trt.config.sampling import GREEDY, Sampling, of_its_own
from opt_trt.errors import UserError
from opt_trt.evaluate.perplexity import mean_nll
from opt_trt.evaluate.summarizer import Demand, TokenIds
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session


class EngineSummarizer:
    """An open session that summarizes; every output ends at one of `end_ids` or after `output_len` tokens.

    Texts draw tokens with random numbers of their own, so that they do not share their luck.
    """

    def __init__(
        self, session: Session, output_len: int, end_ids: tuple[int, ...], sampling: Sampling = GREEDY
    ) -> None:
        self._session = session
        self._output_len = output_len
        self._end_ids = end_ids
        self._sampling = sampling

    def check(self, demand: Demand) -> None:
        """Refuse what the engine was not built for, and name the flags that change it."""
        spec = self._session.spec
        if demand.largest_id >= spec.vocab_size:
            raise UserError(
                f"the engine has {spec.vocab_size} tokens but the prompts use id {demand.largest_id}; "
                "give the model's own tokenizer with --tokenizer_dir"
            )
        if demand.longest_prompt > spec.max_input_len:
            raise UserError(
                f"the engine takes prompts of max_input_len={spec.max_input_len} tokens, the longest has "
                f"{demand.longest_prompt}; give --max_input_length {spec.max_input_len} or build with more"
            )
        needed = demand.longest_prompt + demand.output_len
        if needed > spec.max_seq_len:
            raise UserError(
                f"the engine holds max_seq_len={spec.max_seq_len} tokens a sequence, prompt plus output take {needed}; "
                "lower --max_input_length or --output_len, or build with more"
            )
        if demand.perplexity:
            self._check_perplexity(needed)

    def generate(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        """Return the new tokens of each prompt; all prompts are submitted together."""
        requests = [self._request(prompt, self._output_len) for prompt in prompts]
        return [result.output_ids for result in generate(self._session, requests)]

    def mean_nll(self, prompt: TokenIds, output: TokenIds) -> float:
        """Score a text on its own, so that the logits of only one sequence are in memory."""
        whole = prompt + output
        if self._fits_as_prompt(len(whole)):
            (result,) = generate(self._session, [Request(whole, 1, return_context_logits=True)])
            assert result.context_logits is not None
            return mean_nll(result.context_logits[:-1], whole[1:])
        return self._mean_nll_by_generating(prompt, len(output))

    def _mean_nll_by_generating(self, prompt: TokenIds, output_len: int) -> float:
        """Generate the text again and keep the logits of both phases, because it is too long for a prompt."""
        request = self._request(prompt, output_len)
        request = replace(request, return_context_logits=True, return_generation_logits=True)
        (result,) = generate(self._session, [request])
        context, generation = result.context_logits, result.generation_logits
        assert context is not None and generation is not None
        n_context, n_generation = len(prompt) - 1, len(result.output_ids)
        parts = [
            mean_nll(logits, targets) * len(targets)
            for logits, targets in ((context[:-1], prompt[1:]), (generation, result.output_ids))
            if targets
        ]
        return sum(parts) / (n_context + n_generation)

    def _request(self, prompt: TokenIds, output_len: int) -> Request:
        sampling = self._sampling
        if sampling.draws:
            sampling = replace(sampling, random_seed=of_its_own(sampling.random_seed, prompt))
        return Request(prompt, output_len, sampling=sampling).ending_at(self._end_ids)

    def _fits_as_prompt(self, length: int) -> bool:
        spec = self._session.spec
        return length <= spec.max_input_len and length < spec.max_seq_len

    def _check_perplexity(self, needed: int) -> None:
        spec = self._session.spec
        if not spec.gather_context_logits:
            raise UserError("--eval_ppl needs an engine built with --gather_context_logits; run build.py again with it")
        if not self._fits_as_prompt(needed) and not spec.gather_generation_logits:
            raise UserError(
                f"--eval_ppl scores texts of up to {needed} tokens as prompts; the engine's max_input_len="
                f"{spec.max_input_len} and max_seq_len={spec.max_seq_len} do not hold them; "
                f"build with --max_input_len {needed} --max_seq_len {needed + 1} or with --gather_generation_logits, "
                "or lower --max_input_length"
            )
