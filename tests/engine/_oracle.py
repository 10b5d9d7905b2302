"""The greedy outputs of transformers, and a comparison with them that allows for ties."""

from __future__ import annotations

import torch

TIE = 1e-4  # top-2 logits closer than this may swap between two orders of summation


def reference_ids(model, prompt, new_tokens):
    """Return greedy ids of transformers, and the gap between the two best logits at each of them."""
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=1
    )[0, len(prompt) :].tolist()
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    top = logits.topk(2).values
    return ids, (top[:, 0] - top[:, 1]).tolist()


def assert_same_or_tie(found, expected, gaps):
    """Check that ids are equal, or equal up to a step whose two best logits are a tie."""
    first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), None)
    assert first is None or gaps[first] < TIE, f"token {first}: {found[first]} instead of {expected[first]}"
