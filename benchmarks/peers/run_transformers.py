"""transformers with its defaults: eager execution, `generate`, one dtype for everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import OPTForCausalLM
from worker import LoadedModel, Prompts, run


def load(model: str, dtype: str) -> OPTForCausalLM:
    """Load the model in a dtype."""
    return OPTForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()


def opened(model: OPTForCausalLM, dtype: str, **options: object) -> LoadedModel:
    """Return the model with `generate` and further options."""

    @torch.inference_mode()
    def answer(ids: torch.Tensor, output_len: int, **further: bool) -> Any:
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=output_len, do_sample=False,
            eos_token_id=None, pad_token_id=1, **options, **further,
        )  # fmt: skip

    def generate(ids: torch.Tensor, output_len: int) -> list[list[int]]:
        return answer(ids, output_len)[:, ids.shape[1] :].tolist()

    def logits(prompts: Prompts) -> np.ndarray:
        told = (answer(prepare([row]), 1, return_dict_in_generate=True, output_logits=True) for row in prompts)
        return np.concatenate([one.logits[0] for one in told])

    computes = {"weights": dtype, "head": dtype, "kv_cache": dtype, "activations": dtype}
    return LoadedModel(computes, prepare, generate, logits)


def prepare(prompts: Prompts) -> torch.Tensor:
    """Return ids with one row per prompt."""
    return torch.tensor(prompts)


def open_model(model: str, dtype: str) -> LoadedModel:
    """Open the model for eager execution."""
    return opened(load(model, dtype), dtype)


if __name__ == "__main__":
    run(open_model)
