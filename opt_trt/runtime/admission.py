"""What the rows of a search, its beams or candidates, ask of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opt_trt.config.sampling import SamplingParams

if TYPE_CHECKING:
    from opt_trt.runtime.request import Request
    from opt_trt.step import DecoderSpec


def describe_rows(sampling: SamplingParams) -> str:
    """How many there are, and what they are called: `3 beams`."""
    return f"{sampling.num_rows} {'candidates' if sampling.penalty_alpha else 'beams'}"


def rows_problem(request: Request, spec: DecoderSpec) -> str | None:
    """Why the engine cannot serve the rows of a request, or None."""
    sampling, most = request.sampling, min(spec.max_batch_size, spec.max_num_tokens)
    if sampling.num_rows > most:
        return (
            f"asks for {describe_rows(sampling)}, each a sequence of the batch, of which the engine takes {most}; "
            f"lower {'--top_k' if sampling.penalty_alpha else '--num_beams'} or build with a larger --max_batch_size"
        )
    if sampling.num_beams > 1 and request.stop_words is not None:
        return "asks for beams and for stop words, which follow a single output; drop --num_beams or --stop_words"
    if sampling.num_beams > 1 and request.return_generation_logits:
        return "asks for beams and for generation logits, which follow a single output; drop one of the two"
    return None
