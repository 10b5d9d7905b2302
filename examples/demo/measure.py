"""Measure how well the demo model summarizes its test set, and how much of that survives rounding.

    python examples/demo/measure.py

It prints a table of ROUGE-1: transformers in fp32 and in fp16, the linears rounded to 8, 4, 3 and 2 bits, and two
summarizers without a model: the best constant text, and the first three sentences of the article.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import news
import torch
import train
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from transformers import AutoTokenizer, OPTForCausalLM

HERE = Path(__file__).parent
NEW_TOKENS = 100
BATCH_ROWS = 32
LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
SCORER = RougeScorer(["rouge1"], use_stemmer=False)


@dataclass(frozen=True)
class DemoArticle:
    """An article of the test set and its right summary."""

    article: str
    highlights: str


def read_rows(path: Path) -> list[DemoArticle]:
    """Read the rows of a test set."""
    return [
        DemoArticle(r["article"], r["highlights"])
        for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def rouge1(rows: list[DemoArticle], summarize: Callable[[int], str]) -> float:
    """Return the mean ROUGE-1 F1 of the summaries of all rows, between 0 and 100."""
    scores = [SCORER.score(row.highlights, summarize(i))["rouge1"].fmeasure for i, row in enumerate(rows)]
    return 100 * sum(scores) / len(scores)


def load(folder: Path, dtype: torch.dtype, bits: int | None = None) -> OPTForCausalLM:
    """Load the model in a dtype; round its linears to `bits` if they are given."""
    model = OPTForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    for name, module in model.named_modules():
        if bits and name.endswith(LINEARS):
            module.weight.data = rounded(module.weight.data, bits)
    return model


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Round a weight to a symmetric grid of some bits, with one scale for each output channel."""
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / top
    return (weight / scale).round().clamp(-top, top) * scale


def summaries(model: OPTForCausalLM, folder: Path, rows: list[DemoArticle]) -> list[str]:
    """Return greedy summaries of all articles."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [train.prompt_tokens(tokenizer, row.article) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    texts = [""] * len(rows)
    for start in range(0, len(rows), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        for i, ids in zip(chosen, generate(model, [prompts[i] for i in chosen]), strict=True):
            texts[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return texts


@torch.inference_mode()
def generate(model: OPTForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Return the greedy tokens behind each prompt; prompts are padded on the left so that all end together."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[train.PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)
    return out[:, longest:].tolist()


def lead(article: str) -> str:
    """Return the first three sentences."""
    return " ".join(re.split(r"(?<=[.!?]) ", article)[:3])


def constants(rows: list[DemoArticle]) -> list[str]:
    """Return constant texts that could score well: summaries of training stories, and common words of the test set.

    The words are chosen from the test set itself, so they are an upper bound for the score of a constant text.
    """
    texts = [news.story("train", train.SEED, index).highlights for index in range(500)]
    common = Counter(word for row in rows for word in set(re.findall(r"\w+", row.highlights.lower())))
    ranked = [word for word, _ in common.most_common(30)]
    return texts + [" ".join(ranked[:count]) for count in range(1, len(ranked) + 1)]


def main() -> None:
    """Print the table, each line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--rows", type=int, help="use only this many rows")
    options = parser.parse_args()
    rows = read_rows(HERE / "test.jsonl")[: options.rows]
    constant = max(rouge1(rows, lambda _, text=text: text) for text in constants(rows))
    print(f"| best constant text | {constant:.2f} |", flush=True)
    print(f"| first three sentences | {rouge1(rows, lambda i: lead(rows[i].article)):.2f} |", flush=True)
    settings = [("fp32", torch.float32, None), ("fp16", torch.float16, None)]
    settings += [(f"{bits} bits", torch.float32, bits) for bits in (8, 4, 3, 2)]
    for name, dtype, bits in settings:
        texts = summaries(load(options.model, dtype, bits), options.model, rows)
        print(f"| {name} | {rouge1(rows, texts.__getitem__):.2f} |", flush=True)


if __name__ == "__main__":
    main()
