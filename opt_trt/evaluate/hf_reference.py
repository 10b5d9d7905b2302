"""The reference that engines are compared with: Hugging Face transformers, on this machine.

No code from the model directory runs, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from opt_trt.config.sampling import CHANGING, GREEDY, OPTIONS, Sampling, of_its_own
from opt_trt.config.sampling_options import Kind
from opt_trt.errors import UserError
from opt_trt.evaluate.perplexity import mean_nll
from opt_trt.evaluate.summarizer import Demand, TokenIds
from opt_trt.host.progress import quiet_unless_terminal

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
EARLY_STOPPING = (False, True, "never")  # by TensorRT-LLM's numbers


@dataclass(frozen=True)
class Decoding:
    """The way to generate: by `sampling`, until one of `end_ids` or `output_len` tokens; `pad_id` fills prompts."""

    output_len: int
    end_ids: tuple[int, ...]
    pad_id: int
    sampling: Sampling = GREEDY


class HfReference:
    """A transformers model as a `Summarizer`; it computes in the type asked for, also in fp16 on a CPU."""

    def __init__(self, model_dir: Path, dtype: str, decoding: Decoding) -> None:
        self._where = model_dir
        self._decoding = decoding
        self._model = _load(model_dir, DTYPES[dtype])
        # Replaced as a whole, so that nothing in generation_config.json (beams, penalties, sampling) has an effect.
        self._model.generation_config = GenerationConfig(
            **_choice(decoding.sampling),
            max_new_tokens=decoding.output_len,
            bos_token_id=None,
            eos_token_id=list(decoding.end_ids) or None,
            pad_token_id=decoding.pad_id,
        )

    def check(self, demand: Demand) -> None:
        """Refuse ids without an embedding, and more positions than the model has."""
        config = self._model.config
        largest = max(demand.largest_id, self._decoding.pad_id)
        if largest >= config.vocab_size:
            raise UserError(
                f"{self._where} has {config.vocab_size} tokens but the prompts or --pad_id use id {largest}; "
                "give the model's own tokenizer with --tokenizer_dir"
            )
        needed = demand.longest_prompt + demand.output_len
        if needed > config.max_position_embeddings:
            raise UserError(
                f"{self._where} has {config.max_position_embeddings} positions but prompt plus output take {needed}; "
                "lower --max_input_length or --output_len"
            )

    def generate(self, prompts: Sequence[TokenIds]) -> list[TokenIds]:
        """Return the new tokens of each prompt, up to and including the end token."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._decoding.pad_id)  # [B, T], padded on the left
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode(), torch.random.fork_rng(devices=()):
            torch.manual_seed(of_its_own(self._decoding.sampling.random_seed, tuple(prompts)))
            sequences = self._model.generate(input_ids=ids, attention_mask=mask)
        return [_up_to_end(row.tolist(), self._decoding.end_ids) for row in sequences[:, longest:]]

    def mean_nll(self, prompt: TokenIds, output: TokenIds) -> float:
        """Compute it in one pass over the whole text, without padding: the batch size cannot change it."""
        whole = prompt + output
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]  # [T, V]
        return mean_nll(logits[:-1], whole[1:])


def _load(model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    if not (model_dir / "config.json").is_file():
        raise UserError(f"expected a Hugging Face model with config.json in {model_dir}; check --hf_model_dir")
    try:
        with quiet_unless_terminal(
            transformers_logging.is_progress_bar_enabled,
            transformers_logging.disable_progress_bar,
            transformers_logging.enable_progress_bar,
        ):
            model, info = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # damaged files raise a dozen unrelated types here
        # Only the first sentence: in the next ones torch recommends to load pickles without its protection.
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UserError(
            f"transformers cannot load {model_dir} ({type(error).__name__}: {reason}); fetch its files again"
        ) from error
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"{model_dir} lacks {len(info['missing_keys'])} weights ({names}, ...), which transformers would fill with "
            "random numbers; fetch the model again"
        )
    return model.eval()


def _choice(sampling: Sampling) -> dict[str, Any]:
    """Return the fields of a `GenerationConfig` that say which tokens are chosen."""
    has_beams = sampling.num_beams > 1
    acting = {*CHANGING, *((Kind.FILTER,) if sampling.draws else ()), *((Kind.BEAMS,) if has_beams else ())}
    chosen: dict[str, Any] = {"do_sample": sampling.draws}
    for name, row in OPTIONS.items():
        if row.transformers is not None and row.kind in acting:
            value = getattr(sampling, name)
            chosen[row.transformers] = row.transformers_off if value in row.neutral else value
    if has_beams:
        chosen |= {"num_beams": sampling.num_beams, "early_stopping": EARLY_STOPPING[sampling.early_stopping]}
    return chosen


def _up_to_end(output: list[int], end_ids: tuple[int, ...]) -> TokenIds:
    """Drop the padding `generate` puts behind rows that ended before the longest one."""
    end = next((place for place, token_id in enumerate(output, start=1) if token_id in end_ids), len(output))
    return tuple(output[:end])
