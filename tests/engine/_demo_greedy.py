"""Greedy summaries of the demo's articles by transformers in fp32: those of tests/golden, and fresh ones.

`python -m tests.engine._demo_greedy` writes those of tests/golden again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import OPTForCausalLM

from opt_trt.evaluate.prompts import prompt_text
from opt_trt.text.tokenizer import load_tokenizer
from tests._processes import ROOT
from tests.engine._oracle import TIE, assert_same_or_tie

MODEL = ROOT / "examples/demo/model"
ARTICLES = ROOT / "examples/demo/test.jsonl"
GOLDEN = ROOT / "tests/golden/demo_greedy.json"
EVERY = 2  # tests/golden has 128 of 256 articles
NEW_TOKENS = 100
CLOSE = 10 * TIE  # larger gaps are not written: no order of summation bridges them


@dataclass(frozen=True)
class ReferenceRow:
    """The ids that transformers adds to a prompt, and how far apart its two best logits were at each of them."""

    prompt: tuple[int, ...]
    ids: Sequence[int]
    gaps: Sequence[float]

    def check(self, found: Sequence[int]) -> None:
        """Compare with ids that may end earlier or later than these where there is a tie."""
        length = max(len(self.ids), len(found))
        expected, ids = ([*row, *[-1] * (length - len(row))] for row in (self.ids, found))
        assert_same_or_tie(ids, expected, [*self.gaps, *[1.0] * (length - len(self.gaps))])


def prompts() -> list[tuple[int, ...]]:
    """Return all articles as prompts, in the order of their lengths: batches need little padding then."""
    tokenizer = load_tokenizer(MODEL)
    articles = [json.loads(line)["article"] for line in ARTICLES.read_text().splitlines()]
    return sorted((tokenizer.encode(prompt_text(article), 923) for article in articles), key=len)


def golden_rows() -> list[ReferenceRow]:
    """Read the outputs of transformers for every second article, from tests/golden."""
    rows = json.loads(GOLDEN.read_text())
    return [
        ReferenceRow(prompt, ids, [close.get(str(token), 1.0) for token in range(len(ids))])
        for prompt, (ids, close) in zip(prompts()[::EVERY], rows, strict=True)
    ]


def write_golden() -> None:
    """Write one line for each row: its ids, and the gaps below `CLOSE` by their places."""
    lines = [
        json.dumps([row.ids, {token: round(gap, 6) for token, gap in enumerate(row.gaps) if gap < CLOSE}])
        for row in fresh_rows()[::EVERY]
    ]
    GOLDEN.write_text("[\n" + ",\n".join(lines) + "\n]\n")


@functools.cache
def fresh_rows() -> list[ReferenceRow]:
    """Return the outputs of transformers for all articles, computed now."""
    model, asked = OPTForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), prompts()
    return [row for first in range(0, len(asked), 16) for row in _fresh(model, asked[first : first + 16])]


def _fresh(model: OPTForCausalLM, batch: Sequence[tuple[int, ...]]) -> Iterator[ReferenceRow]:
    longest = max(map(len, batch))
    ids = torch.tensor([[1] * (longest - len(p)) + list(p) for p in batch])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=(ids != 1).long(), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=2,
            pad_token_id=1, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    top = torch.stack(out.logits, 1).topk(2).values  # [B, N, 2]
    for prompt, row, gaps in zip(batch, out.sequences[:, longest:].tolist(), top[..., 0] - top[..., 1], strict=True):
        length = row.index(2) + 1 if 2 in row else len(row)
        yield ReferenceRow(prompt, row[:length], gaps[:length].tolist())


if __name__ == "__main__":
    write_golden()
